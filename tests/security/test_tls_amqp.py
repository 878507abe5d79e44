"""TLS to a real RabbitMQ: what is trusted works, what is not gives exactly one class, and plain text is never tried.

One node serves all of it: beside the TLS listener of the test kit it gets listeners with bad certificates, and one that
requires a client certificate.
"""

import asyncio
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cqrs_broker_amqp import AMQPMessageBroker, AMQPPublisherAdapter
from cqrs_brokers import Broker, Message, ProtocolError, TLSError, UnreachableError, open_broker
from cqrs_brokers_testkit.certificates import Certificates
from cqrs_brokers_testkit.leaks import no_leaks
from cqrs_brokers_testkit.readers import bind_queue, drain_queue
from cqrs_brokers_testkit.servers import RabbitMQNode, free_port
from cqrs_brokers_testkit.servers import rabbitmq as start_rabbitmq

from .refusals import TLS_HANDSHAKE, refused, wiretap

pytestmark = pytest.mark.fault

Name = Callable[[str], str]


@dataclass(frozen=True)
class Listeners:
    """One node and its ports by what they do."""

    node: RabbitMQNode
    ports: dict[str, int]

    def url(self, listener: str, *, tls: bool = True, **query: object) -> str:
        return self.node.url_for(port=self.ports[listener], tls=tls, **query)


@pytest.fixture(scope="module")
def listeners(certificates: Certificates, rabbitmq: object) -> Iterator[Listeners]:
    """The node (`rabbitmq` is asked for only to skip where there is none)."""
    served = {"expired": "expired", "wrong_host": "wrong_host", "mtls": "server", "only_1.2": "wrong_host"}
    ports = {name: free_port() for name in served}
    with start_rabbitmq(certificates=certificates) as node:
        node.ctl("eval", " ".join(_listen(ports[name], certificates, served[name], name) for name in served) + " ok.")
        assert node.tls_port is not None
        yield Listeners(node, {"plain": node.port, "tls": node.tls_port, **ports})


def _listen(port: int, certificates: Certificates, which: str, name: str) -> str:
    """Erlang that opens a TLS listener; RabbitMQ's configuration has only one set of options for all of them."""
    files = {
        "cacertfile": certificates.ca,
        "certfile": getattr(certificates, which),
        "keyfile": getattr(certificates, f"{which}_key"),
    }
    options = "".join(f'{{{option}, "{path}"}}, ' for option, path in files.items())
    if name == "only_1.2":
        options += "{versions, ['tlsv1.2']}, "
    # Only the listener with the good server certificate asks the client for one.
    verify = "verify_peer}, {fail_if_no_peer_cert, true" if which == "server" else "verify_none"
    return f'rabbit_networking:start_ssl_listener({{"127.0.0.1", {port}}}, [{options}{{verify, {verify}}}], 1),'


def context(cafile: Path, *client: Path) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=cafile)
    if client:
        made.load_cert_chain(*client)
    return made


def by_string(listeners: Listeners, certificates: Certificates, exchange: str) -> Broker:
    return open_broker(listeners.url("tls", ssl_cafile=certificates.ca, exchange=exchange, require_tls="true"))


def by_object(listeners: Listeners, certificates: Certificates, exchange: str) -> Broker:
    return open_broker(listeners.url("tls", exchange=exchange), ssl_context=context(certificates.ca))


def by_adapter(listeners: Listeners, certificates: Certificates, exchange: str) -> Broker:
    publisher = AMQPPublisherAdapter(dsn=listeners.url("tls"), ssl_cafile=str(certificates.ca))
    return AMQPMessageBroker(publisher=publisher, exchange_name=exchange)


def by_adapter_object(listeners: Listeners, certificates: Certificates, exchange: str) -> Broker:
    publisher = AMQPPublisherAdapter(dsn=listeners.url("tls"), ssl_context=context(certificates.ca))
    return AMQPMessageBroker(publisher=publisher, exchange_name=exchange)


def mutual_by_string(listeners: Listeners, certificates: Certificates, exchange: str) -> Broker:
    own = {"ssl_certfile": certificates.client, "ssl_keyfile": certificates.client_key}
    return open_broker(listeners.url("mtls", ssl_cafile=certificates.ca, exchange=exchange, **own))


def mutual_by_object(listeners: Listeners, certificates: Certificates, exchange: str) -> Broker:
    made = context(certificates.ca, certificates.client, certificates.client_key)
    return open_broker(listeners.url("mtls", exchange=exchange), ssl_context=made)


@pytest.mark.parametrize(
    "opened", [by_string, by_object, by_adapter, by_adapter_object, mutual_by_string, mutual_by_object]
)
async def test_what_is_trusted_works(
    listeners: Listeners,
    certificates: Certificates,
    unique_name: Name,
    opened: Callable[[Listeners, Certificates, str], Broker],
) -> None:
    """A message goes over TLS and is in the queue, and closing leaves nothing."""
    exchange = unique_name("exchange")
    queue = bind_queue(listeners.node.url, exchange)
    async with no_leaks():
        async with opened(listeners, certificates, exchange) as broker:
            assert (await broker.send_message(Message("Happened", "t", b"over TLS"))).confirmed
    assert [record.body for record in drain_queue(listeners.node.url, queue, 1)] == [b"over TLS"]


@pytest.mark.parametrize(
    ("listener", "options", "says"),
    [
        pytest.param("tls", {"ssl_cafile": "other_ca"}, "not trusted", id="unknown authority"),
        pytest.param("tls", {}, "not trusted", id="unknown to the system"),
        pytest.param("expired", {"ssl_cafile": "ca"}, "expired", id="expired"),
        pytest.param("wrong_host", {"ssl_cafile": "ca"}, "another address", id="wrong host"),
        pytest.param("plain", {"ssl_cafile": "ca"}, "TLS port", id="plain listener"),
    ],
)
@pytest.mark.parametrize("form", ["string", "object"])
async def test_what_is_not_trusted_is_a_tls_error(
    listeners: Listeners, certificates: Certificates, form: str, listener: str, options: dict[str, str], says: str
) -> None:
    """Each reason has its words, is permanent, and comes within two seconds."""
    files = {name: getattr(certificates, which) for name, which in options.items()}
    if form == "string":
        broker = open_broker(listeners.url(listener, **files))
    else:
        made = ssl.create_default_context(cafile=files.get("ssl_cafile"))
        broker = open_broker(listeners.url(listener), ssl_context=made)
    error = await refused(broker)
    assert type(error) is TLSError
    assert error.permanent
    assert says in error.text


@pytest.mark.parametrize("own", ["none", "of another authority"])
async def test_without_an_accepted_client_certificate(
    listeners: Listeners, certificates: Certificates, own: str
) -> None:
    """RabbitMQ refuses it, within two seconds.

    With TLS 1.3 it does so after the handshake, and hangs up on what the client has sent meanwhile: TCP may throw the
    alert away that says why, and only the reset is left.
    """
    files = {"ssl_certfile": certificates.other_ca, "ssl_keyfile": certificates.other_ca.with_suffix(".key")}
    broker = open_broker(
        listeners.url("mtls", ssl_cafile=certificates.ca, **(files if own == "of another authority" else {}))
    )
    error = await refused(broker)
    assert (type(error), error.permanent) == (TLSError, True)
    assert "client certificate" in error.text


async def test_a_client_certificate_is_refused_with_its_reason(
    listeners: Listeners, certificates: Certificates
) -> None:
    """Where the alert arrives (TLS 1.2 refuses within the handshake) it is TLSError, permanent, and says so."""
    made = context(certificates.ca)
    made.maximum_version = ssl.TLSVersion.TLSv1_2
    error = await refused(open_broker(listeners.url("mtls"), ssl_context=made))
    assert type(error) is TLSError
    assert "client certificate" in error.text


async def test_no_version_of_tls_in_common(listeners: Listeners, certificates: Certificates) -> None:
    """The text says so, and does not send anybody to look for certificates."""
    newest = context(certificates.ca)
    newest.minimum_version = ssl.TLSVersion.TLSv1_3
    broker = open_broker(listeners.url("only_1.2"), ssl_context=newest)
    with pytest.raises(TLSError, match="no version of TLS in common") as caught:
        await broker.connect()
    assert "certificate" not in str(caught.value)
    await broker.close()


async def test_a_reset_after_the_handshake_twice_in_a_row_is_a_tls_error(certificates: Certificates) -> None:
    """Settings that never connected, and a peer that hangs up after each handshake: a person must look at it."""
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(certificates.server, certificates.server_key)

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.transport.abort()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=served) as server:
        port = server.sockets[0].getsockname()[1]
        error = await refused(open_broker(f"amqps://guest:guest@127.0.0.1:{port}?ssl_cafile={certificates.ca}"))
    assert type(error) is TLSError


async def test_plain_text_to_a_tls_listener(listeners: Listeners) -> None:
    """RabbitMQ hangs up without a word, as a starting node does: unreachable, not permanent, and the text says TLS."""
    error = await refused(open_broker(listeners.url("tls", tls=False)))
    assert type(error) is UnreachableError
    assert "TLS port" in error.text


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"220 mail ready\r\n"])
async def test_a_peer_that_speaks_something_else(greeting: bytes) -> None:
    """Reached, but no AMQP: ProtocolError, permanent."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(greeting)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        error = await refused(open_broker(f"amqp://guest:guest@127.0.0.1:{port}"))
    assert type(error) is ProtocolError


async def test_never_plain_text_after_a_failed_handshake(
    listeners: Listeners, certificates: Certificates, unique_name: Name
) -> None:
    """Whatever fails, each connection starts with a TLS handshake and no password is on the wire."""
    password = unique_name("password")
    for listener, cafile in (("plain", certificates.ca), ("tls", certificates.other_ca)):
        with wiretap("127.0.0.1", listeners.ports[listener]) as (proxy, said):
            url = listeners.node.url_for("guest", password, port=proxy.port, tls=True, ssl_cafile=cafile)
            assert type(await refused(open_broker(url))) is TLSError
            assert proxy.accepted == 1, "no second connection, so no other protocol either"
            assert said[0][0] == TLS_HANDSHAKE
            assert b"AMQP" not in b"".join(said)
            assert password.encode() not in b"".join(said)


async def test_nothing_is_readable_on_the_wire(
    listeners: Listeners, certificates: Certificates, unique_name: Name
) -> None:
    """Neither user nor body is in what the client sends; the same over plain text is there, so the tap works."""
    exchange, body = unique_name("exchange"), unique_name("body")
    bind_queue(listeners.node.url, exchange)
    readable = {}
    for listener, tls in (("tls", True), ("plain", False)):
        with wiretap("127.0.0.1", listeners.ports[listener]) as (proxy, said):
            query = {"exchange": exchange, **({"ssl_cafile": certificates.ca} if tls else {})}
            async with open_broker(listeners.node.url_for(port=proxy.port, tls=tls, **query)) as broker:
                assert (await broker.send_message(Message("Happened", "t", {"x": body}))).confirmed
            sent = b"".join(said)
        readable[listener] = (b"guest" in sent, body.encode() in sent, exchange.encode() in sent)
    assert readable == {"tls": (False, False, False), "plain": (True, True, True)}


@pytest.mark.filterwarnings("default::cqrs_brokers.InsecureTransportWarning")
@pytest.mark.parametrize("listener", ["tls", "expired", "wrong_host"])
async def test_without_verification_it_works(listeners: Listeners, unique_name: Name, listener: str) -> None:
    """ssl_verify=false takes any certificate."""
    exchange = unique_name("exchange")
    bind_queue(listeners.node.url, exchange)
    async with open_broker(listeners.url(listener, ssl_verify="false", exchange=exchange)) as broker:
        assert (await broker.send_message(Message("Happened", "t", {}))).confirmed
