"""How many messages go in a request, and when: the broker works on one part while the next is made."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cqrs_broker_kafka.internals import Producer
from cqrs_broker_kafka.lanes import Lane
from cqrs_broker_kafka.records import Record
from cqrs_brokers import Message, Receipt, open_broker
from cqrs_brokers_testkit.servers import KafkaServer

pytestmark = pytest.mark.live
Name = Callable[[str], str]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str | int]:
    """What happens, in order: "write" for a produce request, a number for a batch of so many records."""
    seen: list[str | int] = []
    fill, send = Lane.fill, Producer._watched_send

    def watched_fill(lane: Lane, *args: Any) -> list[Record]:
        records = fill(lane, *args)
        seen.append(len(records))
        return records

    async def watched_send(producer: Producer, node_id: Any, request: Any, **how: Any) -> Any:
        if type(request).__name__ == "ProduceRequest":
            seen.append("write")
        return await send(producer, node_id, request, **how)

    monkeypatch.setattr(Lane, "fill", watched_fill)
    monkeypatch.setattr(Producer, "_watched_send", watched_send)
    return seen


async def publish(kafka: KafkaServer, topic: str, count: int, events: list[str | int]) -> list[Receipt]:
    """Sends so many at once after a first one; each receipt is an event, too."""
    async with open_broker(f"kafka://{kafka.bootstrap_servers}") as broker:
        await broker.send_message(Message("n", topic, b"first", key="k"))
        events.clear()

        async def send(number: int) -> Receipt:
            receipt = await broker.send_message(Message("n", topic, str(number).encode(), key="k"))
            events.append("receipt")
            return receipt

        return await asyncio.gather(*(send(number) for number in range(count)))


async def test_few_messages_go_together(kafka: KafkaServer, unique_name: Name, events: list[str | int]) -> None:
    """What is sent in one turn of the event loop is one batch and one request."""
    kafka.create_topic(topic := unique_name("few"))
    receipts = await publish(kafka, topic, 100, events)
    assert events == [100, "write", *["receipt"] * 100]
    assert [receipt.offset for receipt in receipts] == list(range(1, 101))


async def test_of_many_messages_half_go_first(kafka: KafkaServer, unique_name: Name, events: list[str | int]) -> None:
    """The second half is written before the senders of the first half wake up, in order."""
    kafka.create_topic(topic := unique_name("many"))
    receipts = await publish(kafka, topic, 600, events)
    assert events == [300, "write", 300, "write", *["receipt"] * 600]
    assert [receipt.offset for receipt in receipts] == list(range(1, 601))
