"""Finds out about a database, before work begins: its dialect, its tables, their version."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Table
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from cqrs_brokers import ConfigError

from ._relay.statements import Statements, statements_for
from ._relay.store import Store
from .exceptions import OutboxSchemaError
from .rows import COLUMNS
from .schema import SCHEMA_VERSION, Tables

__all__ = ["check_schema", "make_statements"]


def make_statements(
    engine: AsyncEngine, tables: Tables, *, topics: Sequence[str] | None = None, continue_past_parked: bool = False
) -> Statements:
    """The statements for an outbox in a database.

    Raises:
        ConfigError: The outbox does not know this kind of database.
    """
    kind = statements_for(engine.dialect.name)
    if kind is None:
        raise ConfigError(
            f"the outbox does not know the database {engine.dialect.name!r}: it works with PostgreSQL, MariaDB, SQLite"
        )
    preparer = engine.dialect.identifier_preparer
    names = [preparer.format_table(table) for table in tables.all]
    return kind(tables, names, topics=topics, continue_past_parked=continue_past_parked)


_WRITTEN_ONCE = {*COLUMNS, "id", "place", "created_at", "scope", "number", "topics", "broker"}


async def _try_out(store: Store, table: Table, name: str) -> None:
    """Does to no row of a table what a relay does to its rows.

    Raises:
        DBAPIError: A column or a right is missing.
    """
    columns = ", ".join(column.name for column in table.c)
    changes = ", ".join(f"{column.name} = {column.name}" for column in table.c if column.name not in _WRITTEN_ONCE)
    await store.rows((f"SELECT {columns} FROM {name} WHERE 1 = 0", {}))
    await store.change((f"UPDATE {name} SET {changes} WHERE 1 = 0", {}))
    await store.change((f"DELETE FROM {name} WHERE 1 = 0", {}))
    if "message_id" not in table.c:  # only the application adds messages
        await store.change((f"INSERT INTO {name} ({columns}) SELECT {columns} FROM {name} WHERE 1 = 0", {}))


async def check_schema(store: Store, tables: Tables) -> None:
    """Checks that the tables are there, of this version, and can be used.

    Raises:
        OutboxSchemaError: A table is missing, has another version, or cannot be used. The text says what to do.
        SQLAlchemyError, OSError: The database cannot be reached.
    """
    name = tables.messages.fullname
    s = store.statements
    await store.rows(("SELECT 1", {}))  # a database that cannot be reached has no missing tables
    reason = ""
    versions: list[int] = []
    try:
        versions = [row.version for row in await store.rows((f"SELECT version FROM {s.version}", {}))]
        if versions == [SCHEMA_VERSION]:  # a column or a right that is missing is found now
            for table, written in ((tables.messages, s.messages), (tables.lease, s.lease), (tables.relay, s.relay)):
                await _try_out(store, table, written)
    except DBAPIError as error:
        reason = str(error.orig or error).splitlines()[0]
    if reason:
        raise OutboxSchemaError(
            f"the outbox's tables ({name}, {name}_lease, {name}_relay, {name}_version) cannot be used: {reason}. If "
            "they are missing, run the migration of cqrs-brokers-outbox (`alembic upgrade cqrs_brokers_outbox@head`) "
            "or outbox.create_table(engine); if a right is missing, grant SELECT, INSERT, UPDATE and DELETE on them"
        )
    if versions != [SCHEMA_VERSION]:
        found = ", ".join(str(version) for version in versions) or "none"
        raise OutboxSchemaError(
            f"the outbox's tables ({name}) are of version {found}, and this library needs {SCHEMA_VERSION}: run the "
            "migrations of the installed cqrs-brokers-outbox (`alembic upgrade cqrs_brokers_outbox@head`), or install "
            "the library's version that belongs to the tables"
        )
