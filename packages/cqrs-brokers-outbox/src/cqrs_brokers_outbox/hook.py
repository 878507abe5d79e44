"""Keeps the rows of a session until its transaction commits, and writes them as the transaction's last statement.

The order in the outbox must be the order of the changes. It may differ if a row is inserted before the transaction has
locked the aggregate that the row is about. So the rows of a transaction are written at its commit, after the last
flush.

SQLAlchemy calls `before_commit` before the last flush, and also when a savepoint is released. `_Pending.before_commit`
does nothing for a savepoint. At the commit it flushes, then inserts. Where another listener was registered after ours
and may still change something, the rows wait for the connection's own commit (or prepare, or release of the outermost
savepoint).

From the first `add` on, the listeners are registered on the class `Session`. To register them on each session would
cost more than all the rest of `add`. They return at once for sessions without rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet

from sqlalchemy import Connection, Engine, Table, event
from sqlalchemy.orm import Session, SessionTransaction

from .exceptions import OutboxSessionError

__all__ = ["add_row", "check_transactional"]

Write = Callable[[Connection, Sequence[dict[str, Any]]], None]


def add_row(session: Session, table: Table, row: dict[str, Any], write: Write) -> None:
    """Notes a row that is to be written when the session's transaction commits.

    Raises:
        OutboxSessionError: The session cannot hold outbox rows.
    """
    _listen()
    of_session: dict[Table, _Pending] = session.info.setdefault(_KEY, {})
    pending = of_session.get(table)
    if pending is None:
        pending = of_session[table] = _Pending(session, table, write)
    pending.add(row)


_KEY = "cqrs_brokers_outbox"
_listening = False


def _listen() -> None:
    global _listening
    if not _listening:
        _listening = True
        event.listen(Session, "before_commit", _before_commit)
        event.listen(Session, "after_soft_rollback", _after_rollback)
        event.listen(Session, "after_transaction_end", _after_end)


def _before_commit(session: Session) -> None:
    for pending in session.info.get(_KEY, {}).values():
        pending.before_commit()


def _after_rollback(session: Session, transaction: SessionTransaction) -> None:
    for pending in session.info.get(_KEY, {}).values():
        pending.after_rollback(transaction)


def _after_end(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        for pending in session.info.get(_KEY, {}).values():
            pending.after_end()


def check_transactional(bind: Engine | Connection) -> None:
    """Refuses an engine or a connection that commits each statement by itself.

    Raises:
        OutboxSessionError: The bind is in AUTOCOMMIT.
    """
    level = bind.get_execution_options().get("isolation_level")
    if level is None:  # what was given to create_engine; there is no public name for it
        level = getattr(bind.dialect, "_on_connect_isolation_level", None)
    if isinstance(level, str) and level.upper() == "AUTOCOMMIT":
        raise OutboxSessionError(
            "the engine is in AUTOCOMMIT: a message could be stored without its change, or the change without its "
            "message. Use an engine, or a session, with transactions"
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
        self._committing = False
        self._at_the_end = False
        self._watched: WeakSet[Connection] = WeakSet()
        self._check_binds()

    def add(self, row: dict[str, Any]) -> None:
        session = self.session
        if not session.in_transaction():
            if not session.autobegin:
                raise OutboxSessionError("the session has no transaction: call session.begin() first")
            session.begin()
        if self._committing and not self._at_the_end:  # by a listener that ran after ours
            session.flush()
            self._write(self._connection(), [row])
            return
        self._rows.append((row, self._savepoints()))

    # -- what the session tells ---------------------------------------------------------------------------------------

    def before_commit(self) -> None:
        """The session commits, or a savepoint is released."""
        if self.session.in_nested_transaction():
            return
        self.session.flush()
        self._committing = True
        if not self._rows:
            return
        if self._is_last():
            self._insert(self._connection())
        else:
            self._insert_at_the_end()

    def after_rollback(self, transaction: SessionTransaction) -> None:
        """A transaction, or a savepoint, was rolled back."""
        self._rows = [(row, savepoints) for row, savepoints in self._rows if transaction not in savepoints]

    def after_end(self) -> None:
        """The session's transaction has ended, committed or not."""
        self._rows.clear()
        self._committing = self._at_the_end = False

    # -- parts --------------------------------------------------------------------------------------------------------

    def _insert(self, connection: Connection) -> None:
        check_transactional(connection)
        rows = [row for row, _ in self._rows]
        self._rows.clear()
        if rows:
            self._write(connection, rows)

    def _insert_at_the_end(self) -> None:
        connection = self._connection()
        self._at_the_end = True
        if connection in self._watched:
            return
        self._watched.add(connection)
        # A session on somebody's connection may end with a savepoint's release. The listeners stay until the connection
        # is gone, because SQLAlchemy lets nobody remove a listener while it is called.
        event.listen(connection, "commit", lambda connection: self._ending(connection))
        event.listen(connection, "prepare_twophase", lambda connection, xid: self._ending(connection))
        event.listen(connection, "release_savepoint", lambda connection, name, context: self._ending(connection))

    def _ending(self, connection: Connection) -> None:
        if self._at_the_end:
            self._at_the_end = False
            self._insert(connection)

    def _is_last(self) -> bool:
        *_, last = self.session.dispatch.before_commit
        return last is _before_commit

    def _connection(self) -> Connection:
        return self.session.connection(bind_arguments={"clause": self._table})

    def _savepoints(self) -> tuple[SessionTransaction, ...]:
        open_now = []
        transaction = self.session.get_nested_transaction()
        while transaction is not None:
            open_now.append(transaction)
            transaction = transaction.parent
        return tuple(open_now)

    def _check_binds(self) -> None:
        session = self.session
        binds = {id(bind.engine): bind for bind in [session.bind, *_other_binds(session)] if bind is not None}
        if len(binds) > 1:
            raise OutboxSessionError(
                "the session is bound to several engines: the message would be in one database, and its change perhaps "
                "in another. Use a session with one engine for what must happen together"
            )
        for bind in binds.values():
            check_transactional(bind)


def _other_binds(session: Session) -> list[Engine | Connection]:
    # The argument `binds`, and bind_mapper() and bind_table(); SQLAlchemy 2.0 has no public name for them.
    binds = getattr(session, "binds", None) or getattr(session, "_Session__binds", {})
    return list(binds.values())
