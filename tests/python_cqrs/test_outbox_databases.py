"""python-cqrs' outbox on real databases: its own repository and model, with core's and the bridge's events."""

import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import cqrs
import pytest
import sqlalchemy
from cqrs.outbox.sqlalchemy import OutboxModel, SqlAlchemyOutboxedEventRepository
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from cqrs_brokers import TOMBSTONE, Broker
from cqrs_brokers.driver import Capabilities
from cqrs_brokers_python_cqrs import ECSTEvent, message_broker
from cqrs_brokers_testkit.servers._database import DatabaseServer

from .application import CoreOrderPlaced, Order, OrderPlaced, OrderSeen, OwnOrderPlaced, Recorder, key_of

pytestmark = pytest.mark.live

UniqueName = Callable[[str], str]
DATABASES = [("postgresql", "asyncpg"), ("postgresql", "psycopg"), ("mariadb", "asyncmy")]
TOKYO = timezone(timedelta(hours=9))
AT = datetime(2026, 7, 1, 3, 30, tzinfo=TOKYO)  # the day before, in UTC


class StateTaken(ECSTEvent[Order]):
    topic: str = "orders"


@pytest.fixture(params=DATABASES, ids=["-".join(pair) for pair in DATABASES])
async def engine(request: pytest.FixtureRequest, unique_name: UniqueName) -> AsyncIterator[AsyncEngine]:
    """A database of its own with an empty outbox, whose sessions have a time zone that is not UTC."""
    fixture, driver = request.param
    server: DatabaseServer = request.getfixturevalue(fixture)
    name = unique_name("outbox").replace("-", "_")
    administrator = create_async_engine(server.url_of(driver), isolation_level="AUTOCOMMIT")
    async with administrator.connect() as connection:
        await connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
        if fixture == "postgresql":
            await connection.execute(sqlalchemy.text(f"ALTER DATABASE {name} SET timezone TO 'America/New_York'"))
    opened = create_async_engine(server.url_of(driver, name))
    async with opened.begin() as connection:
        await connection.run_sync(OutboxModel.metadata.create_all)
    yield opened
    await opened.dispose()
    async with administrator.connect() as connection:
        await connection.execute(sqlalchemy.text(f"DROP DATABASE {name}"))
    await administrator.dispose()


def repository(session: AsyncSession) -> SqlAlchemyOutboxedEventRepository:
    known = cqrs.OutboxedEventMap()
    known.register("OrderPlaced", OrderPlaced)
    known.register("order.seen", OrderSeen)
    known.register("CoreOrderPlaced", CoreOrderPlaced)  # type: ignore[arg-type] # python-cqrs' type at run time only
    known.register("own.order_placed", OwnOrderPlaced)
    known.register("StateTaken", StateTaken)
    return SqlAlchemyOutboxedEventRepository(session, event_map=known)


async def test_events_of_every_kind_are_stored_and_sent(engine: AsyncEngine) -> None:
    """In UTC, where the column has no zone; the body says what it said, and the relay sends what was stored."""
    events: list[Any] = [
        OrderPlaced(payload=Order(order_id="1"), event_timestamp=AT),
        OrderSeen(payload={"at": AT}, event_timestamp=AT),
        CoreOrderPlaced(payload=Order(order_id="3"), event_timestamp=AT),
        OwnOrderPlaced(payload={"order_id": "4"}, event_timestamp=AT.replace(tzinfo=None)),
    ]
    async with AsyncSession(engine) as session:
        outbox = repository(session)
        for event in events:
            outbox.add(event)
        await outbox.commit()  # type: ignore[no-untyped-call]
    async with AsyncSession(engine) as session:
        rows = list((await session.execute(sqlalchemy.select(OutboxModel).order_by(OutboxModel.id))).scalars())
        utc = AT.astimezone(UTC).replace(tzinfo=None)
        assert [row.created_at for row in rows] == [utc, utc, utc, AT.replace(tzinfo=None)]  # its own: as it was given
        stored = [row.payload for row in rows]
        assert b'"event_timestamp":"2026-06-30T18:30:00Z"' in stored[0]
        assert b'"at":"2026-07-01T03:30:00+09:00"' in stored[1]

        outbox, recorder = repository(session), Recorder()
        async with message_broker(Broker(recorder), ordering_key=key_of) as adapter:
            producer = cqrs.EventProducer(adapter, outbox)
            async for batch in producer.event_batch_generator():
                for row in batch:
                    await producer.send_message(row)
                await outbox.commit()  # type: ignore[no-untyped-call]
                break
    assert [(message.message_name, message.key) for message in recorder.sent] == [
        ("OrderPlaced", "1"),
        ("order.seen", None),
        ("CoreOrderPlaced", "3"),
        ("own.order_placed", "4"),
    ]
    assert [message.body for message in recorder.sent] == stored
    assert [message.message_id for message in recorder.sent] == [event.event_id for event in events]


async def test_a_tombstone_is_stored_and_sent(engine: AsyncEngine) -> None:
    """With its key and no body; the row says that it is one."""
    event = StateTaken.deleted("7")
    recorder = Recorder(capabilities=Capabilities(confirms=True, ordering_key=True, headers=True, tombstones=True))
    async with AsyncSession(engine) as session:
        outbox = repository(session)
        outbox.add(event)
        await outbox.commit()  # type: ignore[no-untyped-call]
        (row,) = await outbox.get_many()
        assert row.event.payload is TOMBSTONE
        async with message_broker(Broker(recorder)) as adapter:
            await cqrs.EventProducer(adapter, outbox).send_message(row)
    assert [(sent.body, sent.key, sent.message_id) for sent in recorder.sent] == [(None, "7", event.event_id)]


async def test_a_column_with_a_zone_keeps_it() -> None:
    """A model of the application's own, derived from python-cqrs', with a column that has a zone."""
    subprocess_source = """
from datetime import datetime, timedelta, timezone
import cqrs_brokers_python_cqrs
import sqlalchemy
from cqrs.outbox.sqlalchemy import OutboxModel

at = datetime(2026, 7, 1, tzinfo=timezone(timedelta(hours=9)))
assert OutboxModel(created_at=at).created_at == datetime(2026, 6, 30, 15)
OutboxModel.__table__.c.created_at.type = sqlalchemy.DateTime(timezone=True)
assert OutboxModel(created_at=at).created_at == at
"""
    import asyncio

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", subprocess_source, cwd=Path(__file__).parents[2]
    )
    assert await process.wait() == 0
