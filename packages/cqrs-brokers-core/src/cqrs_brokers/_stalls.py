"""What to do when a timer fires late because the event loop stood still.

The loop stands still while a laptop sleeps, while a virtual machine or function is frozen, and during a blocking call.
When it goes on, timers fire at once, while the broker's answers still wait in the socket. So the loop gets a moment to
read them before a timeout counts.
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
"""A timer that is later than this, in seconds, means that the loop stood still. A shorter delay means only a busy
loop."""
LOOK = 0.25
"""How long the loop, after it stood still, gets to read what came in, in seconds."""


def stalled_for(due: float, now: float) -> float:
    """For how long the event loop stood still, in seconds. It is 0 if the timer that was due at `due` fires in time."""
    return now - due if now - due > _LATE else 0.0


def because_of_a_stall(text: str, stalled: float) -> str:
    """The text of an error, with the stall if there was one (in seconds)."""
    return f"{text} (the event loop of this process stood still for {stalled:.1f} s)" if stalled else text


def told_with_stall(error: E, stalled: float) -> E:
    """The error, with the stall in its text. Without a stall it is the same object. With a stall it is a copy, because
    the owner of the error may use it for other messages."""
    if not stalled:
        return error
    told = copy.copy(error)
    told.text = because_of_a_stall(error.text, stalled)
    told.__cause__ = error.__cause__
    return told


class StallWatch:
    """Measures for how long the event loop stands still in a `with` block.

    A driver has timeouts of its own. After a stall they end before the answers are read. So the driver's error does
    not name the stall, and says that the broker did not answer.

    Attributes:
        stalled: How long the loop stood still until now, in seconds. Short delays of a busy loop do not count.
        longest: The longest standstill, in seconds.
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
    """For drivers: like `asyncio.timeout`, for a request whose answer may already be in the socket.

    After a laptop has slept, or a function was frozen, the timer fires late. Then the event loop gets a quarter of a
    second to read the answers that came in meanwhile, before the timeout counts.

        async with patient_timeout(5.0):
            await client.declare(queue)

    Args:
        seconds: Seconds until the block is ended.

    Raises:
        TimeoutError: The block was ended.
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
    """Waits for a future, and 0.25 s longer if the event loop stood still. It neither cancels the future nor raises the
    future's error.

    Args:
        future: What to wait for.
        timeout: Seconds, at most; None: unbounded.

    Returns:
        For how long the loop stood still, in seconds, if the timeout came late.
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
