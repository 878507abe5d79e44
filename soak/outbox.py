"""The outbox under faults: `python -m soak outbox --broker amqp|kafka`. See `docs/explanation/outbox-soak.md`.

Writers change an aggregate's row under its lock and add an event with the row's new version; some roll back. Relays in
processes of their own are killed, stopped and paused for longer than their lease; the database and the broker are
restarted, connections are cut, one topic is refused for a while. Then an independent client reads the broker.

An inversion is a falling version among the first occurrences of a key's events. A repeat is explained when its row's
`attempts_unknown` is at least the number of copies less one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pika
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from cqrs_brokers import Message
from cqrs_brokers_outbox import Outbox, OutboxAdmin
from cqrs_brokers_testkit.readers import Record, drain_topic
from cqrs_brokers_testkit.servers import ServerUnavailable, kafka, postgresql, rabbitmq

WRITERS, KEYS, RELAYS = 32, 1000, 4
ROWS, FAULTS = 1_000_000, 100
LEASE = 12.0
TOPICS = ("orders", "parcels")
REFUSED = "parcels"
KINDS = ("kill", "stop", "pause", "database", "broker", "cut", "refuse")


@dataclass
class Verdict:
    """What was found.

    Attributes:
        rows: Committed rows.
        copies: Messages in the broker.
        lost: Committed and not there.
        rolled_back: Rolled back and there.
        inversions: Falling versions among first occurrences.
        repeats: Copies beyond the first.
        unexplained: Repeats that the row does not count.
        stale: Repeats that came behind a newer version of their key.
    """

    rows: int = 0
    copies: int = 0
    lost: list[str] = field(default_factory=list)
    rolled_back: list[str] = field(default_factory=list)
    inversions: list[str] = field(default_factory=list)
    repeats: int = 0
    unexplained: list[str] = field(default_factory=list)
    stale: int = 0

    @property
    def violations(self) -> int:
        return len(self.lost) + len(self.rolled_back) + len(self.inversions) + len(self.unexplained)


def judge(committed: dict[str, tuple[str, str, int, int]], arrived: list[tuple[str, str]]) -> Verdict:
    """Compares the table with the broker.

    Args:
        committed: Message id → (topic, key, version, attempts_unknown), of every committed row.
        arrived: (place, message id) in the broker's order within each place: a partition, or a queue.
    """
    verdict = Verdict(rows=len(committed), copies=len(arrived))
    copies = Counter(identity for _, identity in arrived)
    verdict.lost = [identity for identity in committed if identity not in copies]
    verdict.rolled_back = [identity for identity in copies if identity not in committed]
    highest: dict[tuple[str, str], int] = defaultdict(int)
    seen: set[str] = set()
    for _, identity in arrived:
        if identity not in committed:
            continue
        topic, key, version, _ = committed[identity]
        before = highest[topic, key]
        if identity in seen:
            verdict.repeats += 1
            verdict.stale += version < before
            continue
        seen.add(identity)
        if version < before:
            verdict.inversions.append(f"{topic}/{key}: {version} after {before}")
        highest[topic, key] = max(before, version)
    for identity, count in copies.items():
        if identity in committed and count - 1 > committed[identity][3]:
            verdict.unexplained.append(f"{identity}: {count} copies, counts {committed[identity][3]}")
    return verdict


class Relays:
    """Relay processes, started again when they ended."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._environment = environment
        self._log = log
        self.processes: list[subprocess.Popen[bytes]] = []
        for _ in range(RELAYS):
            self.processes.append(self._start())

    def _start(self) -> subprocess.Popen[bytes]:
        with open(self._log, "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "cqrs_brokers_outbox", "relay", "--lease", str(LEASE), "--keep", "1e9"],
                env=self._environment,
                stderr=log,
            )

    def revive(self) -> None:
        """Starts again what has ended: a relay ends when the database is away at its start."""
        for place, process in enumerate(self.processes):
            if process.poll() is not None:
                self.processes[place] = self._start()

    def end(self, place: int, number: signal.Signals) -> None:
        """Ends a relay, or freezes it."""
        process = self.processes[place]
        if process.poll() is None:
            process.send_signal(number)
            if number == signal.SIGKILL:
                process.wait()

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Rabbit:
    """RabbitMQ: one queue for each topic, in one exchange."""

    def __init__(self, node: Any) -> None:
        self.node = node
        self.url = f"{node.url}?exchange=soak&delivery_timeout=2s"
        self._bind(TOPICS)

    def _bind(self, topics: tuple[str, ...]) -> None:
        with pika.BlockingConnection(pika.URLParameters(self.node.url)) as connection:
            channel = connection.channel()
            channel.exchange_declare("soak", "topic", durable=True)
            for topic in topics:
                channel.queue_declare(topic, durable=True)
                channel.queue_bind(topic, "soak", topic)

    def refuse(self) -> None:
        with pika.BlockingConnection(pika.URLParameters(self.node.url)) as connection:
            connection.channel().queue_unbind(REFUSED, "soak", REFUSED)

    def accept(self) -> None:
        self._bind((REFUSED,))

    def restart(self) -> None:
        self.node.kill()
        self.node.start()

    def read(self) -> list[tuple[str, str]]:
        found = []
        with pika.BlockingConnection(pika.URLParameters(self.node.url)) as connection:
            channel = connection.channel()
            channel.basic_qos(prefetch_count=5000)
            for topic in TOPICS:
                for method, properties, _ in channel.consume(topic, auto_ack=True, inactivity_timeout=3):
                    if method is None:
                        break
                    found.append((topic, properties.message_id))
                channel.cancel()
        return found


class Kafka:
    """Kafka: four partitions for each topic; a topic is refused by its own limit of a record's size."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        for topic in TOPICS:
            cluster.create_topic(topic, partitions=4)
        self.url = f"{cluster.url}?delivery_timeout=2s"

    def refuse(self) -> None:
        self._limit("10")

    def accept(self) -> None:
        self._limit("1000000")

    def _limit(self, size: str) -> None:
        from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

        admin = AdminClient({"bootstrap.servers": self.cluster.bootstrap_servers})
        entry = ConfigEntry("max.message.bytes", size, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ConfigResource.Type.TOPIC, REFUSED, incremental_configs=[entry])
        for future in admin.incremental_alter_configs([resource]).values():
            future.result(30)

    def restart(self) -> None:
        self.cluster.nodes[0].kill()
        self.cluster.nodes[0].start()

    def read(self) -> list[tuple[str, str]]:
        found = []
        for topic in TOPICS:
            records: list[Record] = drain_topic(self.cluster.bootstrap_servers, topic, 0)
            found += [(f"{topic}/{record.partition}", record.message_id or "") for record in records]
        return found


class Soak:
    """One run.

    Args:
        database: The database's server.
        broker: `Rabbit` or `Kafka`.
        rows: How many events are committed.
        faults: How many things go wrong.
        seed: Decides what goes wrong.
    """

    def __init__(self, database: Any, broker: Any, *, rows: int, faults: int, seed: int) -> None:
        self.database, self.broker = database, broker
        self.rows, self.faults = rows, faults
        self.random = random.Random(seed)
        self.url = database.url_of("asyncpg")
        self.outbox = Outbox()
        self.committed = 0
        self.done: Counter[str] = Counter()
        self.log = database.folder / "relays.log"

    async def run(self) -> Verdict:
        engine = create_async_engine(self.url, pool_size=WRITERS, pool_pre_ping=True)
        await self.outbox.create_table(engine)
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE aggregate (id int PRIMARY KEY, version int NOT NULL)"))
            await connection.execute(text(f"INSERT INTO aggregate SELECT n, 0 FROM generate_series(1, {KEYS}) n"))
        environment = {**os.environ, "CQRS_OUTBOX_DATABASE": self.url, "CQRS_BROKER_URL": self.broker.url}
        relays = Relays(environment, self.log)
        try:
            writers = [asyncio.create_task(self._write(engine, random.Random(n))) for n in range(WRITERS)]
            await self._break(relays)
            await asyncio.gather(*writers)
            await self._until_sent(engine, relays)
        finally:
            await asyncio.to_thread(relays.close)
        async with engine.connect() as connection:
            query = "SELECT message_id, topic, convert_from(message_key, 'UTF8'), body, attempts_unknown FROM outbox"
            found = (await connection.execute(text(query))).all()
        await engine.dispose()
        committed = {row[0]: (row[1], row[2], json.loads(row[3])["version"], row[4]) for row in found}
        return judge(committed, await asyncio.to_thread(self.broker.read))

    async def _write(self, engine: Any, choose: random.Random) -> None:
        """Changes aggregates and tells, until enough is committed; one transaction in twenty rolls back."""
        while self.committed < self.rows:
            try:
                async with AsyncSession(engine) as session:
                    added = 0
                    for _ in range(choose.randint(1, 3)):
                        key = choose.randint(1, KEYS)
                        update = "UPDATE aggregate SET version = version + 1 WHERE id = :id RETURNING version"
                        version = (await session.execute(text(update), {"id": key})).scalar()
                        topic = TOPICS[key % 2]
                        event = Message("changed", topic, {"version": version, "pad": "x" * 250}, key=str(key))
                        self.outbox.add(session, event)
                        added += 1
                    if choose.random() < 0.05:
                        await session.rollback()
                        continue
                    await session.commit()
                    self.committed += added
            except (SQLAlchemyError, DBAPIError, OSError):
                await asyncio.sleep(0.2)  # deadlocks, and a database that is away

    async def _break(self, relays: Relays) -> None:
        """One fault after the other, spread over the rows."""
        kinds: list[str] = []
        while len(kinds) < self.faults:
            kinds += self.random.sample(KINDS, len(KINDS))
        for number, kind in enumerate(kinds[: self.faults]):
            while self.committed < self.rows * (number + 1) / (self.faults + 1):
                await asyncio.sleep(0.1)
                relays.revive()
            place = self.random.randrange(RELAYS)
            print(f"{time.strftime('%H:%M:%S')} {self.committed:8} rows: {kind}", flush=True)
            if kind == "kill":
                relays.end(place, signal.SIGKILL)
            elif kind == "stop":
                relays.end(place, signal.SIGTERM)
            elif kind == "pause":
                relays.end(place, signal.SIGSTOP)
                await asyncio.sleep(LEASE + 4)
                relays.end(place, signal.SIGCONT)
            elif kind == "database":
                await asyncio.to_thread(self.database.kill)
                await asyncio.to_thread(self.database.start)
            elif kind == "cut":
                await asyncio.to_thread(self.database.close_all_connections)
            elif kind == "broker":
                await asyncio.to_thread(self.broker.restart)
            else:
                await asyncio.to_thread(self.broker.refuse)
                await asyncio.sleep(3)
                await asyncio.to_thread(self.broker.accept)
            self.done[kind] += 1

    async def _until_sent(self, engine: Any, relays: Relays) -> None:
        give_up = time.monotonic() + 600
        unsent, shown = 1, 0.0
        while unsent:
            relays.revive()
            await asyncio.sleep(0.5)
            with contextlib.suppress(SQLAlchemyError, OSError):
                async with OutboxAdmin(engine, self.outbox) as admin:
                    # On Kafka the refused topic's rows are parked: their size is a fault for good, until a person
                    # raises the limit and releases them. Here that person is this loop.
                    await admin.release()
                    unsent = (await admin.status()).unsent
            if time.monotonic() - shown > 10:
                shown = time.monotonic()
                print(f"{time.strftime('%H:%M:%S')} {unsent} rows are not sent yet", flush=True)
            if time.monotonic() > give_up:
                break


def report(broker: str, seed: int, soak: Soak, verdict: Verdict, seconds: float) -> str:
    """The table of a run."""
    faults = ", ".join(f"{kind} {count}" for kind, count in sorted(soak.done.items()))
    lines = [
        f"| PostgreSQL {soak.database.version} and {broker} | |",
        "|---|---|",
        f"| seed | {seed} |",
        f"| committed rows | {verdict.rows} |",
        f"| faults | {sum(soak.done.values())}: {faults} |",
        f"| messages in the broker | {verdict.copies} |",
        f"| lost | {len(verdict.lost)} |",
        f"| of rolled-back transactions | {len(verdict.rolled_back)} |",
        f"| inversions | {len(verdict.inversions)} |",
        f"| repeats | {verdict.repeats} |",
        f"| of these not explained by their row | {len(verdict.unexplained)} |",
        f"| of these behind a newer version (stale) | {verdict.stale} |",
        f"| seconds | {seconds:.0f} |",
    ]
    return "\n".join(lines)


@contextlib.contextmanager
def _broker(name: str) -> Iterator[Any]:
    if name == "kafka":
        with kafka() as cluster:
            yield Kafka(cluster)
    else:
        with rabbitmq() as node:
            yield Rabbit(node)


def run(broker: str, *, rows: int, faults: int, seed: int) -> tuple[Soak, Verdict, str]:
    """Runs a soak; returns it, what was found, and the report."""
    started = time.monotonic()
    with postgresql() as database, _broker(broker) as there:
        soak = Soak(database, there, rows=rows, faults=faults, seed=seed)
        verdict = asyncio.run(soak.run())
        return soak, verdict, report(broker, seed, soak, verdict, time.monotonic() - started)


def main(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m soak outbox", description=__doc__)
    parser.add_argument("--broker", choices=["amqp", "kafka"], default="amqp")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--faults", type=int, default=FAULTS)
    parser.add_argument("--seed", type=int)
    given = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(2**31) if given.seed is None else given.seed
    try:
        _, verdict, table = run(given.broker, rows=given.rows, faults=given.faults, seed=seed)
    except ServerUnavailable as error:
        print(error, file=sys.stderr)
        return 2
    print(f"\n{table}")
    for what in (verdict.lost, verdict.rolled_back, verdict.inversions, verdict.unexplained):
        print(*what[:10], sep="\n")
    return 1 if verdict.violations else 0
