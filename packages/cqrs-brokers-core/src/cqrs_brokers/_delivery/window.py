"""The window decides which messages the driver gets now, and which messages wait until there is room. Messages with the
same topic and key keep the order of calls.

admit / queue ──room──▶ submit to the driver ──▶ outcome
      └──no room──▶ waiting ──a place became free──▶ submit
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable, Sequence
from operator import attrgetter

from cqrs_brokers._stalls import wait_patiently
from cqrs_brokers.exceptions import DeliveryError, NotDeliveredError
from cqrs_brokers.protocol import Message

from .deadlines import Deadlines, WhyLate
from .delivery import HANDED, QUEUED, SUBMITTED, Delivery, Sending
from .in_flight import InFlight
from .outcomes import BulkDelivery, BulkOutcomes
from .stuck import StuckDestinations
from .wakeups import Wakeups

__all__ = ["Window"]

LOOK_EVERY = 1.0
"""Seconds between two looks for stuck destinations (see `stuck`). The window looks for them while messages wait for
room or a destination is stuck."""
FIRST_LOOK = 0.1
"""Seconds from the moment when messages begin to wait until the first look. A destination that takes none of its
messages between this look and the next look is stuck."""


class Window:
    """Manages the deliveries from the call to the outcome.

    Args:
        in_flight: The places that messages take while the driver holds them.
        submit: The driver's `submit`.
        copies: Whether messages that have to wait are copied, so that later changes by the caller have no effect. No
            copy is needed if the messages are copies already, or if the driver gets the caller's own object.
        why_not_taken: Says why the broker takes no messages now. None: the broker takes messages.
        why_late: The driver's `why_late`.
        destination: The driver's `destination`.
        timeout: The timeout of calls that have none of their own, in seconds.
    """

    def __init__(
        self,
        in_flight: InFlight,
        *,
        submit: Callable[[Sequence[Delivery]], None],
        copies: bool,
        why_not_taken: Callable[[], NotDeliveredError | None],
        why_late: WhyLate,
        destination: Callable[[Message], str],
        timeout: float,
    ) -> None:
        self._in_flight = in_flight
        self._submit = submit
        self._copies = copies
        self.accepting = False
        """Whether the driver takes messages now, because it is connected and not blocked."""
        self._waiting: collections.deque[Sending] = collections.deque()
        self.wakeups: Wakeups
        """The callers that are to be woken in this event loop."""
        self._stuck = StuckDestinations(in_flight, destination)
        self._aside: tuple[int, Sending] | None = None
        """How many messages at the front of the queue must wait until a stuck destination takes messages, and the last
        of these messages. None: `refill` has to find these messages again."""
        self._behind: set[tuple[str, str | None]] = set()
        """The topics and keys of the messages that must wait until a stuck destination takes messages. Later messages
        with the same topic and key wait, too, even if they are smaller and would have room."""
        self._looking: asyncio.TimerHandle | None = None
        self._deadlines = Deadlines(in_flight, self._waiting, why_not_taken, why_late, self._stuck.reason, timeout)
        self._loop: asyncio.AbstractEventLoop
        self._refill_due = False
        in_flight.on_room = self._refill_soon

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begins anew in the given event loop, and forgets everything that belonged to an earlier event loop."""
        self.forget()
        self._stuck.clear()
        self._looking = None
        self._loop = loop
        self.wakeups = Wakeups(loop)
        self._deadlines.bind(loop)
        self.accepting = self._refill_due = False

    def forget(self) -> None:
        """Forgets every message, because no caller waits any more. Only observers get outcomes."""
        forgotten = (*self._in_flight.pending, *self._in_flight.ended, *self._waiting)
        self._in_flight.clear()
        self._waiting.clear()
        for delivery in forgotten:
            delivery.settle()

    # -- in -----------------------------------------------------------------------------------------------------------

    def admit(self, delivery: Sending) -> bool:
        """Submits the delivery at once if the driver takes messages, there is room, no destination is stuck, and no
        other message waits. If not, the delivery waits.

        Returns:
            Whether the delivery was submitted.
        """
        if self._deadlines.timer is None:
            self._deadlines.watch(delivery.deadline)
        places = self._in_flight
        if (
            self.accepting
            and not self._waiting
            and len(places.pending) + len(places.ended) < places.limit
            and (places.bytes + delivery.size <= places.limit_bytes or not places.bytes)
        ):
            # `refill` has the same three lines: a call for each message would cost more.
            delivery.state = SUBMITTED
            places.pending[delivery] = False
            places.bytes += delivery.size
            try:
                self._submit((delivery,))
            except Exception as error:
                self._not_submitted((delivery,), error)
            return True
        if self._copies:
            delivery.keep()
        self._wait((delivery,))
        if self._stuck.names:  # there may be room for this one, although earlier ones must wait
            self._refill_soon()
        return False

    def expect(self, deadline: float) -> None:
        """Prepares the timer for a message whose deadline may come before the deadlines of messages that were sent
        before it."""
        self._deadlines.expect(deadline)

    def queue(self, deliveries: Sequence[Sending]) -> None:
        """Adds many messages to the waiting messages. The caller must then call `refill()`, which submits the messages
        that have room, and `keep()`, which copies the other messages."""
        if deliveries:
            self._deadlines.watch(deliveries[0].deadline)
            self._wait(deliveries)

    def keep(self, deliveries: Sequence[Sending]) -> None:
        """Copies the messages of the given deliveries that still wait. Call this method before the caller awaits,
        because other code may then change the messages."""
        if self._copies and self._waiting:
            for delivery in deliveries:
                if delivery.state == QUEUED:
                    delivery.keep()

    def open(self, accepting: bool) -> None:
        """Notes whether the driver takes messages from now on. If the driver takes messages, the messages that wait are
        submitted."""
        self.accepting = accepting
        if accepting:
            self._deadlines.opened()
            self.refill()

    def try_again(self) -> None:
        """Gives each stuck destination one more trial."""
        self._stuck.try_again()
        self._aside = None
        self._refill_soon()

    def refill(self) -> None:
        """Submits the waiting messages that have room, in the order of calls, as one batch."""
        self._refill_due = False
        if not self.accepting or self._deadlines.are_due():
            return
        waiting, places, stuck = self._waiting, self._in_flight, self._stuck
        batch: list[Sending] = []
        are_stuck, pending = bool(stuck.names), places.pending
        aside = self._take_aside() if are_stuck else 0
        if not aside:
            self._behind.clear()
        left = len(waiting) - aside
        room, most_bytes = stuck.limit - places.count, stuck.limit_bytes
        while left and room > 0:
            delivery = waiting[0]
            if not delivery.done:
                if are_stuck and self._must_wait(delivery):
                    waiting.rotate(-1)  # behind those that were put aside before
                    aside += 1
                    left -= 1
                    continue
                held = places.bytes
                if held + delivery.size > most_bytes and held and not stuck.is_alone(delivery):
                    break
                # `admit` has the same three lines: a call for each message would cost more.
                delivery.state = SUBMITTED
                pending[delivery] = False
                places.bytes = held + delivery.size
                if are_stuck:
                    stuck.took(delivery)
                room -= 1
                batch.append(delivery)
            waiting.popleft()
            left -= 1
        if aside:
            waiting.rotate(aside)
            self._aside = aside, waiting[aside - 1]
        places.room_is_wanted = bool(waiting)
        if waiting:
            self._look_later()
        elif not are_stuck and self._looking is not None:
            # No message waits. The notes of the last look would keep deliveries, and their outcomes, in memory.
            self._looking.cancel()
            self._looking = None
            stuck.forget_look()
        if batch:
            try:
                self._submit(batch)
            except Exception as error:
                self._not_submitted(batch, error)

    def _must_wait(self, delivery: Sending) -> bool:
        """Whether a message is put aside: it must wait, or an earlier message with its topic and key was put aside."""
        pair = delivery.topic, delivery.message.key
        if pair not in self._behind:
            if not self._stuck.must_wait(delivery):
                return False
            self._behind.add(pair)
        return True

    def _take_aside(self) -> int:
        """Takes the messages that had to wait in an earlier `refill`, and moves them to the end of the queue. The
        present `refill` moves them back when it ends.

        Returns:
            The number of these messages. 0: no message was moved, because the window does not know any more which
            messages must wait. `refill` checks all messages again.
        """
        aside, self._aside = self._aside, None
        if self._stuck.count() or aside is None or len(self._waiting) < aside[0]:
            return 0
        if self._waiting[aside[0] - 1] is not aside[1]:  # a deadline has passed, or a caller was cancelled
            return 0
        self._waiting.rotate(-aside[0])
        return aside[0]

    def _look_later(self, delay: float = FIRST_LOOK) -> None:
        if self._looking is None:
            self._looking = self._loop.call_later(delay, self._look)

    def _look(self) -> None:
        self._looking = None
        if self.accepting and (self._waiting or self._stuck.names):
            self._stuck.look()
        else:
            self._stuck.clear()
        self._aside = None
        if self.accepting and (self._waiting or self._stuck.names):
            self._look_later(LOOK_EVERY)
            self.refill()

    def _wait(self, deliveries: Sequence[Sending]) -> None:
        self._waiting.extend(deliveries)
        self._in_flight.room_is_wanted = not self._refill_due
        if self._looking is None:
            self._look_later()

    def _refill_soon(self) -> None:
        """Plans a refill for the next turn of the event loop. Only one refill is planned, even if many places become
        free in this turn."""
        self._in_flight.room_is_wanted = False
        if self._waiting and not self._refill_due:
            self._refill_due = True
            self._loop.call_soon(self.refill)

    def _not_submitted(self, batch: Sequence[Sending], error: Exception) -> None:
        self._in_flight.breaches.add("submit", "raised", error=error)
        for delivery in batch:
            if delivery.state == SUBMITTED or delivery.state == HANDED:
                delivery.fail(error)  # type: ignore[arg-type] # `fail` classifies it

    # -- out ----------------------------------------------------------------------------------------------------------

    def give_up(self, delivery: Sending) -> None:
        """Abandons the message of a caller that was cancelled."""
        if delivery.done:
            return
        delivery.abandon()
        if self._waiting and self._waiting[0] is delivery:
            self._waiting.popleft()
            self._refill_soon()

    def give_up_all(self, bulk: BulkOutcomes) -> None:
        """Abandons the messages of a `send_messages` call that was cancelled."""
        for delivery in (*self._in_flight.pending, *self._waiting):
            if isinstance(delivery, BulkDelivery) and delivery.bulk is bulk:
                self.give_up(delivery)

    def end_not_handed(self, error: NotDeliveredError) -> None:
        """Ends every message that was not handed over, because waiting for the driver is useless."""
        for delivery in [d for d in self._in_flight.pending if d.state != HANDED]:
            delivery.end(error)
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done:
                waiter.end(error)

    def settle(self, handed: DeliveryError, not_handed: NotDeliveredError) -> list[Sending]:
        """Ends every message, and frees every place, because `Broker` does not wait for the driver any more.

        Returns:
            The messages that had been handed over. Their outcome is unknown.
        """
        unknown = [d for d in self._in_flight.pending if d.state == HANDED]
        for delivery in unknown:
            delivery.end(handed)
        self.end_not_handed(not_handed)
        for delivery in tuple(self._in_flight.ended):
            delivery.settle()
        return unknown

    def stop(self) -> None:
        """Stops submitting, and cancels the timers."""
        self._deadlines.stop()
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        self.accepting = False

    @property
    def waiting(self) -> int:
        """How many messages wait for a place, or for a connection."""
        return sum(not delivery.done for delivery in tuple(self._waiting))  # metrics are read in threads of their own

    def oldest(self) -> Sending | None:
        """The message whose call began first, among the messages without an outcome. This method may be called in any
        thread."""
        held = (*tuple(self._in_flight.pending), *tuple(self._waiting))
        return min((delivery for delivery in held if not delivery.done), key=attrgetter("began"), default=None)

    @property
    def is_empty(self) -> bool:
        """Whether every message has its outcome. The driver may still hold some of the messages."""
        return not self._in_flight.pending and all(delivery.done for delivery in self._waiting)

    @property
    def is_awaited(self) -> bool:
        """Whether a caller still waits for the outcome of a message."""
        return not all(self._in_flight.pending.values()) or self.waiting > 0

    async def drained(self, timeout: float | None) -> bool:
        """Waits until every message that the window has now has its outcome.

        Args:
            timeout: The longest wait, in seconds. None: only the messages' deadlines limit the wait.

        Returns:
            Whether all these messages got their outcomes within the timeout.
        """
        pending = {d for d in (*self._in_flight.pending, *self._waiting) if not d.done}
        if not pending:
            return True
        empty = self._loop.create_future()

        def watcher(delivery: Sending, _: object) -> None:
            pending.discard(delivery)
            if not pending and not empty.done():
                empty.set_result(None)

        self._in_flight.watchers += (watcher,)
        try:
            await wait_patiently(empty, timeout)
        finally:
            self._in_flight.watchers = tuple(other for other in self._in_flight.watchers if other is not watcher)
        return not pending
