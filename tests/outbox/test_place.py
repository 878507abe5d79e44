"""A row's place within its transaction, and that its number agrees with it: order uses the number alone."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from cqrs_brokers import Message

from .conftest import Database

pytestmark = pytest.mark.live


def named(number: int, name: str = "n") -> Message:
    return Message(name, "t", number, key="k")


async def stored(database: Database, name: str = "n") -> list[Any]:
    """(place, body) of a transaction's rows, in the order in which relays claim them."""
    table = database.outbox.tables.messages
    query = select(table.c.place, table.c.body).where(table.c.message_name == name).order_by(table.c.id)
    async with database.main.connect() as connection:
        return [(row.place, int(row.body)) for row in await connection.execute(query)]


async def test_the_place_goes_on_through_every_way_to_write(database: Database) -> None:
    """insert(), again insert(), a savepoint and add() share one count, and numbers agree with it."""
    outbox = database.outbox
    async with AsyncSession(database.engine()) as session, session.begin():
        connection = await session.connection()
        await outbox.insert(connection, named(0), named(1))
        outbox.add(session, named(3))
        await outbox.insert(connection, named(2))
        async with session.begin_nested():
            outbox.add(session, named(4), named(5))
        outbox.add(session, named(6))
    assert await stored(database) == [(n, n) for n in range(7)]


async def test_each_transaction_counts_from_0(database: Database) -> None:
    """One connection's next transaction, also after a rollback, begins anew."""
    async with database.engine().connect() as connection:
        for name, ends in (("a", connection.commit), ("b", connection.rollback), ("c", connection.commit)):
            await database.outbox.insert(connection, named(0, name), named(1, name))
            await ends()
    assert await stored(database, "a") == await stored(database, "c") == [(0, 0), (1, 1)]
    assert await stored(database, "b") == []


async def test_many_rows_of_transactions_side_by_side(database: Database) -> None:
    """Two transactions that write in turn: within each the numbers grow in the order of the calls."""
    writers = 1 if database.kind == "aiosqlite" else 2

    async def write(name: str) -> None:
        async with AsyncSession(database.engine()) as session, session.begin():
            connection = await session.connection()
            for start in range(0, 1200, 400):
                await database.outbox.insert(connection, *(named(n, name) for n in range(start, start + 400)))
                await asyncio.sleep(0)
            database.outbox.add(session, *(named(n, name) for n in range(1200, 1500)))

    names = [f"w{n}" for n in range(writers)]
    await asyncio.gather(*(write(name) for name in names))
    for name in names:
        assert await stored(database, name) == [(n, n) for n in range(1500)]


async def test_a_sequence_with_a_cache_keeps_the_order_within_a_transaction(postgresql_database: Database) -> None:
    """CACHE above 1 takes the order between transactions, not the one within."""
    database = postgresql_database
    table = database.outbox.tables.messages.name
    async with database.main.begin() as connection:
        await connection.execute(text(f"ALTER SEQUENCE {table}_id_seq CACHE 7"))
    first, second = database.engine(), database.engine()
    async with first.connect() as one, second.connect() as other:
        for start in range(0, 40, 10):
            for connection, name in ((one, "one"), (other, "other")):
                await database.outbox.insert(connection, *(named(n, name) for n in range(start, start + 10)))
        await other.commit()
        await one.commit()
    for name in ("one", "other"):
        assert await stored(database, name) == [(n, n) for n in range(40)]
