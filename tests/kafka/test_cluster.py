"""Three nodes, replication 3, min.insync 2: leaders that die, move and come back, and replicas that are missing."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cqrs_broker_kafka import KafkaOptions
from cqrs_broker_kafka._client import Connection
from cqrs_broker_kafka._inspection import KafkaInspection
from cqrs_broker_kafka._settings import KafkaSettings
from cqrs_brokers import (
    BackpressureError,
    BrokerClosedError,
    ClosedWhilePendingError,
    DeliveryTimeoutError,
    Message,
    NotConnectedError,
    NotDeliveredError,
    Receipt,
    RejectedError,
    UnreachableError,
    open_broker,
)
from cqrs_brokers.url import BrokerURL, Host
from cqrs_brokers_testkit.kafka_mock import KafkaMock
from cqrs_brokers_testkit.leaks import no_leaks
from cqrs_brokers_testkit.readers import drain_topic
from cqrs_brokers_testkit.servers import KafkaCluster, KafkaNode

from .publishers import publishing

pytestmark = pytest.mark.fault

Name = Callable[[str], str]
SAFE = {"min.insync.replicas": "2"}


async def until_in_sync(kafka: KafkaCluster, topic: str, count: int) -> None:
    """Waits until so many nodes hold partition 0 in full."""
    async with asyncio.timeout(20):
        while len(await asyncio.to_thread(kafka.in_sync_replicas, topic)) != count:
            await asyncio.sleep(0.3)


def leader(kafka: KafkaCluster, topic: str) -> KafkaNode:
    return kafka.nodes[kafka.leader(topic) - 1]


@pytest.mark.timeout(300)  # nodes start five times
async def test_leaders_die_and_move(kafka_nodes: KafkaCluster, unique_name: Name) -> None:
    """Leader kill -9, an orderly restart of each node, leaders moved back: 0 lost, 0 twice, order kept, no error."""
    from confluent_kafka import ElectionType
    from confluent_kafka.admin import AdminClient

    topic = unique_name("leaders")
    kafka_nodes.create_topic(topic, 3, 3, SAFE)
    async with open_broker(f"{kafka_nodes.url}?request_timeout_ms=10000") as broker:
        async with publishing(broker, topic, pause=0.05) as publishers:
            await asyncio.sleep(0.5)
            victim = await asyncio.to_thread(leader, kafka_nodes, topic)
            await asyncio.to_thread(victim.kill)
            await publishers.recovered(20)
            await asyncio.to_thread(victim.start)
            await until_in_sync(kafka_nodes, topic, 3)
            for node in kafka_nodes.nodes:
                await asyncio.to_thread(node.restart)
                await until_in_sync(kafka_nodes, topic, 3)
                await publishers.recovered(20)
            admin = AdminClient({"bootstrap.servers": kafka_nodes.reader_bootstrap_servers})
            await asyncio.to_thread(admin.elect_leaders(ElectionType.PREFERRED).result, 20)
            await publishers.recovered(20)
    assert len(publishers.receipts) == len(publishers.outcomes) > 500
    await publishers.check(kafka_nodes)


async def test_frozen_leader(kafka_nodes: KafkaCluster, unique_name: Name) -> None:
    """A leader that freezes is waited for no longer than one request: others take over, nothing is lost or twice."""
    topic = unique_name("frozen")
    kafka_nodes.create_topic(topic, 3, 3, SAFE)
    async with open_broker(f"{kafka_nodes.url}?request_timeout_ms=4000") as broker:
        async with publishing(broker, topic, pause=0.05) as publishers:
            await asyncio.sleep(0.5)
            victim = await asyncio.to_thread(leader, kafka_nodes, topic)
            victim.pause()
            try:
                await asyncio.sleep(2)
                await publishers.recovered(15)
            finally:
                victim.resume()
            await until_in_sync(kafka_nodes, topic, 3)
            await publishers.recovered(10)
    assert len(publishers.receipts) == len(publishers.outcomes)
    await publishers.check(kafka_nodes)


async def test_too_few_replicas(kafka_nodes: KafkaCluster, unique_name: Name) -> None:
    """Fewer in sync than min.insync.replicas: waited out to the deadline, then refused, and it goes on by itself."""
    topic = unique_name("insync")
    kafka_nodes.create_topic(topic, 1, 3, {"min.insync.replicas": "3"})
    loop = asyncio.get_running_loop()
    url = f"{kafka_nodes.url}?delivery_timeout=3s&request_timeout_ms=1000"
    async with open_broker(url) as broker:
        await broker.send_message(Message("E", topic, {}, key="k"))
        head = await asyncio.to_thread(leader, kafka_nodes, topic)
        follower = next(node for node in kafka_nodes.nodes if node is not head)
        await asyncio.to_thread(follower.kill)
        try:
            await until_in_sync(kafka_nodes, topic, 2)
            closed = await close_with_pending(url, topic)
            started = loop.time()
            first = asyncio.create_task(broker.send_message(Message("E", topic, {}, key="k")))
            await asyncio.sleep(0.2)
            second = asyncio.create_task(broker.send_message(Message("E", topic, {}, key="k")))
            outcomes = await asyncio.gather(first, second, return_exceptions=True)
            assert loop.time() - started < 4.2
            assert [type(outcome) for outcome in outcomes] == [RejectedError, RejectedError]
            assert all("min.insync.replicas" in str(o) and getattr(o, "retryable", False) for o in outcomes)
            patient = [asyncio.create_task(broker.send_message(Message("E", topic, {}, key="k"))) for _ in range(3)]
        finally:
            await asyncio.to_thread(follower.start)
        await until_in_sync(kafka_nodes, topic, 3)
        waited = await asyncio.gather(*patient, return_exceptions=True)
        assert all(isinstance(outcome, Receipt | RejectedError) for outcome in waited)
        await asyncio.sleep(0.5)
        last = await broker.send_message(Message("E", topic, {}, key="k"))
    records = await asyncio.to_thread(drain_topic, kafka_nodes.reader_bootstrap_servers, topic)
    ids = [record.message_id for record in records]
    assert len(ids) == len(set(ids))
    assert ids[-1] == str(last.message_id)
    told = [*outcomes, *closed, *waited]
    assert {str(o.message_id) for o in told if isinstance(o, Receipt)} <= set(ids)
    assert not {str(o.message_id) for o in told if isinstance(o, NotDeliveredError)} & set(ids)


async def close_with_pending(url: str, topic: str) -> list[Receipt | BaseException]:
    """Opens a broker whose messages find too few replicas and closes it within 2 s; what they were told."""
    loop = asyncio.get_running_loop()
    async with no_leaks():
        broker = open_broker(url)
        await broker.connect()
        sends = [asyncio.create_task(broker.send_message(Message("E", topic, {}, key="k")))]
        await asyncio.sleep(0.5)
        sends += [asyncio.create_task(broker.send_message(Message("E", topic, {}, key="k"))) for _ in range(3)]
        await asyncio.sleep(0.2)
        started = loop.time()
        await broker.close(2)
        assert loop.time() - started < 3
    outcomes = await asyncio.gather(*sends, return_exceptions=True)
    assert isinstance(outcomes[0], BrokerClosedError | ClosedWhilePendingError)  # the latter: it was just in flight
    assert {type(outcome) for outcome in outcomes[1:]} == {BrokerClosedError}
    return outcomes


async def test_too_few_replicas_without_idempotence(kafka_nodes: KafkaCluster, unique_name: Name) -> None:
    """The same with allow_unsafe: refused before anything was written, so it is waited out to the deadline too."""
    topic = unique_name("weak-insync")
    kafka_nodes.create_topic(topic, 1, 3, {"min.insync.replicas": "3"})
    mode = "enable_idempotence=false&allow_unsafe=true&delivery_timeout=3s"
    async with open_broker(f"{kafka_nodes.url}?{mode}") as broker:
        await broker.send_message(Message("E", topic, {}, key="k"))
        head = await asyncio.to_thread(leader, kafka_nodes, topic)
        follower = next(node for node in kafka_nodes.nodes if node is not head)
        await asyncio.to_thread(follower.kill)
        try:
            await until_in_sync(kafka_nodes, topic, 2)
            await asyncio.sleep(1)  # until the leader knows as well
            with pytest.raises(RejectedError, match=r"min\.insync\.replicas") as caught:
                await broker.send_message(Message("E", topic, {}, key="k"))
            assert caught.value.retryable
        finally:
            await asyncio.to_thread(follower.start)
        await until_in_sync(kafka_nodes, topic, 3)
        last = await broker.send_message(Message("E", topic, {}, key="k"))
    assert last.offset == 1


async def test_no_quorum(kafka_nodes: KafkaCluster, unique_name: Name) -> None:
    """Two of three nodes dead: each send ends at its deadline, close(2) within 3 s; the nodes back: it goes on."""
    topic = unique_name("quorum")
    kafka_nodes.create_topic(topic, 3, 3, SAFE)
    loop = asyncio.get_running_loop()
    url = f"{kafka_nodes.url}?delivery_timeout=5s&request_timeout_ms=2000"
    async with no_leaks(), open_broker(url) as survivor:
        await survivor.send_message(Message("E", topic, {}, key="k"))
        other = open_broker(url)
        await other.send_messages(Message("E", topic, {}) for _ in range(30))
        for node in kafka_nodes.nodes[1:]:
            await asyncio.to_thread(node.kill)
        try:
            pending = [asyncio.create_task(other.send_message(Message("E", topic, {}))) for _ in range(30)]
            await asyncio.sleep(1)
            closing = loop.time()
            async with no_leaks(ignore=lambda line: "_read" in line or "TCP" in line):  # the survivor reconnects
                await other.close(2)
                assert loop.time() - closing < 3
                assert all(task.done() for task in pending)
            started = loop.time()
            keys = [f"k{number}" for number in range(30)]
            sends = [asyncio.create_task(survivor.send_message(Message("E", topic, {}, key=key))) for key in keys]
            await asyncio.sleep(0.2)
            sends += [asyncio.create_task(survivor.send_message(Message("E", topic, {}, key=key))) for key in keys]
            outcomes = await asyncio.gather(*sends, return_exceptions=True)
            assert loop.time() - started < 6.2
        finally:
            await asyncio.gather(*(asyncio.to_thread(node.start) for node in kafka_nodes.nodes[1:]))
        ended = await asyncio.gather(*pending, return_exceptions=True)
        assert {type(outcome) for outcome in ended} <= {ClosedWhilePendingError, BrokerClosedError}
        assert DeliveryTimeoutError in {type(outcome) for outcome in outcomes}
        assert all(isinstance(o, DeliveryTimeoutError | BackpressureError | NotConnectedError) for o in outcomes)
        await asyncio.to_thread(kafka_nodes.wait_ready)
        receipts = await asyncio.gather(*(survivor.send_message(Message("E", topic, {})) for _ in range(30)))
    records = await asyncio.to_thread(drain_topic, kafka_nodes.reader_bootstrap_servers, topic)
    ids = [record.message_id for record in records]
    assert len(ids) == len(set(ids))
    assert {str(receipt.message_id) for receipt in receipts} <= set(ids)
    assert not {str(o.message_id) for o in [*outcomes, *ended] if isinstance(o, NotDeliveredError)} & set(ids)


async def test_one_dead_bootstrap_host(kafka_nodes: KafkaCluster) -> None:
    """The first hosts of the string are dead: the third is enough, at once."""
    loop = asyncio.get_running_loop()
    broker = open_broker(f"kafka://127.0.0.1:1,127.0.0.1:2,{kafka_nodes.nodes[2].address}")
    started = loop.time()
    await broker.connect()
    assert loop.time() - started < 2
    await broker.close()


async def test_leader_changes_without_a_fault() -> None:
    """A partition that another node leads from now on, under load: no error, and the new leader is used."""
    with KafkaMock(2) as mock:
        mock.create_topic("t", 1, 2)
        async with open_broker(mock.url) as broker:
            async with publishing(broker, "t", count=4, pause=0.02) as publishers:
                for node in (2, 1, 2, 1):
                    mock.set_leader("t", 0, node)
                    await publishers.recovered(5)
    assert len(publishers.receipts) == len(publishers.outcomes)


async def test_no_leader_for_a_while() -> None:
    """A partition without a leader is waited for; at the deadline the message is withdrawn, and never comes."""
    with KafkaMock(1) as mock:
        mock.create_topic("t", 1)
        async with open_broker(f"{mock.url}?delivery_timeout=2s") as broker:
            await broker.send_message(Message("E", "t", {}, key="k"))
            mock.set_leader("t", 0, -1)
            send = asyncio.create_task(broker.send_message(Message("E", "t", {}, key="k")))
            await asyncio.sleep(0.5)
            mock.set_leader("t", 0, 1)
            assert (await send).confirmed
            mock.set_leader("t", 0, -1)
            with pytest.raises(BackpressureError, match=r"no leader|NOT_LEADER"):
                await broker.send_message(Message("E", "t", {}, key="k"))
            mock.set_leader("t", 0, 1)
            await asyncio.sleep(0.5)
            assert (await broker.send_message(Message("E", "t", {}, key="k"))).offset == 2


async def test_all_nodes_dead_is_said(kafka_nodes: KafkaCluster, unique_name: Name) -> None:
    """All nodes dead: health names it, queued messages are NotConnectedError with the cause, later it is gone."""
    topic = unique_name("dead")
    kafka_nodes.create_topic(topic, 1, 3, SAFE)
    loop = asyncio.get_running_loop()
    async with open_broker(f"{kafka_nodes.url}?delivery_timeout=6s&request_timeout_ms=2000") as broker:
        await broker.send_message(Message("E", topic, {}, key="k"))
        await asyncio.to_thread(kafka_nodes.kill)
        try:
            started = loop.time()
            first = asyncio.create_task(broker.send_message(Message("E", topic, {}, key="k")))
            await asyncio.sleep(0.1)
            second = asyncio.create_task(broker.send_message(Message("E", topic, {}, key="k")))
            unseen = asyncio.create_task(broker.send_message(Message("E", unique_name("unseen"), {})))
            outcomes = await asyncio.gather(first, second, unseen, return_exceptions=True)
            assert loop.time() - started < 7.1
            # The first one never left when the end of its connection had been seen before.
            assert isinstance(outcomes[0], DeliveryTimeoutError | NotConnectedError)
            for outcome in outcomes[1:]:
                assert isinstance(outcome, NotConnectedError)
                assert isinstance(outcome.__cause__, UnreachableError)
            health = await broker.health()
            assert not health.ok
            assert isinstance(health.last_error, UnreachableError)
        finally:
            await asyncio.to_thread(kafka_nodes.start)
        await until_in_sync(kafka_nodes, topic, 3)
        await asyncio.sleep(1)
        assert (await broker.send_message(Message("E", topic, {}, key="k"))).confirmed
        health = await broker.health()
        assert (health.ok, health.last_error) == (True, None)


@pytest.mark.parametrize("first", [1, 2, 3])
async def test_the_inspection_asks_a_node_about_itself(
    kafka_nodes: KafkaCluster, unique_name: Name, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """Whether a missing topic would be created is found out, whichever node is connected first."""
    connect = Connection.open.__func__  # type: ignore[attr-defined] # of a class method

    async def in_order(cls: type[Connection], settings: KafkaSettings, host: Host, closed: Any = None) -> Connection:
        if host.port != kafka_nodes.nodes[first - 1].ports["PLAINTEXT"]:
            await asyncio.sleep(0.5)
        made: Connection = await connect(cls, settings, host, closed)
        return made

    monkeypatch.setattr(Connection, "open", classmethod(in_order))
    inspection = KafkaInspection(KafkaSettings(BrokerURL.parse(kafka_nodes.url), KafkaOptions()))
    topic = unique_name("missing")
    levels = {finding.level async for finding in inspection.server(inspection.endpoints())}
    assert levels == {"ok", "unseen"}
    (finding,) = [finding async for finding in inspection.topic(topic)]
    await inspection.close()
    assert finding.text == "there is no such topic"
