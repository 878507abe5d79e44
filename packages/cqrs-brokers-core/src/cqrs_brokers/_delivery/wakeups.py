"""Wakes the callers of `send_message` together. One callback of the event loop wakes all callers whose outcomes came in
the same turn of the loop.

`asyncio.Future` would need one callback for each caller. With 1 000 sends at a time, a single callback for all saves a
tenth of the time that each message takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any, Protocol

__all__ = ["Wakeups"]


class _Sleeper(Protocol):
    """A delivery that a task awaits.

    Attributes:
        callback: The function that lets the waiting task continue. None: it was called.
        context: The context in which `callback` is called.
        cancelled: The arguments of the `CancelledError`. None: the task was not cancelled.
    """

    cancelled: tuple[object, ...] | None
    callback: Callable[[Any], object] | None
    context: Context

    def wake_soon(self) -> None:
        """Asks `Wakeups` to wake the task. Tasks are woken in the order of these calls."""


class Wakeups:
    """The deliveries whose tasks must be woken. The tasks are woken in the event loop's next turn, or at the end of
    `after`.

    Args:
        loop: The event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._success = loop.create_future()
        """Tasks that were not cancelled are woken with this future, which has a result. asyncio's task asks for the
        result. A call is necessary for this if the object is not asyncio's own future, for example a delivery."""
        self._success.set_result(None)
        self.due: list[_Sleeper] = []
        """The deliveries, in the order in which their tasks are woken. Before the first delivery is added, `expect()`
        must be called."""
        self._held = False
        """Whether `after` will call `_wake()`. If not, the event loop calls it."""

    def after(self, handler: Callable[..., object], *args: object) -> None:
        """Calls the handler, and then wakes the tasks whose outcomes came while the handler ran (see
        `Link.wake_after`). If a task is running, or other tasks wait to be woken, the event loop wakes all these tasks
        in its next turn."""
        if self.due or asyncio.current_task(self.loop) is not None:  # a task cannot go on inside another task
            handler(*args)
            return
        self._held = True
        try:
            handler(*args)
        finally:
            self._held = False
            self._wake()

    def expect(self) -> None:
        """Asks the loop to call `_wake()`, unless `after` calls it."""
        if not self._held:
            self.loop.call_soon(self._wake)

    def _wake(self) -> None:
        due, self.due = self.due, []
        waking = iter(due)
        try:
            for sleeper in waking:
                callback, sleeper.callback = sleeper.callback, None
                future = self._success if sleeper.cancelled is None else sleeper
                sleeper.context.run(callback, future)  # type: ignore[arg-type] # each of them has a callback
        finally:  # a task that raises KeyboardInterrupt or SystemExit ends this turn: the others are woken later
            for sleeper in waking:
                sleeper.wake_soon()
