"""One connection to the database for one task of the relay: opened when it is needed, thrown away after an error.

The connection is in AUTOCOMMIT. So a single statement is a transaction of its own and costs one round trip.
`transaction()` sends BEGIN.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from .statements import Parameters, Statements

__all__ = ["CHUNK", "Store"]

CHUNK = 1000
"""The most rows that one statement changes."""
FAREWELL = 2.0
"""Seconds in which a connection is given back."""
PATIENCE = 10.0
"""How long a new connection waits for others to leave a file of SQLite, in seconds."""


@lru_cache(maxsize=256)
def _clause(statement: str) -> TextClause:
    return text(statement)


class Store:
    """A connection of the relay. Only one task may use it at a time.

    Args:
        engine: The database.
        statements: The statements in its dialect.
    """

    def __init__(self, engine: AsyncEngine, statements: Statements) -> None:
        self._engine = engine
        self._connection: AsyncConnection | None = None
        self.statements = statements

    async def rows(self, statement: tuple[str, Parameters]) -> Sequence[Any]:
        """Runs a query."""
        connection = await self._open()
        try:
            return (await connection.execute(_clause(statement[0]), statement[1])).all()
        except BaseException:
            await self._throw_away()
            raise

    async def change(self, statement: tuple[str, Parameters | list[Parameters]]) -> int:
        """Runs a statement; returns how many rows it found (for one set of parameters)."""
        connection = await self._open()
        try:
            return (await connection.execute(_clause(statement[0]), statement[1])).rowcount
        except BaseException:
            await self._throw_away()
            raise

    @contextlib.asynccontextmanager
    async def transaction(self, *, snapshot: bool = False) -> AsyncIterator[None]:
        """A block whose statements are committed together, or not at all.

        Args:
            snapshot: The block only reads, and all its queries see the same data.
        """
        connection = await self._open()
        try:
            for statement in self.statements.snapshot if snapshot else (self.statements.begin,):
                await connection.exec_driver_sql(statement)
            yield
            await connection.exec_driver_sql("COMMIT")
        except BaseException:
            await self._throw_away()  # the database rolls back what is open on it
            raise

    async def close(self) -> None:
        """Gives the connection back. A database that does not answer to the pool's rollback keeps nobody."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL):
                    if self.statements.dialect == "sqlite":  # the pool does not reset its PRAGMAs
                        await connection.invalidate()
                    await connection.close()

    async def _open(self) -> AsyncConnection:
        if self._connection is None:
            connection = await _as_database_error(self._engine.connect())
            try:
                options = connection.execution_options(isolation_level="AUTOCOMMIT", compiled_cache=self._cache())
                await _as_database_error(options)
                for statement in self.statements.session:
                    await _set_up(connection, statement)
            except BaseException:
                await connection.invalidate()
                await connection.close()
                raise
            self._connection = connection
        return self._connection

    def _cache(self) -> dict[Any, Any] | None:
        # Texts with numbers in them never come again: they would only push the others out of the engine's cache.
        return {} if self.statements.dialect == "postgresql" else None

    async def _throw_away(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                await connection.invalidate()
                await connection.close()


async def _as_database_error(opening: Awaitable[AsyncConnection]) -> AsyncConnection:
    """Waits for a connection. SQLAlchemy 2.0 passes on some errors of the driver as they are: errors of asyncpg's
    log-in, such as that there are too many clients, and errors of AUTOCOMMIT on a connection that the server has
    ended."""
    try:
        return await opening
    except (SQLAlchemyError, OSError):
        raise
    except Exception as error:
        failure = OperationalError(None, None, error)
    raise failure from failure.orig


async def _set_up(connection: AsyncConnection, statement: str) -> None:
    """Runs a statement of a new connection. SQLite changes the journal's mode only while nobody else uses the file, and
    does not wait for that by itself."""
    last = time.monotonic() + PATIENCE
    while True:
        try:
            await connection.exec_driver_sql(statement)
        except OperationalError as error:
            if getattr(error.orig, "sqlite_errorcode", None) != sqlite3.SQLITE_BUSY or time.monotonic() > last:
                raise
        else:
            return
        await asyncio.sleep(0.01)
