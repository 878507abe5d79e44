"""How callers get their outcomes: the delivery that a `send_message` call awaits, and the deliveries of a
`send_messages` call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context
from itertools import repeat
from typing import Any

from cqrs_brokers.exceptions import DeliveryError
from cqrs_brokers.protocol import Message, Receipt, raw_id

from .delivery import QUEUED, Sending
from .in_flight import InFlight
from .wakeups import Wakeups

__all__ = ["AwaitedDelivery", "BulkDelivery", "BulkOutcomes"]


class AwaitedDelivery(Sending):
    """The delivery that a `send_message` call awaits. The asyncio task waits for this object as for a future.

    `asyncio.isfuture` returns True for such a delivery. A delivery supports only one use: one task awaits it once. So a
    delivery costs less than an `asyncio.Future`.

    Attributes:
        callback: The function that lets the waiting task continue.
        context: The context in which `callback` is called.
        cancelled: The arguments of the `CancelledError`. None: the task was not cancelled.
        outcome: The outcome, until the caller takes it. If there is an outcome already, do not await the delivery.
    """

    __slots__ = (
        "began",
        "callback",
        "cancelled",
        "context",
        "outcome",
        "_asyncio_future_blocking",
        "_loop",
        "_wakeups",
    )

    def __init__(
        self, message: Message, began: float, deadline: float, size: int, in_flight: InFlight, wakeups: Wakeups
    ) -> None:
        # These lines repeat `Sending.__init__`, because a call for each message takes time.
        self.message = message
        self.topic = message.topic
        self._id = raw_id(message)
        self.began = began
        self.deadline = deadline
        self.done = False
        self.size = size
        self.state = QUEUED
        self._in_flight = in_flight
        self._wakeups = wakeups
        self._loop = wakeups.loop  # asyncio's task reads it of a future without `get_loop()`, which would cost a call
        self._asyncio_future_blocking = True  # asyncio's task reads this attribute of each object that `await` yields
        self.callback: Callable[[Any], object] | None = None
        self.cancelled: tuple[object, ...] | None = None
        self.outcome: Receipt | DeliveryError | None = None

    def _resolve(self, outcome: Receipt | DeliveryError) -> None:
        if self.cancelled is None:
            self.outcome = outcome
            if self.callback is not None:  # the lines below repeat `wake_soon`: a call for each message takes time
                wakeups = self._wakeups
                if not wakeups.due:
                    wakeups.expect()
                wakeups.due.append(self)

    def __await__(self) -> Generator[Any, None, None]:
        # It yields this object once. A generator would be one more large object per message for the garbage collector.
        return repeat(self, 1)  # type: ignore[return-value] # `await` needs an iterator only

    def wake_soon(self) -> None:
        """Asks `Wakeups` to wake the task that awaits this delivery. Tasks are woken in the order of these calls."""
        wakeups = self._wakeups
        if not wakeups.due:
            wakeups.expect()
        wakeups.due.append(self)

    # -- what asyncio's task calls ------------------------------------------------------------------------------------

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context) -> None:
        """Stores the callback that wakes the task."""
        self.callback = callback
        self.context = context

    def result(self) -> None:
        """Raises `CancelledError` if the task was cancelled. This method returns None; the caller reads the attribute
        `outcome`."""
        if self.cancelled is not None:
            raise asyncio.CancelledError(*self.cancelled)

    def cancel(self, msg: object = None) -> bool:
        """Wakes the task, because the task is cancelled. If there is an outcome, or if the task was cancelled before,
        nothing happens."""
        if self.outcome is not None or self.cancelled is not None:
            return False
        self.cancelled = () if msg is None else (msg,)
        self.wake_soon()
        return True


class BulkOutcomes:
    """The outcomes of one `send_messages` call. The call waits for a single future, not for one future per message."""

    __slots__ = ("outcomes", "left", "future", "began")

    def __init__(self, future: asyncio.Future[None], began: float) -> None:
        self.began = began
        """When the call began (`loop.time()`, in seconds)."""
        self.outcomes: list[Any] = []
        self.left = 1
        """How many deliveries have no outcome, plus 1 while more deliveries may be added."""
        self.future = future

    def finish(self) -> None:
        """Wakes the caller, because every delivery has its outcome. If the caller was cancelled, nothing happens."""
        if not self.future.done():
            self.future.set_result(None)


class BulkDelivery(Sending):
    """One of the deliveries of a `send_messages` call.

    Attributes:
        bulk: The outcomes of that call.
    """

    __slots__ = ("bulk", "_index")

    def __init__(
        self, message: Message, deadline: float, size: int, in_flight: InFlight, bulk: BulkOutcomes, index: int
    ) -> None:
        Sending.__init__(self, message, deadline, size, in_flight)  # `super()` would more than double its cost
        self.bulk = bulk
        self._index = index

    @property
    def began(self) -> float:  # type: ignore[override]
        """When the call began (`loop.time()`, in seconds)."""
        return self.bulk.began

    def _resolve(self, outcome: Receipt | DeliveryError) -> None:
        bulk = self.bulk
        bulk.outcomes[self._index] = outcome
        bulk.left -= 1
        if not bulk.left:
            bulk.finish()
