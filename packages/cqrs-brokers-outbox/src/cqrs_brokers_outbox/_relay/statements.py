"""The relay's SQL statements, in the dialect of each database. `store` runs them.

Numbers of rows and partitions are written into the text where a database has no arrays: they are integers that this
package made.

This file is longer than 400 lines because it has each statement in the forms of all dialects.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from cqrs_brokers_outbox.rows import ClaimedRow
from cqrs_brokers_outbox.schema import DATABASE_TIME, State, Tables

__all__ = ["Parameters", "Statements", "statements_for"]

Parameters = dict[str, Any]
Statement = tuple[str, Parameters]

UNMARKED = f"({State.READY}, {State.WAITING}, {State.REFUSED})"
"""The states of rows that may have been sent without a mark."""

FOR_EVER = 10.0**9
"""31 years, in seconds. A larger number makes no difference, and its microseconds may not fit into 64 bits."""

_MESSAGE = ", ".join(f"o.{name}" for name in ClaimedRow._fields if name != "held")


class Statements(ABC):
    """The statements for one outbox, in one dialect.

    Args:
        tables: The outbox's tables.
        names: Their names as the dialect writes them: messages, lease, relay, version.
        topics: Only these topics; None: all.
        continue_past_parked: Whether the rows behind a parked row are sent.
    """

    dialect: str

    def __init__(
        self, tables: Tables, names: Sequence[str], *, topics: Sequence[str] | None, continue_past_parked: bool
    ) -> None:
        self.tables = tables
        self.messages, self.lease, self.relay, self.version = names
        self.now = DATABASE_TIME[self.dialect]
        self._topics = None if topics is None else {
            f"topic{place}": topic for place, topic in enumerate(dict.fromkeys(topics))
        }
        """Name of a parameter → the topic it stands for."""
        self._holding_states = (State.WAITING,) if continue_past_parked else (State.WAITING, State.PARKED)
        self._holding = ", ".join(str(int(state)) for state in self._holding_states)

    # -- what the dialects say differently ----------------------------------------------------------------------------

    session: tuple[str, ...] = ()
    """Statements that are run once on each connection."""
    begin = "BEGIN"
    snapshot: tuple[str, ...] = ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",)
    """Statements that begin a transaction in which all queries see the same data."""
    partitions = 16
    """How many partitions are made at first."""

    @abstractmethod
    def among(self, column: str, name: str, numbers: Collection[int]) -> Statement:
        """A condition: the column is one of these numbers."""

    def without(self, column: str, name: str, numbers: Collection[int]) -> Statement:
        """A condition: the column is none of these numbers."""
        condition, parameters = self.among(column, name, numbers)
        return f"NOT ({condition})", parameters

    def leases(self, tokens: Mapping[int, int]) -> Statement:
        """A condition on the lease table: one of these partitions, with this token."""
        held = " OR ".join(f"(number = {int(n)} AND token = {int(token)})" for n, token in sorted(tokens.items()))
        return f"({held})", {}

    def ready(self, columns: str, topic: str, conditions: str, limit: int) -> str:
        """A query for the first ready rows, in their order. `topic` is a condition for one topic, or empty for all."""
        where = f"o.state = {State.READY}{topic}{conditions}"
        return f"SELECT {columns} FROM {self.messages} o WHERE {where} ORDER BY o.id LIMIT {int(limit)}"

    @abstractmethod
    def lock_leases(self, scope: str, partitions: Iterable[int]) -> list[Statement]:
        """Locks rows of the lease table; the last statement returns number and token of each."""

    @abstractmethod
    def receipts(self, receipts: Sequence[tuple[int, bool, int | None, int | None]], sent_to: str) -> Statement:
        """Marks rows as sent: id, whether confirmed, the broker's partition and offset."""

    @abstractmethod
    def insert_or_ignore(self, table: str, columns: str, values: str) -> str:
        """An insert that does nothing if the row exists."""

    def holds_up(self, state: State) -> bool:
        """Whether a row in this state holds up the rows of its key behind it."""
        return state in self._holding_states

    # -- claiming -----------------------------------------------------------------------------------------------------

    def _mine(self, partitions: Collection[int], count: int) -> Statement:
        condition, parameters = self._in_partitions(partitions, count)
        if self._topics is None:
            return condition, parameters
        names = ", ".join(f":{name}" for name in self._topics)
        return f"{condition} AND o.topic IN ({names})", parameters | self._topics

    def _in_partitions(self, partitions: Collection[int], count: int) -> Statement:
        if len(partitions) == count:
            return "", {}
        condition, parameters = self.among(f"o.hash % {int(count)}", "mine", sorted(partitions))
        return f" AND {condition}", parameters

    def _without_topics(self, topics: Sequence[str]) -> Statement:
        if not topics:
            return "", {}
        names = {f"left_out{place}": topic for place, topic in enumerate(topics)}
        return f" AND o.topic NOT IN ({', '.join(f':{name}' for name in names)})", names

    def _held(self, count: int) -> str:
        """A condition: the row `o` is held up by another row, either an earlier row of its key or the row that stands
        for its refused topic in its partition."""
        return (
            f"(EXISTS (SELECT 1 FROM {self.messages} b WHERE b.state IN ({self._holding}) AND b.hash = o.hash "
            f"AND b.topic = o.topic AND b.message_key = o.message_key AND b.id < o.id) "
            f"OR EXISTS (SELECT 1 FROM {self.messages} r WHERE r.state = {State.REFUSED} AND r.topic = o.topic "
            f"AND r.id <> o.id AND r.hash % {int(count)} = o.hash % {int(count)}))"
        )

    def probe(self, scope: str, partitions: Collection[int], count: int) -> Statement:
        """Three numbers: whether there is something to claim, whether there is something to take over, and how many
        relays there are."""
        mine, parameters = self._mine(partitions, count)
        return (
            f"SELECT CASE WHEN EXISTS (SELECT 1 FROM {self.messages} o WHERE o.state = {State.READY}{mine}) "
            f"OR EXISTS (SELECT 1 FROM {self.messages} o WHERE o.state IN ({State.WAITING}, {State.REFUSED}) "
            f"AND o.not_before <= {self.now}{mine}) THEN 1 ELSE 0 END, "
            f"CASE WHEN EXISTS (SELECT 1 FROM {self.lease} WHERE scope = :scope AND until < {self.now}) "
            "THEN 1 ELSE 0 END, "
            f"(SELECT COUNT(*) FROM {self.relay} WHERE scope = :scope AND until > {self.now})",
            {"scope": scope, **parameters},
        )

    def claim(
        self,
        partitions: Collection[int],
        count: int,
        *,
        busy: Collection[int],
        crowded: Collection[int],
        limit: int,
        without: Sequence[str] = (),
    ) -> Statement:
        """Rows that are ready, in their order, and for each whether another row holds it up.

        Args:
            partitions: The relay's own partitions.
            count: How many partitions there are.
            busy: The numbers of rows that the relay has already.
            crowded: Hashes of keys of which the relay has enough rows.
            limit: The most rows.
            without: Topics that are left out.
        """
        mine, parameters = self._in_partitions(partitions, count)
        condition, more = self._without_topics(without)
        parameters |= (self._topics or {}) | more
        conditions = mine + condition
        for column, name, numbers in (("o.id", "busy", busy), ("o.hash", "crowded", crowded)):
            if numbers:
                condition, more = self.without(column, name, numbers)
                conditions += f" AND {condition}"
                parameters |= more
        columns = f"{_MESSAGE}, {self._held(count)} AS held"
        if self._topics is None:
            return self.ready(columns, "", conditions, limit), parameters
        # Topic by topic: an index has the rows of one in their order; those of other relays' topics are not looked at.
        of_topics = " UNION ALL ".join(
            f"SELECT * FROM ({self.ready(columns, f' AND o.topic = :{name}', conditions, limit)}) {name}"
            for name in self._topics
        )
        return f"SELECT * FROM ({of_topics}) o ORDER BY o.id LIMIT {int(limit)}", parameters

    def due(
        self,
        partitions: Collection[int],
        count: int,
        *,
        busy: Collection[int],
        limit: int,
        without: Sequence[str] = (),
    ) -> Statement:
        """Rows that have waited long enough, and for each whether another row still holds it up."""
        mine, parameters = self._mine(partitions, count)
        left_out, more = self._without_topics(without)
        parameters |= more
        if busy:
            condition, more = self.without("o.id", "busy", busy)
            left_out, parameters = f"{left_out} AND {condition}", parameters | more
        return (
            f"SELECT {_MESSAGE}, {self._held(count)} AS held FROM {self.messages} o "
            f"WHERE o.state IN ({State.WAITING}, {State.REFUSED}) AND o.not_before <= {self.now}{mine}{left_out} "
            f"ORDER BY o.not_before LIMIT {int(limit)}",
            parameters,
        )

    def position(self, scope: str, tokens: dict[int, int], position: int) -> Statement:
        """Writes the position of the last claimed row into the leases that are still held. The number of changed rows
        is the number of these leases."""
        held, parameters = self.leases(tokens)
        return (
            f"UPDATE {self.lease} SET claimed_to = CASE WHEN claimed_to > :position THEN claimed_to ELSE :position END "
            f"WHERE scope = :scope AND {held}",
            {"scope": scope, "position": position, **parameters},
        )

    # -- marking ------------------------------------------------------------------------------------------------------

    def delete(self, ids: Collection[int]) -> Statement:
        """Deletes rows."""
        condition, parameters = self.among("id", "ids", ids)
        return f"DELETE FROM {self.messages} WHERE {condition}", parameters

    def set_state(self, ids: Collection[int], state: State) -> Statement:
        """Moves rows that are not sent to a state."""
        condition, parameters = self.among("id", "ids", ids)
        where = f"{condition} AND state <> {State.SENT}"
        return f"UPDATE {self.messages} SET state = {int(state)} WHERE {where}", parameters

    def failure(self) -> str:
        """Writes the failure of one row. The statement is run with many sets of parameters."""
        return (
            f"UPDATE {self.messages} SET state = :state, attempts = attempts + 1, "
            f"attempts_unknown = attempts_unknown + :unknown, not_before = {self.now} + :delay, "
            f"error_class = :error_class, error_text = :error_text WHERE id = :id AND state <> {State.SENT}"
        )

    def held_now(self, ids: Collection[int], count: int) -> Statement:
        """Those of the rows that another row holds up now."""
        condition, parameters = self.among("o.id", "ids", ids)
        return (
            f"SELECT o.id FROM {self.messages} o WHERE {condition} AND {self._held(count)}",
            parameters,
        )

    def refused_topics(self, count: int) -> Statement:
        """Partition and topic of each row that stands for its topic."""
        return (
            f"SELECT DISTINCT hash % {int(count)}, topic FROM {self.messages} WHERE state = {State.REFUSED}",
            {},
        )

    def behind(self, hashes: Collection[int]) -> Statement:
        """Ids of rows behind another row whose keys have one of these hashes."""
        condition, parameters = self.among("hash", "hashes", hashes)
        return f"SELECT id FROM {self.messages} WHERE state = {State.BEHIND} AND {condition}", parameters

    def behind_topic(self, topic: str, partition: int, count: int) -> Statement:
        """Ids of rows behind a topic, in one partition."""
        return (
            f"SELECT id FROM {self.messages} WHERE state = {State.BEHIND} AND topic = :topic "
            f"AND hash % {int(count)} = {int(partition)}",
            {"topic": topic},
        )

    def behind_nobody(self, partitions: Collection[int], count: int) -> Statement:
        """Ids of rows that wait although no other row holds them up any more. That happens, for example, when
        `when_parked` was changed."""
        mine, parameters = self._mine(partitions, count)
        return (
            f"SELECT o.id FROM {self.messages} o WHERE o.state = {State.BEHIND}{mine} AND NOT {self._held(count)}",
            parameters,
        )

    def perhaps_sent(self, partitions: Collection[int], count: int, position: int) -> Statement:
        """Ids of rows that the previous relay may have sent."""
        mine, parameters = self._mine(partitions, count)
        return (
            f"SELECT o.id FROM {self.messages} o WHERE o.state IN {UNMARKED} AND o.id <= :position{mine}",
            {"position": position, **parameters},
        )

    def count_unknown(self, ids: Collection[int]) -> Statement:
        """Counts rows as possibly sent."""
        condition, parameters = self.among("id", "ids", ids)
        return (
            f"UPDATE {self.messages} SET attempts_unknown = attempts_unknown + 1 "
            f"WHERE {condition} AND state <> {State.SENT}",
            parameters,
        )

    def old(self, keep: float, limit: int) -> Statement:
        """Ids of sent rows that were kept long enough, of any relay."""
        return (
            f"SELECT id FROM {self.messages} WHERE state = {State.SENT} AND sent_at < {self.now} - :keep "
            f"LIMIT {int(limit)}",
            {"keep": int(min(keep, FOR_EVER) * 1_000_000)},
        )


class _PostgreSQL(Statements):
    """PostgreSQL, with asyncpg or psycopg. Arrays are parameters, so that the text of a statement stays the same.

    An array is passed as text. asyncpg looks at each element of a list twice, which costs more than the statement.
    """

    dialect = "postgresql"
    begin = "BEGIN ISOLATION LEVEL READ COMMITTED"  # a database may have another default, with old data after a lock

    def among(self, column: str, name: str, numbers: Collection[int]) -> Statement:
        return f"{column} = ANY((SELECT {_array(name, 'bigint')})::bigint[])", {name: _array_text(numbers)}

    def without(self, column: str, name: str, numbers: Collection[int]) -> Statement:
        # A hashed subplan: `<> ALL (array)` would compare each row with all of them.
        return f"{column} NOT IN (SELECT unnest({_array(name, 'bigint')}))", {name: _array_text(numbers)}

    def ready(self, columns: str, topic: str, conditions: str, limit: int) -> str:
        # The statistics of such a table are out of date. So the planner expects few rows, and would read and sort all
        # waiting rows for each claim. A subquery, and a limit that the planner does not know, make it read the index
        # until it has enough rows. The order of a subquery is kept if no other order is asked for.
        inner = f"SELECT * FROM {self.messages} o WHERE o.state = {State.READY}{topic} ORDER BY o.id OFFSET 0"
        return f"SELECT {columns} FROM ({inner}) o WHERE TRUE{conditions} LIMIT (SELECT {int(limit)})"

    def leases(self, tokens: Mapping[int, int]) -> Statement:
        pairs = f"SELECT * FROM unnest({_array('numbers', 'integer')}, {_array('tokens', 'bigint')})"
        parameters = {"numbers": _array_text(tokens), "tokens": _array_text(tokens.values())}
        return f"(number, token) IN ({pairs})", parameters

    def lock_leases(self, scope: str, partitions: Iterable[int]) -> list[Statement]:
        condition, parameters = self.among("number", "numbers", sorted(partitions))
        return [
            (
                f"SELECT number, token FROM {self.lease} WHERE scope = :scope AND {condition} "
                "ORDER BY number FOR UPDATE",
                {"scope": scope, **parameters},
            )
        ]

    def receipts(self, receipts: Sequence[tuple[int, bool, int | None, int | None]], sent_to: str) -> Statement:
        ids, confirmed, partitions, offsets = zip(*receipts, strict=True)
        return (
            f"UPDATE {self.messages} SET state = {State.SENT}, sent_at = {self.now}, sent_to = :sent_to, "
            "confirmed = v.confirmed, broker_partition = v.broker_partition, broker_offset = v.broker_offset "
            # Arrays of a length that the planner does not know: it finds rows by their key, not by reading the table.
            f"FROM unnest((SELECT {_array('ids', 'bigint')}), (SELECT {_array('confirmed', 'boolean')}), "
            f"(SELECT {_array('partitions', 'integer')}), (SELECT {_array('offsets', 'bigint')})) "
            "AS v(id, confirmed, broker_partition, broker_offset) "
            f"WHERE {self.messages}.id = v.id AND state <> {State.SENT}",
            {
                "sent_to": sent_to,
                "ids": _array_text(ids),
                "confirmed": _array_text(confirmed),
                "partitions": _array_text(partitions),
                "offsets": _array_text(offsets),
            },
        )

    def insert_or_ignore(self, table: str, columns: str, values: str) -> str:
        return f"INSERT INTO {table} ({columns}) VALUES {values} ON CONFLICT DO NOTHING"


def _array(name: str, kind: str) -> str:
    return f"CAST(CAST(:{name} AS text) AS {kind}[])"


def _array_text(values: Iterable[int | None]) -> str:
    return f"{{{','.join(['NULL' if value is None else str(value) for value in values])}}}"


class _MariaDB(Statements):
    """MariaDB, in READ COMMITTED. It uses no locking reads, and marks rows by primary key."""

    dialect = "mysql"
    session = ("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",)
    snapshot = (
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
    )

    def among(self, column: str, name: str, numbers: Collection[int]) -> Statement:
        return f"{column} IN ({', '.join(str(int(number)) for number in numbers) or 'NULL'})", {}

    def lock_leases(self, scope: str, partitions: Iterable[int]) -> list[Statement]:
        # A write locks without a locking read, one row by its key at a time.
        rows = sorted(partitions)
        locks: list[Statement] = [
            (f"UPDATE {self.lease} SET token = token WHERE scope = :scope AND number = {int(n)}", {"scope": scope})
            for n in rows
        ]
        numbers = ", ".join(str(int(number)) for number in rows)
        read = f"SELECT number, token FROM {self.lease} WHERE scope = :scope AND number IN ({numbers})"
        return [*locks, (read, {"scope": scope})]

    def receipts(self, receipts: Sequence[tuple[int, bool, int | None, int | None]], sent_to: str) -> Statement:
        head = f"SET state = {State.SENT}, sent_at = {self.now}, sent_to = :sent_to, confirmed = "
        first = receipts[0]
        if all(receipt[1:] == (first[1], None, None) for receipt in receipts):
            condition, _ = self.among("id", "ids", [receipt[0] for receipt in receipts])
            return (
                f"UPDATE {self.messages} {head}{int(first[1])} WHERE {condition} AND state <> {State.SENT}",
                {"sent_to": sent_to},
            )
        return (
            "UPDATE JSON_TABLE(:receipts, '$[*]' COLUMNS (id BIGINT PATH '$[0]', confirmed INT PATH '$[1]', "
            "broker_partition INT PATH '$[2]', broker_offset BIGINT PATH '$[3]')) v "
            f"STRAIGHT_JOIN {self.messages} o ON o.id = v.id "
            f"SET o.state = {State.SENT}, o.sent_at = {self.now}, o.sent_to = :sent_to, o.confirmed = v.confirmed, "
            "o.broker_partition = v.broker_partition, o.broker_offset = v.broker_offset "
            f"WHERE o.state <> {State.SENT}",
            {"sent_to": sent_to, "receipts": json.dumps([[r[0], int(r[1]), r[2], r[3]] for r in receipts])},
        )

    def insert_or_ignore(self, table: str, columns: str, values: str) -> str:
        return f"INSERT IGNORE INTO {table} ({columns}) VALUES {values}"


class _SQLite(Statements):
    """SQLite: one writer at a time, so that a transaction that begins IMMEDIATE needs no further lock."""

    dialect = "sqlite"
    session = ("PRAGMA journal_mode = WAL", "PRAGMA busy_timeout = 10000", "PRAGMA synchronous = NORMAL")
    begin = "BEGIN IMMEDIATE"
    snapshot = ("BEGIN",)
    partitions = 1

    def among(self, column: str, name: str, numbers: Collection[int]) -> Statement:
        return f"{column} IN (SELECT value FROM json_each(:{name}))", {name: json.dumps(list(numbers))}

    def lock_leases(self, scope: str, partitions: Iterable[int]) -> list[Statement]:
        numbers = ", ".join(str(int(number)) for number in sorted(partitions))
        read = f"SELECT number, token FROM {self.lease} WHERE scope = :scope AND number IN ({numbers})"
        return [(read, {"scope": scope})]

    def receipts(self, receipts: Sequence[tuple[int, bool, int | None, int | None]], sent_to: str) -> Statement:
        return (
            f"UPDATE {self.messages} SET state = {State.SENT}, sent_at = {self.now}, sent_to = :sent_to, "
            "confirmed = v.confirmed, broker_partition = v.broker_partition, broker_offset = v.broker_offset "
            "FROM (SELECT json_extract(value, '$[0]') AS id, json_extract(value, '$[1]') AS confirmed, "
            "json_extract(value, '$[2]') AS broker_partition, json_extract(value, '$[3]') AS broker_offset "
            "FROM json_each(:receipts)) AS v "
            f"WHERE {self.messages}.id = v.id AND state <> {State.SENT}",
            {"sent_to": sent_to, "receipts": json.dumps([[r[0], int(r[1]), r[2], r[3]] for r in receipts])},
        )

    def insert_or_ignore(self, table: str, columns: str, values: str) -> str:
        return f"INSERT OR IGNORE INTO {table} ({columns}) VALUES {values}"


def statements_for(dialect: str) -> type[Statements] | None:
    """The statements of a dialect, by SQLAlchemy's name for it."""
    return {"postgresql": _PostgreSQL, "mysql": _MariaDB, "mariadb": _MariaDB, "sqlite": _SQLite}.get(dialect)
