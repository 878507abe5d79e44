"""The deadlines of all messages, and the errors that callers get when a deadline has passed.

One timer serves all messages. If all calls have the same timeout, the order of calls is the order of deadlines. While
some calls have timeouts of their own, the two orders may differ. Then every message is checked each time the timer
fires.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable

from cqrs_brokers._stalls import LOOK, because_of_a_stall, stalled_for, told_with_stall
from cqrs_brokers.exceptions import (
    BackpressureError,
    DeliveryError,
    DeliveryTimeoutError,
    DeliveryUnknownError,
    NotDeliveredError,
)

from .delivery import HANDED, QUEUED, Sending
from .in_flight import InFlight

__all__ = ["Deadlines"]

WhyLate = Callable[..., DeliveryError | None]

FEW, PARTS = 1_000, 20
"""These two numbers limit how many waiting messages end at their deadlines in one turn of the event loop: at most
`FEW`, or the number of waiting messages divided by `PARTS`, if that is more. So the loop can do other work between two
such turns."""
CLOCK_RESOLUTION = 0.001
"""The event loop may fire a timer up to this many seconds too early."""


class Deadlines:
    """Ends messages at their deadlines.

    Args:
        in_flight: The messages that the driver holds.
        waiting: The messages that wait for a place, in the order of calls.
        why_not_taken: Says why the broker takes no messages now. None: the broker takes messages.
        why_late: The driver's `why_late`. This method says why a message has no outcome, as far as the driver knows.
        why_stuck: Says why a message had no room, if the reason is that its destination takes nothing. None: its
            destination is not stuck.
        timeout: The timeout of calls that have none of their own, in seconds.
    """

    def __init__(
        self,
        in_flight: InFlight,
        waiting: collections.deque[Sending],
        why_not_taken: Callable[[], NotDeliveredError | None],
        why_late: WhyLate,
        why_stuck: Callable[[Sending], str | None],
        timeout: float,
    ) -> None:
        self._in_flight = in_flight
        self._waiting = waiting
        self._why_not_taken = why_not_taken
        self._why_late = why_late
        self._why_stuck = why_stuck
        self._timeout = timeout
        self._in_order = True
        """Whether the order of calls is the order of deadlines."""
        self._loop: asyncio.AbstractEventLoop
        self.timer: asyncio.TimerHandle | None = None
        """The timer, or None. While a timer is set, `watch()` need not be called. `Window` reads this attribute first,
        because that is cheaper than a call for each message."""
        self._due = 0.0
        self._stalled = 0.0
        """How long the event loop stood still, in seconds. The value is kept for the messages that end in a later turn,
        because their errors mention the stall, too."""
        self._ending = False
        """Whether messages with a passed deadline are left in the queue. The next turns of the event loop end them."""
        self._held_up = False
        """Whether `are_due()` has stopped messages from being submitted, although there may have been room for them."""
        self._opened = 0.0
        """When the driver began to take messages (`loop.time()`, in seconds)."""

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begins anew in the given event loop, without a timer."""
        self._loop = loop
        self.timer = None
        self._in_order = True
        self._stalled = 0.0
        self._ending = self._held_up = False

    def opened(self) -> None:
        """Notes that the driver takes messages from now on."""
        self._opened = self._loop.time()

    def watch(self, deadline: float) -> None:
        """Sets the timer for a message with this deadline (`loop.time()`, in seconds), if no timer is set."""
        if self.timer is None:
            self._due = deadline
            self.timer = self._loop.call_at(deadline, self.expire)

    def expect(self, deadline: float) -> None:
        """Prepares the timer for a message whose deadline may come before the deadlines of messages that were sent
        before it."""
        self._in_order = False
        when = min(deadline, self._loop.time() + self._timeout)  # later calls without a timeout have later deadlines
        if self.timer is not None and when < self.timer.when():
            self.stop()
        self.watch(when)

    def stop(self) -> None:
        """Cancels the timer."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def are_due(self) -> bool:
        """Whether a message may still have to be ended because its deadline has passed, for example because the event
        loop stood still. Then nothing may be submitted, because the deadline of the next message may have passed,
        too."""
        due = self._ending or (self.timer is not None and self._due <= self._loop.time())
        self._held_up = self._held_up or due
        return due

    def expire(self) -> None:
        """Ends the messages whose deadline has passed, and sets the timer for the next deadline. After a stall, the
        messages that were handed over end 0.25 s later."""
        self.timer = None
        now = self._loop.time() + CLOCK_RESOLUTION
        most = self._in_flight.limit or self._in_flight.max_count
        room = not self._waiting and self._in_flight.count < most
        looked, stalled = self._stalled > 0, self._stalled or stalled_for(self._due, now)
        self._stalled = 0.0
        late = self._late(now)
        for delivery in late:
            if delivery.done:  # an observer may have ended it meanwhile
                continue
            if stalled and not looked and delivery.state == HANDED:
                self._stalled = stalled  # its confirm may have come in
            else:
                delivery.end(self._error(delivery, room, stalled))
        if self._stalled:
            when: float | None = now + LOOK
        elif self._ending:
            self._stalled, when = stalled, now
        else:
            when = self._next(now)
        if when is not None:
            self.watch(when)

    def _late(self, now: float) -> list[Sending]:
        """Returns the messages whose deadline has passed, as many as may be ended in one turn. Messages that waited are
        removed from the queue."""
        late: list[Sending] = []
        for delivery in self._in_flight.pending:
            if delivery.deadline <= now:
                late.append(delivery)
            elif self._in_order:
                break
        waiting = self._waiting
        most = len(late) + max(FEW, len(waiting) // PARTS)
        held_up, self._ending, self._held_up = self._held_up, False, False
        kept: list[Sending] = []
        while waiting:
            passed = waiting[0].done or waiting[0].deadline <= now
            too_many = passed and len(late) == most
            self._ending = self._ending or too_many
            if self._in_order and (too_many or not passed):  # and those after it wait, too
                break
            (late if passed and not too_many else kept).append(waiting.popleft())
        waiting.extendleft(reversed(kept))
        if waiting and (held_up or not self._in_order):
            self._in_flight.on_room()  # a message that ended may have been the only one without room
        return late

    def _next(self, now: float) -> float | None:
        """When the timer must fire next. None: there is no message."""
        some = (self._in_flight.pending, self._waiting)
        if self._in_order:
            return min((next(iter(messages)).deadline for messages in some if messages), default=None)
        first = min((delivery.deadline for messages in some for delivery in messages), default=None)
        if first is None:
            self._in_order = True
            return None
        # The next look comes after ten times the time that this one took. So looks use at most a tenth of the time.
        return max(min(first, now + self._timeout), now + 10 * (self._loop.time() + CLOCK_RESOLUTION - now))

    def _error(self, delivery: Sending, room: bool, stalled: float) -> DeliveryError:
        """The error for a message that has no outcome at its deadline. The first reason that applies is used."""
        if delivery.state == HANDED:
            known = self._known(delivery, handed=True)
            if isinstance(known, DeliveryUnknownError):
                return told_with_stall(known, stalled)
            return DeliveryTimeoutError(
                because_of_a_stall("the broker did not confirm the message before the deadline", stalled)
            )
        reason = self._why_not_taken() or self._known(delivery, handed=False)
        if isinstance(reason, NotDeliveredError):
            return told_with_stall(reason, stalled)
        text = self._why_stuck(delivery) if delivery.state == QUEUED else None
        if text is not None:
            pass
        elif delivery.deadline - self._opened < self._opened - delivery.began:
            text = (
                "the broker took no messages until shortly before the deadline: there was no connection, or the broker "
                "was blocked; send again, or raise delivery_timeout"
            )
        elif room:
            text = (
                "the broker did not take the message before the deadline: it takes nothing for this topic, or for a "
                "part of the topic, at the moment; send again later, or raise delivery_timeout"
            )
        else:
            text = (
                "there was no room in flight before the deadline: messages come faster than the broker confirms them; "
                "send fewer at a time, or raise delivery_timeout or max_in_flight"
            )
        return BackpressureError(because_of_a_stall(text, stalled))

    def _known(self, delivery: Sending, *, handed: bool) -> DeliveryError | None:
        try:
            return self._why_late(delivery, handed=handed)
        except Exception as error:
            self._in_flight.breaches.add("why_late", f"raised {type(error).__name__}", delivery.message_id, error)
            return None
