"""Closes a broker: flushes the accepted messages, gives a true outcome to the messages that are left, and ends every
task. A close always ends within a limited time.

flush until the deadline of the close → end what is left → stop the supervisor → close the driver → abort it when it is
late
"""

from __future__ import annotations

import asyncio
import logging
import math

from cqrs_brokers._delivery.window import Window
from cqrs_brokers._stalls import LOOK, stalled_for
from cqrs_brokers.exceptions import BrokerClosedError, ClosedWhilePendingError

from .connection import FORCED_CLOSE, Connection, State

__all__ = ["Closing", "checked_timeout"]

logger = logging.getLogger("cqrs_brokers.closing")

UNAWAITED = 1.0
"""A close waits for messages whose callers were all cancelled only until this many seconds after its beginning. Most of
these messages are confirmed in that time, and an interrupted program still ends soon."""
LOOK_AGAIN = 0.05
"""A close checks at intervals of this many seconds whether its deadline was shortened."""


def checked_timeout(timeout: float | None) -> None:
    """Checks the timeout of a `close()`, before anything is closed. A timeout below 0 means 0.

    Raises:
        TypeError: The timeout is not a number.
        ValueError: The timeout is NaN.
    """
    if timeout is None:
        return
    if not isinstance(timeout, int | float) or isinstance(timeout, bool):
        raise TypeError(f"close() takes a timeout in seconds, not a {type(timeout).__name__}: nothing was closed")
    if math.isnan(timeout):
        raise ValueError("close() takes a timeout in seconds, not NaN: nothing was closed")


class Closing:
    """One close, which all callers of `close()` share. A later caller can only shorten the close."""

    def __init__(self, loop: asyncio.AbstractEventLoop, window: Window, connection: Connection, timeout: float) -> None:
        self.loop = loop
        self._window = window
        self._connection = connection
        self._by = loop.time() + timeout
        self._unawaited_by = loop.time() + UNAWAITED
        self._task = loop.create_task(self._run(), name=f"cqrs-brokers close {connection.address}")

    def shorten(self, timeout: float) -> None:
        """Gives the close at most this many seconds from now, unless its deadline is earlier anyway."""
        self._by = min(self._by, self.loop.time() + timeout)

    async def wait(self) -> None:
        """Waits until the close has ended. If the caller is cancelled meanwhile, the deadline of the close is now, and
        this method raises `CancelledError` after at most 1.3 s."""
        try:
            await asyncio.wait((self._task,))
        except asyncio.CancelledError:
            self.shorten(0)
            await asyncio.wait((self._task,), timeout=FORCED_CLOSE + 0.5)
            raise

    async def _run(self) -> None:
        window, connection = self._window, self._connection
        while not window.is_empty and connection.state is not State.FAILED:
            now = self.loop.time()
            by = self._by if window.is_awaited else min(self._by, self._unawaited_by)
            if now >= by and stalled_for(by, now):  # the answers that came in meanwhile are read first
                await window.drained(LOOK)
            if now >= by or await window.drained(min(by - now, LOOK_AGAIN)):
                break
        unknown = window.settle(
            ClosedWhilePendingError("the broker was closed before the message was confirmed: give close() more time"),
            self._not_sent(),
        )
        if unknown:
            ids = ", ".join(str(d.message_id) for d in unknown[:10])
            more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
            logger.warning("closed %s with messages whose outcome is unknown: %s%s", connection.address, ids, more)
        window.stop()
        try:
            await connection.stop()
            await connection.close_driver(max(0.0, self._by - self.loop.time()))
        except asyncio.CancelledError:  # the event loop ends meanwhile
            connection.drop()
            raise

    def _not_sent(self) -> BrokerClosedError:
        why = self._connection.last_error
        no_connection = "" if why is None else f"; there was no connection: {why.text}"
        error = BrokerClosedError(f"the broker was closed before the message was sent{no_connection}")
        error.__cause__ = why
        return error
