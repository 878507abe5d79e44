"""TLS to a real Kafka: what is trusted works, what is not gives exactly one class, and plain text is never tried.

One node serves all of it: the listeners that the test kit would give to PLAINTEXT and SASL speak TLS here, with bad
certificates, and one requires a client certificate.
"""

import asyncio
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cqrs_broker_kafka import KafkaMessageBroker, KafkaProducerAdapter
from cqrs_broker_kafka._client import Connection
from cqrs_brokers import Broker, InsecureTransportWarning, Message, ProtocolError, TLSError, open_broker
from cqrs_brokers.dialing import dial
from cqrs_brokers_testkit.certificates import Certificates
from cqrs_brokers_testkit.leaks import no_leaks
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.readers import drain_topic
from cqrs_brokers_testkit.servers import KafkaCluster
from cqrs_brokers_testkit.servers import kafka as start_kafka

from .refusals import TLS_HANDSHAKE, refused, wiretap

pytestmark = pytest.mark.fault

Name = Callable[[str], str]

LISTENERS = {
    "plain": "INTERNAL",
    "tls": "SSL",
    "mtls": "SASL_SSL",
    "expired": "PLAINTEXT",
    "wrong_host": "SASL_PLAINTEXT",
}


@pytest.fixture(scope="module")
def cluster(
    certificates: Certificates, kafka: object, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KafkaCluster]:
    """The node (`kafka` is asked for only to skip where there is none)."""
    folder = tmp_path_factory.mktemp("keystores")
    protocols = {"CONTROLLER": "PLAINTEXT", "INTERNAL": "PLAINTEXT"}
    properties = {"listener.name.sasl_ssl.ssl.client.auth": "required"}
    for name in ("tls", "mtls", "expired", "wrong_host"):
        protocols[LISTENERS[name]] = "SSL"
    for name in ("expired", "wrong_host"):
        keystore = folder / f"{name}.pem"
        served = certificates.serving(name)
        keystore.write_bytes(served.server_key.read_bytes() + served.server.read_bytes())
        prefix = f"listener.name.{LISTENERS[name].lower()}.ssl"
        properties |= {f"{prefix}.keystore.type": "PEM", f"{prefix}.keystore.location": str(keystore)}
    properties["listener.security.protocol.map"] = ",".join(f"{name}:{speaks}" for name, speaks in protocols.items())
    with start_kafka(sasl_users={"unused": "unused"}, certificates=certificates, properties=properties) as made:
        yield made


def address(cluster: KafkaCluster, listener: str) -> str:
    return cluster.bootstrap(LISTENERS[listener])  # type: ignore[arg-type]


def url(cluster: KafkaCluster, listener: str, **options: object) -> str:
    return f"kafka://{address(cluster, listener)}?" + "&".join(f"{name}={value}" for name, value in options.items())


def context(cafile: Path, *client: Path) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=cafile)
    if client:
        made.load_cert_chain(*client)
    return made


def by_string(cluster: KafkaCluster, certificates: Certificates) -> Broker:
    return open_broker(url(cluster, "tls", security_protocol="SSL", ssl_cafile=certificates.ca, require_tls="true"))


def by_object(cluster: KafkaCluster, certificates: Certificates) -> Broker:
    return open_broker(url(cluster, "tls", security_protocol="SSL"), ssl_context=context(certificates.ca))


def by_adapter(cluster: KafkaCluster, certificates: Certificates) -> Broker:
    producer = KafkaProducerAdapter(
        [address(cluster, "tls")], security_protocol="SSL", ssl_cafile=str(certificates.ca), client_id="tls"
    )
    return KafkaMessageBroker(producer=producer)


def by_adapter_object(cluster: KafkaCluster, certificates: Certificates) -> Broker:
    producer = KafkaProducerAdapter(
        address(cluster, "tls"), security_protocol="SSL", ssl_context=context(certificates.ca)
    )
    return KafkaMessageBroker(producer=producer)


def mutual_by_string(cluster: KafkaCluster, certificates: Certificates) -> Broker:
    own = {"ssl_certfile": certificates.client, "ssl_keyfile": certificates.client_key}
    return open_broker(url(cluster, "mtls", security_protocol="SSL", ssl_cafile=certificates.ca, **own))


def mutual_by_object(cluster: KafkaCluster, certificates: Certificates) -> Broker:
    made = context(certificates.ca, certificates.client, certificates.client_key)
    return open_broker(url(cluster, "mtls", security_protocol="SSL"), ssl_context=made)


@pytest.mark.parametrize(
    "opened", [by_string, by_object, by_adapter, by_adapter_object, mutual_by_string, mutual_by_object]
)
async def test_what_is_trusted_works(
    cluster: KafkaCluster,
    certificates: Certificates,
    unique_name: Name,
    opened: Callable[[KafkaCluster, Certificates], Broker],
) -> None:
    """A message goes over TLS and is in the topic, and closing leaves nothing."""
    topic = unique_name("topic")
    cluster.create_topic(topic)
    async with no_leaks():
        async with opened(cluster, certificates) as broker:
            assert (await broker.send_message(Message("Happened", topic, b"over TLS"))).confirmed
    assert [record.body for record in drain_topic(cluster.reader_bootstrap_servers, topic, 1)] == [b"over TLS"]


async def test_receipts_without_answers_come_over_tls(
    cluster: KafkaCluster, certificates: Certificates, unique_name: Name
) -> None:
    """With acks=0 each message has its receipt as soon as the system has taken it, one by one and many at a time."""
    topic = unique_name("topic")
    cluster.create_topic(topic)
    unsafe = {"acks": "0", "enable_idempotence": "false", "allow_unsafe": "true"}
    tls = {"security_protocol": "SSL", "ssl_cafile": certificates.ca}
    bodies = [b"%d" % n for n in range(5)] + [b"x" * 40_000] * 200
    async with open_broker(url(cluster, "tls", **tls, **unsafe, delivery_timeout="15s")) as broker:
        messages = [Message("Happened", topic, body) for body in bodies]
        receipts = [await broker.send_message(message) for message in messages[:5]]
        receipts += await asyncio.gather(*(broker.send_message(message) for message in messages[5:]))
    assert not any(receipt.confirmed for receipt in receipts)
    records = drain_topic(cluster.reader_bootstrap_servers, topic, len(bodies))
    assert sorted(record.body for record in records) == sorted(bodies)


async def test_no_receipt_without_an_answer_is_early_over_tls(
    cluster: KafkaCluster, certificates: Certificates, unique_name: Name, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With acks=0 no message has its receipt while bytes of it wait in this process, encrypted or not."""
    cluster.create_topic(topic := unique_name("topic"), 6)
    written: list[tuple[Connection, int]] = []
    write = Connection.write

    def counted(connection: Connection, request: bytes, answered: Any) -> None:
        written.append((connection, len(request)))
        write(connection, request, answered)

    monkeypatch.setattr(Connection, "write", counted)
    host, _, port = address(cluster, "tls").rpartition(":")
    async with FaultProxy((host, int(port))) as proxy:
        monkeypatch.setattr(
            "cqrs_broker_kafka._client.open_socket",
            lambda _, *, timeout: dial(proxy.host, proxy.port, timeout=timeout),
        )
        unsafe = {"acks": "0", "enable_idempotence": "false", "allow_unsafe": "true"}
        tls = {"security_protocol": "SSL", "ssl_cafile": certificates.ca}
        async with open_broker(url(cluster, "tls", **tls, **unsafe, delivery_timeout="25s")) as broker:
            await broker.send_message(Message("Happened", topic, b"warm"))
            written.clear()
            proxy.stall("up")
            messages = [Message("Happened", topic, b"x" * 900_000, key=str(number)) for number in range(30)]
            sends = [asyncio.create_task(broker.send_message(message)) for message in messages]
            for _ in range(20):
                await asyncio.sleep(0.05)
                ((connection, _), *_) = written
                assert connection._writer is not None
                held = connection._writer.transport.get_write_buffer_size() + connection._socket.get_write_buffer_size()
                told = sum(send.done() for send in sends)
                assert told * 900_000 + held <= sum(size for _, size in written)
            assert held > 0
            assert told < len(sends)
            proxy.heal()
            receipts = await asyncio.gather(*sends)
        # While the proxy is there: what it holds is on its way.
        arrived = await asyncio.to_thread(drain_topic, cluster.reader_bootstrap_servers, topic, 31)
    assert not any(receipt.confirmed for receipt in receipts)
    assert len(arrived) == 31


@pytest.mark.parametrize(
    ("listener", "options", "says"),
    [
        pytest.param("tls", {"ssl_cafile": "other_ca"}, "authority that is not trusted", id="unknown authority"),
        pytest.param("tls", {}, "authority that is not trusted", id="unknown to the system"),
        pytest.param("expired", {"ssl_cafile": "ca"}, "expired", id="expired"),
        pytest.param("wrong_host", {"ssl_cafile": "ca"}, "is for another address", id="wrong host"),
        pytest.param("plain", {"ssl_cafile": "ca"}, "is this its TLS port", id="plain listener"),
        pytest.param("mtls", {"ssl_cafile": "ca"}, "client certificate", id="client certificate missing"),
    ],
)
@pytest.mark.parametrize("form", ["string", "object"])
async def test_what_is_not_trusted_is_a_tls_error(
    cluster: KafkaCluster, certificates: Certificates, form: str, listener: str, options: dict[str, str], says: str
) -> None:
    """Each reason has its words, is permanent, and comes within two seconds."""
    files = {name: getattr(certificates, which) for name, which in options.items()}
    if form == "string":
        broker = open_broker(url(cluster, listener, security_protocol="SSL", **files))
    else:
        made = ssl.create_default_context(cafile=files.get("ssl_cafile"))
        broker = open_broker(url(cluster, listener, security_protocol="SSL"), ssl_context=made)
    error = await refused(broker)
    assert type(error) is TLSError
    assert error.permanent
    assert says in error.text


async def test_a_client_certificate_of_another_authority(cluster: KafkaCluster, certificates: Certificates) -> None:
    """Kafka does not accept it: TLSError, permanent."""
    own = {"ssl_certfile": certificates.other_ca, "ssl_keyfile": certificates.other_ca.with_suffix(".key")}
    broker = open_broker(url(cluster, "mtls", security_protocol="SSL", ssl_cafile=certificates.ca, **own))
    assert type(await refused(broker)) is TLSError


async def test_plain_text_to_a_tls_listener(cluster: KafkaCluster) -> None:
    """The listener hangs up at the first request, twice: the protocol is wrong, permanent, and the text says TLS."""
    error = await refused(open_broker(url(cluster, "tls", security_protocol="PLAINTEXT")))
    assert type(error) is ProtocolError
    assert "TLS listener" in error.text


async def test_never_plain_text_after_a_failed_handshake(
    cluster: KafkaCluster, certificates: Certificates, unique_name: Name
) -> None:
    """Whatever fails, each connection is a TLS handshake, and neither the client's name nor its password is sent."""
    password, client = unique_name("password"), unique_name("client")
    user = {"sasl_plain_username": "bob", "sasl_plain_password": password, "client_id": client}
    for listener, cafile in (("plain", certificates.ca), ("tls", certificates.other_ca)):
        host, port = address(cluster, listener).split(":")
        with wiretap(host, int(port)) as (proxy, said):
            text = f"kafka://{proxy.host}:{proxy.port}?security_protocol=SASL_SSL&ssl_cafile={cafile}&"
            text += "&".join(f"{name}={value}" for name, value in user.items())
            assert type(await refused(open_broker(text))) is TLSError
            sent = b"".join(said)
            hellos = [chunk for chunk in said if chunk[0] == TLS_HANDSHAKE]
            assert len(hellos) == proxy.accepted, "each connection begins with a handshake"
            assert password.encode() not in sent
            assert client.encode() not in sent


async def test_nothing_is_readable_on_the_wire(
    cluster: KafkaCluster, certificates: Certificates, unique_name: Name
) -> None:
    """Not even the client's name is in what it sends; the same over plain text is there, so the tap works."""
    client = unique_name("client")
    readable = {}
    for listener in ("tls", "plain"):
        host, port = address(cluster, listener).split(":")
        tls = f"&security_protocol=SSL&ssl_cafile={certificates.ca}" if listener == "tls" else ""
        with wiretap(host, int(port)) as (proxy, said):
            async with open_broker(f"kafka://{proxy.host}:{proxy.port}?client_id={client}{tls}"):
                readable[listener] = client.encode() in b"".join(said)
    assert readable == {"tls": False, "plain": True}


@pytest.mark.parametrize("listener", ["tls", "expired", "wrong_host"])
async def test_without_verification_it_works_and_warns(cluster: KafkaCluster, unique_name: Name, listener: str) -> None:
    """ssl_verify=false takes any certificate."""
    topic = unique_name("topic")
    cluster.create_topic(topic)
    with pytest.warns(InsecureTransportWarning, match="ssl_verify"):
        broker = open_broker(url(cluster, listener, security_protocol="SSL", ssl_verify="false"))
    async with broker:
        assert (await broker.send_message(Message("Happened", topic, {}))).confirmed
