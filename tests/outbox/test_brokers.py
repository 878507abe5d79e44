"""The outbox with real brokers, read back by independent clients."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cqrs_brokers import TOMBSTONE, Message, open_broker
from cqrs_brokers_outbox import Relay, State
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.readers import bind_queue, drain_queue, drain_topic
from cqrs_brokers_testkit.servers import kafka as start_kafka

from .conftest import Database
from .test_relay import all_in, rows, store, until

pytestmark = [pytest.mark.live, pytest.mark.timeout(200)]

OLD = timedelta(hours=25)


@asynccontextmanager
async def relaying(database: Database, url: str, lease: float = 15.0, **options: Any) -> AsyncIterator[Relay]:
    async with open_broker(url) as broker:
        async with Relay(database.main, broker, database.outbox, lease=lease, **options) as relay:
            yield relay


async def test_rabbitmq(database: Database, rabbitmq: Any, unique_name: Any) -> None:
    """Order, bodies and headers arrive; the message's own time is its timestamp and stands in event-time."""
    exchange = unique_name("outbox")
    queue = bind_queue(rabbitmq.url, exchange, "orders")
    made = datetime.now(UTC) - OLD
    sent = [
        Message("e", "orders", {"n": n}, key=f"k{n % 3}", headers={"tenant": "acme"}, timestamp=made) for n in range(60)
    ]
    await store(database, *sent)
    async with relaying(database, f"{rabbitmq.url}?exchange={exchange}&delivery_timeout=5s"):
        await until(all_in(State.SENT, database))
    records = await asyncio.to_thread(drain_queue, rabbitmq.url, queue, 60)
    for key in range(3):
        numbers = [json.loads(record.body)["n"] for record in records if record.key == f"k{key}"]
        assert numbers == list(range(key, 60, 3))
    stored = await rows(database)
    assert {record.headers["outbox-position"] for record in records} == {str(row.id) for row in stored}
    assert {record.headers["tenant"] for record in records} == {"acme"}
    assert {record.headers["event-time"] for record in records} == {made.isoformat()}
    assert {record.timestamp for record in records} == {made.replace(microsecond=0)}
    assert {row.sent_to for row in stored} == {"amqp"}


async def test_a_topic_without_a_queue_comes_back(
    postgresql_database: Database, rabbitmq: Any, unique_name: Any
) -> None:
    """RabbitMQ returns what no queue takes; when there is one, all arrive in order and others did not wait."""
    exchange = unique_name("outbox")
    queue = bind_queue(rabbitmq.url, exchange, "orders")
    await store(
        postgresql_database,
        *[Message("e", topic, {"n": n}, key="k") for n in range(20) for topic in ("lost", "orders")],
    )
    url = f"{rabbitmq.url}?exchange={exchange}&delivery_timeout=5s"
    async with relaying(postgresql_database, url) as relay:
        await until(lambda: _sent(postgresql_database, 20))
        status = (await relay.health()).status
        assert status is not None
        assert status.refused_topics == ("lost",)
        late = bind_queue(rabbitmq.url, exchange, "lost")
        await until(all_in(State.SENT, postgresql_database))
    for name in (queue, late):
        records = await asyncio.to_thread(drain_queue, rabbitmq.url, name, 20)
        assert [json.loads(record.body)["n"] for record in records] == list(range(20))


async def _sent(database: Database, count: int) -> bool:
    return sum(row.state == State.SENT for row in await rows(database)) == count


async def test_kafka(database: Database, kafka: Any, unique_name: Any) -> None:
    """The row has partition and offset; the record has the time of sending, and the event's own in event-time."""
    topic = unique_name("outbox")
    kafka.create_topic(topic, partitions=3)
    made = datetime.now(UTC) - OLD
    sent = [Message("e", topic, {"n": n}, key=f"k{n % 5}", timestamp=made) for n in range(50)]
    sent.append(Message("gone", topic, TOMBSTONE, key="gone"))
    await store(database, *sent)
    before = datetime.now(UTC) - timedelta(seconds=1)
    async with relaying(database, f"{kafka.url}?delivery_timeout=5s"):
        await until(all_in(State.SENT, database))
    records = await asyncio.to_thread(drain_topic, kafka.bootstrap_servers, topic, 51)
    places = {record.message_id: (record.partition, record.offset) for record in records}
    stored = await rows(database)
    assert places == {row.message_id: (row.broker_partition, row.broker_offset) for row in stored}
    for key in range(5):
        assert [json.loads(r.body)["n"] for r in records if r.key == f"k{key}"] == list(range(key, 50, 5))
    assert all(record.timestamp > before for record in records)
    assert {record.headers["event-time"] for record in records if record.name == "e"} == {made.isoformat()}


@pytest.mark.fault
async def test_a_topic_without_a_leader_holds_up_no_other(
    postgresql_database: Database, kafka_nodes: Any, unique_name: Any
) -> None:
    """Its only node is killed: its rows wait, and another topic's rows of the same claims are sent; then all arrive."""
    database = postgresql_database
    stuck, orders = unique_name("stuck"), unique_name("orders")
    kafka_nodes.create_topic(stuck)
    kafka_nodes.create_topic(orders, replication=3)
    node = kafka_nodes.nodes[kafka_nodes.leader(stuck) - 1]

    async def both(numbers: range) -> None:
        await store(database, *[Message("e", t, n, key=f"k{n % 5}") for n in numbers for t in (stuck, orders)])

    async with relaying(database, f"{kafka_nodes.url}?delivery_timeout=90s", lease=120.0) as relay:
        await both(range(10))
        await until(all_in(State.SENT, database))
        await asyncio.to_thread(node.kill)
        await both(range(10, 60))
        await until(lambda: _sent(database, 70), within=60)  # the other topic's leader may have to move first
        await both(range(60, 110))
        await until(lambda: _sent(database, 120))
        waiting = [row for row in await rows(database) if row.state != State.SENT]
        assert {(row.topic, row.attempts) for row in waiting} == {(stuck, 0)}  # without an outcome
        await until(lambda: _waits_for(relay, stuck))
        await asyncio.to_thread(node.start)
        await until(all_in(State.SENT, database), within=90)
    for topic in (stuck, orders):
        records = await asyncio.to_thread(drain_topic, kafka_nodes.reader_bootstrap_servers, topic, 110)
        for key in range(5):
            assert [json.loads(r.body) for r in records if r.key == f"k{key}"] == list(range(key, 110, 5))


async def _waits_for(relay: Relay, topic: str) -> bool:
    health = await relay.health()
    return health.ok and f"topic {topic!r} has given no receipt for " in health.reason


async def test_old_rows_an_answer_that_is_lost_and_a_restart(postgresql_database: Database, unique_name: Any) -> None:
    """Rows 25 h old, whose answer is lost while the node restarts, are once in the log: the client's repeat is one."""
    topic = unique_name("outbox")
    with FaultProxy() as proxy, start_kafka(advertised=(proxy.host, proxy.port)) as cluster:
        proxy.target = (proxy.host, cluster.nodes[0].ports["PLAINTEXT"])
        cluster.create_topic(topic)
        made = datetime.now(UTC) - OLD
        database = postgresql_database
        async with relaying(database, f"kafka://{proxy.address}?delivery_timeout=40s", lease=55.0):
            await store(database, Message("first", topic, 0, key="k", timestamp=made))
            await until(all_in(State.SENT, database))
            proxy.swallow("down")
            await store(database, *[Message(f"e{n}", topic, n, key=f"k{n}", timestamp=made) for n in range(5)])
            await asyncio.to_thread(drain_topic, cluster.reader_bootstrap_servers, topic, 6)
            await asyncio.to_thread(cluster.nodes[0].kill)
            await asyncio.to_thread(cluster.nodes[0].start)
            proxy.heal()
            proxy.reset()
            await until(all_in(State.SENT, database))
        records = await asyncio.to_thread(drain_topic, cluster.reader_bootstrap_servers, topic, 6)
        assert sorted(record.name or "" for record in records) == ["e0", "e1", "e2", "e3", "e4", "first"]
        assert {row.attempts_unknown for row in await rows(database)} == {0}
