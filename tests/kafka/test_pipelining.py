"""How many messages go in a request, and when: the broker works on one part while the next is made."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cqrs_broker_kafka._driver import KafkaDriver
from cqrs_broker_kafka.internals import Producer
from cqrs_broker_kafka.lanes import Batch
from cqrs_brokers import (
    BackpressureError,
    DeliveryTimeoutError,
    DestinationNotFoundError,
    Message,
    Receipt,
    open_broker,
)
from cqrs_brokers_testkit.servers import KafkaCluster, KafkaServer

pytestmark = pytest.mark.live
Name = Callable[[str], str]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str | int]:
    """What happens, in order: "write" for a produce request, a number for a batch of so many records."""
    seen: list[str | int] = []
    fill, send = Batch.fill, Producer._watched_send

    def watched_fill(batch: Batch, append: Callable[..., Any]) -> bool:
        whole = fill(batch, append)
        seen.append(len(batch.records))
        return whole

    async def watched_send(producer: Producer, node_id: Any, request: Any, **how: Any) -> Any:
        if type(request).__name__ == "ProduceRequest":
            seen.append("write")
        return await send(producer, node_id, request, **how)

    monkeypatch.setattr(Batch, "fill", watched_fill)
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


async def test_a_topic_made_again_while_a_batch_waits(kafka: KafkaServer, unique_name: Name) -> None:
    """A batch that aiokafka has not taken is withdrawn with its partition: what comes for the new one is sent."""
    kafka.create_topic(name := unique_name("again"))
    async with open_broker(f"kafka://{kafka.bootstrap_servers}?delivery_timeout=5s") as broker:
        await broker.send_message(Message("n", name, b"warm", key="k"))
        assert isinstance(broker.driver, KafkaDriver)
        topic = broker.driver._topics[name]
        lost = asyncio.create_task(broker.send_message(Message("n", name, b"lost", key="k")))
        await asyncio.sleep(0)
        assert broker.driver.producer is not None
        assert broker.driver.producer.has_queued
        topic.not_found(DestinationNotFoundError("deleted"), 0.0)
        topic.found(1)
        receipts = [await broker.send_message(Message("n", name, b"new", key="k")) for _ in range(2)]
        with pytest.raises(DestinationNotFoundError):
            await lost
    assert [receipt.offset for receipt in receipts] == [1, 2]


@pytest.mark.fault
async def test_keyless_messages_leave_a_partition_without_a_leader(
    kafka_nodes: KafkaCluster, unique_name: Name
) -> None:
    """While one partition has no leader keyless messages go to the others, a few that were on their way aside."""
    topic = unique_name("keyless")
    kafka_nodes.create_topic(topic, 3, replication=1)
    async with open_broker(f"kafka://{kafka_nodes.bootstrap_servers}?delivery_timeout=3s") as broker:
        await broker.send_message(Message("n", topic, b"warm"))
        node = kafka_nodes.nodes[kafka_nodes.leader(topic, 1) - 1]
        node.kill()
        try:
            while kafka_nodes.leader(topic, 1) != -1:
                await asyncio.sleep(0.2)
            sends = []
            for number in range(60):
                sends.append(asyncio.create_task(broker.send_message(Message("n", topic, str(number).encode()))))
                await asyncio.sleep(0.1)
            outcomes = await asyncio.gather(*sends, return_exceptions=True)
        finally:
            node.start()
    failed = [outcome for outcome in outcomes if not isinstance(outcome, Receipt)]
    assert {type(error) for error in failed} <= {BackpressureError, DeliveryTimeoutError}
    assert len(failed) <= 6, "of 60"
