"""Messages that are added by listeners of the session, sessions on connections of others, and writes that fail."""

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, create_engine, event, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, object_session, registry

from cqrs_brokers import Message
from cqrs_brokers_outbox import Outbox, OutboxSessionError


class Order:
    def __init__(self, id: int, state: str) -> None:
        self.id, self.state = id, state


class Application:
    """A database, an outbox, and a class of sessions of its own, so that listeners end with the test."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.metadata = MetaData()
        self.orders = Table(
            "orders", self.metadata, Column("id", Integer, primary_key=True), Column("state", String(20))
        )
        self.outbox = Outbox(metadata=self.metadata)
        self.session: type[Session] = type("OurSession", (Session,), {})
        self.outbox.create_table(engine)
        self.orders.create(engine)

    def placed(self, number: int) -> Message:
        return Message("OrderPlaced", "orders", {"id": number}, key="secret-key", headers={"tenant": "secret-header"})

    def add(self, session: Session, number: int) -> None:
        self.outbox.add(session, self.placed(number))

    @property
    def stored(self) -> list[int]:
        table = self.outbox.tables.messages
        with self.engine.connect() as connection:
            bodies = connection.execute(select(table.c.body).order_by(table.c.id)).scalars().all()
        return [int(bytes(body)[6:-1]) for body in bodies]


@pytest.fixture
def application(tmp_path: Path) -> Iterator[Application]:
    mapper = registry()
    engine = create_engine(f"sqlite:///{tmp_path}/application.db")
    made = Application(engine)
    mapper.map_imperatively(Order, made.orders)
    yield made
    mapper.dispose()
    engine.dispose()


def once(call: Callable[..., None]) -> Callable[..., None]:
    """A listener that works at its first call."""
    called: list[Any] = []

    def listener(*arguments: Any) -> None:
        if not called:
            called.append(None)
            call(*arguments)

    return listener


@pytest.mark.parametrize("others", [False, True], ids=["the first message", "one more message"])
@pytest.mark.parametrize("name", ["before_flush", "after_flush", "after_flush_postexec", "before_commit"])
def test_a_message_that_a_listener_of_the_commit_adds(application: Application, name: str, others: bool) -> None:
    """Aggregates' events are often collected in the last flush: the messages are stored, the only ones too."""
    event.listen(application.session, name, once(lambda session, *_: application.add(session, 2)))
    with application.session(application.engine) as session:
        if others:
            application.add(session, 1)
        session.add(Order(1, "new"))
        session.commit()
        session.add(Order(2, "new"))
        session.commit()
    assert application.stored == ([1, 2] if others else [2])


def test_a_message_that_a_listener_of_a_mapper_adds(application: Application) -> None:
    """after_insert is called in the flush."""

    @event.listens_for(Order, "after_insert")
    def _(mapper: object, connection: object, order: Order) -> None:
        session = object_session(order)
        assert session is not None
        application.add(session, order.id)

    with application.session(application.engine) as session:
        session.add_all([Order(1, "new"), Order(2, "new")])
        session.commit()
        session.add(Order(3, "new"))
        session.flush()
        session.rollback()
    assert application.stored == [1, 2]


def test_a_listener_that_changes_something_after_ours_and_one_of_its_flush_that_adds(
    application: Application,
) -> None:
    """The message of the second flush of a commit is stored, too."""
    event.listen(application.session, "before_commit", lambda session: session.add(Order(2, "late")))
    event.listen(application.session, "after_flush", once(lambda session, _: application.add(session, 1)))
    with application.session(application.engine) as session:
        session.commit()
    assert application.stored == [1]


def test_a_message_after_the_commit_is_an_error(application: Application) -> None:
    """In after_commit, and after an error that ended the transaction, add() raises: the message would be lost."""
    event.listen(application.session, "after_commit", once(lambda session: application.add(session, 2)))
    with application.session(application.engine) as session:
        application.add(session, 1)
        with pytest.raises(OutboxSessionError, match="before commit"):
            session.commit()
    assert application.stored == [1]
    with application.session(application.engine) as session:
        session.add_all([Order(1, "new"), Order(1, "again")])
        with pytest.raises(DBAPIError):
            session.flush()
        with pytest.raises(OutboxSessionError, match=r"session\.rollback"):
            application.add(session, 3)
        session.rollback()
        application.add(session, 4)
        session.commit()
    assert application.stored == [1, 4]


@pytest.mark.parametrize("late", [False, True], ids=["ours is last", "another is last"])
@pytest.mark.parametrize("mode", ["conditional_savepoint", "rollback_only", "control_fully", "create_savepoint"])
def test_a_session_on_a_connection_of_somebody_else(application: Application, mode: Any, late: bool) -> None:
    """The rows are written at the session's commit, however it takes part in the connection's transaction."""
    if late:
        event.listen(application.session, "before_commit", lambda session: None)
    with application.engine.connect() as connection:
        connection.begin()
        with application.session(connection, join_transaction_mode=mode) as session:
            application.add(session, 1)
            session.commit()
        connection.commit()
    assert application.stored == [1]


def test_savepoints_of_a_listener_after_ours(application: Application) -> None:
    """Rows that wait for the commit are not written into a savepoint of such a listener, which may be rolled back."""

    def savepoints(session: Session) -> None:
        if not session.in_nested_transaction():
            outer = session.begin_nested()
            with session.begin_nested():
                session.add(Order(2, "late"))
            outer.rollback()

    event.listen(application.session, "before_commit", savepoints)
    with application.session(application.engine) as session:
        application.add(session, 1)
        session.add(Order(1, "new"))
        session.commit()
    assert application.stored == [1]


@pytest.mark.parametrize("mode", ["", "rollback_only", "create_savepoint"])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_commit_while_savepoints_are_open(application: Application, mode: Any, depth: int) -> None:
    """SQLAlchemy releases them, and does not say again that the transaction around them commits."""
    with application.engine.connect() as connection:
        connection.begin()
        options = {"bind": connection, "join_transaction_mode": mode} if mode else {"bind": application.engine}
        with application.session(**options) as session:
            outer = session.begin()
            application.add(session, 1)
            for number in range(depth):
                session.begin_nested()
                session.add(Order(number, "new"))
                application.add(session, 2 + number)
            outer.commit()
            application.add(session, 9)
        connection.commit()
    assert application.stored == [1, *range(2, 2 + depth)]


def test_a_message_of_the_last_flush_of_a_commit_while_a_savepoint_is_open(application: Application) -> None:
    """Nothing was added before, so that nothing waits for the commit when it begins."""
    event.listen(application.session, "after_flush", once(lambda session, _: application.add(session, 1)))
    with application.session(application.engine) as session:
        outer = session.begin()
        event.listen(session, "after_transaction_end", once(lambda session, _: session.add(Order(1, "late"))))
        session.begin_nested()
        outer.commit()
    assert application.stored == [1]


def test_a_savepoint_that_is_released_with_one_inside_writes_nothing_yet(application: Application) -> None:
    with application.session(application.engine) as session:
        outer = session.begin_nested()
        application.add(session, 1)
        session.begin_nested()
        outer.commit()
        count = select(func.count()).select_from(application.outbox.tables.messages)
        assert session.scalar(count) == 0
        with session.begin_nested() as inner:
            application.add(session, 2)
            inner.rollback()
        session.commit()
    assert application.stored == [1]


def test_a_savepoint_that_is_closed_takes_its_messages_with_it(application: Application) -> None:
    """Its changes are rolled back, and SQLAlchemy calls no event of a rollback."""
    with application.session(application.engine) as session:
        application.add(session, 1)
        with session.begin_nested():
            application.add(session, 2)
        outer = session.begin_nested()
        application.add(session, 3)
        with session.begin_nested():
            application.add(session, 4)
        outer.close()
        application.add(session, 5)
        session.commit()
    assert application.stored == [1, 2, 5]


def test_two_outbox_objects_for_one_table_keep_the_order_of_the_calls(application: Application) -> None:
    """Such as those of several repositories of python-cqrs on one session."""
    other = Outbox()
    with application.session(application.engine) as session:
        application.add(session, 1)
        other.add(session, application.placed(2))
        application.add(session, 3)
        session.commit()
    assert application.stored == [1, 2, 3]


def test_a_session_with_an_engine_for_its_classes_only(application: Application) -> None:
    """The messages go to that engine."""
    with application.session(binds={Order: application.engine}) as session:
        session.add(Order(1, "new"))
        application.add(session, 1)
        session.commit()
    assert application.stored == [1]


@pytest.fixture
def refusing(application: Application) -> None:
    """The database refuses messages while there is an order with the number 99."""
    with application.engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TRIGGER refuse BEFORE INSERT ON outbox BEGIN "
                "SELECT RAISE(ABORT, 'refused') WHERE EXISTS (SELECT 1 FROM orders WHERE id = 99); END"
            )
        )


def test_a_transaction_whose_messages_were_refused_cannot_commit(application: Application, refusing: None) -> None:
    """A second commit() would store the change without its messages."""
    with application.session(application.engine) as session:
        session.add(Order(99, "new"))
        application.add(session, 1)
        with pytest.raises(DBAPIError):
            session.commit()
        session.delete(session.get(Order, 99))
        session.add(Order(1, "new"))
        with pytest.raises(OutboxSessionError, match=r"session\.rollback"):
            session.commit()
        session.rollback()
        assert session.get(Order, 1) is None
        session.add(Order(1, "new"))
        application.add(session, 2)
        session.commit()
    assert application.stored == [2]


def test_a_refused_write_shows_no_message(application: Application, refusing: None) -> None:
    """SQLAlchemy's errors quote the parameters: bodies, keys, headers."""
    shown = []
    with application.session(application.engine) as session:
        session.add(Order(99, "new"))
        application.add(session, 1)
        with pytest.raises(DBAPIError) as raised:
            session.commit()
        shown += traceback.format_exception(raised.value)
    with application.engine.connect() as connection:
        connection.execute(application.orders.insert(), {"id": 99, "state": "new"})
        with pytest.raises(DBAPIError) as raised:
            application.outbox.insert(connection, application.placed(1), application.placed(2))
        shown += traceback.format_exception(raised.value)
    assert "secret" not in "".join(shown)
    assert '"id":' not in "".join(shown)
    assert "refused" in "".join(shown)
