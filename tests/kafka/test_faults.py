"""Brokers that freeze and die: every send has its true outcome by its deadline, and nothing is left behind."""

import asyncio
import time
from collections.abc import Callable

import pytest

from cqrs_brokers import (
    DeliveryError,
    DeliveryTimeoutError,
    DeliveryUnknownError,
    Message,
    NotDeliveredError,
    open_broker,
)
from cqrs_brokers_testkit.leaks import no_leaks
from cqrs_brokers_testkit.readers import drain_topic
from cqrs_brokers_testkit.servers import KafkaCluster

from .publishers import publishing

pytestmark = pytest.mark.fault

Name = Callable[[str], str]


async def read_ids(kafka: KafkaCluster, topic: str, count: int) -> list[str | None]:
    records = await asyncio.to_thread(drain_topic, kafka.reader_bootstrap_servers, topic, count, 20.0)
    return [record.message_id for record in records]


async def test_frozen_broker(kafka_node: KafkaCluster, unique_name: Name) -> None:
    """Frozen: what was handed over is unknown at its deadline, the rest not delivered; close(2) ends within 3 s."""
    topic = unique_name("frozen")
    kafka_node.create_topic(topic)
    loop = asyncio.get_running_loop()
    async with no_leaks():
        broker = open_broker(f"{kafka_node.url}?delivery_timeout=2s")
        await broker.send_message(Message("E", topic, {}, key="k"))
        kafka_node.pause()
        try:
            await asyncio.sleep(0.5)
            started = loop.time()
            first = asyncio.create_task(broker.send_message(Message("E", topic, {}, key="k")))
            await asyncio.sleep(0.1)
            later = Message("E", topic, {}, key="k")
            second = asyncio.create_task(broker.send_message(later))
            outcomes = await asyncio.gather(first, second, return_exceptions=True)
            assert loop.time() - started < 3.1
            assert type(outcomes[0]) is DeliveryTimeoutError
            assert isinstance(outcomes[1], NotDeliveredError)
            started = loop.time()
            await broker.close(2)
            assert loop.time() - started < 3
        finally:
            kafka_node.resume()
    await asyncio.sleep(1)
    assert str(later.message_id) not in await read_ids(kafka_node, topic, 1)


async def test_frozen_for_a_while(kafka_node: KafkaCluster, unique_name: Name) -> None:
    """After a freeze shorter than the deadline every message is there once, where its receipt says, in order."""
    topic = unique_name("thaw")
    kafka_node.create_topic(topic, 2)
    messages = [Message("E", topic, {}, key=f"k{n % 5}") for n in range(200)]
    async with open_broker(f"{kafka_node.url}?request_timeout_ms=1000") as broker:
        await broker.send_message(Message("E", topic, {}, key="k"))
        kafka_node.pause()
        await asyncio.sleep(0.3)
        sends = [asyncio.create_task(broker.send_message(message)) for message in messages[:100]]
        await asyncio.sleep(0.2)  # those that follow wait behind them
        sends += [asyncio.create_task(broker.send_message(message)) for message in messages[100:]]
        await asyncio.sleep(2.3)
        kafka_node.resume()
        receipts = await asyncio.gather(*sends)
        assert (await broker.health()).ok
    records = await asyncio.to_thread(drain_topic, kafka_node.reader_bootstrap_servers, topic, 201, 20.0)
    places = {record.message_id: (record.partition, record.offset) for record in records}
    assert len(records) == len(places) == 201
    told = [(receipt.partition, receipt.offset) for receipt in receipts]
    assert told == [places[str(message.message_id)] for message in messages]
    for key in range(5):
        assert told[key::5] == sorted(told[key::5])


@pytest.mark.parametrize("end", ["kill", "terminate"])
async def test_restarted_under_load(kafka_node: KafkaCluster, unique_name: Name, end: str) -> None:
    """kill -9 or SIGTERM, and a start, under load: no error, nothing lost or twice, keys keep their order."""
    topic = unique_name("restarted")
    kafka_node.create_topic(topic, 3)
    async with open_broker(f"{kafka_node.url}?request_timeout_ms=2000") as broker:
        async with publishing(broker, topic, count=16, pause=0.05) as publishers:
            await publishers.recovered(5)
            await asyncio.to_thread(getattr(kafka_node, end))
            await asyncio.sleep(1)
            await asyncio.to_thread(kafka_node.start)
            await publishers.recovered(10)
    assert len(publishers.receipts) == len(publishers.outcomes)
    await publishers.check(kafka_node)


@pytest.mark.parametrize("fate", ["kill", "pause"])
async def test_weaker_settings_and_a_broker_that_is_away(
    kafka_node: KafkaCluster, unique_name: Name, fate: str
) -> None:
    """Without idempotence: every send ends by its deadline with what is true of it, and it goes on by itself."""
    topic = unique_name("weak")
    kafka_node.create_topic(topic, 3)
    unsafe = "acks=1&enable_idempotence=false&allow_unsafe=true&max_batch_size=1KiB"  # not all go at once
    async with open_broker(f"{kafka_node.url}?{unsafe}&request_timeout_ms=1000&delivery_timeout=3s") as broker:
        async with publishing(broker, topic, pause=0.05) as publishers:
            await publishers.recovered(5)
            await asyncio.to_thread(kafka_node.pause)
            await asyncio.sleep(0.2)  # requests are without an answer now
            if fate == "kill":
                await asyncio.to_thread(kafka_node.kill)
            try:
                await asyncio.sleep(1.5 if fate == "kill" else 5)
            finally:
                await asyncio.to_thread(kafka_node.start if fate == "kill" else kafka_node.resume)
            await publishers.recovered(10)
    failed = [outcome for outcome in publishers.outcomes.values() if isinstance(outcome, DeliveryError)]
    assert {isinstance(outcome, DeliveryUnknownError) for outcome in failed} == {True, False}
    assert publishers.slowest < 4
    await publishers.check(kafka_node, duplicates=True)


async def test_close_while_the_broker_is_dead(kafka_node: KafkaCluster, unique_name: Name) -> None:
    """close(1) with a dead broker and messages on their way: within 2 s, each with its outcome, nothing left."""
    topic = unique_name("dead")
    kafka_node.create_topic(topic, 3)
    async with no_leaks():
        broker = open_broker(kafka_node.url)
        await broker.send_message(Message("E", topic, {}))
        await asyncio.to_thread(kafka_node.kill)
        try:
            sends = [asyncio.create_task(broker.send_message(Message("E", topic, {}))) for _ in range(500)]
            await asyncio.sleep(1.5)
            started = time.monotonic()
            await broker.close(1)
            assert time.monotonic() - started < 2
            assert all(send.done() for send in sends)
            outcomes = await asyncio.gather(*sends, return_exceptions=True)
            assert all(isinstance(outcome, DeliveryError) for outcome in outcomes)
        finally:
            await asyncio.to_thread(kafka_node.start)
    unknown = {str(o.message_id) for o in outcomes if isinstance(o, DeliveryUnknownError)}
    ids = set(await read_ids(kafka_node, topic, 1))
    assert not ids & {str(o.message_id) for o in outcomes if isinstance(o, NotDeliveredError)}
    assert len(ids - unknown) == 1


async def test_memory_stays_bounded(kafka_node: KafkaCluster, unique_name: Name) -> None:
    """Against a frozen broker only one batch per partition is unknown; all else is certainly not delivered."""
    topic = unique_name("bounded")
    kafka_node.create_topic(topic, 2)
    async with open_broker(f"{kafka_node.url}?delivery_timeout=500ms&max_batch_size=4KiB&close_timeout=1s") as broker:
        await broker.send_message(Message("E", topic, {}), timeout=20)
        kafka_node.pause()
        try:
            await asyncio.sleep(0.3)
            outcomes = []
            for _ in range(4):
                outcomes += await broker.send_messages(Message("E", topic, b"x" * 100) for _ in range(1000))
        finally:
            kafka_node.resume()
        unknown = [outcome for outcome in outcomes if isinstance(outcome, DeliveryUnknownError)]
        assert 0 < len(unknown) < 100
        assert all(isinstance(outcome, DeliveryError) for outcome in outcomes)
