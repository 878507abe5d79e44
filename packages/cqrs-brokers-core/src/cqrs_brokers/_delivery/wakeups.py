"""Callers of `send_message` are woken together: one callback wakes all whose outcomes came in one turn of the loop.

`asyncio.Future` would need one callback for each caller. With 1 000 sends at a time the one callback saves a tenth of
the time for a message.
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
        callback: Lets the task go on. None after it was called.
        context: The context in which it is called.
    """

    callback: Callable[[Any], object] | None
    context: Context

    def wake_soon(self) -> None:
        """Wakes the task; `Wakeups` says when. Tasks are woken in the order of these calls."""


class Wakeups:
    """The deliveries whose tasks are to be woken: in the event loop's next turn, or at the end of `after`.

    Args:
        loop: The event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.due: list[_Sleeper] = []
        """The deliveries, in the order in which their tasks are woken. Before the first is added, `expect()` must be
        called."""
        self._held = False
        """Whether `after` calls `_wake()`, not the loop."""

    def after(self, handler: Callable[..., object], *args: object) -> None:
        """Calls the handler, and then wakes the tasks that got their outcomes in it. See `Link.wake_after`."""
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
        """Wakes the tasks."""
        due, self.due = self.due, []
        waking = iter(due)
        try:
            for sleeper in waking:
                callback, sleeper.callback = sleeper.callback, None
                sleeper.context.run(callback, sleeper)  # type: ignore[arg-type] # each of them has a callback
        finally:  # a task that raises KeyboardInterrupt or SystemExit ends this turn: the others are woken later
            for sleeper in waking:
                sleeper.wake_soon()
