"""The deadlines of all messages: when one has passed, what its caller is told.

One timer serves them all, not one timeout each: with one timeout for all messages, the order of calls is the order of
deadlines.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable

from cqrs_brokers.exceptions import BackpressureError, DeliveryError, DeliveryTimeoutError, NotDeliveredError

from .delivery import HANDED, Sending
from .in_flight import InFlight

__all__ = ["Deadlines"]

CLOCK_RESOLUTION = 0.001
"""The event loop fires a timer up to this early, in seconds."""


class Deadlines:
    """Ends messages at their deadlines.

    Args:
        in_flight: The messages that the driver holds.
        waiting: The messages that wait for a place, in the order of calls.
        why_not_taken: Why the broker takes nothing now, or None when it does.
    """

    def __init__(
        self,
        in_flight: InFlight,
        waiting: collections.deque[Sending],
        why_not_taken: Callable[[], NotDeliveredError | None],
    ) -> None:
        self._in_flight = in_flight
        self._waiting = waiting
        self._why_not_taken = why_not_taken
        self._loop: asyncio.AbstractEventLoop
        self._timer: asyncio.TimerHandle | None = None
        self.armed = False
        """Whether there is a timer. `watch()` need not be called then; looking is cheaper than a call per message."""

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Starts anew in that event loop."""
        self._loop = loop
        self._timer = None
        self.armed = False

    def watch(self, deadline: float) -> None:
        """There is a message with this deadline (`loop.time()`, in seconds)."""
        if not self.armed:
            self.armed = True
            self._timer = self._loop.call_at(deadline, self.expire)

    def stop(self) -> None:
        """No timer any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self.armed = False

    def expire(self) -> None:
        """Ends the messages whose deadline has passed, and waits for the next deadline."""
        self._timer = None
        self.armed = False
        now = self._loop.time() + CLOCK_RESOLUTION
        pending, waiting = self._in_flight.pending, self._waiting
        room = not waiting and self._in_flight.count < self._in_flight.max_count
        late = []
        for delivery in pending:
            if delivery.deadline > now:
                break
            late.append(delivery)
        for delivery in late:
            if not delivery.done:  # an observer may have ended it meanwhile
                delivery.end(self._error(delivery, room))
        while waiting and (waiting[0].done or waiting[0].deadline <= now):
            delivery = waiting.popleft()
            if not delivery.done:
                delivery.end(self._error(delivery, room))
        heads = [next(iter(some)).deadline for some in (pending, waiting) if some]
        if heads:
            self.watch(min(heads))

    def _error(self, delivery: Sending, room: bool) -> DeliveryError:
        """The first that applies."""
        if delivery.state == HANDED:
            return DeliveryTimeoutError("the broker did not confirm it before the deadline")
        reason = self._why_not_taken()
        if reason is not None:
            return reason
        if room:
            return BackpressureError(
                "the broker did not take it until the deadline: it takes nothing for this topic, or part of it, at the "
                "moment; send again later, or raise delivery_timeout"
            )
        return BackpressureError(
            "no room until the deadline: messages come faster than the broker confirms them; send fewer at a time, "
            "or raise delivery_timeout or max_in_flight"
        )
