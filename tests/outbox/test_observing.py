"""What a relay tells its observers, the writer's trace context on its way to the broker, and the relay's purge."""

import asyncio
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as contexts
from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncSession

from cqrs_brokers import (
    ConnectionLostError,
    DeliveryError,
    DestinationNotFoundError,
    InvalidMessageError,
    Message,
    NotConnectedError,
    Receipt,
    RejectedError,
)
from cqrs_brokers.messages import MessageValidator
from cqrs_brokers_outbox import Lag, RelayObserver, State
from cqrs_brokers_outbox._relay import upkeep
from cqrs_brokers_outbox.rows import RESERVED_BYTES, row_of

from .brokers import ScriptedBroker, lost
from .conftest import Database
from .test_relay import all_in, numbered, relay, rows, store, until

pytestmark = pytest.mark.live


class Notes(RelayObserver):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.all: list[tuple[Any, ...]] = []

    def of(self, what: str) -> list[Any]:
        return [note[1:] for note in self.all if note[0] == what]

    def claimed(self, count: int) -> None:
        self.all.append(("claimed", count))

    def sent(self, position: int, message: Message, outcome: Receipt | DeliveryError) -> None:
        self.all.append(("sent", position, message.message_name, type(outcome).__name__))

    def parked(self, position: int, topic: str, error_class: str, error_text: str) -> None:
        self.all.append(("parked", position, topic, error_class, error_text))

    def refused(self, topic: str, error_class: str, error_text: str) -> None:
        self.all.append(("refused", topic, error_class, error_text))

    def fenced(self, count: int) -> None:
        self.all.append(("fenced", count))

    def lag(self, lag: Sequence[Lag]) -> None:
        self.all.append(("lag", lag))

    def leases_changed(self, partitions: Sequence[int]) -> None:
        self.all.append(("leases_changed", list(partitions)))

    def trouble(self, what: str, reason: str) -> None:
        self.all.append(("trouble", what, reason))


async def test_every_outcome_and_what_became_of_the_row(database: Database) -> None:
    """Confirmed, not delivered, unknown, by the row's number; parked rows and refused topics when they are marked."""
    answers: dict[str, list[DeliveryError | None]] = {
        "t/a/1": [RejectedError("full"), None],
        "t/b/1": [lost(ConnectionLostError("reset")), None],
        "t/c/1": [InvalidMessageError("no")],
        "gone/d/1": [DestinationNotFoundError("no such topic")] * 2,
    }
    script = {name: iter(outcomes) for name, outcomes in answers.items()}
    driver = ScriptedBroker(lambda message, times: next(script.get(message.message_name, iter(())), None))
    await store(database, *[numbered(1, key) for key in "abc"], numbered(1, "d", "gone"))
    positions = {row.message_name: row.id for row in await rows(database)}
    notes = Notes()
    async with relay(database, driver, observers=[notes]):
        await until(lambda: len(notes.of("sent")) == 8)
        await until(lambda: len(notes.of("refused")) == 2)
    told: dict[str, list[str]] = {}
    for position, name, outcome in notes.of("sent"):
        assert position == positions[name]
        told.setdefault(name, []).append(outcome)
    assert told == {
        "t/a/1": ["RejectedError", "Receipt"],
        "t/b/1": ["ConnectionLostError", "Receipt"],
        "t/c/1": ["InvalidMessageError"],
        "gone/d/1": ["DestinationNotFoundError", "DestinationNotFoundError", "Receipt"],
    }
    assert notes.of("parked") == [(positions["t/c/1"], "t", "InvalidMessageError", "no")]
    assert notes.of("refused") == [("gone", "DestinationNotFoundError", "no such topic")] * 2
    assert sum(count for (count,) in notes.of("claimed")) >= 8
    partitions = 1 if database.kind == "aiosqlite" else 16
    assert ("leases_changed", list(range(partitions))) in notes.all


async def test_a_damaged_row_is_told_as_parked(postgresql_database: Database) -> None:
    """It was never sent: only its mark is told."""
    database = postgresql_database
    await store(database, numbered(1))
    async with database.main.begin() as connection:
        await connection.execute(update(database.outbox.tables.messages).values(headers="{"))
    notes = Notes()
    async with relay(database, ScriptedBroker(), observers=[notes]):
        await until(lambda: notes.of("parked"))
    ((_, topic, error_class, error_text),) = notes.of("parked")
    assert (topic, error_class) == ("t", "DamagedRow")
    assert "cannot be read" in error_text
    assert notes.of("sent") == []


async def test_refused_marks_are_told_as_fenced_and_not_as_parked(postgresql_database: Database) -> None:
    """Another relay has the partition: what this one would have written did not happen."""
    database = postgresql_database
    driver = ScriptedBroker(lambda message, times: InvalidMessageError("no"))
    driver.gate.clear()
    await store(database, numbered(1))
    lease = database.outbox.tables.lease
    notes = Notes()
    async with relay(database, driver, observers=[notes]):
        await until(lambda: driver.tried)
        async with database.main.begin() as connection:
            far = text("9999999999999999")
            await connection.execute(update(lease).values(owner="other", token=lease.c.token + 1, until=far))
        driver.gate.set()
        await until(lambda: notes.of("fenced") and ([],) in notes.of("leases_changed"))
    assert notes.of("fenced") == [(1,)]
    assert notes.of("parked") == []


async def test_the_lag_is_told(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not sent, by topic and partition, with its age; nothing when all is sent."""
    monkeypatch.setattr(upkeep, "STEP", 0.1)
    driver = ScriptedBroker()
    driver.gate.clear()
    await store(database, numbered(1, "a"), numbered(2, "a"), numbered(1, "b", "other"))
    notes = Notes()
    async with relay(database, driver, observers=[notes]):
        await until(lambda: any(lag and lag[0].oldest > 0.3 for (lag,) in notes.of("lag")))
        waiting = notes.of("lag")[-1][0]
        driver.gate.set()
        await until(all_in(State.SENT, database))
        await until(lambda: notes.of("lag")[-1] == ((),))
    assert sorted((lag.topic, lag.rows) for lag in waiting) == [("other", 1), ("t", 2)]


async def test_trouble_is_told_once_for_each_reason(postgresql_database: Database) -> None:
    """A broker that is gone is told once, however often it is tried."""
    driver = ScriptedBroker(lambda message, times: NotConnectedError("refused") if times < 3 else None)
    await store(postgresql_database, numbered(1))
    notes = Notes()
    async with relay(postgresql_database, driver, observers=[notes]):
        await until(all_in(State.SENT, postgresql_database))
    assert notes.of("trouble") == [("send", "refused")]


async def test_an_observer_that_fails_changes_nothing(
    postgresql_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Its class and the method are logged, not its text; the next observer is told all the same."""

    class Broken(RelayObserver):
        def sent(self, position: int, message: Message, outcome: Receipt | DeliveryError) -> None:
            raise RuntimeError(f"secret {message.payload_bytes!r}")

    notes = Notes()
    await store(postgresql_database, numbered(1))
    with caplog.at_level(logging.ERROR, "cqrs_brokers.outbox"):
        async with relay(postgresql_database, ScriptedBroker(), observers=[Broken(), notes]):
            await until(all_in(State.SENT, postgresql_database))
    assert [name for _, name, _ in notes.of("sent")] == ["t/k/1"]
    assert "Broken raised RuntimeError in sent()" in caplog.text
    assert "secret" not in caplog.text


# -- trace context -----------------------------------------------------------------------------------------------------


@contextmanager
def writing_span(number: int) -> Iterator[str]:
    """A current span; yields its traceparent."""
    span = trace.SpanContext(number, number + 1, is_remote=False, trace_flags=trace.TraceFlags(1))
    token = contexts.attach(trace.set_span_in_context(trace.NonRecordingSpan(span)))
    try:
        yield f"00-{number:032x}-{number + 1:016x}-01"
    finally:
        contexts.detach(token)


async def test_the_writer_s_trace_context_goes_to_the_broker(database: Database) -> None:
    """From the span in which it was added, through the row, into the headers of what is sent; each its own."""
    async with AsyncSession(database.engine()) as session, session.begin():
        with writing_span(0xA1) as first:
            database.outbox.add(session, numbered(1, "a"))
        with writing_span(0xB1) as second:
            database.outbox.add(session, numbered(1, "b"))
        database.outbox.add(session, numbered(1, "c"))
    async with database.main.begin() as connection:
        with writing_span(0xC1) as third:
            await database.outbox.insert(connection, numbered(1, "d"))
    driver = ScriptedBroker()
    with writing_span(0xFF):  # the relay's own, which has nothing to do with it
        async with relay(database, driver):
            await until(all_in(State.SENT, database))
    arrived = {message.message_name: message.headers.get("traceparent") for message in driver.arrived}
    assert arrived == {"t/a/1": first, "t/b/1": second, "t/c/1": None, "t/d/1": third}


@pytest.mark.parametrize("name", ["traceparent", "Traceparent"])
async def test_a_header_of_the_message_s_own_wins(postgresql_database: Database, name: str) -> None:
    """Whoever set traceparent by hand meant it; it is there once."""
    own = f"00-{7:032x}-{8:016x}-00"
    async with AsyncSession(postgresql_database.engine()) as session, session.begin():
        with writing_span(0xA1):
            postgresql_database.outbox.add(session, Message("n", "t", 1, headers={name: own}))
    driver = ScriptedBroker()
    async with relay(postgresql_database, driver):
        await until(all_in(State.SENT, postgresql_database))
    (message,) = driver.arrived
    assert {header: value for header, value in message.headers.items() if header.lower() == "traceparent"} == {
        name: own
    }


async def test_baggage_makes_no_message_too_large(postgresql_database: Database) -> None:
    """What was small enough for add() is small enough with the trace context; a small message keeps the baggage."""
    database = postgresql_database
    with writing_span(0xA1) as traceparent:
        token = contexts.attach(baggage.set_baggage("tenant", "x" * 3_000))
        await store(database, numbered(1), Message("large", "t", b"x" * (1_000_000 - RESERVED_BYTES)))
        contexts.detach(token)
    driver = ScriptedBroker()
    async with relay(database, driver):
        await until(all_in(State.SENT, database))
    headers = {message.message_name: message.headers for message in driver.arrived}
    assert headers["large"]["traceparent"] == traceparent
    assert "baggage" not in headers["large"]
    assert len(str(headers["t/k/1"]["baggage"])) > 3_000


def test_a_long_key_is_counted_in_bytes() -> None:
    """The key has three bytes for each of its characters, and the trace context must fit beside it."""
    trace_context = {"traceparent": "00-x-y-01", "baggage": "x" * 5_000}
    message = MessageValidator().ready(Message("m", "t", b"x" * 8_000, key="\u20ac" * 10_000))
    assert json.loads(row_of(message, trace_context, 44_000)["trace"]) == trace_context
    assert list(json.loads(row_of(message, trace_context, 40_000)["trace"])) == ["traceparent"]


async def test_a_damaged_trace_context_parks_the_row(postgresql_database: Database) -> None:
    """It stops nobody else."""
    database = postgresql_database
    await store(database, numbered(1, "a"), numbered(1, "b"))
    table = database.outbox.tables.messages
    async with database.main.begin() as connection:
        await connection.execute(update(table).where(table.c.message_name == "t/a/1").values(trace="["))

    async def settled() -> bool:
        return [row.state for row in await rows(database)] == [State.PARKED, State.SENT]

    async with relay(database, ScriptedBroker()):
        await until(settled)


# -- purge -------------------------------------------------------------------------------------------------------------


async def test_a_relay_purges_what_was_kept_long_enough(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent rows older than keep go, more than one statement's worth; younger ones and unsent ones stay."""
    monkeypatch.setattr(upkeep, "STEP", 0.2)
    monkeypatch.setattr(upkeep, "CHUNK", 10)
    table = database.outbox.tables.messages
    await store(database, *[numbered(n, f"old{n}") for n in range(35)])
    driver = ScriptedBroker(lambda message, times: InvalidMessageError("no") if message.key == "parked" else None)
    async with relay(database, driver):
        await until(all_in(State.SENT, database))
    async with database.main.begin() as connection:
        await connection.execute(update(table).values(sent_at=table.c.sent_at - 3_600_000_000))
    await store(database, numbered(1, "young"), numbered(1, "parked"))
    async with relay(database, driver, keep=1800):
        await until(lambda: _names(database, {"t/young/1", "t/parked/1"}))
        await asyncio.sleep(0.5)
        assert await _names(database, {"t/young/1", "t/parked/1"})


async def _names(database: Database, expected: set[str]) -> bool:
    return {row.message_name for row in await rows(database)} == expected
