"""SIGKILL at every await of the relay: every committed row reaches the broker, and what may be there twice is counted.

The relay of `victim` works on a table where a relay before it died, with rows that are sent, refused, refused with
their whole topic, unknown and damaged. It is killed from outside at one of its awaits; another relay ends the work.

On PostgreSQL at every await; on MariaDB and SQLite at those that claim, mark and take over.
"""

import asyncio
import multiprocessing
import os
import random
import signal
import uuid
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pika
import pytest
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from cqrs_brokers import Message, open_broker
from cqrs_brokers_outbox import Outbox, Relay, State

from . import victim
from .await_points import all_points
from .conftest import database_urls

pytestmark = [pytest.mark.live, pytest.mark.fault, pytest.mark.timeout(800)]

NOT_REACHED = {
    # after a minute, or after an error, or in another way to run a relay
    "_relay/upkeep.py:run: await self._trouble.tried": "the first purge is after ten seconds",
    "_relay/upkeep.py:_": "the first purge is after ten seconds",
    "_relay/trouble.py:tried: await asyncio.sleep": "the database did not fail",
    "_relay/store.py:_throw_away": "no statement failed",
    "_relay/store.py:change: await self._throw_away": "no statement failed",
    "_relay/store.py:rows: await self._throw_away": "no statement failed",
    "_relay/store.py:transaction: await self._throw_away": "no statement failed",
    "_relay/leases.py:create": "the relay before made the partitions",
    "_relay/leases.py:join: await self.create": "the relay before made the partitions",
    "_relay/store.py:_open: await connection.invalidate": "no connection failed",
    "_relay/store.py:_open: await connection.close": "no connection failed",
    "_relay/store.py:_open: await _set_up": "PostgreSQL needs no statement for its session",
    "_relay/store.py:_set_up: await connection": "PostgreSQL needs no statement for its session",
    "_relay/store.py:_set_up: await asyncio.sleep": "no statement failed",
    "_relay/leases.py:_release: await": "the only relay has no partition too many, and keeps what is in flight",
    "_relay/leases.py:step: await self._look_for_others": "the leases did not end",
    "_relay/leases.py:take: await self._give_back": "no relay has other topics",
    "_relay/outcomes.py:mark: await self._store.change(lock)": "MariaDB's locks",
    "_relay/outcomes.py:_fail: await change_all(self._store, await self._store.rows(self._statements.behind": (
        "the relay stops at parked rows"
    ),
    "_relay/store.py:close: await connection.invalidate": "PostgreSQL's connections go back into the pool",
    "_relay/outcomes.py:_record: await self._store.change(self._statements.delete": "sent rows are kept",
    "relay.py:__aenter__": "run() is what is killed",
    "relay.py:__aexit__": "run() is what is killed",
    "relay.py:health": "run() is what is killed",
    "relay.py:check_schema_once": "run() is what is killed",
    "relay.py:_shielded: await cancelled([task])": "giving the leases back took no longer than its limit",
}
"""Beginnings of points that this run does not reach, and why."""

AFTER_AN_ERROR = tuple(start for start, why in NOT_REACHED.items() if why == "no statement failed")
"""Beginnings of points that a whole run reaches only if the database refuses a statement by chance (a deadlock)."""

PATHS = (
    *("_relay/worker.py:_claim", "_relay/worker.py:_anything", "_relay/worker.py:_delivered", "_relay/worker.py:_mark"),
    *("_relay/outcomes.py:", "_relay/store.py:", "_relay/leases.py:take", "_relay/leases.py:_count_unknown"),
    *("_relay/leases.py:free_those_behind_nobody", "_relay/leases.py:change_all"),
)
"""Beginnings of the points at which the relay claims, sends, marks and takes over."""
OF_ITS_OWN = {
    "asyncmy": [
        "_relay/outcomes.py:mark: await self._store.change(lock)",
        "_relay/store.py:_set_up: await connection.exec",
    ],
    "aiosqlite": ["_relay/store.py:_set_up: await connection.exec_driver_sql"],
}
"""Points that PostgreSQL does not reach, and these do."""

ORDERED = ["a", "b", "unknown", "again"]


@pytest.fixture(scope="module")
def context() -> Any:
    """Processes are forked from one that has everything imported: a tenth of a second for each, not two."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["tests.outbox.victim"])
    return made


class Trial:
    """One table, one exchange, one kill.

    Args:
        url: The database's; with a folder's name for SQLite, where each trial has a file of its own.
        amqp: RabbitMQ's.
    """

    def __init__(self, url: str, amqp: str) -> None:
        self.table = f"k{uuid.uuid4().hex[:10]}"
        self.partitions = 1 if url.startswith("sqlite") else 16
        self.url = f"{url}/{self.table}.db" if url.startswith("sqlite") else url
        self.amqp = amqp
        self.engine: AsyncEngine = create_async_engine(self.url)
        self.outbox = Outbox(self.table)
        self.sent: list[Message] = []

    async def prepare(self) -> None:
        outbox = self.outbox
        await outbox.create_table(self.engine)
        self.sent = [
            Message(name if n == 0 else f"{name}{n}", "orders", {"n": n}, key=name)
            for n in range(3)
            for name in ORDERED
        ]
        self.sent += [Message(f"lost{n}", "lost", {"n": n}, key="l") for n in range(2)]
        damaged = Message("damaged", "orders", {}, key="damaged")
        async with self.engine.begin() as connection:
            await outbox.insert(connection, *self.sent, damaged)
            messages, lease = outbox.tables.messages, outbox.tables.lease
            broken = update(messages).where(messages.c.message_name == "damaged").values(headers="{")
            await connection.execute(broken)
            first = (await connection.execute(select(messages.c.id).order_by(messages.c.id))).scalars().first()
            dead = {"scope": "*", "owner": "dead", "until": 1, "token": 7, "claimed_to": first}
            await connection.execute(lease.insert(), [{"number": number, **dead} for number in range(self.partitions)])
        async with self.engine.connect() as connection:
            await outbox.insert(connection, Message("rolled back", "orders", {}, key="a"))
            await connection.rollback()
        await asyncio.to_thread(victim.declare, self.amqp, self.table, "orders")

    def kill_at(self, context: Any, point: str | None, occurrence: int) -> dict[str, int] | None:
        """Runs the victim; returns what it reached when nobody killed it, else None."""
        ours, theirs = context.Pipe()
        process = context.Process(target=victim.run, args=(self.url, self.amqp, self.table, point, occurrence, theirs))
        process.start()
        theirs.close()
        try:
            said = _answer(ours)
            if said == "reached":
                os.kill(process.pid, signal.SIGKILL)
                return None
            assert isinstance(said, dict)
            return said
        finally:
            process.join(10)
            if process.is_alive():
                process.kill()
            process.join()

    async def finish(self) -> None:
        """Another relay ends the work; the queue of the refused topic is there now."""
        await asyncio.to_thread(victim.declare, self.amqp, self.table, "lost")
        tables = self.outbox.tables
        async with self.engine.begin() as connection:  # as if the leases of who was killed had ended
            await connection.execute(update(tables.lease).values(until=1))
            await connection.execute(update(tables.relay).values(until=1))
            waiting = update(tables.messages).where(tables.messages.c.not_before > 0)
            await connection.execute(waiting.values(not_before=1))
        opened = open_broker(victim.broker_url(self.amqp, self.table))
        async with opened as broker, Relay(self.engine, broker, self.outbox, lease=victim.LEASE):
            async with asyncio.timeout(30):
                while any(state not in (State.SENT, State.PARKED) for state in (await self.rows("state")).values()):
                    await asyncio.sleep(0.02)

    async def rows(self, column: str) -> dict[str, Any]:
        table = self.outbox.tables.messages
        async with self.engine.connect() as connection:
            found = await connection.execute(select(table.c.message_name, table.c[column]))
            return {row[0]: row[1] for row in found}

    def drain(self) -> list[str]:
        """The names of the messages in the queue, in order; read by pika."""
        names = []
        with pika.BlockingConnection(pika.URLParameters(self.amqp)) as connection:
            channel = connection.channel()
            while True:
                method, properties, _ = channel.basic_get(self.table, auto_ack=True)
                if method is None:
                    break
                names.append(properties.type)
            channel.queue_delete(self.table)
            channel.exchange_delete(self.table)
        return names

    async def judge(self) -> list[str]:
        """What is wrong; nothing, it is hoped."""
        arrived = await asyncio.to_thread(self.drain)
        copies = Counter(arrived)
        unknown = await self.rows("attempts_unknown")
        states = await self.rows("state")
        wrong = [f"{name} was lost" for name in states if not copies[name] and name != "damaged"]
        wrong += [f"{name} came" for name in copies if name in ("rolled back", "damaged")]
        wrong += [
            f"{name} came {count} times and counts {unknown[name]}"
            for name, count in copies.items()
            if name in unknown and count - 1 > unknown[name]
        ]
        for name in [*ORDERED, "lost"]:
            expected = [m.message_name for m in self.sent if m.key == ("l" if name == "lost" else name)]
            first = [each for each in dict.fromkeys(arrived) if each in expected]
            if first != expected:
                wrong.append(f"{name}: {first}")
        if states["damaged"] != State.PARKED:
            wrong.append("the damaged row was not parked")
        async with self.engine.begin() as connection:
            for table in self.outbox.tables.all:
                await connection.execute(text(f"DROP TABLE {table.name}"))
        await self.engine.dispose()
        return wrong


def _answer(pipe: Connection) -> Any:
    if not pipe.poll(60):
        raise AssertionError("the victim said nothing within a minute")
    try:
        return pipe.recv()
    except EOFError:
        raise AssertionError("the victim ended by itself") from None


async def whole_run(url: str, amqp: str, context: Any) -> dict[str, int]:
    """A run that nobody kills: how often each point was reached."""
    trial = Trial(url, amqp)
    await trial.prepare()
    reached = await asyncio.to_thread(trial.kill_at, context, None, 0)
    assert reached is not None
    await trial.finish()
    assert await trial.judge() == []
    return reached


async def kill_at_each(reached: dict[str, int], url: str, amqp: str, context: Any) -> dict[str, int]:
    """Kills a relay at each point, some time that it is reached; returns at which time."""
    killed: dict[str, int] = {}
    wrong: dict[str, list[str]] = {}
    places = asyncio.Semaphore(4)
    choose = random.Random(19)

    async def kill(point: str, occurrence: int) -> None:
        async with places:
            for again in (occurrence, 1):
                trial = Trial(url, amqp)
                await trial.prepare()
                survived = await asyncio.to_thread(trial.kill_at, context, point, again)
                await trial.finish()
                if found := await trial.judge():
                    wrong[f"{point} ({again})"] = found
                if survived is None:
                    killed[point] = again
                    return

    await asyncio.gather(*(kill(point, choose.randint(1, min(count, 12))) for point, count in sorted(reached.items())))
    assert wrong == {}
    assert set(killed) >= {point for point in reached if not point.startswith(AFTER_AN_ERROR)}
    return killed


def show(killed: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nkilled at {len(killed)} awaits:")
        for point, occurrence in sorted(killed.items()):
            print(f"  {point} (time {occurrence})")


async def test_a_kill_at_every_await(
    postgresql: Any, rabbitmq: Any, context: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is lost, nothing rolled back is told, no key is out of order, every repeat is counted."""
    url = postgresql.url_of("asyncpg")
    reached = await whole_run(url, rabbitmq.url, context)

    known = {point for points in all_points().values() for point in points.values()}
    unreached = {point for point in known - set(reached) if not point.startswith(tuple(NOT_REACHED))}
    assert not unreached, "\n".join(["no kill at:", *sorted(unreached)])
    dead_words = [start for start in NOT_REACHED if not any(point.startswith(start) for point in known)]
    assert not dead_words, "these points are no more"

    show(await kill_at_each(reached, url, rabbitmq.url, context), capsys)


@pytest.mark.parametrize("kind", sorted(OF_ITS_OWN))
async def test_a_kill_at_every_await_that_claims_or_marks(
    kind: str,
    request: pytest.FixtureRequest,
    rabbitmq: Any,
    context: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same on MariaDB and SQLite, with the points that they alone reach."""
    url = database_urls(kind, request, tmp_path)[0] if kind == "asyncmy" else f"sqlite+aiosqlite:///{tmp_path}"
    reached = await whole_run(url, rabbitmq.url, context)
    of_these = {point: count for point, count in reached.items() if point.startswith(PATHS)}
    for start in (*PATHS, *OF_ITS_OWN[kind]):
        assert any(point.startswith(start) for point in of_these), f"not reached: {start}"
    show(await kill_at_each(of_these, url, rabbitmq.url, context), capsys)
