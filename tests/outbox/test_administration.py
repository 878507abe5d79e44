"""Two people at once, a person who gives up, and texts that are no person's: what `OutboxAdmin` and its commands do."""

import asyncio
import sys

import pytest
from sqlalchemy import make_url, select, text, update
from sqlalchemy.ext.asyncio import create_async_engine

from cqrs_brokers_outbox import OutboxAdmin, OutboxSchemaError, Relay, State
from cqrs_brokers_outbox._relay.keys import Item
from cqrs_brokers_outbox._relay.leases import Leases
from cqrs_brokers_outbox._relay.outcomes import Marker, Outcome, Verdict
from cqrs_brokers_outbox._relay.store import Store
from cqrs_brokers_outbox.opening import make_statements

from .brokers import ScriptedBroker, opened
from .conftest import Database
from .test_operations import refusing
from .test_relay import all_in, numbered, relay, rows, store, until

pytestmark = pytest.mark.live


async def test_a_row_that_somebody_else_releases_meanwhile_is_not_discarded(database: Database) -> None:
    """It is on its way to the broker: only a row that is parked now is deleted."""
    await store(database, numbered(1))
    async with relay(database, refusing("t/k/1")):
        await until(all_in(State.PARKED, database))
    tables = database.outbox.tables
    async with OutboxAdmin(database.engine(), database.outbox) as admin:
        ((position, *_),) = await rows(database)
        async with database.main.begin() as connection:  # as another release() does it
            await connection.execute(update(tables.lease).values(token=tables.lease.c.token))
            await connection.execute(update(tables.messages).values(state=State.READY))
            discarding = asyncio.create_task(admin.discard(position))
            await asyncio.sleep(0.5)
        assert await discarding == 0
    assert [row.state for row in await rows(database)] == [State.READY]


async def test_a_row_whose_predecessor_is_released_meanwhile_is_not_held_up(postgresql_database: Database) -> None:
    """Also where the database's default is REPEATABLE READ, in which a transaction would see old data after a lock."""
    database = postgresql_database
    await store(database, numbered(1), numbered(2))
    tables = database.outbox.tables
    settings = {"default_transaction_isolation": "repeatable read"}
    engine = database.engine(connect_args={"server_settings": settings})
    relays = Store(engine, make_statements(engine, tables))
    await Leases(relays, owner="", topics=None, lease=60.0, partitions=1, broker="").join()
    first, second = await rows(database)
    async with database.main.begin() as connection:
        parked = update(tables.messages).where(tables.messages.c.id == first.id)
        await connection.execute(parked.values(state=State.PARKED))
    held_up = [Outcome(Item(second, 0, 0), Verdict.HELD)]
    async with database.main.begin() as connection:  # as release() does it
        await connection.execute(select(tables.lease).with_for_update())
        marking = asyncio.create_task(Marker(relays, scope="*", sent_to="", keep=True).mark(held_up, 1, {}))
        await asyncio.sleep(0.5)
        await connection.execute(parked.values(state=State.READY))
    await marking
    await relays.close()
    assert [row.state for row in await rows(database)] == [State.READY, State.READY]


async def test_an_interrupted_change_of_partitions_stops_no_relay(postgresql_database: Database) -> None:
    """After Ctrl-C nobody waits for the end of its leases."""
    database = postgresql_database
    driver = ScriptedBroker()
    driver.gate.clear()
    await store(database, numbered(1))
    table = database.outbox.tables.relay

    async def owners() -> list[str]:
        async with database.main.connect() as connection:
            return [row.owner for row in (await connection.execute(select(table.c.owner))).all()]

    async with relay(database, driver):
        await until(lambda: driver.tried)
        async with OutboxAdmin(database.engine(), database.outbox) as admin:
            changing = asyncio.create_task(admin.partitions(5))

            async def begun() -> bool:
                return len(await owners()) == 2

            await until(begun)
            changing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await changing
        assert not any(owner.startswith("partitions:") for owner in await owners())
        driver.gate.set()


async def test_texts_in_rows_do_not_control_the_terminal(postgresql_database: Database) -> None:
    """Each row is one line, whatever a server said."""
    database = postgresql_database
    await store(database, numbered(1), numbered(2))
    table = database.outbox.tables.messages
    async with database.main.begin() as connection:
        await connection.execute(update(table).values(state=State.PARKED, error_text="no\n\x1b[2Jfaked"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cqrs_brokers_outbox", "parked"),
        *("--database", database.url, "--table", database.outbox.tables.name),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert len(out.splitlines()) == 2
    assert b"no  [2Jfaked" in out
    assert b"\x1b" not in out


@pytest.mark.parametrize(
    "missing",
    [
        "SELECT (body) ON {0}",
        "UPDATE (sent_at) ON {0}",
        "DELETE ON {0}",
        "INSERT ON {0}_lease",
        "UPDATE (claimed_to) ON {0}_lease",
        "INSERT ON {0}_relay",
        "SELECT (version) ON {0}_version",
    ],
)
async def test_one_right_that_is_missing_is_said_before_work_begins(
    postgresql_database: Database, missing: str
) -> None:
    """Also a column's: a relay that cannot mark would send, and send again when it is restarted."""
    database = postgresql_database
    name = database.outbox.tables.name
    user = f"most_{name}"
    right, _, table = missing.format(name).partition(" ON ")
    verb, _, column = right.partition(" (")
    async with database.main.begin() as connection:
        await connection.execute(text(f"CREATE ROLE {user} LOGIN"))
        for each in database.outbox.tables.all:
            await connection.execute(text(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {each.name} TO {user}"))
        await connection.execute(text(f"REVOKE {verb} ON {table} FROM {user}"))
        if column:
            others = ", ".join(
                c.name
                for each in database.outbox.tables.all
                if each.name == table
                for c in each.c
                if c.name != column.removesuffix(")")
            )
            if others:
                await connection.execute(text(f"GRANT {verb} ({others}) ON {table} TO {user}"))
    await store(database, numbered(1))
    engine = create_async_engine(make_url(database.url).set(username=user))
    driver = ScriptedBroker()
    async with opened(driver) as broker:
        with pytest.raises(OutboxSchemaError, match=f"permission denied for table {table}"):
            await Relay(engine, broker, database.outbox, lease=15.0).run()
    assert driver.names == []
    await engine.dispose()
    async with database.main.begin() as connection:
        await connection.execute(text(f"DROP OWNED BY {user}"))
        await connection.execute(text(f"DROP ROLE {user}"))


async def test_a_column_that_is_missing_is_said_before_work_begins(database: Database) -> None:
    """The table is of another version, whatever the version row says."""
    name = database.outbox.tables.name
    async with database.main.begin() as connection:
        await connection.execute(text(f"ALTER TABLE {name} DROP COLUMN broker_offset"))
    with pytest.raises(OutboxSchemaError, match=r"broker_offset.*run the migration"):
        async with OutboxAdmin(database.main, database.outbox):
            pass
