"""The application's side: what is added is written with the transaction, last, or not at all."""

import uuid
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session, registry, scoped_session, sessionmaker

from cqrs_brokers import TOMBSTONE, ECSTEvent, InvalidMessageError, Message, MessageTooLargeError
from cqrs_brokers_outbox import Outbox, OutboxSessionError, key_hash
from cqrs_brokers_outbox.rows import message_of

from .conftest import Database

pytestmark = pytest.mark.live


class OrderPlaced(ECSTEvent[dict[str, Any]]):
    topic: str = "orders"

    def ordering_key(self) -> str | None:
        return str(self.payload["id"])


def placed(number: int) -> Message:
    return Message("OrderPlaced", "orders", {"id": number}, key=str(number))


async def bodies(database: Database) -> list[bytes]:
    table = database.outbox.tables.messages
    async with database.main.connect() as connection:
        return [bytes(body) for body in (await connection.execute(select(table.c.body).order_by(table.c.id))).scalars()]


def sync_bodies(engine: Engine, outbox: Outbox) -> list[bytes]:
    table = outbox.tables.messages
    with engine.connect() as connection:
        return [bytes(body) for body in connection.execute(select(table.c.body).order_by(table.c.id)).scalars()]


# -- on every database -------------------------------------------------------------------------------------------------


async def test_committed_messages_are_there_in_call_order_and_rolled_back_ones_are_not(database: Database) -> None:
    """add() writes with the transaction, keeps the order of the calls, and writes nothing when it rolls back."""
    outbox = database.outbox
    async with AsyncSession(database.engine()) as session:
        async with session.begin():
            for number in range(20):
                outbox.add(session, placed(number))
        outbox.add(session, placed(100))
        await session.rollback()
        outbox.add(session, placed(20), placed(21))
        await session.commit()
    assert await bodies(database) == [f'{{"id":{number}}}'.encode() for number in range(22)]
    table = outbox.tables.messages
    async with database.main.connect() as connection:
        places = (await connection.execute(select(table.c.place).order_by(table.c.id))).scalars().all()
    assert places == [*range(20), 0, 1]


async def test_a_row_is_the_message_again(database: Database) -> None:
    """Everything survives the row: name, id, key, time, content type, an empty body, and every header with its type."""
    outbox = database.outbox
    headers: Any = {"tenant": "acme-ü", "b": b"\0\xff", "i": 2**40, "f": 0.1, "t": True, "no": False, "n": None}
    headers["empty"] = ""
    sent = [
        Message("n", "t", {"a": 1}, key="k\0ü", headers=headers),
        Message("n", "T ", b"", content_type="text/plain"),
        Message("n", "t", b"\0\xff"),
        Message("n", "t", TOMBSTONE, key="gone"),
        OrderPlaced(payload={"id": 7}).to_message(),
    ]
    async with AsyncSession(database.engine()) as session, session.begin():
        outbox.add(session, *sent)
    table = outbox.tables.messages
    async with database.main.connect() as connection:
        rows = (await connection.execute(select(table).order_by(table.c.id))).all()
    for row, message in zip(rows, sent, strict=True):
        again = message_of(row, headers=False, stamped=False)
        for part in ("message_name", "topic", "message_id", "key", "timestamp", "body"):
            assert getattr(again, part) == getattr(message, part), part
        assert dict(again.headers) == dict(message.headers)
        assert [type(value) for value in again.headers.values()] == [type(v) for v in message.headers.values()]
    assert [row.content_type for row in rows] == ["application/json", "text/plain", None, None, "application/json"]
    assert rows[0].hash == key_hash("t", "k\0ü")


async def test_insert_writes_at_once_on_a_connection(database: Database) -> None:
    """insert() is a statement of the connection's transaction."""
    outbox = database.outbox
    async with database.main.begin() as connection:
        await outbox.insert(connection, placed(1), placed(2))
    async with database.main.connect() as connection:
        await outbox.insert(connection, placed(3))
        await connection.rollback()
    assert await bodies(database) == [b'{"id":1}', b'{"id":2}']


async def test_rows_of_a_savepoint_that_is_rolled_back_go_with_it(database: Database) -> None:
    """A savepoint takes its own rows and those of savepoints within it; the others stay."""
    outbox = database.outbox
    async with AsyncSession(database.engine()) as session, session.begin():
        outbox.add(session, placed(1))
        savepoint = await session.begin_nested()
        outbox.add(session, placed(2))
        async with session.begin_nested():
            outbox.add(session, placed(3))
        await savepoint.rollback()
        async with session.begin_nested():
            outbox.add(session, placed(4))
        outbox.add(session, placed(5))
    assert await bodies(database) == [b'{"id":1}', b'{"id":4}', b'{"id":5}']


async def test_what_cannot_be_sent_fails_the_add(database: Database) -> None:
    """An error before the commit, not in the relay; nothing of the call is added."""
    outbox = database.outbox
    async with AsyncSession(database.engine()) as session:
        with pytest.raises(InvalidMessageError):
            outbox.add(session, placed(1), Message("n", "t", object()))
        with pytest.raises(InvalidMessageError, match="Outbox-Position"):
            outbox.add(session, Message("n", "t", 1, headers={"Outbox-Position": "1"}))
        with pytest.raises(InvalidMessageError, match="headers"):
            outbox.add(session, Message("n", "t", 1, headers={f"h{n}": "" for n in range(98)}))
        with pytest.raises(MessageTooLargeError):
            outbox.add(session, Message("n", "t", b"x" * 999_500))
        outbox.add(session, placed(2))
        await session.commit()
    assert await bodies(database) == [b'{"id":2}']


async def test_an_engine_in_autocommit_is_refused(database: Database) -> None:
    """However AUTOCOMMIT was asked for."""
    for engine in (
        database.engine(isolation_level="AUTOCOMMIT"),
        database.engine().execution_options(isolation_level="AUTOCOMMIT"),
    ):
        async with AsyncSession(engine) as session:
            with pytest.raises(OutboxSessionError, match="AUTOCOMMIT"):
                database.outbox.add(session, placed(1))
        async with engine.connect() as connection:
            with pytest.raises(OutboxSessionError, match="AUTOCOMMIT"):
                await database.outbox.insert(connection, placed(1))


# -- the hook, on PostgreSQL -------------------------------------------------------------------------------------------


mapper = registry()


class Order:
    def __init__(self, identity: int, state: str) -> None:
        self.id, self.state = identity, state


@pytest.fixture
def statements(postgresql_database: Database, sync_engine: Engine) -> list[str]:
    """The tables that statements of the engine wrote to, in order; and Order is mapped to the test's table."""
    mapper.dispose()
    mapper.map_imperatively(Order, postgresql_database.orders)
    seen: list[str] = []
    outbox = postgresql_database.outbox.tables.name

    @event.listens_for(sync_engine, "before_cursor_execute")
    def _(connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(("INSERT", "UPDATE")):
            seen.append("orders" if f"{outbox}_orders" in statement else "outbox")

    return seen


def test_an_aggregate_that_is_dirty_at_commit_is_written_before_the_message(
    postgresql_database: Database, sync_engine: Engine, statements: list[str]
) -> None:
    """The hook flushes first: the message comes after the lock of what it tells about."""
    with Session(sync_engine, autoflush=False) as session:
        order = Order(1, "new")
        session.add(order)
        session.commit()
        statements.clear()
        order.state = "placed"
        postgresql_database.outbox.add(session, placed(1))
        session.commit()
    assert statements == ["orders", "outbox"]


def test_the_release_of_a_savepoint_writes_nothing(
    postgresql_database: Database, sync_engine: Engine, statements: list[str]
) -> None:
    """Rows wait for the transaction's own commit."""
    with Session(sync_engine) as session, session.begin():
        with session.begin_nested():
            postgresql_database.outbox.add(session, placed(1))
        assert statements == []
        session.add(Order(1, "new"))
    assert statements == ["orders", "outbox"]


def test_a_listener_that_was_registered_after_ours_changes_something(
    postgresql_database: Database, sync_engine: Engine, statements: list[str]
) -> None:
    """The message is written after what a later before_commit listener changes, too."""
    with Session(sync_engine) as session:
        order = Order(1, "new")
        session.add(order)
        session.commit()
        statements.clear()
        postgresql_database.outbox.add(session, placed(1))

        @event.listens_for(session, "before_commit")
        def _(session: Session) -> None:
            order.state = "late"

        session.commit()
        assert statements == ["orders", "outbox"]
        statements.clear()
        session.commit()  # nothing of the first commit is left
        assert statements == ["orders"]
    assert sync_bodies(sync_engine, postgresql_database.outbox) == [b'{"id":1}']


def test_a_listener_that_was_registered_after_ours_adds_a_message(
    postgresql_database: Database, sync_engine: Engine
) -> None:
    """What it adds is not lost."""
    outbox = postgresql_database.outbox
    with Session(sync_engine) as session:
        outbox.add(session, placed(1))
        event.listen(session, "before_commit", lambda session: outbox.add(session, placed(2)), once=True)
        session.commit()
    assert sync_bodies(sync_engine, outbox) == [b'{"id":1}', b'{"id":2}']


def test_a_repeated_transaction_writes_its_rows_once(
    postgresql_database: Database, sync_engine: Engine, statements: list[str]
) -> None:
    """After a serialization failure the rows of the first try are gone."""
    outbox, orders = postgresql_database.outbox, postgresql_database.orders
    with Session(sync_engine) as session, session.begin():
        session.add(Order(1, "new"))
    engine = sync_engine.execution_options(isolation_level="SERIALIZABLE")
    failures = 0
    with Session(engine) as session:
        for attempt in range(2):
            try:
                session.execute(select(orders)).all()
                if attempt == 0:
                    with Session(engine) as other, other.begin():
                        other.execute(update(orders).values(state="other"))
                session.execute(update(orders).values(state="mine"))
                outbox.add(session, placed(attempt))
                session.commit()
            except DBAPIError:
                failures += 1
                session.rollback()
        assert failures == 1
    assert sync_bodies(sync_engine, outbox) == [b'{"id":1}']


def test_a_commit_that_fails_leaves_nothing_for_the_next(
    postgresql_database: Database, sync_engine: Engine, statements: list[str]
) -> None:
    """Rows of a transaction whose flush failed are not written by the next one."""
    outbox = postgresql_database.outbox
    with Session(sync_engine) as session:
        session.add(Order(1, "new"))
        session.commit()
        session.expunge_all()
        session.add(Order(1, "again"))
        outbox.add(session, placed(1))
        with pytest.raises(DBAPIError):
            session.commit()
        session.rollback()
        session.commit()
    assert sync_bodies(sync_engine, outbox) == []


def test_two_phase(postgresql_database: Database) -> None:
    """Rows are written before the transaction is prepared."""
    from cqrs_brokers_testkit.servers import postgresql

    with postgresql(settings={"max_prepared_transactions": "4"}, progress=lambda _: None) as server:
        engine = create_engine(server.url_of("psycopg"))
        outbox = Outbox()
        outbox.create_table(engine)
        with Session(engine, twophase=True) as session:
            outbox.add(session, placed(1))
            session.prepare()
            session.commit()
            outbox.add(session, placed(2))
            event.listen(session, "before_commit", lambda session: None)
            session.commit()
        assert sync_bodies(engine, outbox) == [b'{"id":1}', b'{"id":2}']
        engine.dispose()


@pytest.mark.parametrize("late", [False, True], ids=["ours is last", "another is last"])
def test_a_session_within_a_test_s_transaction(postgresql_database: Database, sync_engine: Engine, late: bool) -> None:
    """join_transaction_mode="create_savepoint": rows are written at the session's commit, and go with the test's."""
    outbox = postgresql_database.outbox
    table = outbox.tables.messages
    with sync_engine.connect() as connection:
        outer = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            outbox.add(session, placed(1))
            if late:
                event.listen(session, "before_commit", lambda session: None)
            session.commit()
            assert len(connection.execute(select(table.c.id)).all()) == 1
            outbox.add(session, placed(2))
            session.rollback()
            session.commit()
            assert len(connection.execute(select(table.c.id)).all()) == 1
        outer.rollback()
    assert sync_bodies(sync_engine, outbox) == []


def test_a_session_on_two_engines_is_refused(postgresql_database: Database, sync_engine: Engine) -> None:
    """The message would be in one database and its change perhaps in the other."""
    other = create_engine("sqlite://")
    mapper.dispose()
    mapper.map_imperatively(Order, postgresql_database.orders)
    with Session(sync_engine, binds={Order: other}) as session:
        with pytest.raises(OutboxSessionError, match="several engines"):
            postgresql_database.outbox.add(session, placed(1))
    other.dispose()


def test_scoped_sessions_and_makers(postgresql_database: Database, sync_engine: Engine) -> None:
    """Sessions of one maker share `info`; each has its own rows."""
    outbox = postgresql_database.outbox
    maker = sessionmaker(sync_engine, info={"shared": True})
    scoped = scoped_session(maker)
    outbox.add(scoped, placed(1))
    with maker() as other:
        outbox.add(other, placed(2))
        other.rollback()
    scoped.commit()
    scoped.remove()
    assert sync_bodies(sync_engine, outbox) == [b'{"id":1}']


async def test_an_async_scoped_session(postgresql_database: Database) -> None:
    """The registry stands for its session."""
    scoped = async_scoped_session(async_sessionmaker(postgresql_database.engine()), scopefunc=lambda: 1)
    postgresql_database.outbox.add(scoped, placed(1))
    await scoped.commit()
    await scoped.remove()
    assert await bodies(postgresql_database) == [b'{"id":1}']


def test_a_session_that_begins_nothing_by_itself(postgresql_database: Database, sync_engine: Engine) -> None:
    """With autobegin=False the transaction must be there."""
    with Session(sync_engine, autobegin=False) as session:
        with pytest.raises(OutboxSessionError, match="begin"):
            postgresql_database.outbox.add(session, placed(1))
        with session.begin():
            postgresql_database.outbox.add(session, placed(2))
    assert sync_bodies(sync_engine, postgresql_database.outbox) == [b'{"id":2}']


async def test_something_that_is_no_session(postgresql_database: Database) -> None:
    """The error names what was passed and what to do."""
    engine: AsyncEngine = postgresql_database.engine()
    with pytest.raises(OutboxSessionError, match=r"AsyncConnection.*insert"):
        async with engine.connect() as connection:
            postgresql_database.outbox.add(connection, placed(1))  # type: ignore[arg-type]


def test_order_follows_the_lock(postgresql_database: Database, sync_engine: Engine, statements: list[str]) -> None:
    """A holds the row's lock until its commit and B waits for it: A's message comes first, whoever added first."""
    import threading

    outbox, orders = postgresql_database.outbox, postgresql_database.orders
    with Session(sync_engine) as session, session.begin():
        session.add(Order(1, "new"))
    locked = threading.Event()

    def second() -> None:
        with Session(sync_engine) as session, session.begin():
            outbox.add(session, Message("n", "t", "B", key="1"))
            locked.wait(10)
            session.execute(update(orders).values(state="B"))

    thread = threading.Thread(target=second)
    thread.start()
    with Session(sync_engine) as session, session.begin():
        session.execute(update(orders).values(state="A"))
        locked.set()
        outbox.add(session, Message("n", "t", "A", key="1"))
        thread.join(0.2)
    thread.join()
    assert sync_bodies(sync_engine, outbox) == [b'"A"', b'"B"']


# -- the hash ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topic", "key", "expected"),
    [("orders", "1", 0x13F6A729), ("orders", "", 0x95550F0F), ("a", "ü", 0x80DE3450)],
)
def test_golden_vectors_of_the_hash(topic: str, key: str, expected: int) -> None:
    """CRC-32 of the topic, a zero byte and the key: a stored hash must mean the same in every version."""
    assert key_hash(topic, key) == expected


def test_keyless_rows_are_spread_by_their_id() -> None:
    """Without a key the message id decides."""
    hashes = {key_hash("t", None, str(uuid.uuid4()).encode()) % 16 for _ in range(500)}
    assert hashes == set(range(16))
