"""Which partitions this relay works on, and until when.

A lease ends by the database's clock. This relay counts on a clock of its own, which goes on while the machine sleeps,
and counts from the moment before it asked the database. So for the relay a lease ends a little earlier than for the
database, unless the database's clock is set forward.

The relays with the same topics share the partitions evenly. A relay that takes over a partition counts rows of it as
possibly sent: all rows that are ready, waiting or refused, up to the last position that the previous relay had claimed.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from cqrs_brokers_outbox.exceptions import OutboxError
from cqrs_brokers_outbox.schema import State

from .store import CHUNK, Store

__all__ = ["Leases", "REPARTITION", "monotonic"]

REPARTITION = "partitions:"
"""The name of an owner that changes the number of partitions begins with this. While such an owner has a row in the
relay table, the relays with its topics give back all their partitions."""


InUse = Callable[[], Collection[int]]


def monotonic() -> float:
    """Seconds, on a clock that goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _scope_of(topics: Sequence[str] | None) -> str:
    """The scope of a relay: relays with the same topics have the same scope, and share its partitions."""
    return "*" if topics is None else hashlib.sha256(json.dumps(sorted(set(topics))).encode()).hexdigest()[:32]


class Leases:
    """The partitions of one relay.

    Args:
        store: A connection.
        owner: The relay's name. No other relay has the same.
        topics: The relay's topics; None: all.
        lease: How long a lease lasts, in seconds.
        partitions: How many partitions are made if the table has none yet.
        broker: The broker's redacted URL.

    Attributes:
        tokens: The partitions that are held, with their tokens.
        leaving: The partitions that are to be released as soon as the relay has none of their rows.
        count: How many partitions there are.
        living: How many relays there were at the last `step()`.
    """

    def __init__(
        self, store: Store, *, owner: str, topics: Sequence[str] | None, lease: float, partitions: int, broker: str
    ) -> None:
        self._store = store
        self._statements = store.statements
        self._owner = owner
        self._topics = None if topics is None else sorted(set(topics))
        self._lease = int(lease * 1_000_000)
        self._partitions = partitions
        self._broker = broker
        self._held_until = 0.0
        self.lease = lease
        self.scope = _scope_of(topics)
        self.tokens: dict[int, int] = {}
        self.leaving: set[int] = set()
        self.count = 0
        self.living = 0

    def left(self) -> float:
        """Seconds until the leases end, at the earliest."""
        return self._held_until - monotonic()

    def claimable(self) -> list[int]:
        """The partitions from which to claim."""
        return [number for number in self.tokens if number not in self.leaving]

    async def join(self) -> None:
        """Makes the partitions where there are none.

        Raises:
            OutboxError: A relay with other topics is at work, and some topics are common to both.
        """
        s = self._statements
        await self._look_for_others()
        async with self._store.transaction():
            found = await self._store.rows(
                (f"SELECT number FROM {s.lease} WHERE scope = :scope", {"scope": self.scope})
            )
            if not found:
                await self.create(range(self._partitions), 0)

    async def _look_for_others(self) -> None:
        """Looks whether relays with other topics are at work on some of this relay's topics.

        It looks when it begins, and again when its own leases are there, because two relays may begin at the same
        time: whichever is second sees the first, and each may see the other. A relay whose leases had ended, because it
        stood still, begins anew.

        Raises:
            OutboxError: There is such a relay.
        """
        s = self._statements
        others = await self._store.rows(
            (f"SELECT DISTINCT topics FROM {s.lease} WHERE scope <> :scope AND until > {s.now}", {"scope": self.scope})
        )
        for (theirs,) in others:
            common = self._common(theirs)
            if common:
                raise OutboxError(
                    f"another relay is at work on {common}: its messages would be sent twice. Give the relays of one "
                    "table the same topics, or topics of their own"
                )

    async def create(self, numbers: Collection[int], token: int) -> None:
        """Inserts rows for partitions."""
        s = self._statements
        columns, values = "scope, number, topics, until, token, claimed_to", "(:scope, :number, :topics, 0, :token, 0)"
        topics = None if self._topics is None else json.dumps(self._topics)
        await self._store.change(
            (
                s.insert_or_ignore(s.lease, columns, values),
                [{"scope": self.scope, "number": n, "topics": topics, "token": token} for n in numbers],
            )
        )

    async def step(self, in_use: InUse) -> None:
        """Renews what is held, releases what is too much, takes what is free, up to this relay's share.

        Args:
            in_use: Says which partitions have rows that the relay has.

        Raises:
            OutboxError: A relay with other topics is at work, and some topics are common to both.
        """
        before = monotonic()
        had_ended = bool(self.tokens) and self.left() < 0
        rows, living = await self._renew()
        if had_ended:
            await self._look_for_others()
        self.count, self.living = len(rows), len(living)
        held = {row.number: row.token for row in rows if row.owner == self._owner}
        self.tokens = {number: token for number, token in self.tokens.items() if held.get(number) == token}
        # After an error of the database, or a claim that met another owner, this relay may not know what it has.
        forgotten = [row for row in rows if row.owner == self._owner and row.number not in self.tokens]
        self._held_until = before + self.lease
        share = 0 if any(name.startswith(REPARTITION) for name in living) else -(-self.count // max(1, len(living)))
        too_many = sorted(self.tokens, reverse=True)[: max(0, len(self.tokens) - share)]
        self.leaving = set(too_many)
        await self._release(too_many, in_use)
        free = [row for row in rows if row.free and row.owner != self._owner]
        random.shuffle(free)
        await self.take([*forgotten, *free[: max(0, share - len(self.tokens) - len(forgotten))]])

    async def _renew(self) -> tuple[Sequence[Any], list[str]]:
        """Runs each statement by itself, not in one transaction, because none needs the others. So an idle relay costs
        the database little."""
        s, scope = self._statements, {"scope": self.scope}
        renewal = {"owner": self._owner, "lease": self._lease, **scope}
        found = await self._store.change(
            (f"UPDATE {s.relay} SET until = {s.now} + :lease WHERE owner = :owner AND scope = :scope", renewal)
        )
        if not found:
            values = f"(:owner, :scope, {s.now} + :lease, :broker)"
            insert = s.insert_or_ignore(s.relay, "owner, scope, until, broker", values)
            await self._store.change((insert, {"broker": self._broker[:255], **renewal}))
        if self.tokens:
            held, tokens = s.leases(self.tokens)
            await self._store.change(
                (
                    f"UPDATE {s.lease} SET until = {s.now} + :lease WHERE scope = :scope AND {held}",
                    {"lease": self._lease, **scope, **tokens},
                )
            )
        rows = await self._store.rows(
            (
                f"SELECT number, owner, token, claimed_to, until < {s.now} AS free FROM {s.lease} WHERE scope = :scope "
                f"UNION ALL SELECT NULL, owner, NULL, NULL, NULL FROM {s.relay} "
                f"WHERE scope = :scope AND until > {s.now}",
                scope,
            )
        )
        partitions = sorted((row for row in rows if row.number is not None), key=lambda row: row.number)
        return partitions, [row.owner for row in rows if row.number is None]

    async def take(self, free: Sequence[Any]) -> None:
        """Takes over those of the partitions that no other relay has taken meanwhile. They are free, or this relay has
        them and does not know their tokens.

        Raises:
            OutboxError: A relay with other topics is at work, and some topics are common to both.
        """
        if not free:
            return
        s = self._statements
        wanted = {row.number: row.token for row in free}
        condition, tokens = s.leases(wanted)
        mine = {"owner": self._owner, "scope": self.scope}
        async with self._store.transaction():
            await self._store.change(
                (
                    f"UPDATE {s.lease} SET owner = :owner, token = token + 1, until = {s.now} + :lease "
                    f"WHERE scope = :scope AND (until < {s.now} OR owner = :owner) AND {condition}",
                    {"lease": self._lease, **mine, **tokens},
                )
            )
            held = await self._store.rows(
                (f"SELECT number, token, claimed_to FROM {s.lease} WHERE scope = :scope AND owner = :owner", mine)
            )
            taken = {row.number: row for row in held if wanted.get(row.number) == row.token - 1}
            for row in taken.values():
                await self._count_unknown(row.number, row.claimed_to)
            if taken:
                await self.free_those_behind_nobody(taken)
        mine_now = {number: row.token for number, row in taken.items()}
        if mine_now:
            try:
                await self._look_for_others()
            except OutboxError:
                await self._give_back(mine_now)
                raise
        self.tokens |= mine_now

    async def _count_unknown(self, number: int, position: int) -> None:
        if not position:
            return
        s = self._statements
        await change_all(self._store, await self._store.rows(s.perhaps_sent([number], self.count, position)))
        await self._store.change(
            (
                f"UPDATE {s.lease} SET claimed_to = 0 WHERE scope = :scope AND number = :number",
                {"scope": self.scope, "number": number},
            )
        )

    async def free_those_behind_nobody(self, numbers: Collection[int]) -> None:
        """Makes rows ready that wait for a row which no longer holds them up."""
        s = self._statements
        await change_all(self._store, await self._store.rows(s.behind_nobody(list(numbers), self.count)), State.READY)

    async def _release(self, numbers: Collection[int], in_use: InUse) -> None:
        """Gives back those of the partitions of which the relay has no rows.

        Each partition is looked at in the turn of the event loop in which its token is dropped. A claim may have
        brought rows of it while an earlier statement ran. The next relay does not count rows of a released partition as
        possibly sent.
        """
        for number in numbers:
            if number in in_use():
                continue
            token = self.tokens.pop(number, None)
            if token is not None:
                await self._give_back({number: token})

    async def _give_back(self, tokens: Mapping[int, int]) -> None:
        s = self._statements
        held, parameters = s.leases(tokens)
        await self._store.change(
            (
                f"UPDATE {s.lease} SET owner = NULL, token = token + 1, until = 0, claimed_to = 0 "
                f"WHERE scope = :scope AND {held}",
                {"scope": self.scope, **parameters},
            )
        )

    async def leave(self, in_use: InUse) -> None:
        """Gives back the partitions of which the relay has no rows. The leases of the others end by themselves."""
        s = self._statements
        await self._release(list(self.tokens), in_use)
        await self._store.change((f"DELETE FROM {s.relay} WHERE owner = :owner", {"owner": self._owner}))

    def _common(self, theirs: str | None) -> str:
        if theirs is None or self._topics is None:
            return "all topics" if theirs is None else "some of these topics"
        both = sorted(set(json.loads(theirs)) & set(self._topics))
        return ", ".join(repr(topic) for topic in both)


async def change_all(store: Store, rows: Sequence[Any], state: State | None = None) -> None:
    """Moves rows to a state, or counts them as possibly sent, a chunk at a time."""
    ids = [row[0] for row in rows]
    for start in range(0, len(ids), CHUNK):
        chunk = ids[start : start + CHUNK]
        statements = store.statements
        await store.change(statements.count_unknown(chunk) if state is None else statements.set_state(chunk, state))
