"""The loops of the relay: claim → keys → broker → marks. Each runs in a task of its own, so that none waits for
another.

    claiming   reads the next rows while the last ones are at the broker
    sending    tasks that call the broker; a row with a receipt lets the next row of its key go, in the same task
    marking    writes what happened, many rows at a time
    leasing    renews, takes and gives back partitions

Every loop goes on after an error of the database or the broker. It waits, longer each time, and tells the observers.
Any other error ends the relay. A row stays in `Keys.busy` from its claim until its mark is committed, or until it is
dropped unsent. So no claim brings it twice.

This file is longer than 400 lines because the loops share one state: which keys are busy, and what waits to be marked.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

from cqrs_brokers import Broker, DeliveryError, Receipt
from cqrs_brokers_outbox.observers import RelayObservers
from cqrs_brokers_outbox.rows import ClaimedRow, DamagedRow, message_of
from cqrs_brokers_outbox.schema import State

from .calls import Calls
from .keys import Item, Keys
from .leases import Leases, monotonic
from .outcomes import Marker, Outcome, Verdict, error_of, verdict_of
from .store import CHUNK, Store
from .trouble import FIRST_PAUSE, LONGEST_PAUSE, Trouble
from .upkeep import Upkeep

__all__ = ["CANCEL_STEP", "MARGIN", "Worker", "cancelled"]

MARGIN = 5.0
"""Sends must end this many seconds before the lease ends."""
SHORTEST_POLL, LONGEST_POLL = 0.01, 0.28
MOST_BATCHES, MOST_QUICK_BATCHES = 8, 3
"""A relay that has this many batches claims no more, and neither does one that has so many of topics that are not slow:
one is at the broker, one is being marked, one is being claimed."""
DUE_STEP = 0.05
"""Seconds before the relay asks again for rows that wait."""
MARK_STEP = 0.05
"""How long a receipt waits for others, in seconds, so that one statement marks them all. It does not wait if many
receipts wait, no row is at the broker any more, a row has failed, or the relay stops."""
LEASE_STEP = 1.0
CANCEL_STEP = 1.0
_NUMBER = attrgetter("id")
_AGAIN = (Verdict.UNTOUCHED, Verdict.RETRY, Verdict.UNKNOWN)


class Worker:
    """The loops of one relay.

    Args:
        broker: Where messages go.
        leases: The relay's partitions, with a connection of their own.
        claims: A connection for claims.
        marker: Marks rows, with a connection of its own.
        upkeep: The purge and the lag.
        trouble: What the relay cannot do now.
        batch: How many rows a claim brings, at most.
        pipeline: Whether all waiting rows of a key are sent together.
        observers: The objects that are told.
    """

    def __init__(
        self,
        broker: Broker,
        leases: Leases,
        *,
        claims: Store,
        marker: Marker,
        upkeep: Upkeep,
        trouble: Trouble,
        batch: int,
        pipeline: bool,
        observers: RelayObservers,
    ) -> None:
        self._broker = broker
        self._leases = leases
        self._claims = claims
        self._marker = marker
        self._upkeep = upkeep
        self._trouble = trouble
        self._batch = batch
        self._crowd = batch if pipeline else max(10, batch // 5)
        self._observers = observers
        self._keys = Keys(pipeline=pipeline)
        self._calls = Calls()
        self._outcomes: list[Outcome] = []
        self._to_claim = asyncio.Event()
        self._to_mark = asyncio.Event()
        self._mark_now = asyncio.Event()
        self._to_lease = asyncio.Event()
        self._stopping = asyncio.Event()
        self._sending: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._held_back_until = 0.0
        self._pause = 0.0
        self._due_asked = 0.0
        self._more = False
        """Whether there may be more rows: the last claim was full, or left out a topic."""
        self._left_out: set[int] = set()
        """Hashes of keys that the last claim left out."""
        self._most = batch * MOST_BATCHES
        self._headers = broker.capabilities.headers
        self._stamps = broker.name.startswith("kafka")
        self.sent = 0
        self.fenced = 0

    async def run(self, close_timeout: float) -> None:
        """Works until `stop()` or a cancellation, then finishes what is in flight.

        Args:
            close_timeout: Seconds for what is in flight.
        """
        claiming = [asyncio.create_task(self._claiming()), asyncio.create_task(self._upkeep.run())]
        finishing = [asyncio.create_task(self._marking()), asyncio.create_task(self._leasing())]
        loops = [*claiming, *finishing]
        stopped = asyncio.create_task(self._stopping.wait())
        cancellation: asyncio.CancelledError | None = None
        try:
            try:
                await asyncio.wait([*loops, stopped], return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError as interrupted:
                cancellation = interrupted
            self._stopping.set()
            self._mark_now.set()
            await cancelled(claiming)
            self._keys.forget_waiting()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(close_timeout):
                    await self._finish()
        finally:
            self._stopping.set()
            await cancelled([*loops, stopped, *self._sending])
        for loop in loops:
            if not loop.cancelled() and (error := loop.exception()) is not None:
                raise error
        if self._failure is not None:
            raise self._failure
        if cancellation is not None:
            raise cancellation

    def stop(self) -> None:
        """Lets `run` finish."""
        self._stopping.set()

    def in_use(self) -> set[int]:
        """Partitions with rows that the relay has: they wait here, are in flight, or are not marked yet."""
        return set(self._keys.busy.values())

    @property
    def in_flight(self) -> int:
        """How many rows the relay has."""
        return len(self._keys.busy)

    def unanswered(self, seconds: float) -> dict[str, float]:
        """Topic → for how long it has had rows at the broker and no receipt. Topics with less than `seconds` are left
        out."""
        return self._calls.unanswered(seconds)

    async def _finish(self) -> None:
        while self._sending or self._outcomes or self._keys.busy:
            if self._sending:
                await asyncio.wait(self._sending, timeout=0.05)
            else:
                await asyncio.sleep(0.01)

    # -- claiming -----------------------------------------------------------------------------------------------------

    async def _claiming(self) -> None:
        poll, known = SHORTEST_POLL, False
        while True:
            self._to_claim.clear()  # before the claim reads: a signal that comes meanwhile is for the next claim
            claimed = await self._trouble.tried("claim", self._claim_if_room)
            if not claimed:
                poll = min(LONGEST_POLL, poll * 1.3)
            elif not known:  # rows that were known to be there do not show that new ones come
                poll = SHORTEST_POLL
            known = claimed and self._more and self._has_room
            if not known:
                await _set_within(self._to_claim, poll)
                known = self._to_claim.is_set()

    async def _claim_if_room(self) -> bool:
        partitions = self._leases.claimable()
        if not partitions or not self._has_room or monotonic() < self._held_back_until:
            return False
        if not self._keys.busy and not await self._anything(partitions):
            return False
        self._keys.claim_begins()
        try:
            return await self._claim(partitions)
        finally:
            self._keys.claim_ended()

    async def _anything(self, partitions: Sequence[int]) -> bool:
        ((rows, free, living),) = await self._claims.rows(
            self._claims.statements.probe(self._leases.scope, partitions, self._leases.count)
        )
        if free or living != self._leases.living:
            self._to_lease.set()
        return bool(rows)

    async def _claim(self, partitions: Sequence[int]) -> bool:
        leases, statements = self._leases, self._claims.statements
        tokens, count, busy = dict(leases.tokens), leases.count, list(self._keys.busy)
        self._left_out = crowded = self._keys.crowded(self._crowd)
        topics = self._topics_left_out()
        due: Sequence[Any] = ()
        if monotonic() - self._due_asked > DUE_STEP:
            due = await self._claims.rows(
                statements.due(partitions, count, busy=busy, without=topics, limit=self._batch)
            )
            self._due_asked = monotonic()
        ready = await self._claims.rows(
            statements.claim(partitions, count, busy=busy, crowded=crowded, without=topics, limit=self._batch)
        )
        self._more = bool(topics) or len(ready) == self._batch or len(due) == self._batch
        rows = sorted([ClaimedRow._make(row) for row in (*due, *ready)], key=_NUMBER)
        if not rows:
            return False
        touched = {row.hash % count: tokens[row.hash % count] for row in rows}
        position = statements.position(leases.scope, touched, max(row.id for row in rows))
        if await self._claims.change(position) != len(touched):
            if touched.items() <= leases.tokens.items():  # else this relay has given one back meanwhile
                leases.tokens.clear()  # somebody else has one of them: the leases are asked before the next claim
            self._to_lease.set()
            return False
        return self._take_in(rows, touched, count)

    @property
    def _has_room(self) -> bool:
        busy = len(self._keys.busy)
        most = MOST_QUICK_BATCHES * self._batch
        return busy < most or (busy < self._most and busy - sum(map(self._keys.of_topic, self._calls.slow())) < most)

    def _topics_left_out(self) -> list[str]:
        """The topics whose rows the next claim leaves out: a slow topic that has its share of two batches, and a topic
        in its pause."""
        slow = self._calls.slow()
        full = {topic for topic in slow if self._keys.of_topic(topic) * len(slow) >= 2 * self._batch}
        return sorted(full | self._calls.paused())

    def _claim_if_useful(self) -> None:
        """Wakes the claiming loop if rows are known to be there. The loop finds new rows by itself."""
        if self._has_room and (self._more or not self._left_out <= self._keys.crowded(self._crowd)):
            self._to_claim.set()

    def _take_in(self, rows: Sequence[Any], tokens: dict[int, int], count: int) -> bool:
        items: list[Item] = []
        ended: list[Outcome] = []
        held: set[Any] = set()
        for row in rows:
            partition = row.hash % count
            item = Item(row, partition, tokens[partition])
            if not self._keys.accepts(item):
                continue
            if row.held or item.lane in held:
                held.add(item.lane)
                ended.append(Outcome(item, Verdict.HELD))
                continue
            try:
                item.message = message_of(row, headers=self._headers, stamped=self._stamps)
            except DamagedRow as damage:
                held.add(item.lane)
                ended.append(Outcome(item, Verdict.PARKED, damage))
                continue
            items.append(item)
        for outcome in ended:
            self._keys.have(outcome.item)
        self._keys.add(items)
        self._ended(ended, ended)
        self._observers.claimed(len(items))
        self._send_what_may_go()
        return bool(items or ended)

    # -- sending ------------------------------------------------------------------------------------------------------

    def _send_what_may_go(self) -> None:
        self._begin(self._calls.apart(self._what_may_go()))

    def _begin(self, calls: Iterable[list[Item]]) -> None:
        for items in calls:
            task = asyncio.create_task(self._send(items))
            self._sending.add(task)
            task.add_done_callback(self._end_of_sending)

    def _end_of_sending(self, task: asyncio.Task[None]) -> None:
        """Ends the relay if the broker raised what is no outcome: nobody would send the call's rows again."""
        self._sending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error
            self._stopping.set()

    def _what_may_go(self) -> list[Item]:
        if not self._keys.waiting or self._stopping.is_set():
            return []
        if self._leases.left() < self._broker.delivery_timeout + MARGIN:
            self._to_lease.set()  # first the lease is renewed; then the waiting rows are sent, or forgotten with it
            return []
        items = self._keys.take()
        lost = [item for item in items if self._leases.tokens.get(item.partition) != item.token]
        for item in lost:
            self._keys.let_go(item)
        if lost:
            items = [item for item in items if self._leases.tokens.get(item.partition) == item.token]
        return items

    async def _send(self, items: list[Item]) -> None:
        """Makes a call to the broker, and then the next one with rows that may go meanwhile. In one task, because a
        task for each call would cost the rows of a hot key a turn of the event loop each."""
        while items:
            topic = items[0].row.topic
            call = self._calls.began(topic)
            sent = failed = others = False
            try:
                outcomes = await self._delivered(items)
                ended: list[Outcome] = []
                without: list[Outcome] = []
                for item, cause in zip(items, outcomes, strict=True):
                    outcome = Outcome(item, verdict_of(cause), cause)
                    ended.append(outcome)
                    if outcome.verdict is Verdict.SENT:
                        self._keys.landed(item, True)
                        continue
                    failed = failed or outcome.verdict in _AGAIN
                    behind = [Outcome(one, Verdict.UNTOUCHED) for one in self._keys.landed(item, False)]
                    ended += behind
                    without += [outcome, *behind]
                receipts = len(ended) - len(without)
                self.sent += receipts
                sent = receipts > 0
            finally:
                others = self._calls.ended(topic, call, sent=sent, failed=failed)
            if self._observers:
                self._tell(ended)
            self._look_at(topic, without, others_go_on=others)
            self._ended(ended, without)
            # After a receipt the next row of the key may be sent. The receipt need not be marked before.
            calls = self._calls.apart(self._what_may_go())
            items = calls.pop(0) if calls else []
            self._begin(calls)
        if not self._calls:
            self._mark_now.set()

    async def _delivered(self, items: list[Item]) -> Sequence[Receipt | DeliveryError]:
        """Sends rows. A lone row goes by `send_message`, which costs less than a batch of one."""
        if len(items) > 1:
            return await self._broker.send_messages([item.message for item in items])
        try:
            return [await self._broker.send_message(items[0].message)]
        except DeliveryError as error:
            return [error.with_traceback(None)]

    def _tell(self, ended: Iterable[Outcome]) -> None:
        for outcome in ended:
            cause = outcome.cause
            if isinstance(cause, Receipt | DeliveryError):
                self._observers.sent(outcome.item.row.id, outcome.item.message, cause)

    def _look_at(self, topic: str, without: Iterable[Outcome], *, others_go_on: bool) -> None:
        """Checks whether the broker is down, by the outcomes of a call that are not receipts. If it is down, nothing is
        claimed for a while; if other calls get receipts, only nothing of this topic."""
        broker_down = None
        for outcome in without:
            if outcome.verdict is Verdict.UNTOUCHED and isinstance(outcome.cause, DeliveryError):
                broker_down = outcome.cause
        if broker_down is not None and others_go_on:
            self._calls.pause(topic)
            return
        if broker_down is None:
            self._pause = 0.0
            self._trouble.ended("send")
            return
        self._pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, self._pause * 2))
        self._held_back_until = monotonic() + self._pause
        self._trouble.began("send", broker_down.text)

    # -- marking ------------------------------------------------------------------------------------------------------

    def _ended(self, outcomes: Sequence[Outcome], without: Sequence[Outcome]) -> None:
        """Takes outcomes of rows, to be marked: all outcomes, and those of them that are not receipts."""
        for outcome in without:
            self._keys.failed(outcome.item)
        if outcomes:
            self._outcomes.extend(outcomes)
            self._to_mark.set()
            if without or self._stopping.is_set() or len(self._outcomes) >= self._batch // 2:
                self._mark_now.set()

    async def _marking(self) -> None:
        while True:
            await self._to_mark.wait()
            await _set_within(self._mark_now, MARK_STEP)
            self._to_mark.clear()
            self._mark_now.clear()
            ended, self._outcomes = self._outcomes, []  # what ends meanwhile waits for others again
            for start in range(0, len(ended), CHUNK):
                batch = ended[start : start + CHUNK]
                while not await self._trouble.tried("mark", lambda: self._mark(batch)):  # noqa: B023 - awaited here
                    pass
                self._keys.marked(outcome.item for outcome in batch)
                for outcome in batch:
                    if outcome.verdict is not Verdict.SENT:
                        self._keys.failure_marked(outcome.item)
                        self._to_claim.set()
                self._claim_if_useful()

    async def _mark(self, batch: Sequence[Outcome]) -> bool:
        held = self._leases.tokens if self._leases.left() > 0 else {}
        marked = await self._marker.mark(batch, self._leases.count, held)
        if marked.fenced:
            self.fenced += marked.fenced
            self._observers.fenced(marked.fenced)
        for outcome, state in marked.failures:
            row = outcome.item.row
            if state is State.PARKED:
                self._observers.parked(row.id, row.topic, *error_of(outcome))
            elif state is State.REFUSED:
                self._observers.refused(row.topic, *error_of(outcome))
        return True

    # -- leasing ------------------------------------------------------------------------------------------------------

    async def _leasing(self) -> None:
        renew = min(self._leases.lease / 4, (self._leases.lease - self._broker.delivery_timeout - MARGIN) / 2)
        told: set[int] = set()
        while True:
            await self._trouble.tried("lease", self._step)
            if told != set(self._leases.tokens):
                told = set(self._leases.tokens)
                self._observers.leases_changed(sorted(told))
                self._to_claim.set()
            self._keys.forget_waiting(self.in_use() - set(self._leases.claimable()))
            self._send_what_may_go()
            self._to_lease.clear()
            started, step = monotonic(), min(LEASE_STEP, renew)
            while not self._to_lease.is_set() and monotonic() - started < (step if self._is_watchful() else renew):
                await _set_within(self._to_lease, step)
            await asyncio.sleep(max(0.0, min(LEASE_STEP, renew / 2) - (monotonic() - started)))

    def _is_watchful(self) -> bool:
        """Whether the relay asks for its leases often. An idle relay learns from its probes that something changed."""
        return bool(self._keys.busy or self._leases.leaving or not self._leases.tokens)

    async def _step(self) -> bool:
        await self._leases.step(self.in_use)
        return True


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    """Waits for an event, at most this many seconds. It does not use `asyncio.wait_for`, which in Python 3.11 may
    swallow a cancellation."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


async def cancelled(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels tasks and waits for their end.

    It cancels them repeatedly. Database drivers connect with `asyncio.wait_for`, which in Python 3.11 may swallow a
    cancellation.
    """
    waiting = {task for task in tasks if not task.done()}
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=CANCEL_STEP)
