"""The outbox side by side with others, in one run: `python -m benchmarks.outbox --broker amqp|kafka`.

PostgreSQL, batches of 500, payloads of 300 bytes, 1 000 keys; interleaved rounds, medians. Each contender gets a full
table and is timed until every row is marked: others from their start, with their connections open; ours from the rows'
commit, with a relay that has its partitions. None is idle then: ours has sent a few rows just before, because an idle
relay looks for rows about four times a second, and that pause is a figure of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import statistics
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import aio_pika
import asyncpg
import cqrs
import pika
import sqlalchemy
from aiokafka import AIOKafkaProducer
from cqrs.outbox.sqlalchemy import OutboxModel, SqlAlchemyOutboxedEventRepository
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from txoutbox import Relay as TxRelay
from txoutbox import RelayConfig
from txoutbox.adapters.postgres import PostgresStorage

from cqrs_brokers import Message, Receipt, open_broker
from cqrs_brokers_outbox import Outbox, Relay, RelayObserver
from cqrs_brokers_outbox._relay.store import Store
from cqrs_brokers_outbox.opening import make_statements
from cqrs_brokers_python_cqrs import message_broker
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.servers import kafka, postgresql, rabbitmq

BATCH, KEYS, PAYLOAD = 500, 1000, b"x" * 300
TOPIC = "orders"
WARM = 100
"""So many rows wake the relays before the clock starts."""

Timed = Callable[[], Awaitable[float]]


UNSENT = "SELECT NOT EXISTS (SELECT 1 FROM {} WHERE state IN (0, 1, 2, 3, 4))"


class Sent(RelayObserver):
    """Counts receipts."""

    count = 0

    def sent(self, position: int, message: Message, outcome: Any) -> None:
        self.count += isinstance(outcome, Receipt)


class Bench:
    """One database, one broker.

    Args:
        database: The database's server.
        url: The broker's config string.
        bare: What the other clients connect to.
        kind: "amqp" or "kafka".
    """

    def __init__(self, database: Any, url: str, bare: str, kind: str) -> None:
        self.database, self.url, self.bare, self.kind = database, url, bare, kind
        self.engine: AsyncEngine = create_async_engine(database.url_of("asyncpg"), pool_size=20)

    # -- ours ---------------------------------------------------------------------------------------------------------

    async def filled(self, rows: int, keys: int) -> Outbox:
        outbox = Outbox(f"o{uuid.uuid4().hex[:8]}")
        await outbox.create_table(self.engine)
        async with self.engine.begin() as connection:
            for start in range(0, rows, 1000):
                numbers = range(start, min(rows, start + 1000))
                await outbox.insert(connection, *(Message("e", TOPIC, PAYLOAD, key=f"k{n % keys}") for n in numbers))
        await self._vacuum(outbox.tables.name)
        return outbox

    async def _vacuum(self, table: str) -> None:
        async with self.engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(text(f"VACUUM ANALYZE {table}"))

    async def ours(self, rows: int, *, keys: int = KEYS, **options: Any) -> float:
        """A relay that has its partitions, as the others have their connections: from the rows' commit."""
        outbox = await self.filled(0, 1)
        table = outbox.tables.name
        sent = Sent()
        relay_options = {"batch": BATCH, "observers": [sent], **options}
        async with open_broker(self.url) as broker, Relay(self.engine, broker, outbox, **relay_options):
            await self._until(f"SELECT count(*) > 0 AND count(*) = count(owner) FROM {table}_lease")
            started = await self._committed(outbox, rows, keys)
            while sent.count < WARM + rows:  # noqa: ASYNC110 - queries meanwhile would be work that others do not have
                await asyncio.sleep(0.002)
            await self._until(UNSENT.format(table), every=0.002)
            return rows / (time.perf_counter() - started)

    async def _committed(self, outbox: Outbox, rows: int, keys: int) -> float:
        """Commits the rows when the relays have just sent others, in every partition; returns when."""
        async with self.engine.begin() as connection:
            for start in range(0, rows, 1000):
                numbers = range(start, min(rows, start + 1000))
                await outbox.insert(connection, *(Message("e", TOPIC, PAYLOAD, key=f"k{n % keys}") for n in numbers))
            async with self.engine.begin() as beside:
                await outbox.insert(beside, *(Message("e", TOPIC, PAYLOAD, key=f"w{n}") for n in range(WARM)))
            await self._until(UNSENT.format(outbox.tables.name))
        return time.perf_counter()

    async def running(self, rows: int, url: str, *, relays: int) -> float:
        """Processes of relays that run already and share the partitions: from the rows' commit."""
        outbox = await self.filled(0, 1)
        table = outbox.tables.name
        environment = {**os.environ, "CQRS_OUTBOX_DATABASE": self.database.url_of("asyncpg"), "CQRS_BROKER_URL": url}
        command = (sys.executable, "-m", "cqrs_brokers_outbox", "relay", "--table", table, "--batch", str(BATCH))
        processes = [
            await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.DEVNULL)
            for _ in range(relays)
        ]
        try:
            await self._until(
                f"SELECT count(DISTINCT owner) = {relays} AND count(*) = 16 AND max(c) <= {16 // relays} FROM "
                f"(SELECT owner, count(*) OVER (PARTITION BY owner) c FROM {table}_lease WHERE owner IS NOT NULL) o"
            )
            started = await self._committed(outbox, rows, KEYS)
            await self._until(UNSENT.format(table))
            return rows / (time.perf_counter() - started)
        finally:
            for process in processes:
                process.terminate()
                await process.wait()

    async def _until(self, query: str, every: float = 0.01) -> None:
        async with self.engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            while not (await connection.execute(text(query))).scalar():  # noqa: ASYNC110 - it is the database's
                await asyncio.sleep(every)

    # -- without an outbox --------------------------------------------------------------------------------------------

    async def direct(self, rows: int) -> float:
        async with open_broker(self.url) as broker:
            messages = [Message("e", TOPIC, PAYLOAD, key=f"k{n % KEYS}") for n in range(rows)]
            started = time.perf_counter()
            for start in range(0, rows, BATCH):
                await broker.send_messages(messages[start : start + BATCH])
            return rows / (time.perf_counter() - started)

    async def in_turn(self, rows: int) -> float:
        """One message after the other by our client: what strict order of one key cannot exceed."""
        async with open_broker(self.url) as broker:
            messages = [Message("e", TOPIC, PAYLOAD, key="k0") for _ in range(rows)]
            started = time.perf_counter()
            for message in messages:
                await broker.send_message(message)
            return rows / (time.perf_counter() - started)

    async def peer_in_turn(self, rows: int) -> float:
        """The same by the client with which txoutbox publishes here."""
        async with self.publisher() as publish:
            message = SimpleNamespace(topic=TOPIC, key="k0", payload=PAYLOAD)
            started = time.perf_counter()
            for _ in range(rows):
                await publish(message)
            return rows / (time.perf_counter() - started)

    # -- txoutbox -----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def publisher(self) -> AsyncIterator[Callable[[Any], Awaitable[None]]]:
        if self.kind == "kafka":
            async with AIOKafkaProducer(bootstrap_servers=self.bare, enable_idempotence=True) as producer:

                async def to_kafka(message: Any) -> None:
                    await producer.send_and_wait(message.topic, message.payload, key=message.key.encode())

                yield to_kafka
            return
        connection = await aio_pika.connect(self.bare)
        async with connection:
            channel = await connection.channel(publisher_confirms=True)
            exchange = await channel.get_exchange("bench")

            async def to_rabbitmq(message: Any) -> None:
                body = aio_pika.Message(message.payload, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
                await exchange.publish(body, message.topic)

            yield to_rabbitmq

    async def txoutbox(self, rows: int, *, keys: int = KEYS) -> float:
        dsn = self.database.url
        table = f"t{uuid.uuid4().hex[:8]}"
        pool = await asyncpg.create_pool(dsn, min_size=4)
        try:
            storage = PostgresStorage(pool, table=table)
            await storage.create_schema()
            async with pool.acquire() as connection:
                records = [(TOPIC, f"k{n % keys}", PAYLOAD) for n in range(rows)]
                await connection.executemany(f"INSERT INTO {table} (topic, key, payload) VALUES ($1, $2, $3)", records)
            await self._vacuum(table)
            config = RelayConfig(batch_size=BATCH, concurrency=100, poll_min=0.001, lease=timedelta(seconds=120))
            async with self.publisher() as publish:
                relay = TxRelay(storage, publish, config=config)
                started = time.perf_counter()
                done = 0
                while done < rows:  # never idle
                    done += (await relay.run_once()).published
                return rows / (time.perf_counter() - started)
        finally:
            await pool.close()

    # -- python-cqrs --------------------------------------------------------------------------------------------------

    async def python_cqrs(self, rows: int) -> float:
        async with self.engine.begin() as connection:
            await connection.run_sync(OutboxModel.metadata.drop_all)
            await connection.run_sync(OutboxModel.metadata.create_all)
        known = cqrs.OutboxedEventMap()
        known.register("e", cqrs.PydanticNotificationEvent[dict[str, str]])
        async with AsyncSession(self.engine) as session:
            repository = SqlAlchemyOutboxedEventRepository(session, event_map=known)
            for _ in range(rows):
                event: Any = cqrs.PydanticNotificationEvent[dict[str, str]](
                    event_name="e", topic=TOPIC, payload={"x": PAYLOAD.decode()}
                )
                repository.add(event)
            await repository.commit()  # type: ignore[no-untyped-call]
            async with message_broker(self.url) as adapter:
                producer = cqrs.EventProducer(adapter, repository)
                started = time.perf_counter()
                while batch := await repository.get_many(BATCH):
                    for each in batch:
                        await producer.send_message(each)
                    await repository.commit()  # type: ignore[no-untyped-call]
                return rows / (time.perf_counter() - started)

    # -- single figures -----------------------------------------------------------------------------------------------

    async def latency(self, seconds: float = 6.0, rate: int = 100) -> tuple[float, float]:
        """p50 in ms from commit to receipt, at 100 rows a second; and ms of the first row after an idle while."""
        outbox = await self.filled(0, 1)
        committed: dict[str, float] = {}
        taken: list[float] = []

        class Watch(RelayObserver):
            def sent(self, position: int, message: Message, outcome: Any) -> None:
                taken.append(time.perf_counter() - committed[str(message.message_id)])

        async def one(connection: Any, n: int) -> None:
            message = Message("e", TOPIC, PAYLOAD, key=f"k{n}")
            await outbox.insert(connection, message)
            committed[str(message.message_id)] = time.perf_counter() + 1
            await connection.commit()
            committed[str(message.message_id)] = time.perf_counter()

        async with open_broker(self.url) as broker, Relay(self.engine, broker, outbox, observers=[Watch()]):
            async with self.engine.connect() as connection:
                firsts = []
                for n in range(4):
                    await asyncio.sleep(2)
                    await one(connection, n)
                    await asyncio.sleep(0.6)
                    firsts.append(taken[-1])
                taken.clear()
                for n in range(int(seconds * rate)):
                    await one(connection, n)
                    await asyncio.sleep(1 / rate)
                await asyncio.sleep(0.5)
        return statistics.median(taken) * 1000, max(firsts) * 1000

    async def idle(self, seconds: float = 30.0) -> tuple[float, float]:
        """Per cent of a CPU, and statements a second, of an idle relay; BEGIN and COMMIT are counted too."""
        outbox = await self.filled(0, 1)
        engine = create_async_engine(self.database.url_of("asyncpg"))
        statements = 0

        def count(*_: object) -> None:
            nonlocal statements
            statements += 1

        sqlalchemy.event.listen(engine.sync_engine, "before_cursor_execute", count)
        async with open_broker(self.url) as broker, Relay(engine, broker, outbox):
            await asyncio.sleep(3)
            before, used = statements, _cpu()
            await asyncio.sleep(seconds)
            found = (_cpu() - used) / seconds * 100, (statements - before) / seconds
        await engine.dispose()
        return found

    async def commits(self, count: int = 4000) -> tuple[float, float]:
        """Commits a second with `add` of one event, and with a hand-written INSERT."""
        outbox = await self.filled(0, 1)
        statement = text(
            f"INSERT INTO {outbox.tables.name} (place, hash, state, topic, message_key, message_name, message_id, "
            "body, made_at, created_at, attempts, attempts_unknown) "
            "VALUES (0, 1, 0, :topic, :key, 'e', :id, :body, 1, 1, 0, 0)"
        )

        async def with_add(session: AsyncSession) -> None:
            outbox.add(session, Message("e", TOPIC, PAYLOAD, key="k"))

        async def by_hand(session: AsyncSession) -> None:
            values = {"topic": TOPIC, "key": b"k", "id": str(uuid.uuid4()), "body": PAYLOAD}
            await session.execute(statement, values)

        taken = {with_add: 0.0, by_hand: 0.0}
        for number in range(count + 50):  # in turn, so that both see the same machine
            for way in taken:
                started = time.perf_counter()
                async with AsyncSession(self.engine) as session, session.begin():
                    await way(session)
                if number >= 50:
                    taken[way] += time.perf_counter() - started
        return count / taken[with_add], count / taken[by_hand]

    async def kept(self, kept: int) -> tuple[float, float]:
        """Milliseconds of a claim in a table that has only what waits, and in one with so many kept rows."""
        columns = (
            "place, hash, state, topic, message_key, message_name, message_id, body, made_at, created_at, "
            "attempts, attempts_unknown, sent_at"
        )
        claims = []
        for rows in (0, kept):
            outbox = await self.filled(0, 1)
            table = outbox.tables.name
            async with self.engine.begin() as connection:
                for state, count in ((5, rows), (0, 2000)):
                    values = f"0, n, {state}, 'orders', 'k', 'e', 'id', 'body', 1, 1, 0, 0, 1"
                    select = f"SELECT {values} FROM generate_series(1, {count}) n"
                    await connection.execute(text(f"INSERT INTO {table} ({columns}) {select}"))
            await self._vacuum(table)
            store = Store(self.engine, make_statements(self.engine, outbox.tables))
            claim = store.statements.claim(range(16), 16, busy=[1, 2, 3], crowded=[], limit=BATCH)
            claims.append((store, claim, list[float]()))
        for _ in range(100):  # in turn, so that both see the same machine
            for store, claim, taken in claims:
                started = time.perf_counter()
                await store.rows(claim)
                taken.append(time.perf_counter() - started)
        for store, _, _ in claims:
            await store.close()
        empty, full = (statistics.median(taken) * 1000 for _, _, taken in claims)
        return empty, full


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def _interleaved(contenders: dict[str, Timed], rounds: int) -> dict[str, float]:
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            rates[name].append(await run())
            print(f"{name}: {rates[name][-1]:.0f}", file=sys.stderr, flush=True)
    return {name: statistics.median(found) for name, found in rates.items()}


async def measure(bench: Bench, *, rows: int, rounds: int, kept: int, slow_url: str) -> list[str]:
    """Everything, as the lines of a report."""
    slow = max(200, rows // 10)
    hot = max(200, rows // 5)
    contenders: dict[str, Timed] = {
        "python-cqrs": lambda: bench.python_cqrs(slow),
        "txoutbox": lambda: bench.txoutbox(rows),
        "ours": lambda: bench.ours(rows),
        "txoutbox, one key": lambda: bench.txoutbox(hot, keys=1),
        "ours, one key, strict": lambda: bench.ours(hot, keys=1),
        "one after the other, our client": lambda: bench.in_turn(hot),
        "one after the other, txoutbox' client": lambda: bench.peer_in_turn(hot),
        "ours, one key, pipeline_keys": lambda: bench.ours(rows, keys=1, pipeline_keys=True),
        "send_messages without an outbox": lambda: bench.direct(rows),
        "ours, 20 ms away, one relay": lambda: bench.running(rows, slow_url, relays=1),
        "ours, 20 ms away, two relays": lambda: bench.running(rows, slow_url, relays=2),
    }
    rates = await _interleaved(contenders, rounds)
    lines = ["| | rows a second |", "|---|---|", *(f"| {name} | {rate:.0f} |" for name, rate in rates.items())]

    def ratio(first: str, second: str, goal: str) -> str:
        return f"| {first} / {second} | {rates[first] / rates[second]:.2f} | {goal} |"

    kafka_goal = bench.kind == "kafka"
    lines += ["", "| ratio | measured | goal |", "|---|---|---|"]
    lines += [
        ratio("ours", "python-cqrs", "≥ 10" if kafka_goal else "≥ 8"),
        ratio("ours", "txoutbox", "≥ 2"),
        ratio("ours, one key, strict", "txoutbox, one key", "≥ 1.5"),
        ratio("ours, one key, strict", "one after the other, our client", "its floor"),
        ratio("one after the other, our client", "txoutbox, one key", "for comparison"),
        ratio("ours, one key, pipeline_keys", "txoutbox, one key", "≥ 6"),
        ratio("ours, 20 ms away, two relays", "ours, 20 ms away, one relay", "≥ 1.6"),
        ratio("ours", "send_messages without an outbox", "≥ 0.5 (RabbitMQ)"),
    ]
    p50, first = await bench.latency()
    cpu, queries = await bench.idle()
    add, hand = await bench.commits()
    lines += ["", "| figure | measured | goal |", "|---|---|---|"]
    lines += [
        f"| commit to receipt at 100 rows a second, p50 | {p50:.1f} ms | ≤ 30 ms |",
        f"| first row after idle, worst of 4 | {first:.0f} ms | ≤ 300 ms |",
        f"| idle relay, CPU | {cpu:.2f} % | ≤ 0.5 % |",
        f"| idle relay, queries a second | {queries:.2f} | ≤ 4 |",
        f"| commits a second: `add` / INSERT by hand | {add:.0f} / {hand:.0f} = {add / hand:.2f} | ≥ 0.9 |",
    ]
    if kept:
        empty, full = await bench.kept(kept)
        ratio_kept = f"{empty:.2f} ms / {full:.2f} ms = {full / empty:.2f}"
        lines.append(f"| claim: empty table / {kept} kept rows | {ratio_kept} | ≤ 1.3 |")
    await bench.engine.dispose()
    return lines


@contextlib.contextmanager
def _rabbitmq() -> Iterator[tuple[str, str, str]]:
    with rabbitmq() as node, FaultProxy((node.host, node.port)) as proxy:
        with pika.BlockingConnection(pika.URLParameters(node.url)) as connection:
            channel = connection.channel()
            channel.exchange_declare("bench", "topic", durable=True)
            arguments = {"x-max-length": 1000}  # what nobody reads must not fill the memory
            channel.queue_declare("bench", durable=True, arguments=arguments)
            channel.queue_bind("bench", "bench", "#")
        proxy.delay(0.02, way="down")
        slow = f"{node.url_for(port=proxy.port)}?exchange=bench"
        yield f"{node.url}?exchange=bench", node.url, slow


@contextlib.contextmanager
def _kafka() -> Iterator[tuple[str, str, str]]:
    with FaultProxy() as proxy, kafka(advertised=(proxy.host, proxy.port)) as slow, kafka() as cluster:
        proxy.target = (proxy.host, slow.nodes[0].ports["PLAINTEXT"])
        for each in (slow, cluster):
            each.create_topic(TOPIC, partitions=8)
        proxy.delay(0.02, way="down")
        yield cluster.url, cluster.bootstrap_servers, f"kafka://{proxy.address}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outbox", description=__doc__)
    parser.add_argument("--broker", choices=["amqp", "kafka"], default="amqp")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kept", type=int, default=10_000_000, help="sent rows in the table; 0: not measured")
    given = parser.parse_args()
    servers = _kafka if given.broker == "kafka" else _rabbitmq
    with postgresql(settings={"shared_buffers": "512MB"}) as database, servers() as (url, bare, slow):
        bench = Bench(database, url, bare, given.broker)
        lines = asyncio.run(measure(bench, rows=given.rows, rounds=given.rounds, kept=given.kept, slow_url=slow))
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    versions = f"SQLAlchemy {sqlalchemy.__version__}, asyncpg {asyncpg.__version__}, {os.cpu_count()} cores"
    size = f"{given.rounds} rounds of {given.rows} rows, load {load}"
    print(f"\nPostgreSQL {database.version}, {given.broker}, {versions}, {size}\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
