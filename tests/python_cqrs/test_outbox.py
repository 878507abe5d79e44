"""python-cqrs' outbox: its `EventProducer` on our broker, with its SQLAlchemy repository."""

from collections.abc import AsyncIterator
from typing import Any

import cqrs
import pytest
import sqlalchemy
from cqrs.outbox.mock import MockOutboxedEventRepository
from cqrs.outbox.sqlalchemy import OutboxModel, SqlAlchemyOutboxedEventRepository
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.ext.compiler import compiles

from cqrs_brokers import Broker, ConnectionLostError, UnroutableError
from cqrs_brokers.protocol import Message
from cqrs_brokers_python_cqrs import message_broker

from .application import CoreOrderPlaced, Order, OrderPlaced, OrderSeen, OwnOrderPlaced, Recorder, key_of


@compiles(sqlalchemy.BigInteger, "sqlite")
def _integer(*_: Any, **__: Any) -> str:
    return "INTEGER"  # the only type that SQLite numbers by itself


@compiles(sqlalchemy.Identity, "sqlite")
def _no_identity(*_: Any, **__: Any) -> str:
    return ""


@pytest.fixture
async def session() -> AsyncIterator[AsyncSession]:
    """A session on an empty outbox table."""
    engine = create_async_engine("sqlite+aiosqlite://")
    async with engine.begin() as connection:
        await connection.run_sync(OutboxModel.metadata.create_all)
    async with AsyncSession(engine) as opened:
        yield opened
    await engine.dispose()


@pytest.fixture
def outbox(session: AsyncSession) -> SqlAlchemyOutboxedEventRepository:
    """python-cqrs' own repository, with its events registered as its documentation says."""
    known = cqrs.OutboxedEventMap()
    known.register("OrderPlaced", OrderPlaced)
    known.register("order.seen", OrderSeen)
    known.register("own.order_placed", OwnOrderPlaced)
    return SqlAlchemyOutboxedEventRepository(session, event_map=known)


async def statuses(session: AsyncSession) -> list[tuple[str, int]]:
    rows = await session.execute(
        sqlalchemy.select(OutboxModel.event_status, OutboxModel.flush_counter).order_by(OutboxModel.id)
    )
    return [(str(status), flushes) for status, flushes in rows]


async def relay(broker: cqrs.message_brokers.MessageBroker, outbox: cqrs.OutboxedEventRepository) -> None:
    """One turn of the loop that python-cqrs' documentation shows."""
    producer = cqrs.EventProducer(broker, outbox)
    async for batch in producer.event_batch_generator():
        for event in batch:
            await producer.send_message(event)
        await outbox.commit()  # type: ignore[no-untyped-call]
        return


async def test_events_from_the_outbox_arrive_with_name_id_key_and_the_stored_bytes(
    session: AsyncSession, outbox: SqlAlchemyOutboxedEventRepository
) -> None:
    """Rebuilt from the table: the bridge's events say their key again, python-cqrs' own through the callable."""
    events: list[Any] = [
        OrderPlaced(payload=Order(order_id="1")),
        OrderSeen(payload={"a": 1}),
        OwnOrderPlaced(payload={"order_id": "4"}),
    ]
    for event in events:
        outbox.add(event)
    await outbox.commit()  # type: ignore[no-untyped-call]
    stored = [row.payload for row in (await session.execute(OutboxModel.get_batch_query(10))).scalars()]

    recorder = Recorder()
    async with message_broker(Broker(recorder), ordering_key=key_of) as adapter:
        await relay(adapter, outbox)

    assert [(message.message_name, message.key) for message in recorder.sent] == [
        ("OrderPlaced", "1"),
        ("order.seen", None),
        ("own.order_placed", "4"),
    ]
    assert [message.message_id for message in recorder.sent] == [event.event_id for event in events]
    assert [message.body for message in recorder.sent] == stored
    assert await statuses(session) == [("produced", 0)] * 3


@pytest.mark.parametrize(
    "error", [UnroutableError("no queue"), ConnectionLostError("reset")], ids=["not delivered", "unknown"]
)
async def test_a_failure_is_published_again_in_the_next_turn(
    error: Exception, session: AsyncSession, outbox: SqlAlchemyOutboxedEventRepository
) -> None:
    """python-cqrs' outbox does not tell "not delivered" from "unknown": the latter may then be twice."""
    failures = [error]

    async def once(message: Message) -> None:
        if failures:
            raise failures.pop()

    outbox.add(OrderPlaced(payload=Order(order_id="1")))
    await outbox.commit()  # type: ignore[no-untyped-call]
    recorder = Recorder(before=once)
    async with message_broker(Broker(recorder)) as adapter:
        await relay(adapter, outbox)
        assert (await statuses(session), recorder.sent) == ([("not_produced", 1)], [])
        await relay(adapter, outbox)
    assert await statuses(session) == [("produced", 1)]
    assert [message.key for message in recorder.sent] == ["1"]


async def test_core_s_own_classes_go_through_event_producer_too() -> None:
    """With a repository that keeps the events (python-cqrs' SQL ones rebuild them, which needs the bridge's)."""
    repository = MockOutboxedEventRepository(session_factory=dict)
    event: Any = CoreOrderPlaced(payload=Order(order_id="3"))  # python-cqrs' type at run time only
    repository.add(event)
    recorder = Recorder()
    async with message_broker(Broker(recorder)) as adapter:
        await relay(adapter, repository)
    assert [(message.message_name, message.key) for message in recorder.sent] == [("CoreOrderPlaced", "3")]
    assert await repository.get_many() == []


async def test_python_cqrs_gives_an_event_up_after_five_failures(
    session: AsyncSession, outbox: SqlAlchemyOutboxedEventRepository
) -> None:
    """The row stays, and no turn selects it again."""
    tried: list[str] = []

    async def never(message: Message) -> None:
        tried.append(message.topic)
        raise UnroutableError("no queue")

    outbox.add(OrderPlaced(payload=Order(order_id="1")))
    await outbox.commit()  # type: ignore[no-untyped-call]
    async with message_broker(Broker(Recorder(before=never))) as adapter:
        for _ in range(7):
            await relay_once(adapter, outbox)
    assert len(tried) == 5
    assert await statuses(session) == [("not_produced", 5)]


async def relay_once(broker: cqrs.message_brokers.MessageBroker, outbox: cqrs.OutboxedEventRepository) -> None:
    """What a turn of the producer finds now; its generator would wait where there is nothing."""
    for event in await outbox.get_many(100):
        await cqrs.EventProducer(broker, outbox).send_message(event)
    await outbox.commit()  # type: ignore[no-untyped-call]
