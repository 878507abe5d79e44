"""Requests in flight: what leaves together, and what becomes of five of them when their connection ends."""

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import pytest

from cqrs_broker_kafka import _node
from cqrs_broker_kafka._driver import KafkaDriver
from cqrs_broker_kafka._node import Node
from cqrs_broker_kafka._partitioning import partition_for
from cqrs_brokers import (
    BackpressureError,
    Broker,
    ClosedWhilePendingError,
    DeliveryTimeoutError,
    Message,
    Receipt,
    open_broker,
)
from cqrs_brokers_testkit.leaks import no_leaks
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.readers import drain_topic
from cqrs_brokers_testkit.servers import KafkaCluster, KafkaServer

pytestmark = pytest.mark.live
Name = Callable[[str], str]

KEYS = [next(key for key in map(str, range(1000)) if partition_for(key.encode(), 6) == part) for part in range(6)]
"""A key for each of six partitions."""


def node_of(broker: Broker) -> Node:
    driver = broker.driver
    assert isinstance(driver, KafkaDriver)
    assert driver._cluster is not None
    (node,) = driver._cluster.nodes.values()
    return node


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The requests that are written: how many records each of its batches has."""
    written: list[list[int]] = []
    write = Node._write_request

    def watched(node: Node, connection: Any, batches: Any) -> None:
        written.append([len(batch.records) for batch in batches])
        write(node, connection, batches)

    monkeypatch.setattr(Node, "_write_request", watched)
    return written


async def warm(broker: Broker, topic: str) -> None:
    """Sends to the partitions of a new topic until one request carries all: at first they become known one by one."""
    for _ in range(2):
        await broker.send_messages(Message("E", topic, b"warm", key=key) for key in KEYS)


async def test_a_few_messages_go_together(kafka: KafkaServer, unique_name: Name, requests: list[list[int]]) -> None:
    """What is sent in one turn of the event loop is one request, with one batch for each partition."""
    kafka.create_topic(topic := unique_name("few"), 6)
    async with open_broker(kafka.url) as broker:
        await warm(broker, topic)
        requests.clear()
        await asyncio.gather(*(broker.send_message(Message("E", topic, b"x", key=KEYS[n % 4])) for n in range(40)))
    assert requests == [[10, 10, 10, 10]]


async def test_messages_one_by_one_leave_at_once(
    kafka: KafkaServer, unique_name: Name, requests: list[list[int]]
) -> None:
    """Whoever sends one by one has each message written in the call, not in a later turn of the event loop."""
    kafka.create_topic(topic := unique_name("one"))
    async with open_broker(kafka.url) as broker:
        await broker.send_message(Message("E", topic, b"warm", key="k"))
        await broker.send_message(Message("E", topic, b"warm", key="k"))
        for _ in range(3):
            requests.clear()
            sending = asyncio.create_task(broker.send_message(Message("E", topic, b"x", key="k")))
            await asyncio.sleep(0)
            assert requests == [[1]]
            await sending


async def test_many_messages_begin_to_leave_at_once(
    kafka: KafkaServer, unique_name: Name, requests: list[list[int]]
) -> None:
    """Of 1000 messages the first leave while the others are still being sent."""
    kafka.create_topic(topic := unique_name("many"), 6)
    async with open_broker(kafka.url) as broker:
        await warm(broker, topic)
        requests.clear()
        messages = [Message("E", topic, b"x", key=f"k{n}") for n in range(1000)]
        receipts = await asyncio.gather(*map(broker.send_message, messages))
    assert sum(map(sum, requests)) == 1000
    assert [sum(batches) for batches in requests] == [500, 500]
    assert len({(receipt.partition, receipt.offset) for receipt in receipts}) == 1000


async def test_linger(kafka: KafkaServer, unique_name: Name, requests: list[list[int]]) -> None:
    """With `linger_ms` messages wait for others: thirty in a row are a few requests, and none waits much longer."""
    kafka.create_topic(topic := unique_name("linger"))
    loop = asyncio.get_running_loop()
    async with open_broker(f"{kafka.url}?linger_ms=200") as broker:
        await broker.send_message(Message("E", topic, b"warm", key="k"))
        requests.clear()
        started = loop.time()
        sends = []
        for _ in range(30):
            sends.append(asyncio.create_task(broker.send_message(Message("E", topic, b"x", key="k"))))
            await asyncio.sleep(0.002)
        elapsed = loop.time() - started  # on a busy machine the pauses are longer than they should be
        await asyncio.gather(*sends)
        assert loop.time() - started < elapsed + 1.5
    assert sum(map(sum, requests)) == 30
    assert len(requests) <= 3 + elapsed / 0.2


# -- five requests in flight ----------------------------------------------------------------------------------------


async def five_in_flight(broker: Broker, proxy: FaultProxy, topic: str) -> list[asyncio.Task[Receipt]]:
    """Five requests that the broker has answered, and no answer has come."""
    await broker.send_messages(Message("E", topic, b"warm", key=key) for key in KEYS)
    proxy.stall("down")
    sends = []
    for key in KEYS[:5]:
        sends.append(asyncio.create_task(broker.send_message(Message("E", topic, b"x", key=key))))
        await asyncio.sleep(0.05)
    assert len(node_of(broker)._in_flight) == 5
    sends.append(asyncio.create_task(broker.send_message(Message("E", topic, b"x", key=KEYS[5]))))
    await asyncio.sleep(0.05)
    assert len(node_of(broker)._in_flight) == 5
    return sends


def arrives(node: Node, data: bytes) -> None:
    """As if these bytes had come from the broker."""
    assert node.connection is not None
    node.connection._protocol.data_received(data)


def oldest(node: Node) -> bytes:
    """The correlation id of the request that is to be answered."""
    return struct.pack(">i", node._in_flight[0].correlation_id)


def raising(node: Node) -> None:
    """A fault of ours while an answer is read."""
    module: Any = _node
    right = module.read_answers

    def once(frame: bytes) -> object:
        module.read_answers = right
        raise RuntimeError("a fault of a decoder")

    module.read_answers = once
    arrives(node, struct.pack(">i", 12) + oldest(node) + bytes(8))


def cut_off(node: Node, proxy: FaultProxy) -> None:
    arrives(node, struct.pack(">i", 16) + oldest(node) + bytes(5))
    proxy.reset()


FAULTS: dict[str, Callable[[Node, FaultProxy], None]] = {
    "reset": lambda node, proxy: proxy.reset(),
    "closed": lambda node, proxy: proxy.close_connections(),
    "wrong correlation id": lambda node, proxy: arrives(node, struct.pack(">ii", 4, 12345)),
    "answer without a correlation id": lambda node, proxy: arrives(node, struct.pack(">ib", 1, 0)),
    "answer of an impossible size": lambda node, proxy: arrives(node, struct.pack(">i", -1)),
    "answer that cannot be read": lambda node, proxy: arrives(node, struct.pack(">i", 4) + oldest(node)),
    "answer that is cut off": cut_off,
    "answer about nothing": lambda node, proxy: arrives(node, struct.pack(">i", 12) + oldest(node) + bytes(8)),
    "raising decoder": lambda node, proxy: raising(node),
}


@pytest.mark.fault
@pytest.mark.parametrize("fault", FAULTS)
async def test_five_requests_whose_connection_ends(
    proxy: FaultProxy, broken: KafkaCluster, unique_name: Name, fault: str
) -> None:
    """All five are in doubt, and are repeated as they were: each message is in the log once, and has its receipt."""
    broken.create_topic(topic := unique_name("five"), 6)
    noise: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
    async with no_leaks():
        async with open_broker(f"kafka://{proxy.address}") as broker:
            sends = await five_in_flight(broker, proxy, topic)
            node = node_of(broker)
            FAULTS[fault](node, proxy)
            await asyncio.sleep(0.1)
            proxy.heal()
            receipts = await asyncio.wait_for(asyncio.gather(*sends), 5)
    assert [(receipt.partition, receipt.offset) for receipt in receipts] == [(part, 1) for part in range(6)]
    records = await asyncio.to_thread(drain_topic, broken.reader_bootstrap_servers, topic)
    assert len(records) == len({record.message_id for record in records}) == 12
    assert not noise


@pytest.mark.fault
async def test_five_requests_and_close(proxy: FaultProxy, broken: KafkaCluster, unique_name: Name) -> None:
    """close() with five requests in flight: they are unknown, what waited was not sent, nothing is left or logged."""
    broken.create_topic(topic := unique_name("five"), 6)
    noise: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
    async with no_leaks():
        async with open_broker(f"kafka://{proxy.address}?close_timeout=200ms") as broker:
            sends = await five_in_flight(broker, proxy, topic)
        proxy.heal()  # or the proxy would keep its sockets
        outcomes = await asyncio.gather(*sends, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes[:5]] == [ClosedWhilePendingError] * 5
    assert not isinstance(outcomes[5], Receipt | ClosedWhilePendingError)
    assert not noise


@pytest.mark.fault
async def test_the_oldest_request_has_the_timer(proxy: FaultProxy, broken: KafkaCluster, unique_name: Name) -> None:
    """When the oldest of five is not answered in time the connection is left, and a late answer settles nothing."""
    broken.create_topic(topic := unique_name("slow"), 6)
    loop = asyncio.get_running_loop()
    async with open_broker(f"kafka://{proxy.address}?request_timeout_ms=1000") as broker:
        sends = await five_in_flight(broker, proxy, topic)
        connection = node_of(broker).connection
        started = loop.time()
        while node_of(broker).connection is connection:
            await asyncio.sleep(0.02)
        assert loop.time() - started < 1.2
        proxy.heal()
        receipts = await asyncio.wait_for(asyncio.gather(*sends), 5)
    assert [(receipt.partition, receipt.offset) for receipt in receipts] == [(part, 1) for part in range(6)]


@pytest.mark.fault
async def test_a_late_answer_settles_the_numbers(proxy: FaultProxy, broken: KafkaCluster, unique_name: Name) -> None:
    """An answer that comes after the deadline of its message is no receipt any more, and the next message goes on."""
    broken.create_topic(topic := unique_name("late"))
    async with open_broker(f"kafka://{proxy.address}?delivery_timeout=1s") as broker:
        await broker.send_message(Message("E", topic, b"warm", key="k"))
        proxy.stall("down")
        with pytest.raises(DeliveryTimeoutError):
            await broker.send_message(Message("E", topic, b"x", key="k"))
        connection = node_of(broker).connection
        proxy.heal()
        receipt = await broker.send_message(Message("E", topic, b"y", key="k"))
        assert node_of(broker).connection is connection
    assert receipt.offset == 2


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
