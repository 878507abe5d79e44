"""What an outcome means for a row, and how the row is marked.

| outcome | the row |
|---|---|
| a receipt | is sent |
| not delivered, because of the broker (no connection, blocked, closed) or its loop | stays as it is; the relay waits |
| not delivered, because of its topic | waits, and its topic with it |
| not delivered, retryable | waits, and its key with it |
| not delivered, not retryable | is parked |
| unknown | is counted and sent again, under the same message id |

A receipt is a fact, so any relay that has one records it. For every other mark the relay must have the current token of
the row's partition. The partition's row in the lease table is locked meanwhile.
"""

from __future__ import annotations

import enum
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cqrs_brokers import (
    BrokerBlockedError,
    BrokerClosedError,
    DeliveryError,
    DeliveryUnknownError,
    DestinationNotFoundError,
    NotConnectedError,
    PublishForbiddenError,
    Receipt,
    UnroutableError,
    WrongLoopError,
)
from cqrs_brokers_outbox.rows import DamagedRow
from cqrs_brokers_outbox.schema import State

from .keys import Item
from .leases import change_all
from .store import Store

__all__ = ["Marked", "Marker", "Outcome", "Verdict", "error_of", "printable", "verdict_of"]

FIRST_DELAY, LONGEST_DELAY = 0.1, 60.0
_TEXT = 1000


class Verdict(enum.Enum):
    """What happens to a row."""

    SENT = "sent"
    UNTOUCHED = "untouched"
    REFUSED = "refused"
    RETRY = "retry"
    PARKED = "parked"
    UNKNOWN = "unknown"
    HELD = "held"
    """The row was not sent, because a row before it holds it up."""


@dataclass(slots=True)
class Outcome:
    """What happened to a row."""

    item: Item
    verdict: Verdict
    cause: Receipt | DeliveryError | DamagedRow | None = None


def verdict_of(outcome: Receipt | DeliveryError) -> Verdict:
    """What an outcome means for a row."""
    if isinstance(outcome, Receipt):
        return Verdict.SENT
    if isinstance(outcome, DeliveryUnknownError):
        return Verdict.UNKNOWN
    if isinstance(outcome, NotConnectedError | BrokerBlockedError | BrokerClosedError | WrongLoopError):
        return Verdict.UNTOUCHED
    if isinstance(outcome, DestinationNotFoundError | PublishForbiddenError | UnroutableError):
        return Verdict.REFUSED
    return Verdict.RETRY if outcome.retryable else Verdict.PARKED


@dataclass(slots=True)
class Marked:
    """What was marked.

    Attributes:
        fenced: Rows whose mark was refused: the relay does not have the current token of their partition.
        failures: Rows that were not sent, with their new states.
    """

    fenced: int = 0
    failures: list[tuple[Outcome, State]] = field(default_factory=list)


class Marker:
    """Marks rows.

    Args:
        store: A connection.
        scope: The relay's scope in the lease table.
        sent_to: The broker's name.
        keep: Whether sent rows are kept.
    """

    def __init__(self, store: Store, *, scope: str, sent_to: str, keep: bool) -> None:
        self._store = store
        self._statements = store.statements
        self._scope = scope
        self._sent_to = sent_to
        self._keep = keep

    async def mark(self, outcomes: Sequence[Outcome], count: int, held: Mapping[int, int]) -> Marked:
        """Marks rows. May be repeated as a whole after an error.

        Args:
            outcomes: What happened to them.
            count: How many partitions there are.
            held: The partitions that certainly are this relay's now, with their tokens. Another relay may have marked
                rows of the others, and may have put rows behind them.
        """
        plain: list[Outcome] = []
        freeing: list[Outcome] = []
        others: list[Outcome] = []
        ready, sent = int(State.READY), Verdict.SENT
        for outcome in outcomes:
            if outcome.verdict is sent:
                item = outcome.item
                is_plain = item.row.state == ready and held.get(item.partition) == item.token
                (plain if is_plain else freeing).append(outcome)
            elif outcome.verdict is not Verdict.UNTOUCHED:
                others.append(outcome)
        if plain:
            await self._record(plain)
        if not freeing and not others:
            return Marked()
        partitions = {outcome.item.partition for outcome in [*freeing, *others]}
        async with self._store.transaction():
            *locks, read = self._statements.lock_leases(self._scope, partitions)
            for lock in locks:
                await self._store.change(lock)
            tokens = {row.number: row.token for row in await self._store.rows(read)}
            if freeing:
                await self._record(freeing)
                await self._free_those_behind(freeing, count)
            current = [o for o in others if tokens.get(o.item.partition) == o.item.token]
            failures = await self._fail(current, count)
        return Marked(sum(o.verdict is not Verdict.HELD for o in others if o not in current), failures)

    async def _record(self, outcomes: Sequence[Outcome]) -> None:
        if not self._keep:
            await self._store.change(self._statements.delete([outcome.item.row.id for outcome in outcomes]))
            return
        receipts = [
            (o.item.row.id, o.cause.confirmed, o.cause.partition, o.cause.offset)
            for o in outcomes
            if isinstance(o.cause, Receipt)
        ]
        await self._store.change(self._statements.receipts(receipts, self._sent_to))

    async def _free_those_behind(self, outcomes: Sequence[Outcome], count: int) -> None:
        s = self._statements
        hashes = {outcome.item.row.hash for outcome in outcomes}
        await change_all(self._store, await self._store.rows(s.behind(hashes)), State.READY)
        await self._free_topics(outcomes, count)

    async def _free_topics(self, outcomes: Sequence[Outcome], count: int) -> None:
        """Makes the rows of topics ready if the row that stood for the topic has a new outcome. The next claim sees
        which of them still have to wait."""
        s = self._statements
        topics = {(o.item.row.topic, o.item.partition) for o in outcomes if o.item.row.state == State.REFUSED}
        for topic, partition in topics:
            await change_all(self._store, await self._store.rows(s.behind_topic(topic, partition, count)), State.READY)

    async def _fail(self, outcomes: Sequence[Outcome], count: int) -> list[tuple[Outcome, State]]:
        failed = [outcome for outcome in outcomes if outcome.verdict is not Verdict.HELD]
        failures = list(zip(failed, await self._states(failed, count), strict=True))
        if failures:
            changes = [_failure(outcome, state) for outcome, state in failures]
            await self._store.change((self._statements.failure(), changes))
        await self._free_topics([outcome for outcome in outcomes if outcome.verdict is not Verdict.REFUSED], count)
        if not self._statements.holds_up(State.PARKED):
            let_go = {outcome.item.row.hash for outcome, state in failures if state is State.PARKED}
            if let_go:  # they were behind a row that waited; the next claim sees which still have to wait
                await change_all(self._store, await self._store.rows(self._statements.behind(let_go)), State.READY)
        held = [outcome.item.row.id for outcome in outcomes if outcome.verdict is Verdict.HELD]
        if held:  # asked again, under the lock: what held them may be gone
            rows = await self._store.rows(self._statements.held_now(held, count))
            await change_all(self._store, rows, State.BEHIND)
        return failures

    async def _states(self, failures: Sequence[Outcome], count: int) -> list[State]:
        """The states of rows that failed. In each partition, one row of a refused topic stands for all its rows."""
        standing: set[tuple[int, str]] = set()
        if any(outcome.verdict is Verdict.REFUSED for outcome in failures):
            rows = await self._store.rows(self._statements.refused_topics(count))
            standing = {(int(partition), topic) for partition, topic in rows}
            for outcome in failures:  # a row that stood for its topic may have another outcome now
                if outcome.item.row.state == State.REFUSED:
                    standing.discard((outcome.item.partition, outcome.item.row.topic))
        chosen: dict[tuple[int, str], int] = {}
        by_topic = defaultdict(list)
        for outcome in failures:
            if outcome.verdict is Verdict.REFUSED:
                by_topic[outcome.item.partition, outcome.item.row.topic].append(outcome.item.row.id)
        for place, ids in by_topic.items():
            if place not in standing:
                chosen[place] = min(ids)
        states = []
        for outcome in failures:
            item = outcome.item
            if outcome.verdict is Verdict.REFUSED:
                stands = chosen.get((item.partition, item.row.topic)) == item.row.id
                states.append(State.REFUSED if stands else State.BEHIND)
            else:
                states.append(State.PARKED if outcome.verdict is Verdict.PARKED else State.WAITING)
        return states


def error_of(outcome: Outcome) -> tuple[str, str]:
    """The class and the text of the error, as they are written into the row.

    The text may be a server's. PostgreSQL stores no NUL, and no database a lone surrogate: the mark would fail for
    ever, and with it the marks of other rows. So it is one line of printable characters.
    """
    cause = outcome.cause
    text = cause.text if isinstance(cause, DeliveryError) else str(cause)
    return type(cause).__name__[:100], printable(text[:_TEXT])


def printable(text: str) -> str:
    """The text with a space in the place of each character that is not printable."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _failure(outcome: Outcome, state: State) -> dict[str, object]:
    row = outcome.item.row
    error_class, error_text = error_of(outcome)
    delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(row.attempts, 20)) * random.uniform(0.75, 1.0)  # noqa: S311
    return {
        "id": row.id,
        "state": int(state),
        "unknown": int(outcome.verdict is Verdict.UNKNOWN),
        "delay": int(delay * 1_000_000),
        "error_class": error_class,
        "error_text": error_text,
    }
