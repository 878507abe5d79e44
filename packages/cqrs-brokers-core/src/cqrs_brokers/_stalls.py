"""Handles timers that fire late because the event loop stood still.

The loop stands still while its process is frozen (for example a serverless function), and during a blocking call. Such
a standstill is called a *stall*. When the loop runs again, the timers that are due fire at once, although the broker's
answers still wait in the socket. So the loop first gets a moment to read these answers. A timeout counts only after
this moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import AsyncIterator
from typing import Any, Self, TypeVar

from .exceptions import BrokerError

__all__ = [
    "LOOK",
    "StallWatch",
    "because_of_a_stall",
    "patient_timeout",
    "stalled_for",
    "told_with_stall",
    "wait_patiently",
]

E = TypeVar("E", bound=BrokerError)

_LATE = 0.2
"""If a timer fires more than this many seconds late, the loop stood still. A shorter delay only means that the loop is
busy."""
LOOK = 0.25
"""After a stall, the loop gets this many seconds to read the answers that came in meanwhile."""


def stalled_for(due: float, now: float) -> float:
    """How long the event loop stood still, in seconds. The result is 0 if the timer for the time `due` is not more than
    0.2 s late."""
    return now - due if now - due > _LATE else 0.0


def because_of_a_stall(text: str, stalled: float) -> str:
    """The text of an error. If there was a stall, the text also says how many seconds the event loop stood still."""
    return f"{text} (the event loop of this process stood still for {stalled:.1f} s)" if stalled else text


def told_with_stall(error: E, stalled: float) -> E:
    """The error, with the stall in its text. If there was no stall, the result is the same object. If there was a
    stall, the result is a copy, because the original may be used for other messages."""
    if not stalled:
        return error
    told = copy.copy(error)
    told.text = because_of_a_stall(error.text, stalled)
    told.__cause__ = error.__cause__
    return told


class StallWatch:
    """Measures how long the event loop stands still while a `with` block runs.

    A driver has timeouts of its own. After a stall these timeouts end before the loop has read the broker's answers.
    The driver's error then says that the broker did not answer, and does not mention the stall.

    Attributes:
        stalled: How long the loop has stood still in this block, all stalls together, in seconds. Delays of at most 0.2
            s do not count.
        longest: The longest single stall, in seconds.
    """

    def __init__(self) -> None:
        self.stalled = self.longest = 0.0
        self._loop = asyncio.get_running_loop()
        self._due = 0.0
        self._timer: asyncio.TimerHandle

    def __enter__(self) -> Self:
        self._watch()
        return self

    def __exit__(self, *_: object) -> None:
        self._look()
        self._timer.cancel()

    def _watch(self) -> None:
        self._due = self._loop.time() + _LATE / 2
        self._timer = self._loop.call_at(self._due, self._fire)

    def _look(self) -> None:
        now = stalled_for(self._due, self._loop.time())
        self.stalled += now
        self.longest = max(self.longest, now)

    def _fire(self) -> None:
        self._look()
        self._watch()


@contextlib.asynccontextmanager
async def patient_timeout(seconds: float) -> AsyncIterator[None]:
    """Ends a block after a timeout, as `asyncio.timeout` does. Drivers use this function for a request whose answer may
    already be in the socket.

    After the process was frozen, or after a blocking call, the timer fires late. If it is more than 0.2 s late, the
    event loop first gets a quarter of a second to read the answers that came in meanwhile. The block is ended only
    after this time.

        async with patient_timeout(5.0):
            await client.declare(queue)

    Args:
        seconds: The block is ended after this many seconds.

    Raises:
        TimeoutError: The block took longer, and was ended.
    """
    loop = asyncio.get_running_loop()
    due = loop.time() + seconds
    limit = asyncio.timeout(None)

    def fire() -> None:
        now = loop.time()
        limit.reschedule(now + LOOK if stalled_for(due, now) else now)

    timer = loop.call_at(due, fire)
    try:
        async with limit:
            yield
    finally:
        timer.cancel()


async def wait_patiently(future: asyncio.Future[Any], timeout: float | None) -> float:
    """Waits for a future until the timeout. If a stall of the event loop makes the timeout late, this function waits
    0.25 s longer. The function does not cancel the future, and does not raise the future's error.

    Args:
        future: What to wait for.
        timeout: The longest wait, in seconds. None: there is no limit.

    Returns:
        How long the loop stood still, in seconds. The result is 0 unless the wait ended more than 0.2 s after the
        timeout.
    """
    if timeout is None:
        await asyncio.wait((future,))
        return 0.0
    loop = asyncio.get_running_loop()
    due = loop.time() + timeout
    await asyncio.wait((future,), timeout=timeout)
    stalled = stalled_for(due, loop.time())
    if stalled and not future.done():
        await asyncio.wait((future,), timeout=LOOK)
    return stalled
