"""The tables of the outbox, version 1.

The name and the schema of the table come from alembic.ini: `cqrs_brokers_outbox.table` (default: outbox) and
`cqrs_brokers_outbox.schema` (default: none).
"""

from typing import Any

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import mysql

revision = "cqrs_brokers_outbox_0001"
down_revision = None
branch_labels = ("cqrs_brokers_outbox",)
depends_on = None

_STORAGE: dict[str, Any] = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"))
}


def _names() -> tuple[str, str | None]:
    config = context.config
    table = config.get_main_option("cqrs_brokers_outbox.table") or "outbox"
    return table, config.get_main_option("cqrs_brokers_outbox.schema")


def _mysql(ordinary: Any, theirs: Any) -> Any:
    return ordinary.with_variant(theirs, "mysql", "mariadb")


def upgrade() -> None:
    name, schema = _names()
    text = _mysql(sa.String(255), mysql.VARCHAR(255, charset="utf8mb4", collation="utf8mb4_nopad_bin"))
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        name,
        sa.Column("id", number, primary_key=True, autoincrement=True),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("hash", sa.BigInteger, nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("topic", text, nullable=False),
        sa.Column("message_key", _mysql(sa.LargeBinary(), mysql.BLOB())),
        sa.Column("message_name", text, nullable=False),
        sa.Column("message_id", sa.String(36), nullable=False),
        sa.Column("body", _mysql(sa.LargeBinary(), mysql.LONGBLOB())),
        sa.Column("content_type", text),
        sa.Column("headers", _mysql(sa.Text(), mysql.LONGTEXT())),
        sa.Column("made_at", sa.BigInteger, nullable=False),
        sa.Column("trace", _mysql(sa.Text(), mysql.TEXT())),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("attempts_unknown", sa.Integer, nullable=False),
        sa.Column("not_before", sa.BigInteger),
        sa.Column("error_class", sa.String(100)),
        sa.Column("error_text", _mysql(sa.Text(), mysql.TEXT())),
        sa.Column("sent_at", sa.BigInteger),
        sa.Column("sent_to", sa.String(255)),
        sa.Column("confirmed", sa.Boolean),
        sa.Column("broker_partition", sa.Integer),
        sa.Column("broker_offset", sa.BigInteger),
        schema=schema,
        sqlite_autoincrement=True,
        **_STORAGE,
    )
    for index, columns, only in (
        ("ready", ["state", "id"], "state = 0"),
        ("topic", ["state", "topic", "id"], "state = 0"),
        ("due", ["state", "not_before"], "state IN (1, 4)"),
        ("held", ["state", "hash", "id"], "state IN (1, 2, 3)"),
        ("refused", ["state", "topic"], "state = 4"),
        ("sent", ["state", "sent_at"], "state = 5"),
        ("unknown", ["attempts_unknown"], "attempts_unknown > 0"),
    ):
        where = sa.text(only)
        op.create_index(f"ix_{name}_{index}", name, columns, schema=schema, postgresql_where=where, sqlite_where=where)
    op.create_table(
        f"{name}_lease",
        sa.Column("scope", sa.String(64), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("topics", _mysql(sa.Text(), mysql.LONGTEXT())),
        sa.Column("owner", sa.String(100)),
        sa.Column("until", sa.BigInteger, nullable=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("claimed_to", sa.BigInteger, nullable=False),
        schema=schema,
        **_STORAGE,
    )
    op.create_table(
        f"{name}_relay",
        sa.Column("owner", sa.String(100), primary_key=True),
        sa.Column("scope", sa.String(64), nullable=False),
        sa.Column("until", sa.BigInteger, nullable=False),
        sa.Column("broker", sa.String(255), nullable=False),
        schema=schema,
        **_STORAGE,
    )
    version = op.create_table(
        f"{name}_version",
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        schema=schema,
        **_STORAGE,
    )
    op.bulk_insert(version, [{"version": 1}])


def downgrade() -> None:
    name, schema = _names()
    for table in (f"{name}_version", f"{name}_relay", f"{name}_lease", name):
        op.drop_table(table, schema=schema)
