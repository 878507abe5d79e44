"""The in-flight window: how many messages a driver may hold, who waits for room, and whose deadline passed.

Bounded by count and by bytes. One dict and one timer serve all messages in flight, not one timeout each: with one
timeout for all, the order of calls is the order of deadlines. While there are calls with timeouts of their own, it is
not, and everything is looked at when the timer fires.
"""

from __future__ import annotations

import asyncio
import collections
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cqrs_brokers.exceptions import DeliveryError, DeliveryTimeoutError, DeliveryUnknownError, NotDeliveredError

from .delivery import HANDED, QUEUED, SETTLED, SUBMITTED, ContractBreach, Delivery
from .outcomes import Wakeups

if TYPE_CHECKING:
    from cqrs_brokers.protocol import Receipt

__all__ = ["Window"]

logger = logging.getLogger("cqrs_brokers.window")

MOST_BREACHES = 100
"""How many breaches of the driver's contract a broker keeps."""

Watcher = Callable[[Delivery, "Receipt | DeliveryError | None"], None]


class Window:
    """Deliveries from the call to the outcome.

    Args:
        name: The broker's name, for receipts.
        address: The broker's redacted URL, for errors.
        confirms: Whether the driver's `confirm()` means that the broker confirmed.
        submit: The driver's `submit`.
        max_count: The most messages the driver may hold.
        max_bytes: The most bytes it may hold; one larger message may go alone.
        keeps: What waits is kept as it was at the call; else a driver gets the caller's own object.
        why_not: Makes the error for a message that was not handed over by its deadline, told whether there was room.
        why_late: The driver's, for a message that was handed over.
        timeout: The timeout of calls that have none of their own, in seconds.
    """

    def __init__(
        self,
        *,
        name: str,
        address: str,
        confirms: bool,
        submit: Callable[[Sequence[Delivery]], None],
        max_count: int,
        max_bytes: int,
        keeps: bool,
        why_not: Callable[[Delivery, bool], NotDeliveredError],
        why_late: Callable[[Delivery], DeliveryUnknownError | None],
        timeout: float,
    ) -> None:
        self.name = name
        self.address = address
        self.confirms = confirms
        self._submit = submit
        self.max_count = max_count
        self.max_bytes = max_bytes
        self._keeps = keeps
        self._why_not = why_not
        self._why_late = why_late
        self._timeout = timeout
        self._in_order = True
        """The order of calls is the order of deadlines."""
        self.gate = False
        """Whether the driver takes messages now: connected and not blocked."""
        self.in_flight: dict[Delivery, None] = {}
        """Submitted, no outcome yet; in the order of deadlines."""
        self.overdue: dict[Delivery, None] = {}
        """Submitted, the caller has its outcome, the driver has not let go: still in the window."""
        self.waiting: collections.deque[Delivery] = collections.deque()
        self.bytes = 0
        self.pumping = False
        self.attentive = False
        """Somebody watches outcomes: checked once per message instead of a call."""
        self.breaches: collections.deque[ContractBreach] = collections.deque(maxlen=MOST_BREACHES)
        """What the driver did that its contract forbids, the latest."""
        self._watchers: list[Watcher] = []
        self.wakeups: Wakeups
        """The callers that are to be woken in this event loop."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Starts anew in that event loop, forgetting what belonged to a closed one."""
        self._loop = loop
        self.wakeups = Wakeups(loop)
        self._timer = None
        self._in_order = True
        self.gate = self.pumping = False
        for delivery in (*self.in_flight, *self.overdue, *self.waiting):
            delivery.done = True
            delivery._state = SETTLED
        self.in_flight.clear()
        self.overdue.clear()
        self.waiting.clear()
        self.bytes = 0

    # -- in -----------------------------------------------------------------------------------------------------------

    def admit(self, delivery: Delivery) -> bool:
        """Submits at once if there is room and nobody waits; otherwise the delivery waits its turn.

        Returns:
            Whether the driver has it.
        """
        if self._timer is None:
            self._arm(delivery.deadline)
        size = delivery._size
        if (
            self.gate
            and not self.waiting
            and len(self.in_flight) + len(self.overdue) < self.max_count
            and (self.bytes + size <= self.max_bytes or not self.bytes)
        ):
            delivery._state = SUBMITTED
            self.in_flight[delivery] = None
            self.bytes += size
            one = (delivery,)
            try:
                self._submit(one)
            except Exception as error:
                self._not_submitted(one, error)
            return True
        if self._keeps:
            delivery._keep()
        self.waiting.append(delivery)
        return False

    def queue(self, deliveries: Sequence[Delivery]) -> None:
        """Lets many wait their turn at once; `pump()` submits what has room, `keep()` is for the others."""
        if deliveries:
            if self._timer is None:
                self._arm(deliveries[0].deadline)
            self.waiting.extend(deliveries)

    def keep(self, deliveries: Sequence[Delivery]) -> None:
        """Before their caller gives way to others: those that wait are kept as they are."""
        if self._keeps and self.waiting:
            for delivery in deliveries:
                if delivery._state == QUEUED:
                    delivery._keep()

    def pump_soon(self) -> None:
        """One refill per turn of the event loop, however many places become free in it."""
        if not self.pumping and self._loop is not None:
            self.pumping = True
            self._loop.call_soon(self.pump)

    def pump(self) -> None:
        """Submits what has room, in the order of calls, as one batch."""
        self.pumping = False
        if not self.gate:
            return
        waiting, in_flight, total, limit = self.waiting, self.in_flight, self.bytes, self.max_bytes
        room = self.max_count - len(in_flight) - len(self.overdue)
        batch: list[Delivery] = []
        while waiting and room > 0:
            delivery = waiting[0]
            if not delivery.done:
                if total + delivery._size > limit and total:
                    break
                delivery._state = SUBMITTED
                in_flight[delivery] = None
                total += delivery._size
                room -= 1
                batch.append(delivery)
            waiting.popleft()
        self.bytes = total
        if batch:
            try:
                self._submit(batch)
            except Exception as error:
                self._not_submitted(batch, error)

    def _not_submitted(self, batch: Sequence[Delivery], error: Exception) -> None:
        self.breaches.append(ContractBreach("submit", f"raised {type(error).__name__}", None))
        logger.error("the driver of %s raised in submit()", self.address, exc_info=error)
        for delivery in batch:
            if delivery._state == SUBMITTED or delivery._state == HANDED:
                delivery.fail(error)  # type: ignore[arg-type] # classified there, by what was handed over

    # -- out ----------------------------------------------------------------------------------------------------------

    def give_up(self, delivery: Delivery) -> None:
        """The caller was cancelled. What was handed over may still arrive; nobody will be told but the log."""
        if delivery.done:
            return
        handed = delivery._state == HANDED
        queued = delivery._state == QUEUED
        delivery._detach()
        if self.attentive:
            self.attend(delivery, None)
        if queued and self.waiting and self.waiting[0] is delivery:
            self.waiting.popleft()
            self.pump_soon()
        if handed:
            logger.info(
                "the sender of message %s was cancelled after the message was handed over: it may be delivered",
                delivery.message_id,
            )

    def fail_not_handed(self, error: NotDeliveredError) -> None:
        """Ends everything that was not handed over: connecting cannot succeed, or waiting has no more sense."""
        for delivery in [d for d in self.in_flight if d._state != HANDED]:
            self._end(delivery, error)
        while self.waiting:
            delivery = self.waiting.popleft()
            if not delivery.done:
                self._end(delivery, error)

    def settle(self, handed: DeliveryError, not_handed: NotDeliveredError) -> list[Delivery]:
        """Ends everything, and takes every place back from a driver that will not answer any more.

        Returns:
            Those that had been handed over, and so are unknown.
        """
        unknown = [d for d in self.in_flight if d._state == HANDED]
        for delivery in unknown:
            self._end(delivery, handed)
        self.fail_not_handed(not_handed)
        for delivery in list(self.overdue):
            delivery._settle()
        return unknown

    def _end(self, delivery: Delivery, error: DeliveryError) -> None:
        delivery._end(error.about(delivery.message_id, delivery.topic, self.address))

    # -- deadlines ----------------------------------------------------------------------------------------------------

    def expect(self, deadline: float) -> None:
        """Is told, before it is admitted, of a delivery whose deadline need not be later than those before it."""
        assert self._loop is not None
        self._in_order = False
        when = min(deadline, self._loop.time() + self._timeout)  # calls without a timeout, from now on, are later
        if self._timer is None or when < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._arm(when)

    def _arm(self, when: float) -> None:
        assert self._loop is not None
        self._timer = self._loop.call_at(when, self._expire)

    def _expire(self) -> None:
        assert self._loop is not None
        self._timer = None
        # The loop fires a timer up to its clock's resolution early.
        now = self._loop.time() + 0.001
        room = not self.waiting and len(self.in_flight) + len(self.overdue) < self.max_count
        late = self._late(now)
        for delivery in late:
            if delivery.done:
                continue
            if delivery._state == HANDED:
                text = "the broker did not confirm it before the deadline"
                self._end(delivery, self._why_late(delivery) or DeliveryTimeoutError(text))
            else:
                self._end(delivery, self._why_not(delivery, room))
        when = self._next_deadline(now)
        if when is not None and self._timer is None:
            self._arm(when)

    def _late(self, now: float) -> list[Delivery]:
        """What is past its deadline; of those that wait none is in the queue any more."""
        late = []
        waiting = self.waiting
        for delivery in self.in_flight:
            if delivery.deadline <= now:
                late.append(delivery)
            elif self._in_order:
                break
        if self._in_order:
            while waiting and (waiting[0].done or waiting[0].deadline <= now):
                late.append(waiting.popleft())
        else:
            everything = list(waiting)
            waiting.clear()
            for delivery in everything:
                (late if delivery.done or delivery.deadline <= now else waiting).append(delivery)
            if waiting:
                self.pump_soon()  # the first may have been what had no room
        return late

    def _next_deadline(self, now: float) -> float | None:
        assert self._loop is not None
        if self._in_order:
            return min((next(iter(some)).deadline for some in (self.in_flight, self.waiting) if some), default=None)
        first = min((delivery.deadline for some in (self.in_flight, self.waiting) for delivery in some), default=None)
        if first is None:
            self._in_order = True
            return None
        # To look at everything takes longer the more there is: at most a tenth of the time goes into it.
        return max(min(first, now + self._timeout), now + 10 * (self._loop.time() + 0.001 - now))

    def stop(self) -> None:
        """No timer any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.gate = False

    # -- who watches --------------------------------------------------------------------------------------------------

    def watch(self, watcher: Watcher) -> None:
        """Calls the watcher for each outcome (None: cancelled, or a place that became free later)."""
        self._watchers.append(watcher)
        self.attentive = True

    def unwatch(self, watcher: Watcher) -> None:
        self._watchers.remove(watcher)
        self.attentive = bool(self._watchers)

    def attend(self, delivery: Delivery, outcome: Receipt | DeliveryError | None) -> None:
        for watcher in tuple(self._watchers):
            watcher(delivery, outcome)

    async def drained(self, timeout: float | None) -> bool:
        """Waits until everything that is here now has its outcome.

        Returns:
            Whether it has, within the timeout (in seconds; None: the deadlines bound it).
        """
        assert self._loop is not None
        pending = {d for d in (*self.in_flight, *self.waiting) if not d.done}
        if not pending:
            return True
        empty = self._loop.create_future()

        def watcher(delivery: Delivery, outcome: Receipt | DeliveryError | None) -> None:
            pending.discard(delivery)
            if not pending and not empty.done():
                empty.set_result(None)

        self.watch(watcher)
        try:
            await asyncio.wait((empty,), timeout=timeout)
        finally:
            self.unwatch(watcher)
        return not pending
