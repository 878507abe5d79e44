"""Keeps the rows of a session until its transaction commits, and writes them as the transaction's last statement.

The order in the outbox must be the order of the changes. It may differ if a row is inserted before the transaction has
locked the aggregate that the row is about. So the rows of a transaction are written at its commit, after the last
flush.

SQLAlchemy calls `before_commit` before the last flush, and also when a savepoint is released. For a savepoint
`_before_commit` only counts. At the commit it flushes, then inserts. In three cases the rows wait for the connection's
own commit (or prepare, or release of the outermost savepoint):

* Another listener was registered after ours, and may still change something.
* The rows are added once the commit has begun: by such a listener, or by a listener of the last flush.
* The commit begins while a savepoint is open. SQLAlchemy then releases the savepoint, and does not call `before_commit`
  again.

The listeners are registered on the class `Session`, with the first `Outbox`. To register them on each session would
cost more than all the rest of `add`. For sessions without rows they only note which commits have begun.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet

from sqlalchemy import Connection, Engine, Table, event
from sqlalchemy.orm import Session, SessionTransaction

from .exceptions import OutboxSessionError

__all__ = ["add_row", "check_transactional", "listen"]

Write = Callable[[Connection, Sequence[dict[str, Any]]], None]


def add_row(session: Session, table: Table, row: dict[str, Any], write: Write) -> None:
    """Notes a row that is to be written when the session's transaction commits.

    Raises:
        OutboxSessionError: The session cannot hold outbox rows.
    """
    # By name: two `Outbox` objects for one table keep the order of the calls.
    of_session: dict[str, _Pending] = session.info.setdefault(_KEY, {})
    pending = of_session.get(table.fullname)
    if pending is None:
        pending = of_session[table.fullname] = _Pending(session, table, write)
    pending.add(row)


_KEY = "cqrs_brokers_outbox"
_COMMITTING = f"{_KEY}.committing"
"""In `Session.info` from our `before_commit` on, until the transaction has ended."""
_BEGUN = f"{_KEY}.begun"
"""In `Session.info`: how many commits have begun and not ended, since a savepoint was open."""
_RELEASED = f"{_KEY}.released"
"""In `Session.info`: the savepoint that was released last, until it has ended."""
_listening = False


def listen() -> None:
    """Registers the listeners, once. It must happen before the first `add`: that may come from a listener of the
    commit's own flush, when `before_commit` is over."""
    global _listening
    if not _listening:
        _listening = True
        event.listen(Session, "before_commit", _before_commit)
        event.listen(Session, "after_commit", _after_commit)
        event.listen(Session, "after_soft_rollback", _after_rollback)
        event.listen(Session, "after_transaction_end", _after_end)


def _before_commit(session: Session) -> None:
    if session.in_nested_transaction():  # a savepoint is released, perhaps because a transaction around it commits
        session.info[_BEGUN] = session.info.get(_BEGUN, 0) + 1
        return
    of_session = session.info.get(_KEY)
    if of_session:
        session.flush()
    session.info[_COMMITTING] = True
    if of_session:
        for pending in of_session.values():
            pending.before_commit()


def _after_commit(session: Session) -> None:
    if session.in_nested_transaction():
        session.info[_BEGUN] = session.info.get(_BEGUN, 1) - 1
        session.info[_RELEASED] = session.get_nested_transaction()
        return
    for pending in session.info.get(_KEY, {}).values():
        pending.after_commit()


def _after_rollback(session: Session, transaction: SessionTransaction) -> None:
    session.info.pop(_BEGUN, None)
    for pending in session.info.get(_KEY, {}).values():
        pending.after_rollback(transaction)


def _after_end(session: Session, transaction: SessionTransaction) -> None:
    if transaction.nested and session.info.pop(_RELEASED, None) is not transaction:  # closed: there is no other event
        for pending in session.info.get(_KEY, {}).values():
            pending.after_rollback(transaction)
    if transaction.parent is None:
        session.info.pop(_COMMITTING, None)
        session.info.pop(_BEGUN, None)
        for pending in session.info.get(_KEY, {}).values():
            pending.after_end()
    elif session.info.get(_BEGUN) and not session.in_nested_transaction():  # the commit began with this savepoint open
        session.info[_COMMITTING] = True
        for pending in session.info.get(_KEY, {}).values():
            pending.committing()


def check_transactional(bind: Engine | Connection) -> None:
    """Refuses an engine or a connection that commits each statement by itself, as far as SQLAlchemy knows: an option of
    the driver for that is not seen.

    Raises:
        OutboxSessionError: The bind is in AUTOCOMMIT.
    """
    level = bind.get_execution_options().get("isolation_level")
    if level is None:  # what was given to create_engine; there is no public name for it
        level = getattr(bind.dialect, "_on_connect_isolation_level", None)
    if isinstance(level, str) and level.upper() == "AUTOCOMMIT":
        raise OutboxSessionError(
            "the engine is in AUTOCOMMIT: a message could be stored without its change, or the change without its "
            "message, or count as handled without its work. Use an engine, or a session, with transactions"
        )


class _Pending:
    """The rows of one session that are not written yet.

    Each row remembers the savepoints that were open when it was added. If one of them is rolled back, the row is
    dropped.
    """

    def __init__(self, session: Session, table: Table, write: Write) -> None:
        self.session = session
        self._table = table
        self._write = write
        self._rows: list[tuple[dict[str, Any], tuple[SessionTransaction, ...]]] = []
        self._last_connection: Connection | None = None
        """Where the rows are written at the end of the commit. None: the transaction does not wait for that."""
        self._write_failed = False
        self._watched: WeakSet[Connection] = WeakSet()
        self._only_bind = self._check_binds()

    def add(self, row: dict[str, Any]) -> None:
        session = self.session
        if not session.in_transaction():
            if not session.autobegin:
                raise OutboxSessionError("the session has no transaction: call session.begin() first")
            session.begin()
        elif not session.is_active:
            raise OutboxSessionError(
                "the session's transaction is over, so the message would be lost: it is committed or prepared, or an "
                "error has ended it. Add messages before commit(); after an error, call session.rollback() first"
            )
        self._rows.append((row, self._savepoints()))
        if _COMMITTING in session.info:  # by a listener that ran after ours
            self._insert_at_the_end()

    # -- what the session tells ---------------------------------------------------------------------------------------

    def before_commit(self) -> None:
        """The session commits, and is flushed."""
        self._check_written()
        if not self._rows:
            return
        if self._is_last():
            self._insert(self._connection())
        else:
            self._insert_at_the_end()

    def committing(self) -> None:
        """The session commits, and the savepoint that was open is released."""
        self._check_written()
        if self._rows:
            self._insert_at_the_end()

    def after_commit(self) -> None:
        """The session has committed. If it is on a connection whose transaction is somebody else's, the connection has
        not: the rows that wait are written now."""
        if self._last_connection is not None:
            self._ending(self._last_connection)

    def after_rollback(self, transaction: SessionTransaction) -> None:
        """A transaction, or a savepoint, was rolled back."""
        self._rows = [(row, savepoints) for row, savepoints in self._rows if transaction not in savepoints]

    def after_end(self) -> None:
        """The session's transaction has ended, committed or not."""
        self._rows.clear()
        self._last_connection = None
        self._write_failed = False

    # -- parts --------------------------------------------------------------------------------------------------------

    def _check_written(self) -> None:
        if self._write_failed:  # some of the rows may be there, and perhaps the database let the transaction live
            raise OutboxSessionError(
                "the transaction's messages could not be written, so it must not commit: call session.rollback(), and "
                "repeat the whole transaction"
            )

    def _insert(self, connection: Connection) -> None:
        check_transactional(connection)
        rows = [row for row, _ in self._rows]
        self._rows.clear()
        if rows:
            self._write_failed = True
            self._write(connection, rows)
            self._write_failed = False

    def _insert_at_the_end(self) -> None:
        connection = self._last_connection = self._connection()
        if connection in self._watched:
            return
        self._watched.add(connection)
        # A session on somebody's connection may end with a savepoint's release. The listeners stay until the connection
        # is gone, because SQLAlchemy lets nobody remove a listener while it is called.
        event.listen(connection, "commit", lambda connection: self._ending(connection))
        event.listen(connection, "prepare_twophase", lambda connection, xid: self._ending(connection))
        event.listen(connection, "release_savepoint", lambda connection, name, context: self._ending(connection))

    def _ending(self, connection: Connection) -> None:
        if self._last_connection is not None and not self.session.in_nested_transaction():
            self._last_connection = None
            self._insert(connection)

    def _is_last(self) -> bool:
        *_, last = self.session.dispatch.before_commit
        return last is _before_commit

    def _connection(self) -> Connection:
        bind = self._only_bind
        return self.session.connection(bind_arguments={"clause": self._table} if bind is None else {"bind": bind})

    def _savepoints(self) -> tuple[SessionTransaction, ...]:
        open_now = []
        transaction = self.session.get_nested_transaction()
        while transaction is not None:
            open_now.append(transaction)
            transaction = transaction.parent
        return tuple(open_now)

    def _check_binds(self) -> Engine | Connection | None:
        """Refuses binds that cannot be used. Returns the bind of a session that has one for its classes, and none for
        all the rest."""
        session = self.session
        binds = {id(bind.engine): bind for bind in [session.bind, *_other_binds(session)] if bind is not None}
        if len(binds) > 1:
            raise OutboxSessionError(
                "the session is bound to several engines: the message would be in one database, and its change perhaps "
                "in another. Use a session with one engine for what must happen together"
            )
        for bind in binds.values():
            check_transactional(bind)
        return next(iter(binds.values()), None) if session.bind is None else None


def _other_binds(session: Session) -> list[Engine | Connection]:
    # The argument `binds`, and bind_mapper() and bind_table(); SQLAlchemy 2.0 has no public name for them.
    binds = getattr(session, "binds", None) or getattr(session, "_Session__binds", {})
    return list(binds.values())
