"""Keeps a driver connected. While a `Broker` connects or is connected, it has one supervisor task. No other task of
`Broker` lives as long as the connection.

IDLE ──first send / connect() / health()──▶ CONNECTING ──ok──▶ READY ──lost──▶ CONNECTING …
  ▲                                            │  │  ▲
  ├── no caller waits for a connection ────────┘  │  ├── next attempt after 0.1 s to 1 s (jittered), or `retry_delay`
  │                                               │  └── connect() / health(), or a send after 5 s ── FAILED
  │                                               └── permanent error ──▶ FAILED
  └── the event loop ends ── any                     any ──close()──▶ CLOSED

This file is longer than 400 lines because the whole state machine is in one place.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any

from cqrs_brokers._config.settings import BrokerSettings
from cqrs_brokers._delivery.in_flight import InFlight
from cqrs_brokers._delivery.window import Window
from cqrs_brokers._stalls import StallWatch, told_with_stall, wait_patiently
from cqrs_brokers.driver import Driver
from cqrs_brokers.exceptions import (
    BrokerBlockedError,
    BrokerError,
    BrokerStateError,
    ConnectError,
    ConnectionLostError,
    NotConnectedError,
    NotDeliveredError,
    ProtocolError,
    TLSError,
    UnreachableError,
)
from cqrs_brokers.tasks import Tasks, retrieve_exception

__all__ = ["Connection", "FORCED_CLOSE", "State"]

logger = logging.getLogger("cqrs_brokers.connection")

FIRST_DELAY = 0.1
LONGEST_DELAY = 1.0
RETRY_AFTER_PERMANENT = 5.0
PROVEN_AFTER = 5.0
"""A connection that has lasted this long (in seconds) counts as good, even if no message was confirmed on it."""
MOST_LINES = 20
"""At most this many different lines are logged in one outage."""
FORCED_CLOSE = 0.8
"""How much longer than `grace` a driver's `close(grace)` may take, in seconds."""
OWN_TIMEOUT_SLACK = 0.5
"""How much longer than `connect_timeout` an attempt may take, in seconds. So the driver's own timeout can end the
attempt first: the driver's error gives a better reason."""
STALL_THAT_MATTERS = 0.5
"""An attempt that failed with an error of `_PERHAPS_LATE` is made again if a single stall of the event loop took more
than this share of `connect_timeout`. Shorter stalls are frequent on a busy machine, and must not double the time of an
attempt."""
_PERHAPS_LATE = (UnreachableError, ProtocolError, TLSError)
"""Errors that may come from a timeout of the driver. Every other error counts as an answer of the broker."""


def _backoff(unproven: int) -> float:
    """The longest pause before the next attempt, in seconds, after `unproven` attempts that gave no good connection."""
    doublings = min(max(0, unproven - 1), 10)  # bounded: an outage of hours must not end in an OverflowError
    return min(LONGEST_DELAY, FIRST_DELAY * 2.0**doublings)


async def _called(method: Callable[..., Coroutine[Any, Any, None]], *args: float) -> None:
    """Calls a method of the driver in the task that awaits it: the method may raise an error before its first await, or
    be no coroutine function."""
    await method(*args)


class State(enum.Enum):
    IDLE = "idle"
    CONNECTING = "connecting"
    READY = "connected"
    FAILED = "failed"
    CLOSED = "closed"


class Connection:
    """The supervisor. It is also the `Link` to which the driver reports what happens to its connection.

    Args:
        driver: The driver to keep connected.
        window: Submits messages while the driver takes them. The messages that were not handed over fail at once after
            a permanent error, and after `retry_count` failed attempts.
        in_flight: The messages that the driver holds. If one of these messages is confirmed, the connection is good.
        settings: `connect_timeout` plus 0.5 s limits each attempt. `retry_count` says after how many failed attempts
            the waiting messages fail. `retry_delay` is the time between two attempts, in seconds. If it is None,
            `_backoff` limits the time.
        changed: Tells the observers the new state and the reason.
        warn: Warns that the event loop is ending without `close()`.
    """

    def __init__(
        self,
        driver: Driver,
        window: Window,
        in_flight: InFlight,
        settings: BrokerSettings,
        *,
        changed: Callable[[str, str], None],
        warn: Callable[[], None],
    ) -> None:
        self._driver = driver
        self._window = window
        self._in_flight = in_flight
        self._settings = settings
        self._changed = changed
        self._warn = warn
        self._breaches = in_flight.breaches
        self.address = in_flight.address
        self.state = State.IDLE
        self.last_error: ConnectError | None = None
        self.blocked_by: str | None = None
        """Why the broker takes no messages, although it is connected. None: the broker is not blocked."""
        self.throttled_by: str | None = None
        """Why the broker slows this client down. None: the client is not slowed down."""
        self._tasks = Tasks()
        self._task: asyncio.Task[None] | None = None
        self._lost: asyncio.Future[ConnectError] | None = None
        self._wake: asyncio.Future[None] | None = None
        self._passes: list[asyncio.Future[BrokerError | None]] = []
        self._retry_at = 0.0
        self._logged: set[str] = set()
        """The lines that were logged in this outage."""
        self._engaged = False
        """Whether the driver may hold a connection."""
        self.unclosed = False
        """Whether the warning about a broker that nobody closed is due. This is True from the moment when a connection
        takes messages until the broker is closed or the warning was given."""
        driver.bind(self)

    @property
    def described(self) -> str:
        """The state in one word, for `Broker.state`."""
        if self.state is State.READY:
            if self.last_error is not None:
                return "reconnecting"
            if self.blocked_by is not None:
                return "blocked"
            if self.throttled_by is not None:
                return "throttled"
        return self.state.value

    # -- what the driver says (Link) ----------------------------------------------------------------------------------

    def wake_after(self, handler: Callable[..., object], *args: object) -> None:
        """See `Link.wake_after`."""
        self._window.wakeups.after(handler, *args)

    def lost(self, error: ConnectError) -> None:
        """See `Link.lost`."""
        if self._lost is not None and not self._lost.done():
            self._window.open(False)
            self._lost.set_result(error)

    def reconnecting(self, error: ConnectError | None) -> None:
        """See `Link.reconnecting`."""
        if self.state is not State.READY or (error is None and self.last_error is None):
            return
        known, self.last_error = self.last_error, error
        if error is None:
            self._changed("connected", "")
        else:
            error.broker = error.broker or self.address
            if known is None:
                self._log(logging.WARNING, "the client of %s is reconnecting: %s", error)
                self._changed("reconnecting", error.text)

    def blocked(self, reason: str | None) -> None:
        """See `Link.blocked`."""
        if self.blocked_by == reason or self.state not in (State.READY, State.CONNECTING):
            return
        self.blocked_by = reason
        if self.state is State.READY:
            self._open(reason is None)
            self._changed("unblocked" if reason is None else "blocked", reason or "")

    def unblocked(self) -> None:
        """See `Link.unblocked`."""
        self.blocked(None)

    def may_go_on(self) -> None:
        """See `Link.may_go_on`."""
        self._window.try_again()

    def throttled(self, reason: str | None) -> None:
        """See `Link.throttled`."""
        if self.state is not State.READY:
            return
        before, self.throttled_by = self.throttled_by, reason
        if (before is None) != (reason is None):
            self._changed("unthrottled" if reason is None else "throttled", reason or "")

    # -- what Broker asks ---------------------------------------------------------------------------------------------

    def want(self, loop: asyncio.AbstractEventLoop) -> None:
        """Starts to connect, because messages wait. If the supervisor already runs, nothing happens. If connecting
        failed less than 5 s ago with a permanent error, waiting is useless. Then the waiting messages fail at once."""
        if self._task is None:
            if self.state is State.FAILED and loop.time() < self._retry_at:
                self._window.end_not_handed(self._why_not_connected())
            else:
                self._start(loop)

    async def connect(self, loop: asyncio.AbstractEventLoop) -> None:
        """Starts the supervisor if necessary, and waits for one pass over the hosts. If the driver is connected,
        nothing happens.

        Raises:
            ConnectError: The pass failed, or the event loop is ending.
            BrokerStateError: The broker was closed meanwhile.
        """
        if self.state is State.READY:
            return
        outcome: asyncio.Future[BrokerError | None] = loop.create_future()
        self._passes.append(outcome)
        if self._task is None:
            self._start(loop)
        elif self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
        error = await outcome
        if error is not None:
            raise error

    async def ping(self, timeout: float) -> None:
        """Asks the connected broker whether it is alive.

        Raises:
            ConnectError: The broker is not alive, or gives no answer within the timeout (in seconds).
        """
        with StallWatch() as watch:
            error = await self._bounded("ping", self._driver.ping, timeout, "it does not answer a ping")
        if error is not None:
            raise told_with_stall(error, watch.stalled)

    def _why_not_connected(self) -> NotConnectedError:
        """The error for a message while there is no connection. The cause of this error is the last `ConnectError`, if
        there is one."""
        cause = self.last_error
        if cause is None:
            error = NotConnectedError(f"there was no connection yet: still connecting to {self.address}")
        else:
            error = NotConnectedError(f"not connected: {cause.text}")
            error.__cause__ = cause
            error.retryable = cause.retryable
        return error

    def why_not_taken(self) -> NotDeliveredError | None:
        """Why the broker takes no messages now, or None when it takes them."""
        if self.state is not State.READY or self.last_error is not None:
            return self._why_not_connected()
        if self.blocked_by is not None:
            return BrokerBlockedError(
                f"the broker took no messages until the deadline: {self.blocked_by}; send again later"
            )
        return None

    # -- the supervisor -----------------------------------------------------------------------------------------------

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        # The state changes now, not when the task first runs: other calls may come in between.
        self.state = State.CONNECTING
        self._engaged = True
        self._task = self._tasks.spawn(self._supervise(loop), name=f"cqrs-brokers connection to {self.address}")

    async def _supervise(self, loop: asyncio.AbstractEventLoop) -> None:
        me = asyncio.current_task()
        try:
            await self._keep_connected(loop)
        except asyncio.CancelledError:
            if self.state is not State.CLOSED:  # asyncio.run() ends, or somebody cancels every task
                self._drop()
                text = "the event loop is ending, so the connection was dropped: close the broker first"
                self._window.settle(ConnectionLostError(text), NotConnectedError(text))
                self._window.stop()
                self._warn()
            raise
        finally:
            # A supervisor whose loop was closed may be collected long after another one has taken its place.
            if self._task is me:
                self._task = self._lost = self._wake = None

    async def _keep_connected(self, loop: asyncio.AbstractEventLoop) -> None:
        was_ready = False
        failures = 0
        """Failed attempts in a row."""
        unproven = 0
        """Attempts since the last good connection. A connection is good when it has lasted for `PROVEN_AFTER`, or when
        the broker has confirmed a message on it."""
        while True:
            self.state = State.CONNECTING
            self._changed("connecting", "")
            error = await self._connect_once()
            unproven += 1
            if error is None:
                was_ready, failures = True, 0
                since = loop.time()
                self._in_flight.take_confirmed()
                error = await self._ready_until_lost()
                if self._in_flight.take_confirmed() or loop.time() - since >= PROVEN_AFTER:
                    unproven = 0
                    self._logged.clear()
                self._log(logging.WARNING, "lost the connection to %s: %s", error)
            else:
                failures += 1
                self._end_passes(error)
            self.last_error = error
            if error.permanent:
                self._fail(loop, error)
                return
            if self._settings.retry_count is not None and failures >= self._settings.retry_count:
                self._window.end_not_handed(self._why_not_connected())
                was_ready = False
            if not was_ready and self._window.is_empty and not self._passes:
                self.state = State.IDLE
                self._changed("idle", error.text)
                return
            if failures or not was_ready:
                self._log(logging.WARNING, "cannot connect to %s, trying again: %s", error)
            await self._pause(loop, unproven)

    async def _connect_once(self) -> ConnectError | None:
        """Makes one pass over the hosts. A second pass follows if a long stall of the event loop may be the reason why
        the first pass failed: the driver's timeouts may have ended before the loop read the broker's answers."""
        error, stalled = await self._attempt()
        if stalled and isinstance(error, _PERHAPS_LATE):
            error, again = await self._attempt()
            stalled += again
        return told_with_stall(error, stalled) if isinstance(error, _PERHAPS_LATE) else error

    async def _attempt(self) -> tuple[ConnectError | None, float]:
        """Makes one pass over the hosts. Returns the error of the pass, and how long the event loop stood still (in
        seconds). The time is 0 if no stall was long (see `STALL_THAT_MATTERS`)."""
        self._lost = asyncio.get_running_loop().create_future()
        limit = self._settings.connect_timeout
        what = f"no answer within {limit:g} s: check the address, the network and the broker"
        with StallWatch() as watch:
            error = await self._bounded("connect", self._driver.connect, limit + OWN_TIMEOUT_SLACK, what)
        if error is not None:
            self.blocked_by = None  # the driver may have said so of a connection that is given up now
        return error, watch.stalled if watch.longest > limit * STALL_THAT_MATTERS else 0.0

    async def _bounded(
        self, method: str, call: Callable[[], Coroutine[Any, Any, None]], timeout: float, silence: str
    ) -> ConnectError | None:
        """Calls a method of the driver with a timeout, in a separate task. So a client library that cancels its
        current task does not cancel the supervisor."""
        task = self._tasks.spawn(_called(call))
        task.add_done_callback(retrieve_exception)
        try:
            await wait_patiently(task, timeout)
        finally:
            await self._end_attempt(method, task)
        if not task.done() or task.cancelled():
            return UnreachableError(silence, broker=self.address)
        raised = task.exception()
        if raised is None:
            return None
        error = raised
        if not isinstance(error, ConnectError):
            error = ConnectError(f"the driver raised an unclassified {type(raised).__name__}")
            error.__cause__ = raised
        error.broker = error.broker or self.address
        return error

    async def _end_attempt(self, method: str, task: asyncio.Task[None]) -> None:
        if not task.done():
            task.cancel()
            await wait_patiently(task, 0.4)
            if not task.done():
                self._breaches.add(method, "did not end when it was cancelled")

    async def _ready_until_lost(self) -> ConnectError:
        lost = self._lost
        assert lost is not None
        self.state = State.READY
        self.last_error = None
        self._changed("connected", "")
        self._end_passes(None)
        if not lost.done() and self.blocked_by is None:  # both may have changed since `connect()` returned
            self._open(True)
        error = await lost
        error.broker = error.broker or self.address
        self.state = State.CONNECTING
        self.blocked_by = self.throttled_by = None
        self.last_error = error
        self._window.open(False)
        self._changed("lost", error.text)
        return error

    def _open(self, accepting: bool) -> None:
        if accepting:
            self.unclosed = True
        self._window.open(accepting)

    def _fail(self, loop: asyncio.AbstractEventLoop, error: ConnectError) -> None:
        self.state = State.FAILED
        self._retry_at = loop.time() + RETRY_AFTER_PERMANENT
        self._log(logging.ERROR, "cannot connect to %s, not trying again by itself: %s", error)
        self._changed("failed", error.text)
        self._window.end_not_handed(self._why_not_connected())
        self._end_passes(error)

    def _log(self, level: int, text: str, error: ConnectError) -> None:
        """Logs an error only once in an outage, even if many attempts fail with the same error. After `MOST_LINES`
        errors, further errors are not logged."""
        line = text % (self.address, error.text)
        if line not in self._logged and len(self._logged) < MOST_LINES:
            self._logged.add(line)
            logger.log(level, "%s", line)

    def _end_passes(self, error: BrokerError | None) -> None:
        passes, self._passes = self._passes, []
        for outcome in passes:
            if not outcome.done():
                outcome.set_result(error)

    async def _pause(self, loop: asyncio.AbstractEventLoop, unproven: int) -> None:
        if self._passes:
            return
        if self._settings.retry_delay is not None:
            delay = self._settings.retry_delay
        else:
            delay = _backoff(unproven) * random.uniform(0.5, 1.0)  # noqa: S311 - it is no secret
        self._wake = loop.create_future()
        await asyncio.wait((self._wake,), timeout=delay)
        self._wake = None

    # -- the end ------------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Ends the supervisor and its attempt to connect. The driver is not closed here."""
        self.state = State.CLOSED
        self._end_passes(BrokerStateError("the broker was closed while it connected", broker=self.address))
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.wait((task,), timeout=0.5)

    async def close_driver(self, grace: float) -> None:
        """Closes the driver. The driver has `grace` seconds to close gracefully, and 0.8 s more to close by force. If
        the driver is late or raises an error, it is aborted."""
        closing = asyncio.get_running_loop().create_task(_called(self._driver.close, grace))
        closing.add_done_callback(retrieve_exception)
        await wait_patiently(closing, grace + FORCED_CLOSE)
        if not closing.done():
            self._breaches.add("close", "did not end in time; the connection is dropped")
            self._abort()
            closing.cancel()
            await asyncio.wait((closing,), timeout=0.1)
        elif (error := asyncio.CancelledError() if closing.cancelled() else closing.exception()) is not None:
            self._breaches.add("close", f"raised {type(error).__name__}")
            self._abort()

    def drop(self) -> None:
        """Drops the tasks and aborts the driver (if it may hold a connection), without awaiting. The event loop is
        closed, or nobody refers to the broker any more."""
        self._task = self._lost = self._wake = None
        self._passes.clear()
        self._tasks.abort()
        self._drop()

    def _drop(self) -> None:
        self.state = State.IDLE
        self.blocked_by = self.throttled_by = None
        self._end_passes(ConnectError("the event loop is ending", broker=self.address))
        if self._engaged:
            self._engaged = False
            self._abort()

    def _abort(self) -> None:
        try:
            self._driver.abort()
        except Exception as error:
            self._breaches.add("abort", "raised", error=error)
