"""What waits does not fill the claim: a topic with very many waiting rows does not slow another one down."""

import time

import pytest
from sqlalchemy import text

from cqrs_brokers_outbox import Outbox, Relay, State

from .brokers import ScriptedBroker, opened
from .conftest import Database
from .test_relay import numbered, store, until

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.speed, pytest.mark.timeout(240)]

ROWS, ROUNDS = 5_000, 4


async def rate(database: Database) -> float:
    """Rows a second of a topic that is sent, by a relay that is at work."""
    driver = ScriptedBroker()
    async with opened(driver) as broker, Relay(database.main, broker, database.outbox, lease=15.0, keep=0):
        await store(database, numbered(0, "first", "good"))
        await until(lambda: driver.arrived)
        await store(database, *[numbered(n, f"k{n % 500}", "good") for n in range(ROWS)])
        started = time.perf_counter()
        await until(lambda: len(driver.arrived) > ROWS)
        return ROWS / (time.perf_counter() - started)


async def test_100_000_waiting_rows_leave_another_topic_its_rate(postgresql_database: Database) -> None:
    """50 000 keys whose first row waits, with a row behind each; the other topic keeps at least 0.8 of its rate."""
    database = postgresql_database
    outbox = Outbox(f"{database.outbox.tables.name}e")
    empty = Database(database.kind, database.url, database.sync_url, outbox, database.orders, database.engines)
    await empty.outbox.create_table(empty.main)
    table = database.outbox.tables.name
    columns = (
        "place, hash, state, topic, message_key, message_name, message_id, body, made_at, created_at, attempts, "
        "attempts_unknown, not_before"
    )
    far = 9_999_999_999_999_999
    async with database.main.begin() as connection:
        for state, first in ((State.WAITING, 0), (State.BEHIND, 50_000)):
            await connection.execute(
                text(
                    f"INSERT INTO {table} ({columns}) SELECT 0, n::bigint * 85899, {state}, 'waiting', "
                    f"convert_to('k' || n, 'UTF8'), 'e' || (n + {first}), 'id', 'body', 1, 1, 1, 0, {far} "
                    "FROM generate_series(0, 49999) n"
                )
            )
    async with database.main.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text(f"VACUUM ANALYZE {table}"))
    rates: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(ROUNDS):
        rates["without"].append(await rate(empty))
        rates["with"].append(await rate(database))
    ratio = max(rates["with"]) / max(rates["without"])
    print(f"{ratio:.2f} of the rate: {rates}")
    assert ratio >= 0.8
