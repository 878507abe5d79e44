"""Why Kafka cannot be reached is told apart, within two seconds, on a real one with SASL and TLS listeners."""

import asyncio
import contextlib
import errno
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from cqrs_brokers import (
    AuthenticationError,
    ConnectError,
    ConnectionLostError,
    Message,
    NotConnectedError,
    ProtocolError,
    TLSError,
    UnreachableError,
    open_broker,
)
from cqrs_brokers_testkit.certificates import Certificates
from cqrs_brokers_testkit.leaks import no_leaks
from cqrs_brokers_testkit.readers import drain_topic
from cqrs_brokers_testkit.servers import KafkaCluster
from cqrs_brokers_testkit.servers import kafka as start_kafka
from tests.dead_address import DEAD, dead_address

pytestmark = pytest.mark.fault

USER = "&sasl_plain_username=alice&sasl_plain_password=alice-secret"
WRONG = "&sasl_plain_username=alice&sasl_plain_password=wr0ng-secret"


@pytest.fixture(scope="module")
def secured(certificates: Certificates, kafka: object) -> Iterator[KafkaCluster]:
    """A Kafka with every kind of listener (`kafka` is asked for only to skip where there is none)."""
    with start_kafka(sasl_users={"alice": "alice-secret"}, certificates=certificates) as cluster:
        yield cluster


def url(secured: KafkaCluster, listener: str, options: str) -> str:
    return f"kafka://{secured.bootstrap(listener)}?{options}"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("listener", "options"),
    [
        ("SASL_PLAINTEXT", "security_protocol=SASL_PLAINTEXT&sasl_mechanism=PLAIN" + USER),
        ("SASL_PLAINTEXT", "security_protocol=SASL_PLAINTEXT&sasl_mechanism=SCRAM-SHA-256" + USER),
        ("SASL_PLAINTEXT", "security_protocol=SASL_PLAINTEXT&sasl_mechanism=SCRAM-SHA-512" + USER),
        ("SSL", "security_protocol=SSL&ssl_cafile={ca}"),
        ("SASL_SSL", "security_protocol=SASL_SSL&ssl_cafile={ca}" + USER),
    ],
)
async def test_right_settings(secured: KafkaCluster, certificates: Certificates, listener: str, options: str) -> None:
    """Each protocol and mechanism works, and leaves nothing behind."""
    topic = f"secured-{listener.lower()}-{abs(hash(options))}"
    secured.create_topic(topic)
    async with no_leaks():
        async with open_broker(url(secured, listener, options.format(ca=certificates.ca))) as broker:
            assert (await broker.send_message(Message("E", topic, {}))).offset == 0


@pytest.mark.parametrize(
    ("listener", "options", "expected", "says"),
    [
        ("SASL_PLAINTEXT", "security_protocol=SASL_PLAINTEXT" + WRONG, AuthenticationError, "password"),
        (
            "SASL_PLAINTEXT",
            "security_protocol=SASL_PLAINTEXT&sasl_mechanism=SCRAM-SHA-256" + WRONG,
            AuthenticationError,
            "password",
        ),
        ("SASL_SSL", "security_protocol=SASL_SSL&ssl_cafile={ca}" + WRONG, AuthenticationError, "password"),
        ("PLAINTEXT", "security_protocol=SASL_PLAINTEXT" + USER, ProtocolError, "does not use SASL"),
        ("SASL_PLAINTEXT", "client_id=x", ProtocolError, "wants SASL"),
        ("SASL_SSL", "security_protocol=SSL&ssl_cafile={ca}", ProtocolError, "wants SASL"),
        ("SSL", "client_id=x", ProtocolError, "TLS listener"),
        ("PLAINTEXT", "security_protocol=SSL&ssl_cafile={ca}", TLSError, "TLS"),
        ("SSL", "security_protocol=SSL&ssl_cafile={other}", TLSError, "certificate"),
        ("SSL", "security_protocol=SSL", TLSError, "certificate"),
    ],
)
async def test_wrong_settings(
    secured: KafkaCluster,
    certificates: Certificates,
    listener: str,
    options: str,
    expected: type[ConnectError],
    says: str,
) -> None:
    """Each mistake has its class and a hint, within 2 s; nothing is left behind and no secret is shown."""
    text = url(secured, listener, options.format(ca=certificates.ca, other=certificates.other_ca))
    loop = asyncio.get_running_loop()
    async with no_leaks():
        broker = open_broker(text)
        started = loop.time()
        with pytest.raises(expected, match=says) as caught:
            await broker.connect()
        assert loop.time() - started < 2
        assert type(caught.value) is expected
        await broker.close()
    shown = repr(caught.value) + str(caught.value) + repr(caught.value.__cause__)
    assert "secret" not in shown


async def test_wrong_host_name(certificates: Certificates, kafka: object) -> None:
    """A certificate for another host is TLSError."""
    with start_kafka(certificates=certificates.serving("wrong_host")) as cluster:
        broker = open_broker(url(cluster, "SSL", f"security_protocol=SSL&ssl_cafile={certificates.ca}"))
        with pytest.raises(TLSError, match="is for another address"):
            await broker.connect()
        await broker.close()


async def test_mechanism_not_enabled(certificates: Certificates, kafka: object) -> None:
    """A SASL mechanism that the listener does not offer is AuthenticationError."""
    properties = {"sasl.enabled.mechanisms": "PLAIN", "listener.name.sasl_plaintext.sasl.enabled.mechanisms": "PLAIN"}
    with start_kafka(sasl_users={"alice": "alice-secret"}, properties=properties) as cluster:
        text = url(cluster, "SASL_PLAINTEXT", "security_protocol=SASL_PLAINTEXT&sasl_mechanism=SCRAM-SHA-512" + USER)
        broker = open_broker(text)
        with pytest.raises(AuthenticationError, match="mechanism"):
            await broker.connect()
        await broker.close()


@pytest.mark.parametrize(("host", "says"), [("127.0.0.1:1", "refuses"), ("no-such-host.invalid:9092", "resolved")])
async def test_nobody_there(host: str, says: str) -> None:
    """Refused and unresolvable are UnreachableError within 2 s, each with its reason."""
    loop = asyncio.get_running_loop()
    async with no_leaks():
        broker = open_broker(f"kafka://{host}")
        started = loop.time()
        with pytest.raises(UnreachableError, match=says):
            await broker.connect()
        assert loop.time() - started < 2
        await broker.close()


async def test_a_name_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text says that the name was not resolved, and not that somebody took a connection."""
    answer = threading.Event()
    resolve = socket.getaddrinfo

    def slow(host: str, *arguments: Any, **keywords: Any) -> Any:
        if host == "slow.test":
            answer.wait(20)
        return resolve("127.0.0.1" if host == "slow.test" else host, *arguments, **keywords)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    broker = open_broker("kafka://slow.test:9092", connect_timeout=1.0, delivery_timeout=3.0)
    with pytest.raises(NotConnectedError, match=r"the name of slow\.test:9092 was not resolved"):
        await broker.send_message(Message("n", "t", 1))
    assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 1) == "free"
    await broker.close(1)
    answer.set()


async def test_an_address_that_drops_packets(unused_tcp_port: int) -> None:
    """Nobody took the connection, and the text does not say so."""
    with dead_address(unused_tcp_port):
        broker = open_broker(f"kafka://{DEAD}:{unused_tcp_port}", connect_timeout=1.0)
        with pytest.raises(UnreachableError, match="does not answer: check address and network"):
            await broker.connect()
        await broker.close(1)


@pytest.mark.parametrize("options", ["", "?security_protocol=SSL"], ids=["plain", "TLS"])
async def test_an_address_to_which_there_is_no_way(monkeypatch: pytest.MonkeyPatch, options: str) -> None:
    """Nobody took the connection, with TLS either, and the text does not say so."""

    async def no_way(addresses: object, *, timeout: float | None = None) -> socket.socket:
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    monkeypatch.setattr("cqrs_broker_kafka._client.open_socket", no_way)
    broker = open_broker(f"kafka://127.0.0.1:9092{options}", connect_timeout=1.0)
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9092 cannot be reached \(No route to host\)"):
        await broker.connect()
    await broker.close()


@pytest.fixture
async def silent_host() -> AsyncIterator[str]:
    """A host that takes connections and says nothing."""
    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for writer in writers:
        writer.close()
    server.close()
    await server.wait_closed()


async def test_silent_host_delays_nobody(kafka_node: KafkaCluster, silent_host: str) -> None:
    """A silent host before one that works: connected at once."""
    loop = asyncio.get_running_loop()
    broker = open_broker(f"kafka://{silent_host},{kafka_node.bootstrap_servers}")
    started = loop.time()
    await broker.connect()
    assert loop.time() - started < 2
    await broker.close()


async def test_silent_host_alone(silent_host: str) -> None:
    """Only a silent host: UnreachableError at connect_timeout."""
    loop = asyncio.get_running_loop()
    broker = open_broker(f"kafka://{silent_host}?connect_timeout=1s")
    started = loop.time()
    with pytest.raises(UnreachableError, match="does not answer"):
        await broker.connect()
    assert 0.8 < loop.time() - started < 2
    await broker.close()


def set_password(cluster: KafkaCluster, user: str, password: bytes) -> None:
    """Sets a password, and leaves no client behind that would go on asking for its server in later tests."""
    import confluent_kafka.admin

    admin: Any = confluent_kafka.admin  # its names are re-exported in a way that mypy does not accept
    client = admin.AdminClient({"bootstrap.servers": cluster.reader_bootstrap_servers, "log_level": 0})
    new = admin.ScramCredentialInfo(admin.ScramMechanism.SCRAM_SHA_256, 4096)
    change = admin.UserScramCredentialUpsertion(user, new, password)
    client.alter_user_scram_credentials([change])[user].result(10)


async def test_rotated_password(certificates: Certificates, kafka: object) -> None:
    """The password is changed while we are connected, and the broker restarts: AuthenticationError, not a timeout."""
    loop = asyncio.get_running_loop()
    with start_kafka(sasl_users={"alice": "alice-secret"}) as cluster:
        cluster.create_topic("rotated")
        options = "security_protocol=SASL_PLAINTEXT&sasl_mechanism=SCRAM-SHA-256&delivery_timeout=15s" + USER
        async with open_broker(url(cluster, "SASL_PLAINTEXT", options)) as broker:
            first = await broker.send_message(Message("E", "rotated", {}, key="k"))
            set_password(cluster, "alice", b"another-secret")
            await asyncio.to_thread(cluster.restart)
            started = loop.time()
            sends = [asyncio.create_task(broker.send_message(Message("E", "rotated", {}, key="k"))) for _ in range(3)]
            await asyncio.sleep(0.2)
            sends += [asyncio.create_task(broker.send_message(Message("E", "rotated", {}, key="k")))]
            outcomes = await asyncio.gather(*sends, return_exceptions=True)
            assert loop.time() - started < 8  # long before the deadline
            assert {type(outcome) for outcome in outcomes} <= {ConnectionLostError, NotConnectedError}
            refused = [outcome for outcome in outcomes if isinstance(outcome, NotConnectedError)]
            assert refused
            assert all(isinstance(outcome.__cause__, AuthenticationError) for outcome in refused)
            assert not any(outcome.retryable for outcome in refused)
            health = await broker.health()
            assert not health.ok
            assert isinstance(health.last_error, AuthenticationError)
        records = await asyncio.to_thread(drain_topic, cluster.reader_bootstrap_servers, "rotated", 1)
        assert [record.message_id for record in records] == [str(first.message_id)]


@pytest.mark.parametrize("mode", ["", "&acks=1&enable_idempotence=false&allow_unsafe=true"])
async def test_wrong_advertised_listeners(kafka: object, mode: str) -> None:
    """Bootstrap works, the advertised address does not: UnreachableError at connect_timeout with that hint."""
    with start_kafka(advertised=("127.0.0.1", 1)) as cluster:
        loop = asyncio.get_running_loop()
        async with no_leaks():
            broker = open_broker(f"{cluster.url}?connect_timeout=2s{mode}")
            started = loop.time()
            with pytest.raises(UnreachableError, match=r"advertised\.listeners") as caught:
                await broker.connect()
            assert loop.time() - started < 3
            assert "127.0.0.1:1" in str(caught.value)
            await broker.close()


@pytest.fixture
async def forwarder() -> AsyncIterator[str]:
    """A port forwarder whose target is down: it takes connections and closes them."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("options", ["", "&security_protocol=SSL", "&security_protocol=SASL_PLAINTEXT" + USER])
async def test_a_forwarder_before_a_dead_broker(forwarder: str, options: str) -> None:
    """It is UnreachableError, which is retried, and no hint at TLS."""
    async with no_leaks():
        broker = open_broker(f"kafka://{forwarder}?connect_timeout=5s{options}")
        with pytest.raises(UnreachableError, match="behind it") as caught:
            await broker.connect()
        assert caught.value.retryable
        assert "TLS" not in str(caught.value)
        await broker.close()


async def test_a_port_of_rabbitmq() -> None:
    """What answers as AMQP brokers do is named, within 2 s."""

    async def amqp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(b"AMQP\x00\x00\x09\x01")
        writer.close()

    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(amqp, "127.0.0.1", 0)
    try:
        broker = open_broker(f"kafka://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        started = loop.time()
        with pytest.raises(ProtocolError, match="RabbitMQ"):
            await broker.connect()
        assert loop.time() - started < 2
        await broker.close()
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize(
    ("greets", "answers", "says"),
    [
        (b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", "is an HTTP server, not Kafka"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", b"", "is a server of another protocol, not Kafka"),
        (b"", b"-ERR unknown command\r\n", "is a server of another protocol, not Kafka"),
        (b"J\x00\x00\x00\x0a8.0.36\x00", b"", "is a server of another protocol, not Kafka"),
    ],
    ids=["HTTP", "SSH", "Redis", "MySQL"],
)
async def test_a_server_of_another_protocol(greets: bytes, answers: bytes, says: str) -> None:
    """It is told as that, at once, and not taken for a TLS listener; it is not tried for ever."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greets)
        with contextlib.suppress(OSError):
            await reader.read(1)
            writer.write(answers)
            await reader.read()
        writer.transport.abort()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        broker = open_broker(f"kafka://127.0.0.1:{port}")
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(ProtocolError, match=says) as caught:
            await broker.connect()
        assert caught.value.permanent
        assert loop.time() - began < 3
        await broker.close()
