"""Topics that refuse, disappear, are made anew or are throttled: outcomes and texts are true."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from cqrs_brokers import (
    BackpressureError,
    DeliveryUnknownError,
    DestinationNotFoundError,
    Message,
    NotDeliveredError,
    Observer,
    Receipt,
    RejectedError,
    open_broker,
)
from cqrs_brokers_testkit.readers import drain_topic
from cqrs_brokers_testkit.servers import KafkaCluster, KafkaServer

pytestmark = pytest.mark.live

Name = Callable[[str], str]


def admin(kafka: KafkaServer) -> Any:
    import confluent_kafka.admin

    client: Any = confluent_kafka.admin
    return client.AdminClient({"bootstrap.servers": kafka.reader_bootstrap_servers})


async def delete(kafka: KafkaServer, topic: str) -> None:
    client = admin(kafka)
    await asyncio.to_thread(client.delete_topics([topic])[topic].result, 10)


async def test_a_record_without_a_key_for_a_compacted_topic(kafka: KafkaServer, unique_name: Name) -> None:
    """Code 87 is one record's fault: it alone is RejectedError, not retryable, and its neighbours are delivered."""
    topic = unique_name("compacted")
    kafka.create_topic(topic, 6, config={"cleanup.policy": "compact"})
    async with open_broker(kafka.url) as broker:
        messages = [Message("E", topic, {"n": n}, key=None if n in (50, 700) else f"k{n}") for n in range(1000)]
        outcomes = await asyncio.gather(*map(broker.send_message, messages), return_exceptions=True)
    failed = [place for place, outcome in enumerate(outcomes) if not isinstance(outcome, Receipt)]
    assert failed == [50, 700]
    for place in failed:
        error = outcomes[place]
        assert isinstance(error, RejectedError)
        assert "needs a key" in str(error)
        assert not error.retryable
    records = await asyncio.to_thread(drain_topic, kafka.reader_bootstrap_servers, topic)
    assert len(records) == 998


@pytest.mark.parametrize("end", ["deleted", "deleted, short deadline"])
async def test_a_topic_that_is_deleted(kafka_node: KafkaCluster, unique_name: Name, end: str) -> None:
    """DestinationNotFoundError within 5 s for what is in flight and for what waits, also with a short deadline."""
    topic, other = unique_name("deleted"), unique_name("other")
    for name in (topic, other):
        kafka_node.create_topic(name)
    loop = asyncio.get_running_loop()
    timeout = "30s" if end == "deleted" else "2s"
    async with open_broker(f"{kafka_node.url}?delivery_timeout={timeout}") as broker:
        for _ in range(3):
            await broker.send_message(Message("E", topic, {}, key="k"))
        await delete(kafka_node, topic)
        started = loop.time()
        sends = []
        for pause in (0.0, 0.01, 0.3, 0.5):
            await asyncio.sleep(pause)
            sends.append(asyncio.create_task(broker.send_message(Message("E", topic, {}, key="k"))))
            assert (await broker.send_message(Message("E", other, {}))).confirmed
        outcomes = await asyncio.gather(*sends, return_exceptions=True)
        assert loop.time() - started < 5
    assert Counter(type(outcome) for outcome in outcomes) == {DestinationNotFoundError: 4}


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3), (2, 2)])
async def test_a_topic_that_is_made_anew(kafka_node: KafkaCluster, unique_name: Name, before: int, after: int) -> None:
    """With fewer, more or as many partitions: what waits goes where its key goes now, once and in order."""
    topic = unique_name("anew")
    kafka_node.create_topic(topic, before)
    async with open_broker(f"{kafka_node.url}?delivery_timeout=20s") as broker:
        await broker.send_messages(Message("E", topic, b"0", key=f"k{n}") for n in range(30))
        await delete(kafka_node, topic)
        sends = [
            asyncio.create_task(broker.send_message(Message("E", topic, b"%d" % n, key=f"k{n % 30}")))
            for n in range(90)
        ]
        await asyncio.sleep(0.5)
        kafka_node.create_topic(topic, after)
        outcomes = await asyncio.wait_for(asyncio.gather(*sends, return_exceptions=True), 10)
        assert (await broker.send_message(Message("E", topic, b"last", key="k1"))).confirmed
    records = await asyncio.to_thread(drain_topic, kafka_node.reader_bootstrap_servers, topic)
    ids = [record.message_id for record in records]
    assert len(ids) == len(set(ids))
    receipts = [outcome for outcome in outcomes if isinstance(outcome, Receipt)]
    # Those whose send came after the topic was there again; an answer may be lost with the old topic's log.
    assert len(receipts) > 80
    assert {str(receipt.message_id) for receipt in receipts} <= set(ids)
    refused = {str(o.message_id) for o in outcomes if isinstance(o, NotDeliveredError)}
    assert not refused & set(ids)


async def test_a_missing_topic_with_a_short_deadline(kafka_node: KafkaCluster, unique_name: Name) -> None:
    """The class is what is known at the deadline: DestinationNotFoundError, not "send again later"."""
    async with open_broker(f"{kafka_node.url}?delivery_timeout=1500ms") as broker:
        await broker.connect()
        with pytest.raises(DestinationNotFoundError):
            await broker.send_message(Message("E", unique_name("missing"), {}))


async def test_a_missing_topic_is_not_asked_for_when_its_messages_have_ended(
    kafka_node: KafkaCluster, unique_name: Name
) -> None:
    """Messages that end before the topic is taken for missing leave no question behind."""
    async with open_broker(f"{kafka_node.url}?delivery_timeout=500ms") as broker:
        with pytest.raises(DestinationNotFoundError):
            await broker.send_message(Message("E", unique_name("missing"), {}))
        driver: Any = broker.driver
        metadata = driver._cluster.metadata
        async with asyncio.timeout(8):
            while metadata._wanted.is_set() or any(topic.unknown_since for topic in driver.topics.values()):
                await asyncio.sleep(0.1)


async def test_an_idle_topic_without_messages_is_not_asked_for_in_a_loop(
    kafka_node: KafkaCluster, unique_name: Name
) -> None:
    """A topic that was deleted while nobody sends to it does not keep the client busy."""
    topic = unique_name("idle")
    kafka_node.create_topic(topic)
    async with open_broker(f"{kafka_node.url}?metadata_max_age=1s") as broker:
        await broker.send_message(Message("E", topic, {}))
        await delete(kafka_node, topic)
        driver: Any = broker.driver
        asked = 0
        learnt = driver._cluster.metadata._learnt

        def counted(answer: Any) -> bool:
            nonlocal asked
            asked += 1
            missing: bool = learnt(answer)
            return missing

        driver._cluster.metadata._learnt = counted
        await asyncio.sleep(3)
        assert 1 <= asked <= 5


class Watching(Observer):
    """Keeps the states."""

    def __init__(self) -> None:
        self.states: list[str] = []

    def connection_changed(self, state: str, reason: str) -> None:
        self.states.append(state)


@pytest.mark.fault
async def test_a_quota_is_seen_and_honoured(kafka_node: KafkaCluster, unique_name: Name) -> None:
    """A throttled client: health and observers say so, the text at the deadline names the quota, outcomes are true."""
    topic = unique_name("quota")
    kafka_node.create_topic(topic)
    watching = Watching()
    await asyncio.to_thread(set_quota, kafka_node, 50_000.0)
    try:
        url = f"{kafka_node.url}?delivery_timeout=4s&client_id=slow"
        async with open_broker(url, observers=[watching]) as broker:
            await broker.send_message(Message("E", topic, bytes(100), key="k"))
            sends = [
                asyncio.create_task(broker.send_message(Message("E", topic, bytes(10_000), key="k")))
                for _ in range(200)
            ]
            await asyncio.sleep(2)
            health = await broker.health()
            assert health.ok
            assert health.reason.startswith("throttled")
            left = []
            while len(left) < 5 and health.reason.startswith("throttled"):
                left.append(_left(health.reason))
                await asyncio.sleep(0.12)
                health = await broker.health()
            assert any(later < earlier for earlier, later in pairwise(left))
            outcomes = await asyncio.gather(*sends, return_exceptions=True)
            late = [outcome for outcome in outcomes if isinstance(outcome, BackpressureError)]
            assert late
            assert any("quota" in str(error) for error in late)
            assert "throttled" in watching.states
    finally:
        await asyncio.to_thread(set_quota, kafka_node, None)
    records = await asyncio.to_thread(drain_topic, kafka_node.reader_bootstrap_servers, topic)
    ids = [record.message_id for record in records]
    assert len(ids) == len(set(ids))
    assert not {str(o.message_id) for o in outcomes if isinstance(o, NotDeliveredError)} & set(ids)
    assert {str(o.message_id) for o in outcomes if isinstance(o, Receipt)} <= set(ids)


def _left(reason: str) -> float:
    """For how many seconds more the node reads nothing; a new answer may prolong it."""
    return float(reason.partition(" for ")[2].partition(" s ")[0])


def set_quota(kafka: KafkaCluster, rate: float | None) -> None:
    """The default client quota, with Kafka's own protocol: confluent-kafka has no call for it."""
    import socket
    import struct

    def text(value: str | None) -> bytes:
        return struct.pack(">h", -1) if value is None else struct.pack(">h", len(value)) + value.encode()

    entity = struct.pack(">i", 1) + text("client-id") + text(None)
    change = struct.pack(">i", 1) + text("producer_byte_rate") + struct.pack(">d?", rate or 0.0, rate is None)
    body = struct.pack(">i", 1) + entity + change + struct.pack(">?", False)
    request = struct.pack(">hhi", 49, 0, 1) + text("test") + body  # AlterClientQuotas 0
    host, _, port = kafka.reader_bootstrap_servers.split(",")[0].partition(":")
    with socket.create_connection((host, int(port)), 10) as peer:
        peer.sendall(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", peer.recv(4))
        answer = peer.recv(size)
    assert struct.unpack_from(">h", answer, 12)[0] == 0, answer


@pytest.mark.fault
async def test_a_dead_node_is_a_line_in_the_log(
    kafka_node: KafkaCluster, unique_name: Name, caplog: pytest.LogCaptureFixture
) -> None:
    """While a node is away for seconds: one line when that is seen and one when it is back, not one per attempt."""
    topic = unique_name("away")
    kafka_node.create_topic(topic)
    async with open_broker(f"{kafka_node.url}?delivery_timeout=2s") as broker:
        await broker.send_message(Message("E", topic, {}))
        caplog.set_level(logging.INFO)
        await asyncio.to_thread(kafka_node.kill)
        caplog.clear()
        try:
            for _ in range(3):
                with pytest.raises((NotDeliveredError, DeliveryUnknownError)):
                    await broker.send_message(Message("E", topic, {}))
            lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
            assert len(lines) <= 3, [record.getMessage() for record in lines]
        finally:
            await asyncio.to_thread(kafka_node.start)
        assert (await broker.send_message(Message("E", topic, {}))).confirmed
