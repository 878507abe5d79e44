"""The relay on every database: order, outcomes, what waits, what is parked. The broker is scripted."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import create_async_engine

from cqrs_brokers import (
    ConfigError,
    ConnectionLostError,
    DeliveryError,
    DestinationNotFoundError,
    InvalidMessageError,
    Message,
    NotConnectedError,
    RejectedError,
)
from cqrs_brokers_outbox import Outbox, OutboxSchemaError, Relay, State

from .brokers import ScriptedBroker, lost, opened
from .conftest import Database

pytestmark = pytest.mark.live


def numbered(number: int, key: str | None = "k", topic: str = "t") -> Message:
    return Message(f"{topic}/{key}/{number}", topic, {"n": number}, key=key)


async def store(database: Database, *messages: Message) -> None:
    async with database.main.begin() as connection:
        await database.outbox.insert(connection, *messages)


async def rows(database: Database) -> list[Any]:
    table = database.outbox.tables.messages
    async with database.main.connect() as connection:
        return list((await connection.execute(select(table).order_by(table.c.id))).all())


PATIENCE = float(os.environ.get("OUTBOX_PATIENCE", "30"))
"""Seconds; less for mutants, of which many never do what is waited for."""


async def until(condition: Callable[[], Any], within: float = PATIENCE) -> None:
    """Asserts what may take a moment on a busy machine."""
    give_up = asyncio.get_running_loop().time() + within
    while True:
        answer = condition()
        if asyncio.iscoroutine(answer):
            answer = await answer
        if answer:
            return
        assert asyncio.get_running_loop().time() < give_up, f"not within {within:g} s"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def relay(database: Database, driver: ScriptedBroker, **options: Any) -> AsyncIterator[Relay]:
    async with opened(driver) as broker:
        async with Relay(database.engine(), broker, database.outbox, lease=15.0, **options) as running:
            yield running


def all_in(state: State, database: Database) -> Callable[[], Any]:
    async def check() -> bool:
        return all(row.state == state for row in await rows(database))

    return check


async def test_every_row_arrives_in_order_and_has_its_receipt(database: Database) -> None:
    """Rows of a key arrive in their order, one at a time; the row keeps where it is in the broker."""
    messages = [numbered(number, key=f"k{number % 7}") for number in range(300)]
    messages += [numbered(number, key=None) for number in range(50)]
    await store(database, *messages)
    driver = ScriptedBroker()
    async with relay(database, driver, batch=100):
        await until(all_in(State.SENT, database))
        await store(database, numbered(1000))
        await until(lambda: len(driver.arrived) == 351)
    assert len(set(driver.names)) == 351
    assert driver.overlaps == 0
    for key in range(7):
        mine = [message.message_id for message in driver.arrived if message.key == f"k{key}"]
        assert mine == [message.message_id for message in messages if message.key == f"k{key}"]
    kept = await rows(database)
    assert {(row.sent_to, row.broker_partition, bool(row.confirmed)) for row in kept} == {("scripted", 3, True)}
    assert {row.broker_offset for row in kept} == set(range(1, 352))
    assert {row.attempts_unknown for row in kept} == {0}
    assert {message.headers["outbox-position"] for message in driver.arrived} == {str(row.id) for row in kept}
    first = driver.arrived[0]
    assert first.headers["event-time"] == first.timestamp.isoformat()


async def test_no_row_is_marked_before_its_receipt(database: Database) -> None:
    """What is at the broker is not sent yet."""
    await store(database, numbered(1), numbered(2, None))
    driver = ScriptedBroker()
    driver.gate.clear()
    async with relay(database, driver):
        await until(lambda: len(driver.tried) == 2)
        await asyncio.sleep(0.3)
        assert {row.state for row in await rows(database)} == {State.READY}
        driver.gate.set()
        await until(all_in(State.SENT, database))


async def test_keep_0_deletes_what_was_sent(database: Database) -> None:
    """Nothing is left of a row that was sent."""
    await store(database, numbered(1), numbered(2))
    async with relay(database, ScriptedBroker(), keep=0):
        await until(lambda: _is_empty(database))


async def _is_empty(database: Database) -> bool:
    return not await rows(database)


async def test_a_row_that_fails_holds_its_key_up_and_nobody_else(database: Database) -> None:
    """A retryable refusal: the row waits, its key with it, others go on; then all arrive in order."""

    def script(message: Message, times: int) -> DeliveryError | None:
        return RejectedError("full") if message.message_name == "t/a/2" and times < 3 else None

    await store(database, *[numbered(n, key) for n in range(1, 6) for key in "ab"])
    driver = ScriptedBroker(script)
    async with relay(database, driver):
        await until(all_in(State.SENT, database))
    names = driver.names
    assert [name for name in names if "/a/" in name] == [f"t/a/{n}" for n in range(1, 6)]
    assert [name for name in names if "/b/" in name] == [f"t/b/{n}" for n in range(1, 6)]
    assert names.index("t/b/5") < names.index("t/a/2")
    (failed,) = [row for row in await rows(database) if row.attempts]
    assert (failed.message_name, failed.attempts, failed.error_class) == ("t/a/2", 3, "RejectedError")
    assert failed.attempts_unknown == 0


async def test_unknown_is_sent_again_under_the_same_id_and_counted(database: Database) -> None:
    """An answer that was lost: the row may be there twice, and says so."""

    def script(message: Message, times: int) -> DeliveryError | None:
        return lost(ConnectionLostError("reset")) if message.message_name == "t/a/1" and times < 2 else None

    await store(database, *[numbered(n, "a") for n in range(1, 4)])
    driver = ScriptedBroker(script)
    async with relay(database, driver) as running:
        await until(all_in(State.SENT, database))
        health = await running.health()
    assert driver.names == ["t/a/1", "t/a/1", "t/a/1", "t/a/2", "t/a/3"]
    assert len({message.message_id for message in driver.arrived[:3]}) == 1
    assert [row.attempts_unknown for row in await rows(database)] == [2, 0, 0]
    assert health.ok
    assert health.status is not None
    assert health.status.possible_duplicates == 1


async def test_what_can_never_be_sent_is_parked_and_its_key_stops(database: Database) -> None:
    """The row says why; the key waits for a person, the others go on."""

    def script(message: Message, times: int) -> DeliveryError | None:
        return InvalidMessageError("no") if message.message_name == "t/a/1" else None

    await store(database, *[numbered(n, key) for n in range(3) for key in "ab"])
    driver = ScriptedBroker(script)
    async with relay(database, driver):
        await until(lambda: len(driver.arrived) == 4)

        async def settled() -> bool:
            return [row.state for row in await rows(database) if row.message_key == b"a"] == [5, 2, 3]

        await until(settled)
        await store(database, numbered(4, "a"))
        await asyncio.sleep(0.5)
    assert driver.names.count("t/a/2") == 0
    parked = [row for row in await rows(database) if row.state == State.PARKED]
    assert [(row.error_class, row.error_text) for row in parked] == [("InvalidMessageError", "no")]


async def test_when_parked_continue_lets_the_key_go_on(database: Database) -> None:
    """The rows behind a parked one are sent; also those that a stricter relay had held back."""

    def script(message: Message, times: int) -> DeliveryError | None:
        return InvalidMessageError("no") if message.message_name == "t/a/1" else None

    await store(database, *[numbered(n, "a") for n in range(4)])
    driver = ScriptedBroker(script)

    async def held() -> bool:
        return [row.state for row in await rows(database)] == [5, 2, 3, 3]

    async with relay(database, driver):
        await until(held)
    async with relay(database, driver, when_parked="continue"):
        await until(lambda: driver.names == ["t/a/0", "t/a/2", "t/a/3"])
        await store(database, numbered(4, "a"))
        await until(lambda: driver.names == ["t/a/0", "t/a/2", "t/a/3", "t/a/4"])


async def test_when_parked_continue_lets_the_key_go_on_after_a_second_try(database: Database) -> None:
    """The row has waited, so that rows are behind it, before it is parked."""

    def script(message: Message, times: int) -> DeliveryError | None:
        if message.message_name != "t/a/0":
            return None
        return RejectedError("full") if times < 2 else InvalidMessageError("no")

    await store(database, *[numbered(n, "a") for n in range(4)])
    driver = ScriptedBroker(script)
    async with relay(database, driver, when_parked="continue"):
        await until(lambda: driver.names == ["t/a/1", "t/a/2", "t/a/3"], within=10)
    assert [row.state for row in await rows(database)] == [State.PARKED] + [State.SENT] * 3


async def test_a_refused_topic_waits_as_a_whole_and_comes_back(database: Database) -> None:
    """One row in each partition stands for the topic: the others are not tried, whatever their keys."""
    refused = True
    tries = 0

    def script(message: Message, times: int) -> DeliveryError | None:
        nonlocal tries
        if message.topic == "lost" and refused:
            tries += 1
            return DestinationNotFoundError("no such topic")
        return None

    await store(database, *[numbered(n, f"k{n % 50}", "lost") for n in range(200)])
    driver = ScriptedBroker(script)
    async with relay(database, driver, batch=50) as running:

        async def all_wait() -> bool:
            return {row.state for row in await rows(database)} == {State.REFUSED, State.BEHIND}

        await until(all_wait)
        await store(database, numbered(1, "x", "found"))
        await until(lambda: driver.names == ["found/x/1"])
        status = (await running.health()).status
        assert status is not None
        assert status.refused_topics == ("lost",)
        assert sum(row.state == State.REFUSED for row in await rows(database)) <= 16
        refused = False
        await until(all_in(State.SENT, database))
    for key in range(50):
        mine = [name for name in driver.names if name.startswith(f"lost/k{key}/")]
        assert mine == [f"lost/k{key}/{n}" for n in range(key, 200, 50)]


async def test_while_the_broker_is_gone_no_row_is_touched(database: Database) -> None:
    """No connection says nothing about a row: nothing is written, and all go on in order afterwards."""
    gone = True

    def script(message: Message, times: int) -> DeliveryError | None:
        return NotConnectedError("refused") if gone else None

    await store(database, *[numbered(n) for n in range(5)])
    driver = ScriptedBroker(script)
    async with relay(database, driver) as running:
        await until(lambda: sum(driver.tried.values()) >= 3)
        health = await running.health()
        assert not health.ok
        assert "refused" in health.reason
        assert {(row.state, row.attempts) for row in await rows(database)} == {(State.READY, 0)}
        gone = False
        await until(all_in(State.SENT, database))
        assert (await running.health()).ok
    assert driver.names == [f"t/k/{n}" for n in range(5)]


async def test_pipelined_keys_go_together(database: Database) -> None:
    """All rows of a key are in flight at once, in their order; one that fails is overtaken and comes again."""

    def script(message: Message, times: int) -> DeliveryError | None:
        return RejectedError("full") if message.message_name == "t/k/1" and times == 0 else None

    await store(database, *[numbered(n) for n in range(20)])
    driver = ScriptedBroker(script)
    async with relay(database, driver, pipeline_keys=True):
        await until(all_in(State.SENT, database))
    assert driver.overlaps
    assert [name for name in driver.names if name != "t/k/1"] == [f"t/k/{n}" for n in range(20) if n != 1]
    assert driver.names.count("t/k/1") == 1


@pytest.mark.parametrize(
    ("column", "value"),
    [("headers", "{broken"), ("message_id", "{broken"), ("headers", "[" * 5_000 + "]" * 5_000), ("trace", "[" * 5_000)],
    ids=["headers", "message_id", "nested headers", "nested trace"],
)
async def test_a_damaged_row_is_parked_and_stops_nobody_else(database: Database, column: str, value: str) -> None:
    """It says that it cannot be read; others are sent."""
    await store(database, numbered(1, "a"), numbered(2, "a"), numbered(1, "b"))
    table = database.outbox.tables.messages
    async with database.main.begin() as connection:
        await connection.execute(update(table).where(table.c.message_name == "t/a/1").values({column: value}))
    driver = ScriptedBroker()
    async with relay(database, driver):

        async def parked() -> bool:
            return [row.state for row in await rows(database)] == [2, 3, 5]

        await until(parked)
    assert driver.names == ["t/b/1"]
    assert "cannot be read" in (await rows(database))[0].error_text


@pytest.mark.parametrize("column", ["message_key", "body"])
@pytest.mark.parametrize("value", ["'text'", "5"])
async def test_a_value_of_another_type_is_damage(tmp_path: Path, column: str, value: str) -> None:
    """SQLite keeps values of any type: a number is not sent as that many zero bytes."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/outbox.db")
    outbox, driver = Outbox(), ScriptedBroker()
    await outbox.create_table(engine)
    async with engine.begin() as connection:
        await outbox.insert(connection, numbered(1, "a"), numbered(1, "b"))
        await connection.execute(text(f"UPDATE outbox SET {column} = {value} WHERE id = 1"))
    async with Relay(engine, opened(driver), outbox), asyncio.timeout(20):
        states: list[int] = []
        while states != [State.PARKED, State.SENT]:
            await asyncio.sleep(0.05)
            async with engine.connect() as connection:
                states = list((await connection.execute(text("SELECT state FROM outbox ORDER BY id"))).scalars())
    assert driver.names == ["t/b/1"]
    await engine.dispose()


@pytest.mark.parametrize("said", ["a\0b", "a\ud800b", "a\nb"], ids=["NUL", "surrogate", "line break"])
async def test_an_error_s_text_that_no_database_stores(database: Database, said: str) -> None:
    """A server may say anything: the row is parked with a readable text, and other rows are marked."""
    await store(database, numbered(1, "a"), numbered(1, "b"))
    driver = ScriptedBroker(lambda message, times: InvalidMessageError(said) if message.key == "a" else None)
    async with relay(database, driver):

        async def parked() -> bool:
            return [row.state for row in await rows(database)] == [2, 5]

        await until(parked)
    assert (await rows(database))[0].error_text == "a b"


async def test_a_broker_that_raises_what_is_no_outcome_ends_the_relay(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a wrapper around one, with a mistake. The rows would be kept from everybody, without a word."""

    async def fail(*_: Any) -> None:
        raise LookupError("a mistake")

    await store(database, numbered(1))
    async with opened(ScriptedBroker()) as broker:
        monkeypatch.setattr(broker, "send_message", fail)
        async with asyncio.timeout(10):
            with pytest.raises(LookupError, match="a mistake"):
                await Relay(database.engine(), broker, database.outbox, lease=15.0, close_timeout=0.5).run()


async def test_a_row_that_commits_late_is_found(database: Database) -> None:
    """A row with a lower number that became visible after higher ones were sent."""
    if database.kind == "aiosqlite":
        pytest.skip("one writer at a time: numbers are given in the order of commits")
    driver = ScriptedBroker()
    engine = database.engine()
    async with relay(database, driver), engine.connect() as slow:
        await database.outbox.insert(slow, numbered(1, "slow"))
        await store(database, numbered(1, "fast"))
        await until(lambda: driver.names == ["t/fast/1"])
        await slow.commit()
        await until(lambda: driver.names == ["t/fast/1", "t/slow/1"])


async def test_missing_tables_and_other_versions_are_said(database: Database) -> None:
    """The error names the tables and the migration."""
    async with opened(ScriptedBroker()) as broker:
        with pytest.raises(OutboxSchemaError, match=r"nowhere_lease.*alembic upgrade"):
            async with Relay(database.engine(), broker, Outbox("nowhere"), lease=15.0):
                pass
        version = database.outbox.tables.version
        async with database.main.begin() as connection:
            await connection.execute(update(version).values(version=99))
        with pytest.raises(OutboxSchemaError, match=r"version 99.*needs 1.*alembic upgrade"):
            await Relay(database.engine(), broker, database.outbox, lease=15.0).run()


def test_options_out_of_range_are_refused(tmp_path: Any) -> None:
    """All problems at once, each with what to do."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/x.db")
    with pytest.raises(ConfigError) as caught:
        Relay(engine, opened(ScriptedBroker(), 30.0), lease=10, batch=0, keep=-1, topics=[])
    assert len(caught.value.problems) == 4
    assert "at least 40 s" in caught.value.problems[0]
    for lease in (float("inf"), 1e300):
        with pytest.raises(ConfigError, match="lease must be at most"):
            Relay(engine, opened(ScriptedBroker(), 30.0), lease=lease)
