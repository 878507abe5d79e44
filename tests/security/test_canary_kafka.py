"""No secret, body, key or header value shows anywhere (I10): on a real Kafka and on a mock of it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import pytest

from cqrs_broker_kafka._logs import LOGGERS
from cqrs_brokers import (
    AuthenticationError,
    Broker,
    BrokerClosedError,
    BrokerError,
    ClosedWhilePendingError,
    DeliveryTimeoutError,
    DeliveryUnknownError,
    DestinationNotFoundError,
    MessageTooLargeError,
    NotConnectedError,
    ProtocolError,
    PublishForbiddenError,
    Receipt,
    RejectedError,
    TLSError,
    UnreachableError,
    open_broker,
)
from cqrs_brokers_testkit.canary import Canary, CanaryScanner
from cqrs_brokers_testkit.certificates import Certificates
from cqrs_brokers_testkit.kafka_mock import PRODUCE, KafkaMock
from cqrs_brokers_testkit.servers import KafkaCluster
from cqrs_brokers_testkit.servers import kafka as start_kafka

from .planting import Planted

pytestmark = pytest.mark.fault

MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@dataclass
class Scene:
    """What a situation plays with."""

    cluster: KafkaCluster
    mock: KafkaMock
    certificates: Certificates
    planted: Planted
    topic: str

    def open(self, listener: str = "SASL_PLAINTEXT", *, password: str | None = None, **keywords: object) -> Broker:
        """A broker whose user has the canary as password."""
        keywords = {"delivery_timeout": 3.0, "security_protocol": listener, **keywords}
        if str(keywords["security_protocol"]).startswith("SASL"):
            keywords["sasl_plain_username"] = "alice"
            keywords["sasl_plain_password"] = password or self.planted.password.text
        if str(keywords["security_protocol"]).endswith("SSL"):
            keywords.setdefault("ssl_cafile", str(self.certificates.ca))
        servers = self.cluster.bootstrap(listener)  # type: ignore[arg-type]
        return open_broker(f"kafka://{servers}", observers=[self.planted.observer], **keywords)

    async def fails_to_connect(self, broker: Broker) -> None:
        await self.planted.look_at_broker(broker)
        await self.planted.outcome(broker.connect())
        await self.planted.outcome(broker.send_message(self.planted.message(self.topic)))
        await broker.close()


@pytest.fixture(scope="module")
def cluster(server_password: Canary, certificates: Certificates, kafka: object) -> Iterator[KafkaCluster]:
    """`kafka` is asked for only to skip where there is none."""
    with start_kafka(sasl_users={"alice": server_password.text}, certificates=certificates) as made:
        yield made


@pytest.fixture
def scene(
    cluster: KafkaCluster,
    kafka_mock: KafkaMock,
    certificates: Certificates,
    planted: Planted,
    unique_name: Callable[[str], str],
) -> Scene:
    topic = unique_name("topic")
    cluster.create_topic(topic)
    return Scene(cluster, kafka_mock, certificates, planted, topic)


async def success(scene: Scene) -> None:
    """Confirmed by one and by many, with each mechanism, and over TLS."""
    brokers = [scene.open(sasl_mechanism=mechanism) for mechanism in MECHANISMS]
    for broker in [*brokers, scene.open("SASL_SSL"), scene.open("SSL"), scene.open("PLAINTEXT")]:
        async with broker:
            await scene.planted.outcomes(broker, [scene.planted.message(scene.topic) for _ in range(3)])
            for ended in await broker.send_messages([scene.planted.message(scene.topic) for _ in range(3)]):
                scene.planted.look_at(ended)
            await scene.planted.look_at_broker(broker)
    assert scene.planted.seen == {Receipt}


async def wrong_password(scene: Scene) -> None:
    for mechanism in MECHANISMS:
        await scene.fails_to_connect(scene.open(sasl_mechanism=mechanism, password=scene.planted.nasty.text))


async def listener_does_not_fit(scene: Scene) -> None:
    """SASL to a plain listener, plain to a SASL one and to a TLS one."""
    await scene.fails_to_connect(scene.open("PLAINTEXT", security_protocol="SASL_PLAINTEXT"))
    await scene.fails_to_connect(scene.open("SASL_PLAINTEXT", security_protocol="PLAINTEXT"))
    await scene.fails_to_connect(scene.open("SASL_SSL", security_protocol="SASL_PLAINTEXT"))


async def not_trusted(scene: Scene) -> None:
    await scene.fails_to_connect(scene.open("SASL_SSL", ssl_cafile=str(scene.certificates.other_ca)))
    await scene.fails_to_connect(scene.open("SASL_PLAINTEXT", security_protocol="SASL_SSL"))


async def not_kafka(scene: Scene) -> None:
    """A server that repeats what it is told, then one that is not there."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    user = f"sasl_plain_username=alice&sasl_plain_password={scene.planted.password}"
    for listening in (True, False):
        if not listening:
            server.close()
            await server.wait_closed()
        text = f"kafka://127.0.0.1:{port}?security_protocol=SASL_PLAINTEXT&{user}"
        await scene.fails_to_connect(open_broker(text, delivery_timeout=0.5, connect_timeout=2.0))


async def missing_topic(scene: Scene) -> None:
    async with scene.open(delivery_timeout=8.0) as broker:
        await scene.planted.outcome(broker.send_message(scene.planted.message("no-such-topic")))


async def too_large(scene: Scene) -> None:
    """Here, and for the topic."""
    topic = f"{scene.topic}-small"
    scene.cluster.create_topic(topic, config={"max.message.bytes": "1000"})
    large = scene.planted.body.text * 100
    async with scene.open() as broker:
        await scene.planted.outcome(broker.send_message(scene.planted.message(topic, payload=large)))
    async with scene.open(max_message_bytes=1000) as broker:
        await scene.planted.outcome(broker.send_message(scene.planted.message(scene.topic, payload=large)))


async def error_codes(scene: Scene) -> None:
    """What a broker can answer to a batch: policy, authorisation, invalid record, unknown producer."""
    scene.mock.create_topic("t")
    async with open_broker(scene.mock.url, observers=[scene.planted.observer]) as broker:
        for code in (44, 29, 87, 45, 10):
            await scene.planted.outcome(broker.send_message(scene.planted.message()))
            scene.mock.push_errors(PRODUCE, code)
            await scene.planted.outcome(broker.send_message(scene.planted.message()))


async def frozen(scene: Scene) -> None:
    """Handed over and never confirmed; closed with some pending; closed already."""
    impatient, patient = scene.open(delivery_timeout=1.0), scene.open()
    for broker in (impatient, patient):
        await scene.planted.outcome(broker.send_message(scene.planted.message(scene.topic)))
    scene.cluster.pause()
    try:
        await scene.planted.outcome(impatient.send_message(scene.planted.message(scene.topic)))
        sending = asyncio.create_task(
            scene.planted.outcomes(patient, [scene.planted.message(scene.topic) for _ in range(3)])
        )
        await asyncio.sleep(0.2)
        for broker in (impatient, patient):
            await broker.close(0.2)
        await sending
        await scene.planted.outcome(patient.send_message(scene.planted.message(scene.topic)))
    finally:
        scene.cluster.resume()
        # it was fenced meanwhile; the next test wants it back
        await asyncio.to_thread(scene.cluster.wait_ready)


SITUATIONS: dict[Callable[[Scene], Awaitable[None]], set[type[BrokerError]]] = {
    success: set(),
    wrong_password: {AuthenticationError, NotConnectedError},
    listener_does_not_fit: {ProtocolError, NotConnectedError},
    not_trusted: {TLSError, NotConnectedError},
    not_kafka: {UnreachableError, ProtocolError, NotConnectedError},
    missing_topic: {DestinationNotFoundError},
    too_large: {MessageTooLargeError},
    error_codes: {RejectedError, PublishForbiddenError, DeliveryUnknownError, MessageTooLargeError},
    frozen: {DeliveryTimeoutError, ClosedWhilePendingError, BrokerClosedError},
}
"""What happens, and the classes that must be seen, and no others."""


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.__name__)
async def test_nothing_shows(scene: Scene, situation: Callable[[Scene], Awaitable[None]]) -> None:
    """0 hits in errors, causes, receipts, brokers, observers, warnings and every log record at DEBUG."""
    await situation(scene)
    assert scene.planted.seen - {Receipt} == SITUATIONS[situation]
    assert scene.planted.observer.told or situation is not_kafka


async def test_the_clients_log_at_debug(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """aiokafka's records come by, SASL's included; without our filters they would show password, key and body."""
    seen: set[str] = set()
    record = scene.planted.scanner.record
    monkeypatch.setattr(scene.planted.scanner, "record", lambda it: (seen.add(it.name), record(it)))
    async with scene.open() as broker:
        await scene.planted.outcome(broker.send_message(scene.planted.message(scene.topic)))
    assert "aiokafka.conn" in seen
    unfiltered = CanaryScanner(scene.planted.password, scene.planted.body, scene.planted.key)
    with unfiltered.watching():
        for name in LOGGERS:
            monkeypatch.setattr(logging.getLogger(name), "filter", lambda record: True)
        async with scene.open() as broker:
            await broker.send_message(scene.planted.message(scene.topic))
    assert "the password" in {hit.canary for hit in unfiltered.hits}
