"""One run: writers, relays, faults, and what is in the broker at the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from cqrs_brokers import Message
from cqrs_brokers_outbox import Outbox, OutboxAdmin
from cqrs_brokers_testkit.servers import postgresql

from .brokers import TOPICS, started
from .judge import Verdict, judge
from .relays import LEASE, RELAYS, Relays

__all__ = ["KINDS", "Soak", "run"]

WRITERS, KEYS = 32, 1000
KINDS = ("kill", "stop", "pause", "database", "broker", "cut", "refuse")


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
        self.servers = f"PostgreSQL {database.version} and {broker.name}"

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


def run(broker: str, *, rows: int, faults: int, seed: int) -> tuple[Soak, Verdict]:
    """Runs a soak; returns it, and what was found."""
    with postgresql() as database, started(broker) as there:
        soak = Soak(database, there, rows=rows, faults=faults, seed=seed)
        return soak, asyncio.run(soak.run())
