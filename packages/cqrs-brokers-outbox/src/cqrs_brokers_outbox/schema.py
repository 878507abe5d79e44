"""The tables, and what the numbers in them mean.

Times are microseconds since 1970-01-01 UTC by the database's clock. They are 64-bit numbers in every database. Only
`made_at` is a time of the application's clock.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine

__all__ = ["SCHEMA_VERSION", "STORAGE", "State", "Tables", "database_time", "exact_text"]

SCHEMA_VERSION = 1
"""The version in the version row; a migration changes it together with the tables."""


class State(enum.IntEnum):
    """The state of a row: what it waits for."""

    READY = 0
    """Waits to be claimed, or is claimed and has no mark yet."""
    WAITING = 1
    """Waits until `not_before`, after a failure that may pass or an unknown outcome. The rows of its key behind it wait
    too."""
    PARKED = 2
    """Waits for a person: it cannot be delivered as it is."""
    BEHIND = 3
    """Waits for another row: an earlier row of its key that waits or is parked, or the row that stands for its refused
    topic."""
    REFUSED = 4
    """Waits until `not_before`. Its topic is refused as a whole, and this row will be tried for all rows of the topic
    in its partition."""
    SENT = 5
    """Waits for nothing: it has its receipt, and is kept for a while."""


class database_time(FunctionElement[int]):  # noqa: N801 - a function of SQL
    """The database's clock, now, in microseconds."""

    type = BigInteger()
    inherit_cache = True


DATABASE_TIME = {
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)",
    "mysql": "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))",
    "mariadb": "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))",
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)",
}


@compiles(database_time)
def _compile_time(_: Any, compiler: Any, **__: Any) -> str:
    return DATABASE_TIME[compiler.dialect.name]


def _on_mysql(ordinary: TypeEngine[Any], theirs: TypeEngine[Any]) -> Any:
    return ordinary.with_variant(theirs, "mysql", "mariadb")


def exact_text(most: int) -> Any:
    """The type of a text that equals only itself. MariaDB's usual collations take "a", "A" and "a " for the same.

    Args:
        most: The most characters.
    """
    return _on_mysql(String(most), mysql.VARCHAR(most, charset="utf8mb4", collation="utf8mb4_nopad_bin"))


def _name() -> Any:
    return exact_text(255)


def _number() -> Any:
    return BigInteger().with_variant(Integer(), "sqlite")  # the only type that SQLite numbers by itself


STORAGE: dict[str, Any] = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"))
}
"""Options of every table, for MariaDB."""


@dataclass(frozen=True)
class Tables:
    """The tables of one outbox.

    Args:
        name: The name of the table of messages; the others begin with it.
        schema: Their schema, or None for the connection's own.
        metadata: The `MetaData` where the tables are registered, so that alembic sees them.

    Attributes:
        messages: A row for each message.
        lease: A row for each partition of each set of topics: which relay works on it, and until when.
        relay: A row for each relay that runs, and for each that ended without deleting its row.
        version: One row, the schema's version.
    """

    name: str = "outbox"
    schema: str | None = None
    metadata: MetaData = field(default_factory=MetaData)
    messages: Table = field(init=False)
    lease: Table = field(init=False)
    relay: Table = field(init=False)
    version: Table = field(init=False)

    def __post_init__(self) -> None:
        for attribute in ("messages", "lease", "relay", "version"):
            object.__setattr__(self, attribute, getattr(self, f"_{attribute}")())

    @property
    def all(self) -> list[Table]:
        """The tables, in the order in which they are made."""
        return [self.messages, self.lease, self.relay, self.version]

    def _messages(self) -> Table:
        table = Table(
            self.name,
            self.metadata,
            Column("id", _number(), primary_key=True, autoincrement=True),
            Column("place", Integer, nullable=False, comment="place within its transaction, from 0: order of writing"),
            Column("hash", BigInteger, nullable=False, comment="CRC-32 of topic and key; decides the partition"),
            Column("state", SmallInteger, nullable=False, default=0, comment="0 ready … 5 sent: see State"),
            Column("topic", _name(), nullable=False),
            Column("message_key", _on_mysql(LargeBinary(), mysql.BLOB()), comment="UTF-8; NULL: unordered"),
            Column("message_name", _name(), nullable=False),
            Column("message_id", String(36), nullable=False),
            Column("body", _on_mysql(LargeBinary(), mysql.LONGBLOB()), comment="NULL: a tombstone"),
            Column("content_type", _name()),
            Column("headers", _on_mysql(Text(), mysql.LONGTEXT()), comment="JSON: name → [type, value]"),
            Column("made_at", BigInteger, nullable=False, comment="the event's own time"),
            Column("trace", _on_mysql(Text(), mysql.TEXT()), comment="JSON: the writer's trace context"),
            Column("created_at", BigInteger, nullable=False, default=database_time()),
            Column("attempts", Integer, nullable=False, default=0, comment="failures that were marked"),
            Column("attempts_unknown", Integer, nullable=False, default=0, comment="sends that may have arrived"),
            Column("not_before", BigInteger, comment="when a waiting row is tried again"),
            Column("error_class", String(100)),
            Column("error_text", _on_mysql(Text(), mysql.TEXT())),
            Column("sent_at", BigInteger),
            Column("sent_to", String(255), comment="the broker's name"),
            Column("confirmed", Boolean),
            Column("broker_partition", Integer),
            Column("broker_offset", BigInteger),
            schema=self.schema,
            sqlite_autoincrement=True,  # else SQLite gives the numbers of deleted rows again
            **STORAGE,
        )
        column = table.c
        # Where the database can leave rows out of an index, rows that were sent are in none of the first five.
        for name, columns, only in (
            ("ready", [column.id], "state = 0"),
            ("topic", [column.topic, column.id], "state = 0"),
            ("due", [column.not_before], "state IN (1, 4)"),
            ("held", [column.hash, column.id], "state IN (1, 2, 3)"),
            ("refused", [column.topic], "state = 4"),
            ("sent", [column.sent_at], "state = 5"),
        ):
            Index(
                f"ix_{self.name}_{name}", column.state, *columns, postgresql_where=text(only), sqlite_where=text(only)
            )
        Index(
            f"ix_{self.name}_unknown",
            column.attempts_unknown,
            postgresql_where=text("attempts_unknown > 0"),
            sqlite_where=text("attempts_unknown > 0"),
        )
        return table

    def _lease(self) -> Table:
        return Table(
            f"{self.name}_lease",
            self.metadata,
            Column("scope", String(64), primary_key=True, comment="'*', or a digest of the relays' topics"),
            Column("number", Integer, primary_key=True, autoincrement=False, comment="the partition"),
            Column("topics", _on_mysql(Text(), mysql.LONGTEXT()), comment="JSON list; NULL: all"),
            Column("owner", String(100), comment="the relay; NULL: nobody"),
            Column("until", BigInteger, nullable=False, default=0),
            Column("token", BigInteger, nullable=False, default=0, comment="goes up whenever the owner changes"),
            Column("claimed_to", BigInteger, nullable=False, default=0, comment="highest claimed id; 0: none open"),
            schema=self.schema,
            **STORAGE,
        )

    def _relay(self) -> Table:
        return Table(
            f"{self.name}_relay",
            self.metadata,
            Column("owner", String(100), primary_key=True),
            Column("scope", String(64), nullable=False),
            Column("until", BigInteger, nullable=False),
            Column("broker", String(255), nullable=False, comment="redacted"),
            schema=self.schema,
            **STORAGE,
        )

    def _version(self) -> Table:
        return Table(
            f"{self.name}_version",
            self.metadata,
            Column("version", Integer, primary_key=True, autoincrement=False),
            schema=self.schema,
            **STORAGE,
        )
