"""What an outbox holds, for people and for health checks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ._relay.store import Store
from .schema import State

__all__ = ["Lag", "LeaseStatus", "OutboxStatus", "ParkedRow", "RelayHealth", "read_lag", "read_parked", "read_status"]


@dataclass(frozen=True)
class Lag:
    """Rows of one topic in one partition that are not sent.

    Attributes:
        topic: The topic.
        partition: The partition, in the scope of relays that serve all topics. 0 if there were no such relays.
        rows: How many rows.
        oldest: The time since the oldest row was written, in seconds.
        parked: How many of them wait for a person.
        refused: How many of them stand for a topic that is refused as a whole; more rows may wait behind each.
    """

    topic: str
    partition: int
    rows: int
    oldest: float
    parked: int = 0
    refused: int = 0


@dataclass(frozen=True)
class LeaseStatus:
    """A partition.

    Attributes:
        scope: "*" for relays that serve all topics. Else a digest of the topics of the relays that share the partition.
        partition: Its number.
        owner: The relay that has it, or None.
        seconds: For how many more seconds that relay has it.
    """

    scope: str
    partition: int
    owner: str | None
    seconds: float


@dataclass(frozen=True)
class OutboxStatus:
    """What an outbox holds.

    Attributes:
        unsent: All rows that are not sent: `ready`, `waiting` and `parked` together.
        ready: Rows to be claimed, or in flight.
        waiting: Rows that wait for another attempt, or behind another row.
        parked: Rows that wait for a person.
        refused_topics: Topics that are refused as a whole.
        unattended: Rows that are ready, or have waited long enough, and no relay has their partition: start a relay.
        possible_duplicates: Rows that may have been sent without a receipt, so that they may be in the broker twice, or
            will be. Sent rows are counted for as long as they are kept.
        lag: The unsent rows by topic and partition, the oldest first.
        leases: The partitions.
    """

    unsent: int
    ready: int
    waiting: int
    parked: int
    refused_topics: tuple[str, ...]
    unattended: int
    possible_duplicates: int
    lag: tuple[Lag, ...]
    leases: tuple[LeaseStatus, ...]


@dataclass(frozen=True)
class RelayHealth:
    """The state of a relay, for alerts. A probe that restarts the process must look at `running`, not at `ok`.

    Attributes:
        ok: Whether the relay runs, the database and the broker work, and no row waits for a person. `ok` is False if
            a row is parked or a topic is refused; a restart does not help then. It stays True while rows wait for
            another attempt, or a topic gives no receipt: the relay goes on by itself.
        reason: Why the relay is not ok, and after that what waits. "ok": there is nothing of either kind.
        running: Whether the relay runs. If not, only a new start helps.
        partitions: The partitions that it has.
        in_flight: How many rows it has claimed and not marked yet.
        sent: How many receipts it has had since it was started. 0 if it does not run.
        fenced: How many marks were refused because this relay has no longer the partition, or not with the same token.
        status: What the outbox holds; None: the database does not answer.
    """

    ok: bool
    reason: str
    running: bool
    partitions: tuple[int, ...]
    in_flight: int
    sent: int
    fenced: int
    status: OutboxStatus | None


@dataclass(frozen=True)
class ParkedRow:
    """A row that waits for a person.

    Attributes:
        position: Its number.
        topic: Its topic.
        message_id: Its message's id.
        error_class: Why it was parked: the error's class.
        error_text: The error's text.
        behind: How many rows of its key wait behind another row.
    """

    position: int
    topic: str
    message_id: str
    error_class: str
    error_text: str
    behind: int


async def read_status(store: Store) -> OutboxStatus:
    """Reads what an outbox holds, all from one snapshot."""
    async with store.transaction(snapshot=True):
        return await _read_status(store)


async def _read_status(store: Store) -> OutboxStatus:
    s = store.statements
    counts = {int(row[0]): int(row[1]) for row in await store.rows(_by_state(s.messages))}
    leases = await store.rows((f"SELECT scope, number, topics, owner, until - {s.now} AS left_us FROM {s.lease}", {}))
    refused = await store.rows((f"SELECT DISTINCT topic FROM {s.messages} WHERE state = {State.REFUSED}", {}))
    ((unknown,),) = await store.rows((f"SELECT COUNT(*) FROM {s.messages} WHERE attempts_unknown > 0", {}))
    waiting = sum(counts.get(state, 0) for state in (State.WAITING, State.BEHIND, State.REFUSED))
    return OutboxStatus(
        unsent=sum(counts.values()),
        ready=counts.get(State.READY, 0),
        waiting=waiting,
        parked=counts.get(State.PARKED, 0),
        refused_topics=tuple(sorted(row.topic for row in refused)),
        unattended=await _read_unattended(store, leases),
        possible_duplicates=int(unknown),
        lag=await read_lag(store),
        leases=tuple(
            LeaseStatus(row.scope, row.number, row.owner if row.left_us > 0 else None, max(0.0, int(row.left_us) / 1e6))
            for row in sorted(leases, key=lambda row: (row.scope, row.number))
        ),
    )


async def _read_unattended(store: Store, leases: Sequence[Any]) -> int:
    """Reads how many rows are due in partitions that no relay has."""
    s = store.statements
    scopes: dict[str, list[Any]] = {}
    for lease in leases:
        scopes.setdefault(lease.scope, []).append(lease)
    attended: list[str] = []
    names: dict[str, Any] = {}
    for place, shared in enumerate(scopes.values()):
        held = [int(lease.number) for lease in shared if lease.owner and lease.left_us > 0]
        if held:
            condition = f"hash % {len(shared)} IN ({', '.join(map(str, held))})"
            if shared[0].topics is not None:
                topics = {f"topic{place}_{n}": topic for n, topic in enumerate(json.loads(shared[0].topics))}
                names |= topics
                condition += f" AND topic IN ({', '.join(f':{name}' for name in topics)})"
            attended.append(f"({condition})")
    nobody = f" AND NOT ({' OR '.join(attended)})" if attended else ""
    ready = f"SELECT COUNT(*) AS due FROM {s.messages} WHERE state = {State.READY}{nobody}"
    waited = f"state IN ({State.WAITING}, {State.REFUSED}) AND not_before <= {s.now}"
    rows = await store.rows(
        (f"{ready} UNION ALL SELECT COUNT(*) AS due FROM {s.messages} WHERE {waited}{nobody}", names)
    )
    return sum(int(row.due) for row in rows)


async def read_lag(store: Store) -> tuple[Lag, ...]:
    """Reads what is not sent, by topic and partition, the oldest first."""
    s = store.statements
    ((found,),) = await store.rows((f"SELECT COUNT(*) FROM {s.lease} WHERE scope = '*'", {}))
    count = int(found) or 1
    rows = await store.rows(
        (
            f"SELECT topic, hash % {count} AS part, COUNT(*) AS amount, {s.now} - MIN(created_at) AS age, "
            f"SUM(CASE WHEN state = {State.PARKED} THEN 1 ELSE 0 END) AS parked, "
            f"SUM(CASE WHEN state = {State.REFUSED} THEN 1 ELSE 0 END) AS refused "
            f"FROM {s.messages} WHERE state IN (0, 1, 2, 3, 4) GROUP BY topic, hash % {count}",
            {},
        )
    )
    lag = (
        Lag(
            row.topic,
            int(row.part),
            int(row.amount),
            max(0.0, int(row.age) / 1e6),
            parked=int(row.parked),
            refused=int(row.refused),
        )
        for row in rows
    )
    return tuple(sorted(lag, key=lambda each: -each.oldest))


def _by_state(table: str) -> tuple[str, dict[str, object]]:
    # One query for each state: the database then finds the unsent rows without looking at the sent ones.
    counts = (f"SELECT {int(state)}, COUNT(*) FROM {table} WHERE state = {int(state)}" for state in State if state < 5)
    return " UNION ALL ".join(counts), {}


async def read_parked(store: Store, limit: int = 100) -> list[ParkedRow]:
    """Reads the parked rows, in their order."""
    s = store.statements
    rows = await store.rows(
        (
            f"SELECT o.id, o.topic, o.message_id, o.error_class, o.error_text, (SELECT COUNT(*) FROM {s.messages} b "
            f"WHERE b.state = {State.BEHIND} AND b.hash = o.hash AND b.topic = o.topic "
            f"AND b.message_key = o.message_key) AS behind FROM {s.messages} o WHERE o.state = {State.PARKED} "
            f"ORDER BY o.id LIMIT {int(limit)}",
            {},
        )
    )
    return [
        ParkedRow(row.id, row.topic, row.message_id, row.error_class or "", row.error_text or "", int(row.behind))
        for row in rows
    ]
