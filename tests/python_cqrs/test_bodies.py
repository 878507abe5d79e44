"""Bodies are byte for byte what python-cqrs' own brokers send: its own stand beside ours, on recorded clients."""

import dataclasses
import json
import re
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aio_pika.abc
import cqrs
import pytest
from cqrs.adapters import protocol as clients
from cqrs.message_brokers import amqp, kafka, protocol
from pydantic import BaseModel

from cqrs_brokers import Broker
from cqrs_brokers.driver import content_type_of
from cqrs_brokers_python_cqrs import message_broker

from .application import CoreOrderPlaced, Emit, Order, OrderPlaced, OrderSeen, OwnOrderPlaced, Recorder, mediator


class KafkaClient(clients.KafkaProducer):
    """Stands for python-cqrs' Kafka producer, whose value serializer passes bytes on."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def produce(self, topic: str, message: Any, headers: Any = None) -> None:
        self.bodies.append(message)


class AMQPClient(clients.AMQPPublisher):
    """Stands for python-cqrs' AMQP publisher."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def publish(self, message: aio_pika.abc.AbstractMessage, queue_name: str, exchange_name: str) -> None:
        self.bodies.append(message.body)


class Money(BaseModel):
    amount: int
    currency: str


@dataclasses.dataclass
class Line:
    sku: str
    count: int


NAIVE = datetime(2026, 7, 1, 12, 30, 0, 125)
PAYLOADS: dict[str, Any] = {
    "a mapping": {"b": 1, "a": [1, 2.5, None, True]},
    "text": "Grüße, 世界 \u2028",
    "a UUID and times": {"id": uuid.UUID(int=7), "aware": datetime(2026, 7, 1, tzinfo=UTC), "naive": NAIVE},
    "a pydantic model": Money(amount=3, currency="EUR"),
    "a dataclass": Line("sku", 2),
    "bytes": b"\x00\xff",
    "a bytearray": bytearray(b"\x01"),
    "a memoryview": memoryview(b"\x02"),
    "an empty mapping": {},
    "null": None,
    "NaN, which orjson writes as null": {"x": float("nan")},
    "a large integer": 2**53 + 1,
}
EVENTS: dict[str, Any] = {
    "the bridge's ECSTEvent": OrderPlaced(payload=Order(order_id="1", total=5)),
    "the bridge's NotificationEvent": OrderSeen(payload={"ä": ["\u2028", 1.5]}),
    "core's ECSTEvent": CoreOrderPlaced(payload=Order(order_id="1")),
    "python-cqrs' own": OwnOrderPlaced(payload={"order_id": "4", "snake_case": NAIVE.isoformat()}),
}


@pytest.fixture
def own_brokers() -> list[tuple[protocol.MessageBroker, list[bytes]]]:
    """python-cqrs' own Kafka and AMQP brokers, each with what its client was given."""
    kafka_client, amqp_client = KafkaClient(), AMQPClient()
    return [
        (kafka.KafkaMessageBroker(kafka_client), kafka_client.bodies),
        (amqp.AMQPMessageBroker(amqp_client, "events"), amqp_client.bodies),
    ]


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
async def test_an_event_has_the_same_body_on_our_broker_as_on_its_own(
    event: Any, own_brokers: list[tuple[protocol.MessageBroker, list[bytes]]]
) -> None:
    """Through its own mediator, emitter and serializer."""
    recorder = Recorder()
    async with message_broker(Broker(recorder)) as adapter:
        await mediator(adapter).send(Emit(events=[event]))
    for broker, bodies in own_brokers:
        await mediator(broker).send(Emit(events=[event]))
        assert bodies == [recorder.sent[0].body]


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
async def test_a_message_without_wire_bytes_is_encoded_as_its_own_brokers_do(
    payload: Any, own_brokers: list[tuple[protocol.MessageBroker, list[bytes]]]
) -> None:
    """With python-cqrs' own encoder, which accepts and writes some things otherwise than core's."""
    recorder = Recorder()
    message = protocol.Message("name", "topic", payload)
    async with message_broker(Broker(recorder)) as adapter:
        await adapter.send_message(message)
    for broker, bodies in own_brokers:
        await broker.send_message(message)
        assert bodies == [recorder.sent[0].body]


async def test_wire_bytes_go_out_verbatim(own_brokers: list[tuple[protocol.MessageBroker, list[bytes]]]) -> None:
    """`payload_bytes` wins over the payload, also when it is empty."""
    recorder = Recorder()
    message = protocol.Message("name", "topic", {"not": "this"}, payload_bytes=b"")
    async with message_broker(Broker(recorder)) as adapter:
        await adapter.send_message(message)
    for broker, bodies in own_brokers:
        await broker.send_message(message)
        assert bodies == [recorder.sent[0].body] == [b""]


@pytest.mark.parametrize(
    ("payload", "content_type"),
    [
        ({"a": 1}, "application/json"),
        ("text", "application/json"),
        (b"\x00", "application/octet-stream"),
        (bytearray(b"\x00"), "application/octet-stream"),
        (memoryview(b"\x00"), "application/octet-stream"),
    ],
    ids=["a mapping", "text", "bytes", "a bytearray", "a memoryview"],
)
async def test_bytes_are_not_called_json(payload: Any, content_type: str) -> None:
    """The content type, which python-cqrs' own brokers do not send, is true for what it passes through as it is."""
    recorder = Recorder()
    async with message_broker(Broker(recorder)) as adapter:
        await adapter.send_message(protocol.Message("name", "topic", payload))
    assert content_type_of(recorder.sent[0]) == content_type


def test_the_documentation_shows_both_bodies_as_they_are() -> None:
    """docs/how-to/from-python-cqrs.md: the same event as python-cqrs' own and as the bridge's."""
    event_id = uuid.UUID("fcffffc1d76645a29b41aec44a9f5063")

    @dataclasses.dataclass
    class Payload:
        order_id: str

    own = cqrs.NotificationEvent[Payload](
        event_name="OrderPlaced",
        payload=Payload("7"),
        event_id=event_id,
        event_timestamp=datetime(2026, 11, 24, 1, 3, 3, 681285),
        topic="orders",
    )
    ours = OrderSeen(
        event_id=event_id,
        event_timestamp=datetime(2026, 11, 24, 0, 3, 3, 681285, UTC),
        event_name="OrderPlaced",
        payload={"order_id": "7"},
    )
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "from-python-cqrs.md").read_text()
    shown = re.findall(r"^```json .*\n((?:.*\n)*?)```$", page, re.MULTILINE)
    encode = cqrs.JsonEventSerializer().serialize
    assert [list(json.loads(body).items()) for body in shown] == [
        list(json.loads(encode(event)).items()) for event in (own, ours)
    ]
