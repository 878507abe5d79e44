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

from sqlalchemy import BigInteger, Column, CursorResult, Insert, MetaData, String, Table, delete, insert
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from .schema import database_time

__all__ = ["Inbox"]


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
            Column("consumer", String(100), primary_key=True),
            Column("message_id", String(36), primary_key=True),
            Column("handled_at", BigInteger, nullable=False, default=database_time(), index=True),
            schema=schema,
        )

    async def create_table(self, engine: AsyncEngine) -> None:
        """Creates the table where it is missing: for demonstrations and tests. Applications use a migration."""
        async with engine.begin() as connection:
            await connection.run_sync(self.table.create, checkfirst=True)

    @asynccontextmanager
    async def once(self, session: AsyncSession, consumer: str, message_id: UUID | str) -> AsyncIterator[bool]:
        """Tells whether a message is new to a consumer. The message counts as handled when the session's transaction
        commits.

        A second consumer of the same message waits here until the first one's transaction has ended.

        Args:
            session: The consumer's session; its transaction holds the work too.
            consumer: Who handles the message; each consumer handles it once.
            message_id: The message's id.

        Yields:
            True: the message is new. False: it was handled before, and there is nothing to do.
        """
        values = {"consumer": consumer, "message_id": str(message_id), "handled_at": database_time()}
        # No savepoint: at its release SQLite's driver would commit the transaction that the driver itself had begun.
        if session.get_bind().dialect.name == "postgresql":
            statement: Insert = postgresql.insert(self.table).values(values).on_conflict_do_nothing()
        else:
            statement = insert(self.table).values(values)
            statement = statement.prefix_with("OR IGNORE", dialect="sqlite").prefix_with("IGNORE", dialect="mysql")
            statement = statement.prefix_with("IGNORE", dialect="mariadb")
        result = await session.execute(statement.inline(), execution_options={"preserve_rowcount": True})
        yield bool(cast("CursorResult[Any]", result).rowcount)

    async def purge(self, session: AsyncSession, older_than: float) -> None:
        """Forgets messages that were handled more than `older_than` seconds ago. Choose a time after which no message
        is repeated any more."""
        old = database_time() - int(older_than * 1_000_000)
        await session.execute(delete(self.table).where(self.table.c.handled_at < old))
