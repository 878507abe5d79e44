"""`Inbox`: for consumers. With it a consumer does the work of a message once, although the message may come twice.

    async with session.begin():
        async with inbox.once(session, "billing", message_id) as fresh:
            if fresh:
                ...                         # the work, in the same transaction

The outbox promises "at least once": a message whose receipt was lost is sent again, under the same id.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import UUID

from sqlalchemy import BigInteger, Column, CursorResult, Insert, MetaData, Table, delete, insert
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from ._relay.statements import FOR_EVER
from .exceptions import OutboxError
from .hook import check_transactional
from .schema import STORAGE, database_time, exact_text

__all__ = ["Inbox"]

_MOST = {"consumer": 100, "message_id": 36}
"""Columns → the most characters."""


class Inbox:
    """Remembers, in the consumer's own transaction, which messages it has handled.

    Args:
        table: The table's name.
        schema: Its schema. Default: the connection's own.
        metadata: Registers the table there, so that alembic sees it. Default: a `MetaData` of its own.
    """

    def __init__(self, table: str = "inbox", *, schema: str | None = None, metadata: MetaData | None = None) -> None:
        self.table = Table(
            table,
            metadata if metadata is not None else MetaData(),
            *(Column(name, exact_text(most), primary_key=True) for name, most in _MOST.items()),
            Column("handled_at", BigInteger, nullable=False, default=database_time(), index=True),
            schema=schema,
            **STORAGE,
        )

    async def create_table(self, engine: AsyncEngine) -> None:
        """Creates the table where it is missing: for demonstrations and tests. Applications use a migration."""
        async with engine.begin() as connection:
            await connection.run_sync(self.table.create, checkfirst=True)

    @asynccontextmanager
    async def once(self, session: AsyncSession, consumer: str, message_id: UUID | str) -> AsyncIterator[bool]:
        """Tells whether a message is new to a consumer. The message counts as handled when the session's transaction
        commits.

        A second transaction with the same consumer and message waits here until the first one has ended. On SQLite any
        second transaction waits, for at most the driver's `timeout`.

        Args:
            session: The consumer's session; its transaction holds the work too.
            consumer: Who handles the message; each consumer handles it once. At most 100 characters.
            message_id: The message's id. At most 36 characters.

        Yields:
            True: the message is new. False: it was handled before, and there is nothing to do.

        Raises:
            OutboxError: A text is empty or too long.
            OutboxSessionError: The session is in AUTOCOMMIT: the message would count as handled before the work is.
        """
        values: dict[str, Any] = {"consumer": consumer, "message_id": str(message_id)}
        for name, most in _MOST.items():
            if not 1 <= len(values[name]) <= most:  # MariaDB would cut it, and take the message for another one
                raise OutboxError(f"{name} must have 1 to {most} characters, not {len(values[name])}")
        connection = await session.connection()
        check_transactional(connection.sync_connection or connection.sync_engine)
        values["handled_at"] = database_time()
        # No savepoint: at its release SQLite's driver would commit the transaction that the driver itself had begun.
        if connection.dialect.name == "postgresql":
            statement: Insert = postgresql.insert(self.table).values(values).on_conflict_do_nothing()
        else:
            statement = insert(self.table).values(values)
            statement = statement.prefix_with("OR IGNORE", dialect="sqlite").prefix_with("IGNORE", dialect="mysql")
            statement = statement.prefix_with("IGNORE", dialect="mariadb")
        result = await session.execute(statement.inline(), execution_options={"preserve_rowcount": True})
        yield bool(cast("CursorResult[Any]", result).rowcount)

    async def purge(self, session: AsyncSession, older_than: float) -> None:
        """Forgets messages that were handled more than `older_than` seconds ago. Choose a time after which no message
        is repeated any more.

        Raises:
            OutboxError: `older_than` is below 0.
        """
        if not older_than >= 0:
            raise OutboxError(f"older_than must be 0 or more seconds, not {older_than}")
        old = database_time() - int(min(older_than, FOR_EVER) * 1_000_000)
        await session.execute(delete(self.table).where(self.table.c.handled_at < old))
