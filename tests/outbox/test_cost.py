"""What a relay asks of its database: no more than it needs, whatever the planner believes about the table."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import event, text

from cqrs_brokers_outbox import Relay, State
from cqrs_brokers_outbox._relay import worker
from cqrs_brokers_outbox._relay.store import Store
from cqrs_brokers_outbox._relay.worker import MARK_STEP
from cqrs_brokers_outbox.opening import make_statements

from .brokers import ScriptedBroker, opened
from .conftest import Database
from .test_relay import all_in, numbered, store, until
from .test_topics import EXPLAIN, looked_at

pytestmark = pytest.mark.live

BACKLOG = 20_000


@asynccontextmanager
async def counted(database: Database, driver: ScriptedBroker) -> AsyncIterator[list[str]]:
    """A relay, and the statements that it runs."""
    said: list[str] = []

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        said.append(statement)

    engine = database.engine()
    event.listen(engine.sync_engine, "before_cursor_execute", note)
    async with opened(driver, delivery_timeout=30.0) as broker, Relay(engine, broker, database.outbox):
        yield said


@pytest.mark.parametrize("sent", [False, True], ids=["empty", "sent"])
@pytest.mark.parametrize("mine", [16, 8])
async def test_a_claim_and_a_mark_read_what_they_take(postgresql_database: Database, sent: bool, mine: int) -> None:
    """20 000 rows came since the planner looked at the table: it reads those of the batch, and few more."""
    database = postgresql_database
    statements = make_statements(database.main, database.outbox.tables)
    table = database.outbox.tables.messages.name
    columns = (
        "place, hash, state, topic, message_name, message_id, body, made_at, created_at, attempts, attempts_unknown"
    )
    insert = f"INSERT INTO {table} ({columns}) SELECT 0, n, {{}}, 't', 'n', 'id', 'b', 1, 1, 0, 0 "
    beside = Store(database.main, statements)
    try:
        if sent:
            await beside.change((f"{insert.format(int(State.SENT))} FROM generate_series(1, 2000) n", {}))
        await beside.change((f"VACUUM ANALYZE {table}", {}))
        await beside.change((f"{insert.format(int(State.READY))} FROM generate_series(1, {BACKLOG}) n", {}))
        claim, parameters = statements.claim(range(mine), 16, busy=[1, 2], crowded=[], limit=100)
        claimed = [row.id for row in await beside.rows((claim, parameters))]
        assert claimed == sorted(claimed)
        first = text(f"SELECT id FROM {table} WHERE state = 0 AND hash % 16 < {mine} AND id > 2 ORDER BY id LIMIT 100")
        async with database.main.connect() as connection:
            assert claimed == [row.id for row in await connection.execute(first)]
        plan: Any = await beside.rows((EXPLAIN[statements.dialect] + claim, parameters))
        assert looked_at(statements.dialect, table, plan) < 1_000
        mark, parameters = statements.receipts([(number, True, 0, number) for number in claimed], "broker")
        plan = await beside.rows((EXPLAIN[statements.dialect] + mark, parameters))
        assert looked_at(statements.dialect, table, plan) < 1_000
    finally:
        await beside.close()


async def test_receipts_of_a_busy_key_are_marked_together(postgresql_database: Database) -> None:
    """Receipts that come one by one are marked at most every 50 ms, also while another mark is under way."""
    database, driver = postgresql_database, ScriptedBroker()
    async with counted(database, driver) as said:
        await store(database, numbered(0))
        await until(all_in(State.SENT, database))
        said.clear()
        started = time.monotonic()
        await store(database, *[numbered(n) for n in range(1, 301)])
        await until(all_in(State.SENT, database))
        most = (time.monotonic() - started) / MARK_STEP
    assert len(driver.arrived) == 301
    marks = [statement for statement in said if statement.startswith("UPDATE") and "confirmed" in statement]
    assert 1 <= len(marks) <= most + 2


async def test_the_last_receipt_waits_for_no_other(
    postgresql_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no row at the broker, no other receipt will come."""
    monkeypatch.setattr(worker, "MARK_STEP", 1_000.0)
    driver = ScriptedBroker()
    async with counted(postgresql_database, driver):
        await store(postgresql_database, *[numbered(n) for n in range(5)])
        await until(all_in(State.SENT, postgresql_database))


async def test_an_idle_relay_asks_at_most_four_times_a_second(postgresql_database: Database) -> None:
    """Renewals of its leases included, and each BEGIN and COMMIT."""
    driver = ScriptedBroker()
    async with counted(postgresql_database, driver) as said:
        await asyncio.sleep(3)
        said.clear()
        started = time.monotonic()
        await asyncio.sleep(25)  # two renewals
        took, asked = time.monotonic() - started, len(said)
        await store(postgresql_database, numbered(0))
        await until(lambda: driver.arrived)
    assert asked <= 4 * took
