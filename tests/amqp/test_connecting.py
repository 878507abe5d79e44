"""Who cannot connect is told why, at once; what can pass is not mistaken for what cannot."""

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest

from cqrs_brokers import (
    AuthenticationError,
    AuthorizationError,
    Broker,
    ConnectError,
    ConnectionLostError,
    DeliveryError,
    InsecureTransportWarning,
    Message,
    NotConnectedError,
    NotDeliveredError,
    ProtocolError,
    PublishForbiddenError,
    Receipt,
    TLSError,
    TopologyError,
    UnreachableError,
    open_broker,
)
from cqrs_brokers_testkit.certificates import Certificates
from cqrs_brokers_testkit.leaks import no_leaks
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.readers import bind_queue
from cqrs_brokers_testkit.servers import RabbitMQNode
from tests.dead_address import DEAD, useless_address

from .nodes import private_node
from .outcomes import Sent, check, not_the_proxys

pytestmark = pytest.mark.fault

Name = Callable[[str], str]


async def why(broker: Broker, within: float = 2.0) -> ConnectError:
    """Why connect() fails, and that a send says the same; nothing is left behind."""
    async with no_leaks():
        started = time.monotonic()
        with pytest.raises(ConnectError) as caught:
            await broker.connect()
        assert time.monotonic() - started < within
        if caught.value.permanent:
            with pytest.raises(NotConnectedError) as refused:
                await broker.send_message(Message("n", "t", 1))
            assert type(refused.value.__cause__) is type(caught.value)
            assert not refused.value.retryable
            assert time.monotonic() - started < within
        await broker.close()
    return caught.value


async def test_wrong_password(rabbitmq_node: RabbitMQNode) -> None:
    """A wrong password is AuthenticationError."""
    error = await why(open_broker(rabbitmq_node.url_for("guest", "wrong-secret")))
    assert type(error) is AuthenticationError
    assert "wrong-secret" not in str(error)


async def test_missing_virtual_host(rabbitmq_node: RabbitMQNode) -> None:
    """A virtual host that is not there is AuthorizationError, and says so."""
    error = await why(open_broker(rabbitmq_node.url_for(vhost="nowhere")))
    assert type(error) is AuthorizationError
    assert "there is no such virtual host" in str(error)


async def test_forbidden_virtual_host(rabbitmq_node: RabbitMQNode, unique_name: Name) -> None:
    """A virtual host that the user may not use is AuthorizationError with another text."""
    user = unique_name("user")
    rabbitmq_node.add_user(user, "pass-word", vhost=None)
    error = await why(open_broker(rabbitmq_node.url_for(user, "pass-word")))
    assert type(error) is AuthorizationError
    assert "may not use the virtual host" in str(error)


async def test_forbidden_declaration(rabbitmq_node: RabbitMQNode, unique_name: Name) -> None:
    """Who may not declare the exchange is told, and can set declare=passive."""
    user, exchange = unique_name("user"), unique_name("exchange")
    bind_queue(rabbitmq_node.url, exchange)
    rabbitmq_node.add_user(user, "pass-word", vhost=None)
    rabbitmq_node.set_permissions(user, configure="^$")
    url = rabbitmq_node.url_for(user, "pass-word", exchange=exchange)
    error = await why(open_broker(url))
    assert type(error) is AuthorizationError
    assert "declare=passive" in str(error)
    async with open_broker(url + "&declare=passive") as broker:
        assert (await broker.send_message(Message("n", "t", 1))).confirmed


async def test_forbidden_write(rabbitmq_node: RabbitMQNode, unique_name: Name) -> None:
    """Without write permission every send is PublishForbiddenError, however many at once; once granted, sends work."""
    user, exchange = unique_name("user"), unique_name("exchange")
    queue = bind_queue(rabbitmq_node.url, exchange)
    rabbitmq_node.add_user(user, "pass-word", vhost=None)
    rabbitmq_node.set_permissions(user, write="^$")
    async with open_broker(rabbitmq_node.url_for(user, "pass-word", exchange=exchange)) as broker:
        started = time.monotonic()
        messages = [Message("n", "t", number) for number in range(200)]
        sent: list[Sent] = list(zip(messages, await broker.send_messages(messages), strict=True))
        assert {type(outcome) for _, outcome in sent} == {PublishForbiddenError}
        with pytest.raises(PublishForbiddenError, match="write permission"):
            await broker.send_message(Message("n", "t", 1))
        assert time.monotonic() - started < 2
        rabbitmq_node.set_permissions(user)
        last = Message("n", "t", 1)
        sent.append((last, await broker.send_message(last)))
    assert len(await check(rabbitmq_node.url, queue, sent)) == 1


@pytest.mark.parametrize("bad", ["bad", "access to exchange"])
async def test_forbidden_topics(rabbitmq_node: RabbitMQNode, unique_name: Name, bad: str) -> None:
    """A forbidden routing key never gives its error to a neighbour: they get receipts, or it is unknown."""
    user, exchange = unique_name("user"), unique_name("exchange")
    queue = bind_queue(rabbitmq_node.url, exchange)
    rabbitmq_node.add_user(user, "pass-word")
    rabbitmq_node.ctl("set_topic_permissions", "-p", "/", user, exchange, "^good", ".*")
    sent: list[Sent] = []
    async with open_broker(rabbitmq_node.url_for(user, "pass-word", exchange=exchange)) as broker:
        for topics in ([bad, "good", "good"], [bad], ["good", bad, "good", "good", bad, "good"] * 10, ["good"]):
            messages = [Message("n", topic, 0) for topic in topics]
            sent += zip(messages, await broker.send_messages(messages), strict=True)
    assert type(sent[0][1]) is PublishForbiddenError  # the first on its channel: those that waited are not told so
    assert [type(outcome) for _, outcome in sent[1:4]] == [Receipt, Receipt, PublishForbiddenError]
    for message, outcome in sent:
        assert message.topic == bad or not isinstance(outcome, NotDeliveredError)
        assert message.topic == "good" or not isinstance(outcome, Receipt)
    assert isinstance(sent[-1][1], Receipt)
    await check(rabbitmq_node.url, queue, sent)


async def test_rotated_password(rabbitmq_node: RabbitMQNode, unique_name: Name) -> None:
    """A password changed under way: in flight is unknown, then sends fail at once, until it is right again."""
    user, exchange = unique_name("user"), unique_name("exchange")
    queue = bind_queue(rabbitmq_node.url, exchange)
    rabbitmq_node.add_user(user, "pass-word")
    sent: list[Sent] = []

    async def send(broker: Broker, count: int) -> list[Receipt | DeliveryError]:
        messages = [Message("n", "t", number, key="k") for number in range(count)]
        outcomes = await broker.send_messages(messages)
        sent.extend(zip(messages, outcomes, strict=True))
        return outcomes

    async with FaultProxy((rabbitmq_node.host, rabbitmq_node.port)) as proxy:
        url = rabbitmq_node.url_for(user, "pass-word", port=proxy.port, exchange=exchange)
        async with no_leaks(ignore=not_the_proxys(proxy, rabbitmq_node)), open_broker(url) as broker:
            assert isinstance((await send(broker, 1))[0], Receipt)
            for connection in list(proxy.connections):
                connection.stall("up")  # what is sent stays in flight
            in_flight = asyncio.create_task(send(broker, 20))
            await asyncio.to_thread(rabbitmq_node.ctl, "change_password", user, "other")
            await asyncio.to_thread(rabbitmq_node.close_all_connections)
            assert {type(outcome) for outcome in await in_flight} == {ConnectionLostError}
            proxy.heal()
            started = time.monotonic()
            (refused,) = await send(broker, 1)
            ended = time.monotonic()
            assert ended - started < 1
            assert type(refused) is NotConnectedError
            assert type(refused.__cause__) is AuthenticationError
            assert not refused.retryable
            accepted = proxy.accepted
            await asyncio.sleep(1.5)
            assert proxy.accepted == accepted, "it goes on trying"
            await asyncio.to_thread(rabbitmq_node.ctl, "change_password", user, "pass-word")
            await asyncio.sleep(max(0.0, ended + 5.1 - time.monotonic()))
            assert isinstance((await send(broker, 1))[0], Receipt)
            assert proxy.accepted == accepted + 1
    await check(rabbitmq_node.url, queue, sent)


@pytest.mark.parametrize("reason", ["missing virtual host", "an exchange that differs"])
async def test_no_second_try_at_what_cannot_pass(rabbitmq_node: RabbitMQNode, exchange: str, reason: str) -> None:
    """What a person must change is not tried again by itself, and a send is not retryable."""
    differs = reason == "an exchange that differs"
    vhost = "/" if differs else "limits"  # nor does its name make it a limit that is reached
    bind_queue(rabbitmq_node.url, exchange, exchange_type="fanout")
    async with FaultProxy((rabbitmq_node.host, rabbitmq_node.port)) as proxy:
        broker = open_broker(rabbitmq_node.url_for(vhost=vhost, port=proxy.port, exchange=exchange))
        sends = [asyncio.create_task(broker.send_message(Message("n", "t", number))) for number in range(10)]
        outcomes = await asyncio.gather(*sends, return_exceptions=True)
        await asyncio.sleep(1.5)
        assert proxy.accepted == 1
        await broker.close()
    for outcome in outcomes:
        assert type(outcome) is NotConnectedError
        assert type(outcome.__cause__) is (TopologyError if differs else AuthorizationError)
        assert not outcome.retryable


@pytest.mark.parametrize("reason", ["at its limit", "down"])
async def test_a_virtual_host_that_takes_nobody_for_now(
    rabbitmq_node: RabbitMQNode, unique_name: Name, reason: str
) -> None:
    """A virtual host at its limit or stopped is only unreachable, and a send waits until it can be used."""
    vhost = unique_name("vhost")
    stop, start = {
        "at its limit": (
            ("set_vhost_limits", "-p", vhost, '{"max-connections": 0}'),
            ("clear_vhost_limits", "-p", vhost),
        ),
        "down": (
            ("eval", f'rabbit_vhost_sup_sup:stop_and_delete_vhost(<<"{vhost}">>).'),
            ("restart_vhost", "-p", vhost),
        ),
    }[reason]
    await asyncio.to_thread(rabbitmq_node.add_vhost, vhost)
    url = rabbitmq_node.url_for(vhost=vhost)
    queue = bind_queue(url, "events")
    await asyncio.to_thread(rabbitmq_node.ctl, *stop)
    error = await why(open_broker(url))
    assert type(error) is UnreachableError
    assert error.retryable
    broker = open_broker(url)
    message = Message("n", "t", 1)
    send = asyncio.create_task(broker.send_message(message))
    await asyncio.to_thread(rabbitmq_node.ctl, *start)
    receipt = await send
    await broker.close()
    await check(url, queue, [(message, receipt)])


@pytest.fixture
def silent_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


async def test_nobody_there(unused_tcp_port: int) -> None:
    """A refused port is UnreachableError, at once, and retryable."""
    error = await why(open_broker(f"amqp://127.0.0.1:{unused_tcp_port}"))
    assert type(error) is UnreachableError
    assert error.retryable
    assert "refuses connections" in str(error)


async def test_silent_peer(silent_port: int) -> None:
    """A peer that accepts and says nothing is UnreachableError at connect_timeout."""
    started = time.monotonic()
    error = await why(open_broker(f"amqp://127.0.0.1:{silent_port}?connect_timeout=1s"), within=2.5)
    assert type(error) is UnreachableError
    assert "does not answer within 1 s" in str(error)
    assert time.monotonic() - started >= 0.9


async def test_unknown_host() -> None:
    """A name that does not resolve is UnreachableError and names DNS."""
    with pytest.warns(InsecureTransportWarning):
        broker = open_broker("amqp://u:pass-word@nowhere.invalid?connect_timeout=5s")
    error = await why(broker, within=6)
    assert type(error) is UnreachableError
    assert "cannot be resolved" in str(error)


async def test_not_amqp() -> None:
    """A peer that speaks something else is ProtocolError."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" + b" " * 200)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        error = await why(open_broker(f"amqp://127.0.0.1:{server.sockets[0].getsockname()[1]}?connect_timeout=2s"), 3)
    assert type(error) in (ProtocolError, UnreachableError)


async def test_next_host(rabbitmq_node: RabbitMQNode, unused_tcp_port: int, unique_name: Name) -> None:
    """With several hosts the first one that works is taken, at connecting and after its connection is lost."""
    exchange = unique_name("exchange")
    bind_queue(rabbitmq_node.url, exchange)
    async with FaultProxy((rabbitmq_node.host, rabbitmq_node.port)) as proxy:
        hosts = f"127.0.0.1:{unused_tcp_port},{proxy.address},127.0.0.1:{rabbitmq_node.port}"
        async with open_broker(f"amqp://guest:guest@{hosts}/?exchange={exchange}") as broker:
            assert (await broker.send_message(Message("n", "t", 1))).confirmed
            assert proxy.accepted == 1
            proxy.refuse()
            proxy.reset()
            await asyncio.sleep(0.3)
            assert (await broker.send_message(Message("n", "t", 1))).confirmed
            assert proxy.accepted == 1


async def test_the_most_telling_reason(rabbitmq_node: RabbitMQNode, unused_tcp_port: int) -> None:
    """When all hosts fail, the reason that a person must act on is raised, and the others are told."""
    error = await why(
        open_broker(f"amqp://guest:wrong-one@127.0.0.1:{unused_tcp_port},127.0.0.1:{rabbitmq_node.port}/")
    )
    assert type(error) is AuthenticationError
    assert "refuses connections" in str(error)


async def test_a_restarting_node_is_only_unreachable(rabbitmq_node: RabbitMQNode, unique_name: Name) -> None:
    """While the node stops and starts there is no permanent error, and a waiting send gets through."""
    exchange = unique_name("exchange")
    bind_queue(rabbitmq_node.url, exchange)
    broker = open_broker(f"{rabbitmq_node.url}?exchange={exchange}")
    seen: list[type[ConnectError]] = []
    await broker.connect()
    await asyncio.to_thread(rabbitmq_node.stop_app)
    starting = asyncio.create_task(asyncio.to_thread(rabbitmq_node.start_app))
    send = asyncio.create_task(broker.send_message(Message("n", "t", 1)))
    while not send.done():
        other = open_broker(f"{rabbitmq_node.url}?exchange={exchange}")
        try:
            await other.connect()
        except ConnectError as error:
            seen.append(type(error))
        await other.close()
        await asyncio.sleep(0.05)
    await starting
    assert (await send).confirmed
    assert set(seen) <= {UnreachableError}
    assert seen
    await broker.close()


@pytest.fixture(scope="module")
def tls_node(certificates: Certificates) -> Iterator[RabbitMQNode]:
    with private_node(certificates=certificates) as node:
        yield node


async def test_tls(tls_node: RabbitMQNode, certificates: Certificates, unique_name: Name) -> None:
    """With the right authority messages go over TLS, and closing leaves nothing."""
    exchange = unique_name("exchange")
    bind_queue(tls_node.url, exchange)
    async with no_leaks():
        url = tls_node.url_for(tls=True, host="localhost", exchange=exchange, ssl_cafile=certificates.ca)
        async with open_broker(url) as broker:
            outcomes = await broker.send_messages([Message("n", "t", b"x" * 10_000) for _ in range(200)])
            assert all(isinstance(outcome, Receipt) for outcome in outcomes)


async def test_tls_and_an_address_that_says_nothing(
    tls_node: RabbitMQNode, certificates: Certificates, names: dict[str, Callable[[], list[str]]]
) -> None:
    """The first address takes the connection and makes no handshake: the same attempt goes on with the next address."""
    names["localhost"] = lambda: [DEAD, "127.0.0.1"]
    url = tls_node.url_for(tls=True, host="localhost", ssl_cafile=certificates.ca, connect_timeout="4s")
    port = urlsplit(url).port
    assert port is not None
    async with useless_address(port, hangs_up=False), open_broker(url) as broker:
        assert (await broker.health()).ok


async def test_tls_that_is_not_trusted(tls_node: RabbitMQNode, certificates: Certificates) -> None:
    """An unknown authority, and a TLS handshake with a plain port, are TLSError."""
    unknown = await why(open_broker(tls_node.url_for(tls=True, ssl_cafile=certificates.other_ca)))
    assert type(unknown) is TLSError
    assert "not trusted" in str(unknown)
    plain = await why(open_broker(tls_node.url_for(tls=True, port=tls_node.port, ssl_cafile=certificates.ca)), within=3)
    assert type(plain) is TLSError


async def test_plain_text_to_a_tls_port(tls_node: RabbitMQNode) -> None:
    """Plain text to a TLS port fails, and never falls back."""
    error = await why(open_broker(tls_node.url_for(port=tls_node.tls_port, connect_timeout="2s")), within=3)
    assert type(error) in (ProtocolError, UnreachableError)


@pytest.mark.parametrize("which", ["expired", "wrong_host"])
async def test_bad_server_certificates(certificates: Certificates, which: str) -> None:
    """An expired certificate and one for another host are TLSError."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served = certificates.serving(which)
    context.load_cert_chain(served.server, served.server_key)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        error = await why(open_broker(f"amqps://guest:guest@localhost:{port}?ssl_cafile={certificates.ca}"))
    assert type(error) is TLSError
