"""Databases for the outbox: each test has tables of its own in a server that the whole run shares."""

import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from cqrs_brokers_outbox import Outbox

ASYNC = ["asyncpg", "psycopg", "asyncmy", "aiosqlite"]


@dataclass
class Database:
    """A database with the tables of one test.

    Attributes:
        kind: The driver's name.
        url: For an asynchronous engine.
        sync_url: For a synchronous engine, where a driver for one is installed.
        outbox: An outbox with tables of its own.
        orders: An application's table.
    """

    kind: str
    url: str
    sync_url: str
    outbox: Outbox
    orders: Table
    engines: list[AsyncEngine] = field(default_factory=list)

    @property
    def main(self) -> AsyncEngine:
        """The test's own engine."""
        return self.engines[0]

    def engine(self, **options: object) -> AsyncEngine:
        """One more engine."""
        engine = create_async_engine(self.url, **options)
        self.engines.append(engine)
        return engine


def database_urls(kind: str, request: pytest.FixtureRequest, folder: Path) -> tuple[str, str]:
    if kind == "aiosqlite":
        return f"sqlite+aiosqlite:///{folder}/outbox.db", f"sqlite:///{folder}/outbox.db"
    if kind == "asyncmy":
        server = request.getfixturevalue("mariadb")
        return server.url_of("asyncmy"), ""
    server = request.getfixturevalue("postgresql")
    return server.url_of(kind), server.url_of("psycopg")


def make_database(kind: str, request: pytest.FixtureRequest, folder: Path) -> Database:
    url, sync_url = database_urls(kind, request, folder)
    name = f"o{uuid.uuid4().hex[:10]}"
    metadata = MetaData()
    orders = Table(f"{name}_orders", metadata, Column("id", Integer, primary_key=True), Column("state", String(20)))
    return Database(kind, url, sync_url, Outbox(name, metadata=metadata), orders)


@pytest.fixture(params=ASYNC)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """Every database with every driver."""
    made = make_database(request.param, request, tmp_path)
    engine = made.engine()
    await made.outbox.create_table(engine)
    async with engine.begin() as connection:
        await connection.run_sync(made.orders.create)
    yield made
    for each in made.engines:
        await each.dispose()


@pytest.fixture
async def postgresql_database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """PostgreSQL with asyncpg."""
    made = make_database("asyncpg", request, tmp_path)
    engine = made.engine()
    await made.outbox.create_table(engine)
    async with engine.begin() as connection:
        await connection.run_sync(made.orders.create)
    yield made
    for each in made.engines:
        await each.dispose()


@pytest.fixture
def sync_engine(postgresql_database: Database) -> Iterator[Engine]:
    """A synchronous engine on the same PostgreSQL."""
    engine = create_engine(postgresql_database.sync_url)
    yield engine
    engine.dispose()
