"""Partitions that come and go, leaders that are missing, other nodes: nothing is overtaken or forgotten.

On librdkafka's mock cluster: a real one does none of this at a chosen moment.
"""

import asyncio
import contextlib
from typing import Any

import pytest

from cqrs_broker_kafka._cluster import Cluster
from cqrs_broker_kafka._driver import KafkaDriver
from cqrs_broker_kafka._partition import Partition
from cqrs_broker_kafka._partitioning import partition_for
from cqrs_brokers import Broker, ConnectionLostError, Message, NotDeliveredError, Receipt, open_broker
from cqrs_brokers_testkit.kafka_mock import INIT_PRODUCER_ID, PRODUCE, KafkaMock
from cqrs_brokers_testkit.proxy import FaultProxy

pytestmark = pytest.mark.live

KEYS = [next(key for key in map(str, range(100)) if partition_for(key.encode(), 2) == part) for part in (0, 1)]
"""A key for each of two partitions."""


def message(partition: int = 0) -> Message:
    return Message("E", "t", {}, key=KEYS[partition])


def parts(broker: Broker) -> tuple[KafkaDriver, Cluster, list[Partition]]:
    driver = broker.driver
    assert isinstance(driver, KafkaDriver)
    assert driver._cluster is not None
    return driver, driver._cluster, list(driver.topics["t"].partitions)


@contextlib.contextmanager
def two_partitions(leaders: tuple[int, int] = (1, 2)) -> Any:
    with KafkaMock(2) as mock:
        mock.create_topic("t", 2)
        for partition, node in enumerate(leaders):
            mock.set_leader("t", partition, node)
        yield mock


async def test_a_partition_that_is_gone_for_a_moment() -> None:
    """What comes after a partition is back waits for the batch from before."""
    with two_partitions() as mock:
        async with open_broker(mock.url) as broker:
            await broker.send_messages([message(0), message(1)])
            driver, cluster, partitions = parts(broker)
            mock.set_round_trip(400, 2)
            first = asyncio.create_task(broker.send_message(message(1)))
            await asyncio.sleep(0.05)
            topic = driver.topics["t"]
            topic.found(1)  # a node that lags behind answers
            cluster._learn_partitions(topic, [(0, 0, 1), (0, 1, 2)])  # and then one that does not
            assert topic.partitions == partitions
            second = asyncio.create_task(broker.send_message(message(1)))
            assert ((await first).offset, (await second).offset) == (1, 2)


async def test_what_was_never_in_doubt_goes_where_its_key_goes_now() -> None:
    """A batch that is refused for certain while its partition disappears goes to the partition that its key has now."""
    with two_partitions() as mock:
        async with open_broker(mock.url) as broker:
            await broker.send_messages([message(0), message(1)])
            driver, _, _ = parts(broker)
            mock.set_leader("t", 1, -1)
            waiting = asyncio.create_task(broker.send_message(message(1)))
            await asyncio.sleep(0.2)
            driver.topics["t"].found(1)
            receipt = await asyncio.wait_for(waiting, 3)
            assert (receipt.partition, receipt.offset) == (0, 1)


async def test_a_new_producer_id_for_one_partition() -> None:
    """Where the broker does not accept the epoch any more, that partition gets another producer id; others go on."""
    with two_partitions() as mock:
        async with open_broker(mock.url) as broker:
            await broker.send_messages([message(0), message(1)])
            driver, _, (first, second) = parts(broker)
            mock.push_errors(INIT_PRODUCER_ID, *[15] * 5)
            mock.push_errors(PRODUCE, 47)
            with pytest.raises(Exception, match="epoch"):
                await broker.send_message(message(1))
            behind = asyncio.create_task(broker.send_message(message(1)))
            beside = await broker.send_message(message(0))
            assert not behind.done()
            assert (beside.confirmed, (await behind).confirmed) == (True, True)
            assert second._producer_id == driver.producer_id
            assert first._producer_id != second._producer_id


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The answers to questions for metadata, in the order in which they came."""
    answers: list[object] = []
    learnt = Cluster._learnt

    def kept(cluster: Cluster, answer: Any) -> bool:
        answers.append(answer)
        return learnt(cluster, answer)

    monkeypatch.setattr(Cluster, "_learnt", kept)
    return answers


async def test_a_partition_without_a_leader_is_asked_for_at_a_pace(asked: list[object]) -> None:
    """Metadata is asked for at most every 50 ms while a leader is missing, and then less often; then it goes."""
    with two_partitions() as mock:
        async with open_broker(mock.url) as broker:
            await broker.send_messages([message(0), message(1)])
            mock.set_leader("t", 1, -1)
            asked.clear()
            send = asyncio.create_task(broker.send_message(message(1)))
            await asyncio.sleep(1)
            assert 0 < len(asked) <= 21
            assert not send.done()
            mock.set_leader("t", 1, 1)
            assert (await asyncio.wait_for(send, 2)).confirmed


@pytest.mark.parametrize("why", ["the deadline has passed", "the topic is gone"])
async def test_nobody_asks_for_a_leader_without_a_message(asked: list[object], why: str) -> None:
    """When nothing waits for a partition without a leader any more, metadata is not asked for any more."""
    with two_partitions() as mock:
        async with open_broker(mock.url) as broker:
            await broker.send_messages([message(0), message(1)])
            _, cluster, _ = parts(broker)
            mock.set_leader("t", 1, -1)
            send = asyncio.create_task(broker.send_message(message(1), timeout=1.0 if "deadline" in why else 20.0))
            while not cluster.leaderless:
                await asyncio.sleep(0.01)
            if "topic" in why:
                mock.set_topic_error("t", 3)
            with pytest.raises(NotDeliveredError):
                await send
            await asyncio.sleep(
                1.5
            )  # the timer that removes records runs every 0.5 s, and the last question may be out
            asked.clear()
            await asyncio.sleep(1.5)
            assert not asked
            mock.set_leader("t", 1, 1)
            if "deadline" in why:
                assert (await asyncio.wait_for(broker.send_message(message(1)), 5)).confirmed


@pytest.mark.fault
async def test_all_nodes_are_others_now() -> None:
    """When nothing is answered and the bootstrap server names none of the old nodes, connecting begins anew."""
    with KafkaMock(1) as old, KafkaMock(1) as new, FaultProxy() as proxy:
        for mock in (old, new):
            mock.create_topic("t", 2)
        host, _, port = old.bootstrap_servers.partition(":")
        proxy.target = (host, int(port))
        async with open_broker(f"kafka://{proxy.address}?delivery_timeout=8s&request_timeout_ms=2000") as broker:
            await broker.send_message(message())
            old.set_round_trip(60_000, 1)
            handed = asyncio.create_task(broker.send_message(message()))
            await asyncio.sleep(0.2)
            host, _, port = new.bootstrap_servers.partition(":")
            proxy.target = (host, int(port))
            old.down(1)
            behind = asyncio.create_task(broker.send_message(message()))
            outcomes = await asyncio.gather(handed, behind, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [ConnectionLostError, Receipt]
            assert (await broker.health()).ok
