"""`Outbox`: the object that applications use. It puts messages into the application's own transaction."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, overload
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, Insert, MetaData, Table, Transaction, bindparam, insert, literal_column
from sqlalchemy.exc import StatementError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from cqrs_brokers.messages import MessageValidator
from cqrs_brokers.protocol import MessageLike

from .exceptions import OutboxSessionError
from .hook import add_row, check_transactional, listen
from .rows import COLUMNS, RESERVED_BYTES, row_of
from .schema import SCHEMA_VERSION, Tables, database_time

if TYPE_CHECKING:
    from cqrs_brokers.events import Event

__all__ = ["Outbox"]

AnySession = Session | AsyncSession | scoped_session[Any] | async_scoped_session[Any]


class Outbox:
    """Stores messages in the transaction with the change that they are about. A `Relay` sends them afterwards.

        outbox = Outbox()
        async with session.begin():
            session.add(order)
            outbox.add(session, OrderPlaced(...))

    One object for the whole application; it holds no connection.

    Args:
        table: The name of the table of messages. The names of the other tables (leases, relays, version) begin with it.
        schema: The schema of the tables. Default: the connection's own.
        metadata: Registers the tables there, so that alembic sees them. Default: a `MetaData` of its own.
        max_message_bytes: The largest message: body, key and headers together. 1 024 bytes of it are for the relay's
            own headers. `max_message_bytes` must not be more than the relay's broker allows.
        encoder: Encodes payloads that come without `payload_bytes` and without a content type. Default: JSON.
    """

    def __init__(
        self,
        table: str = "outbox",
        *,
        schema: str | None = None,
        metadata: MetaData | None = None,
        max_message_bytes: int = 1_000_000,
        encoder: Callable[[object], bytes] | None = None,
    ) -> None:
        listen()
        self.tables = Tables(table, schema, metadata if metadata is not None else MetaData())
        self._most = max_message_bytes
        self._validator = MessageValidator(max_message_bytes=max_message_bytes - RESERVED_BYTES, encoder=encoder)
        self._statement = _insert(self.tables.messages)
        self._places: WeakKeyDictionary[Transaction, int] = WeakKeyDictionary()
        """Transaction → the place of its next row."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.tables.messages.fullname}>"

    def add(self, session: AnySession, *messages: MessageLike | Event[Any]) -> None:
        """Adds messages to the session's transaction. The messages are written when the transaction commits, as its
        last statement. Before that, this method does no I/O. In a listener of the commit it may open the connection.

        If the database refuses the messages, `session.commit()` raises its error. The transaction must then be rolled
        back: a second `commit()` raises `OutboxSessionError`.

        Messages are validated and encoded now, so later changes of the objects have no effect. The messages of a
        transaction keep the order of the calls. If the transaction or the savepoint is rolled back, its messages are
        not sent.

        Args:
            session: A `Session` or `AsyncSession`, or their scoped registries.
            messages: Events, `Message`s, or anything with a message's attributes.

        Raises:
            InvalidMessageError: A message cannot be sent as it is. No message of the call is added.
            MessageTooLargeError: A message is larger than allowed. No message of the call is added.
            OutboxSessionError: The object is no session. Or the session is bound to several engines, or to one in
                AUTOCOMMIT. Or it begins no transaction by itself, and has none. Or its transaction is over: `add` is
                called in `after_commit`, or after an error that ended the transaction.
        """
        rows = self._rows(messages)
        synchronous = _synchronous(session)
        for row in rows:
            add_row(synchronous, self.tables.messages, row, self._write)

    @overload
    def insert(self, connection: Connection, *messages: MessageLike | Event[Any]) -> None: ...
    @overload
    def insert(self, connection: AsyncConnection, *messages: MessageLike | Event[Any]) -> Coroutine[Any, Any, None]: ...
    def insert(
        self, connection: Connection | AsyncConnection, *messages: MessageLike | Event[Any]
    ) -> Coroutine[Any, Any, None] | None:
        """Inserts messages on a connection, now: for transactions without a session.

        Call it as the last statement before the commit. If a row is inserted before the transaction has locked the
        object that the row is about, messages may be sent in another order than the changes were made.

        Args:
            connection: A `Connection`, or an `AsyncConnection`. With the latter, this method validates the messages,
                and what it returns inserts them when it is awaited.
            messages: The messages, in the forms that `add` takes.

        Raises:
            InvalidMessageError: A message cannot be sent as it is. No message is inserted.
            MessageTooLargeError: A message is larger than allowed. No message is inserted.
            OutboxSessionError: The connection is in AUTOCOMMIT.
            SQLAlchemyError: The database refuses the messages. The error does not quote them.
        """
        rows = self._rows(messages)
        if isinstance(connection, AsyncConnection):
            check_transactional(connection.sync_connection or connection.sync_engine)
            return connection.run_sync(self._write, rows)
        check_transactional(connection)
        self._write(connection, rows)
        return None

    @overload
    def create_table(self, engine: Engine | Connection) -> None: ...
    @overload
    def create_table(self, engine: AsyncEngine) -> Coroutine[Any, Any, None]: ...
    def create_table(self, engine: Engine | Connection | AsyncEngine) -> Coroutine[Any, Any, None] | None:
        """Creates the tables that are missing, and the row with their version: for demonstrations and tests.
        Applications use a migration.

        Args:
            engine: An engine or a connection. With an `AsyncEngine`, await what this method returns.
        """
        if isinstance(engine, AsyncEngine):
            return self._create_table_async(engine)
        if isinstance(engine, Engine):
            with engine.begin() as connection:
                self._create(connection)
        else:
            self._create(engine)
        return None

    # -- parts --------------------------------------------------------------------------------------------------------

    def _rows(self, messages: Sequence[MessageLike | Event[Any]]) -> list[dict[str, Any]]:
        trace = _trace_context()
        ready = self._validator.ready
        return [row_of(ready(message), trace, self._most) for message in messages]

    def _write(self, connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
        if not rows:
            return
        transaction = connection.get_transaction() or connection.begin()  # as the statement below would
        place = self._places.get(transaction, 0)
        for row in rows:
            row["place"] = place
            place += 1
        self._places[transaction] = place
        try:
            connection.execute(self._statement, rows if len(rows) > 1 else rows[0])
        except StatementError as error:
            error.hide_parameters = True  # its text would quote bodies, keys and headers
            raise

    async def _create_table_async(self, engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            await connection.run_sync(self._create)

    def _create(self, connection: Connection) -> None:
        self.tables.messages.metadata.create_all(connection, tables=self.tables.all)
        version = self.tables.version
        if connection.execute(version.select()).first() is None:
            connection.execute(version.insert().values(version=SCHEMA_VERSION))


def _insert(table: Table) -> Insert:
    """The statement that inserts a row. It names all values, so that SQLAlchemy looks for no defaults at each
    insert."""
    values: dict[str, Any] = {column: bindparam(column) for column in ("place", *COLUMNS)}
    for column in ("state", "attempts", "attempts_unknown"):
        values[column] = literal_column("0")
    values["created_at"] = database_time()
    return insert(table).values(values).inline()  # nobody needs the numbers that the database gave


def _synchronous(session: AnySession) -> Session:
    if isinstance(session, scoped_session | async_scoped_session):
        session = session()
    if isinstance(session, AsyncSession):
        session = session.sync_session
    if not isinstance(session, Session):
        raise OutboxSessionError(
            f"a {type(session).__name__} is no session: pass a Session or an AsyncSession, or use insert() with a "
            "connection"
        )
    return session


def _trace_context() -> dict[str, str] | None:
    """The current trace context. None: the process has not imported OpenTelemetry's tracing."""
    if "opentelemetry.trace" not in sys.modules:  # whoever has a span has imported it
        return None
    carrier: dict[str, str] = {}
    import_module("opentelemetry.propagate").inject(carrier)
    return carrier
