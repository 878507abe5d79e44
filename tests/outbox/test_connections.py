"""The relay's connections: they fail, there are too few, others hold the file."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from cqrs_brokers import ConfigError, Message
from cqrs_brokers_outbox import Outbox, Relay, RelayObserver
from cqrs_brokers_outbox._relay.store import Store
from cqrs_brokers_outbox.opening import make_statements

from .brokers import ScriptedBroker, opened
from .conftest import Database


class File:
    """A new file of SQLite, with an outbox."""

    def __init__(self, path: Path) -> None:
        self.url = f"sqlite+aiosqlite:///{path}"
        self.outbox = Outbox()
        self.broker = ScriptedBroker()

    async def make(self) -> None:
        engine = create_async_engine(self.url, poolclass=NullPool)
        await self.outbox.create_table(engine)

    async def add(self, *names: str) -> None:
        engine = create_async_engine(self.url, poolclass=NullPool)
        async with engine.begin() as connection:
            await self.outbox.insert(connection, *(Message(name, "orders", {}, key="1") for name in names))

    @contextlib.asynccontextmanager
    async def relay(self, engine: AsyncEngine, *observers: RelayObserver) -> AsyncIterator[Relay]:
        """A relay that runs until the end of the block. Its error, if it ends by itself, is raised then."""
        broker = opened(self.broker)
        relay = Relay(engine, broker, self.outbox, observers=observers)
        running = asyncio.create_task(relay.run())
        try:
            yield relay
        finally:
            relay.stop()
            try:
                await running
            finally:
                await broker.close()
                await engine.dispose()

    async def arrived(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.broker.arrived) < count:
                await asyncio.sleep(0.02)


@pytest.fixture
async def file(tmp_path: Path) -> File:
    made = File(tmp_path / "outbox.db")
    await made.make()
    return made


async def test_any_error_of_the_log_in_is_one_of_the_database(file: File) -> None:
    """SQLAlchemy 2.0 passes on what asyncpg raises at the log-in, and everybody's functions that fetch a password: the
    relay goes on when it works again."""
    engine = create_async_engine(file.url, poolclass=NullPool)
    failures = 0
    reasons: list[str] = []

    class Observer(RelayObserver):
        def leases_changed(self, partitions: Sequence[int]) -> None:  # before the first claim
            nonlocal failures
            failures = 2 if partitions else 0

        def trouble(self, what: str, reason: str) -> None:
            reasons.append(f"{what}: {reason}")

    @event.listens_for(engine.sync_engine, "do_connect")
    def _(*_: Any) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise LookupError("no password")

    await file.add("a")
    async with file.relay(engine, Observer()):
        await file.arrived(1)
    assert "claim: the database failed: LookupError" in reasons


@pytest.mark.live
@pytest.mark.parametrize("database", ["asyncpg", "psycopg", "asyncmy"], indirect=True)
async def test_a_connection_that_the_server_has_ended_is_an_error_of_the_database(database: Database) -> None:
    """It waits in the application's pool, and AUTOCOMMIT is the first thing that it is asked for."""
    engine = database.engine(pool_size=1)
    async with engine.connect() as connection:
        is_mariadb = database.kind == "asyncmy"
        number = (
            await connection.execute(text(f"SELECT {'connection_id()' if is_mariadb else 'pg_backend_pid()'}"))
        ).scalar()
    async with database.main.connect() as connection:
        end = f"KILL {number}" if is_mariadb else f"SELECT pg_terminate_backend({number})"
        await connection.execute(text(end))
        await asyncio.sleep(0.5)
    store = Store(engine, make_statements(engine, database.outbox.tables))
    with pytest.raises(SQLAlchemyError):
        await store.rows(("SELECT 1", {}))
    assert await store.rows(("SELECT 1", {}))
    await store.close()


async def test_the_application_s_connections_keep_their_settings(file: File) -> None:
    """A relay commits to a file of SQLite without waiting for the disk. The application does not, unless it says so."""
    engine = create_async_engine(file.url, pool_size=1)
    settings = []
    for _ in range(2):
        async with engine.connect() as connection:
            settings.append((await connection.execute(text("PRAGMA synchronous"))).scalar())
        await Relay(engine, opened(file.broker), file.outbox).health()
    await engine.dispose()
    assert settings == [2, 2]


async def test_a_relay_starts_while_others_write_to_a_file(file: File) -> None:
    """SQLite changes the journal's mode only when it has the file for itself, and does not wait for that."""
    writing = True

    async def write() -> int:
        engine = create_async_engine(file.url)
        count = 0
        while writing:
            async with engine.begin() as connection:
                await file.outbox.insert(connection, Message("m", "orders", {}))
            count += 1
            await asyncio.sleep(0)
        await engine.dispose()
        return count

    writers = [asyncio.create_task(write()) for _ in range(3)]
    await asyncio.sleep(0.1)
    async with file.relay(create_async_engine(file.url)):
        await asyncio.sleep(0.5)
        writing = False
        await file.arrived(sum(await asyncio.gather(*writers)))


async def test_a_pool_that_is_too_small_is_named(file: File) -> None:
    """The trouble and the health say how many connections a relay needs."""
    engine = create_async_engine(file.url, pool_size=1, max_overflow=0, pool_timeout=0.2)
    async with file.relay(engine) as relay:
        async with asyncio.timeout(20):
            while "cannot claim" not in (health := await relay.health()).reason:
                await asyncio.sleep(0.1)
    assert "cannot claim: the engine's pool had no free connection: a relay needs four" in health.reason
    assert "cannot read what waits: the engine's pool" in health.reason


async def test_one_connection_for_everybody_is_refused() -> None:
    """Such as SQLite in memory: the relay's transactions would be the application's."""
    engine = create_async_engine("sqlite+aiosqlite://")
    with pytest.raises(ConfigError, match=r"use a file, such as sqlite\+aiosqlite:///outbox\.db"):
        Relay(engine, opened(ScriptedBroker()))
    await engine.dispose()
