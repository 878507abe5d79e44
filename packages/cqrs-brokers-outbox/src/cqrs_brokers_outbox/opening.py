"""Finds out about a database, before work begins: its dialect, its tables, their version."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from cqrs_brokers import ConfigError

from ._relay.statements import Statements, statements_for
from ._relay.store import Store
from .exceptions import OutboxSchemaError
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


async def check_schema(store: Store, tables: Tables) -> None:
    """Checks that the tables are there, of this version, and can be used.

    Raises:
        OutboxSchemaError: A table is missing, has another version, or cannot be used. The text says what to do.
        Exception: The database cannot be reached. It is the driver's error, as SQLAlchemy passes it on.
    """
    name = tables.messages.fullname
    s = store.statements
    await store.rows(("SELECT 1", {}))  # a database that cannot be reached has no missing tables
    reason = ""
    versions: list[int] = []
    try:
        versions = [row.version for row in await store.rows((f"SELECT version FROM {s.version}", {}))]
        for table in (s.messages, s.lease, s.relay):
            await store.rows((f"SELECT 1 FROM {table} WHERE 1 = 0", {}))
        if versions == [SCHEMA_VERSION]:  # these statements change nothing, and fail if a right is missing
            await store.change((f"DELETE FROM {s.relay} WHERE 1 = 0", {}))
            for table in (s.messages, s.lease):
                column = "state" if table == s.messages else "token"
                await store.change((f"UPDATE {table} SET {column} = {column} WHERE 1 = 0", {}))
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
