"""Names with dead addresses, DNS that is silent, partitions whose leader is dead, and what is logged meanwhile."""

import asyncio
import collections
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cqrs_broker_kafka._partitioning import partition_for
from cqrs_brokers import DeliveryError, Message, NotDeliveredError, Receipt, UnreachableError, open_broker
from cqrs_brokers_testkit.servers import KafkaCluster, KafkaServer
from cqrs_brokers_testkit.servers import kafka as start_kafka
from tests.dead_address import DEAD, dead_address, useless_address
from tests.standstill import stand_still_after

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]

Name = Callable[[str], str]


async def test_a_name_with_a_dead_address(
    kafka: KafkaServer, unique_name: Name, names: dict[str, Callable[[], list[str]]]
) -> None:
    """The first address of a name drops packets: the next one is connected within a second."""
    host, _, port = kafka.bootstrap_servers.partition(",")[0].rpartition(":")
    names["two.test"] = lambda: [DEAD, host]
    kafka.create_topic(topic := unique_name("dead"))
    loop = asyncio.get_running_loop()
    with dead_address(int(port)):
        started = loop.time()
        async with open_broker(f"kafka://two.test:{port}") as broker:
            assert loop.time() - started < 1.5
            assert (await broker.send_message(Message("n", topic, 1))).confirmed


@pytest.mark.parametrize("hangs_up", [False, True], ids=["says nothing", "hangs up"])
async def test_a_name_with_an_address_that_is_of_no_use(
    kafka: KafkaServer, unique_name: Name, names: dict[str, Callable[[], list[str]]], hangs_up: bool
) -> None:
    """The first address takes the connection and is no broker: the same attempt goes on with the next address."""
    host, _, port = kafka.bootstrap_servers.partition(",")[0].rpartition(":")
    names["two.test"] = lambda: [DEAD, host]
    kafka.create_topic(topic := unique_name("useless"))
    async with useless_address(int(port), hangs_up=hangs_up):
        async with open_broker(f"kafka://two.test:{port}?connect_timeout=4s") as broker:
            assert (await broker.send_message(Message("n", topic, 1))).confirmed


async def test_a_name_without_an_address(names: dict[str, Callable[[], list[str]]]) -> None:
    """The text says that the name cannot be resolved."""
    names["nowhere.test"] = list
    broker = open_broker("kafka://nowhere.test")
    with pytest.raises(UnreachableError, match=r"nowhere\.test:9092 cannot be resolved \(the name has no address\)"):
        await broker.connect()
    await broker.close()


async def test_a_name_server_that_does_not_answer(names: dict[str, Callable[[], list[str]]]) -> None:
    """The text says that the name was not resolved, and the event loop's threads stay free."""
    answer = threading.Event()
    names["slow.test"] = lambda: ["127.0.0.1"] if answer.wait(20) else []
    broker = open_broker("kafka://slow.test?connect_timeout=0.5s&delivery_timeout=3s")
    with pytest.raises(NotDeliveredError, match=r"slow\.test:9092 was not resolved: the name server does not answer"):
        await broker.send_message(Message("n", "t", 1))
    assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 1) == "free"
    await broker.close(1)
    answer.set()


@pytest.mark.fault
async def test_a_partition_whose_leader_is_dead(
    kafka_nodes: KafkaCluster, unique_name: Name, caplog: pytest.LogCaptureFixture
) -> None:
    """More messages for it than the window holds: other partitions of its topic go on, and the text names it."""
    kafka_nodes.create_topic(topic := unique_name("half"), 3)
    leaders = {number: kafka_nodes.leader(topic, number) for number in range(3)}
    dead = next(number for number in leaders if leaders[number] != 1)
    living = next(number for number in leaders if leaders[number] != leaders[dead])
    keys = {partition_for(key.encode(), 3): key for key in map(str, range(100))}
    node = next(node for node in kafka_nodes.nodes if node.node_id == leaders[dead])
    loop = asyncio.get_running_loop()
    async with open_broker(f"{kafka_nodes.url}?delivery_timeout=10s&max_in_flight=300") as broker:
        for key in keys.values():
            await broker.send_message(Message("n", topic, {}, key=key))
        caplog.set_level(logging.WARNING)
        await asyncio.to_thread(node.kill)
        caplog.clear()
        try:
            stuck = [
                asyncio.create_task(broker.send_message(Message("n", topic, {"n": n}, key=keys[dead])))
                for n in range(900)
            ]
            await asyncio.sleep(3)
            for _ in range(50):
                started = loop.time()
                receipt = await broker.send_message(Message("n", topic, {}, key=keys[living]))
                assert receipt.partition == living
                assert loop.time() - started < 1
            outcomes = await asyncio.gather(*stuck, return_exceptions=True)
        finally:
            await asyncio.to_thread(node.start)
    assert all(isinstance(outcome, DeliveryError) for outcome in outcomes)
    named = [outcome for outcome in outcomes if f"partition {dead}" in str(outcome)]
    assert len(named) >= 590, collections.Counter(type(outcome) for outcome in outcomes)
    lines = collections.Counter(record.getMessage() for record in caplog.records)
    assert lines.total() <= 3, lines


@pytest.mark.fault
async def test_somebody_goes_on_sending_while_the_server_is_down(
    kafka_node: KafkaCluster, unique_name: Name, caplog: pytest.LogCaptureFixture
) -> None:
    """One after the other for seconds, each in vain: the log has a line for what changed, not for each attempt."""
    kafka_node.create_topic(topic := unique_name("down"))
    loop = asyncio.get_running_loop()
    async with open_broker(f"{kafka_node.url}?delivery_timeout=500ms") as broker:
        await broker.send_message(Message("n", topic, {}))
        caplog.set_level(logging.WARNING)
        await asyncio.to_thread(kafka_node.kill)
        caplog.clear()
        try:
            until, failed = loop.time() + 8, 0
            while loop.time() < until:
                try:
                    await broker.send_message(Message("n", topic, {}))
                except DeliveryError:
                    failed += 1
        finally:
            await asyncio.to_thread(kafka_node.start)
        lines = collections.Counter(record.getMessage() for record in caplog.records)
        assert failed > 10
        assert lines.total() <= 4, lines
        async with asyncio.timeout(20):
            while not isinstance((await broker.send_messages([Message("n", topic, {})]))[0], Receipt):
                await asyncio.sleep(0.1)


@pytest.mark.parametrize("turns", range(0, 24, 3))
async def test_connecting_while_the_process_stands_still(turns: int, kafka: KafkaServer) -> None:
    """connect() succeeds, at whichever step the process was frozen for longer than connect_timeout."""
    stand_still_after(turns)
    async with open_broker(kafka.url, connect_timeout=1.0) as broker:
        assert (await broker.health()).ok


@pytest.fixture(scope="module")
def impatient(kafka: object) -> Iterator[KafkaCluster]:
    """A Kafka that closes connections after three seconds of silence. A loaded machine took longer than one second to
    create a topic."""
    with start_kafka(properties={"connections.max.idle.ms": "3000"}) as cluster:
        cluster.create_topic("t")
        yield cluster


def stand_still_until_closed(cluster: KafkaCluster) -> None:
    """Blocks the event loop until the cluster has closed every connection to its port."""
    port, established = f":{int(cluster.bootstrap_servers.rpartition(':')[2]):04X}", "01"
    give_up = time.monotonic() + 30
    while any(
        line.split()[2].endswith(port) and line.split()[3] == established
        for line in Path("/proc/net/tcp").read_text().splitlines()
    ):
        assert time.monotonic() < give_up, "the cluster keeps an idle connection"
        time.sleep(0.1)


@pytest.mark.parametrize("acks", ["all", "1"])
async def test_the_first_send_after_a_standstill(impatient: KafkaCluster, acks: str) -> None:
    """The broker closed the connection meanwhile: that is seen before a record is written that cannot be repeated."""
    unsafe = {"acks": acks, "enable_idempotence": False, "allow_unsafe": True}
    async with open_broker(impatient.url, **unsafe) as broker:
        for _ in range(2):
            await broker.send_message(Message("n", "t", 1))
            stand_still_until_closed(impatient)
            assert (await broker.send_message(Message("n", "t", 2))).confirmed
