"""Keeps a driver connected: one supervisor per `Broker`, the only task that lives as long as the connection.

IDLE ──first send / connect()──▶ CONNECTING ──ok──▶ READY ──lost──▶ CONNECTING …
  ▲                                 │  ▲
  │                                 │  └── backoff of 0.1 s to 1 s, jittered
  ├── nobody waits for it ──────────┤
  └── 5 s ── FAILED ◀── permanent ──┘                    any ──close()──▶ CLOSED
"""

from __future__ import annotations

import asyncio
import enum
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from cqrs_brokers.driver import Driver
from cqrs_brokers.exceptions import BrokerError, BrokerStateError, ConnectError, NotConnectedError, UnreachableError
from cqrs_brokers.tasks import retrieve_exception

__all__ = ["Connection", "Host", "State"]

logger = logging.getLogger("cqrs_brokers.connection")

FIRST_DELAY = 0.1
LONGEST_DELAY = 1.0
RETRY_AFTER_PERMANENT = 5.0
OWN_TIMEOUT_SLACK = 0.5
"""A driver that bounds its own attempt by connect_timeout, with a better hint, goes first."""


class State(enum.Enum):
    IDLE = "idle"
    CONNECTING = "connecting"
    READY = "ready"
    FAILED = "failed"
    CLOSED = "closed"


class Host(Protocol):
    """What the supervisor needs of the `Broker`."""

    def connection_open(self, is_open: bool) -> None:
        """The driver takes messages now, or does not."""

    def connection_failed(self, error: NotConnectedError) -> None:
        """What waits would wait in vain."""

    def connection_dropped(self) -> None:
        """The event loop is ending without close()."""

    def anyone_waits(self) -> bool:
        """Whether there is a message that is not handed over."""

    def connection_changed(self, state: str, reason: str) -> None:
        """For the observers."""


class Connection:
    """The supervisor, and the link that the driver reports to.

    Args:
        driver: What to keep connected.
        host: Who is told.
        address: The broker's redacted URL, for errors and the log.
        timeout: The bound on each attempt, in seconds.
        retry_count: After how many failed attempts in a row waiting sends fail; None: they wait for their deadlines.
        retry_delay: Seconds between attempts; None: 0.1 to 1, doubling, jittered.
    """

    def __init__(
        self,
        driver: Driver,
        host: Host,
        *,
        address: str,
        timeout: float,
        retry_count: int | None,
        retry_delay: float | None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._driver = driver
        self._host = host
        self._address = address
        self._timeout = timeout
        self._retry_count = retry_count
        self._retry_delay = retry_delay
        self._jitter = jitter
        self.state = State.IDLE
        self.last_error: ConnectError | None = None
        self.blocked_by: str | None = None
        self.throttled_by: str | None = None
        """Why the broker takes no messages now, while it is connected."""
        self._task: asyncio.Task[None] | None = None
        self._attempt: asyncio.Task[None] | None = None
        self._lost: asyncio.Future[ConnectError] | None = None
        self._wake: asyncio.Future[None] | None = None
        self._passes: list[asyncio.Future[BrokerError | None]] = []
        self._retry_at = 0.0
        self._engaged = False
        """Whether the driver may hold a connection."""
        driver.bind(self)

    # -- what the driver says (Link) ----------------------------------------------------------------------------------

    def lost(self, error: ConnectError) -> None:
        """See `Link.lost`."""
        if self._lost is not None and not self._lost.done():
            self._host.connection_open(False)
            self._lost.set_result(error)

    def reconnecting(self, error: ConnectError | None) -> None:
        """See `Link.reconnecting`."""
        if self.state is not State.READY or (error is None and self.last_error is None):
            return
        known, self.last_error = self.last_error, error
        if error is None:
            self._host.connection_changed("connected", "")
        else:
            error.broker = error.broker or self._address
            if known is None:
                logger.warning("the client of %s is reconnecting: %s", self._address, error.text)
                self._host.connection_changed("reconnecting", error.text)

    def blocked(self, reason: str) -> None:
        """See `Link.blocked`."""
        self._block(reason)

    def unblocked(self) -> None:
        """See `Link.unblocked`."""
        self._block(None)

    def throttled(self, reason: str | None) -> None:
        """See `Link.throttled`."""
        if self.state is not State.READY:
            return
        before, self.throttled_by = self.throttled_by, reason
        if (before is None) != (reason is None):
            self._host.connection_changed("unthrottled" if reason is None else "throttled", reason or "")

    def _block(self, reason: str | None) -> None:
        if self.blocked_by == reason or self.state not in (State.READY, State.CONNECTING):
            return
        self.blocked_by = reason
        if self.state is State.CONNECTING:
            return
        self._host.connection_open(reason is None)
        self._host.connection_changed("unblocked" if reason is None else "blocked", reason or "")

    # -- what Broker asks ---------------------------------------------------------------------------------------------

    def want(self, loop: asyncio.AbstractEventLoop) -> NotConnectedError | None:
        """A message waits: starts connecting unless that is under way.

        Returns:
            The error when waiting is useless because connecting failed for good a moment ago.
        """
        if self._task is None:
            if self.state is State.FAILED and loop.time() < self._retry_at:
                return self.why_not_connected()
            self._start(loop)
        return None

    async def connect(self, loop: asyncio.AbstractEventLoop) -> None:
        """Waits for one pass over all hosts.

        Raises:
            ConnectError: The pass failed.
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
        """Asks the connected broker whether it is alive, in a task of ours: a client's stray cancellation stays there.

        Raises:
            ConnectError: It is not, or does not say within the timeout (in seconds).
        """
        error = await self._bounded(self._driver.ping(), timeout, "it does not answer a ping")
        if error is not None:
            raise error

    def why_not_connected(self) -> NotConnectedError:
        """The error for a message that finds no connection; its cause is the last `ConnectError`."""
        cause = self.last_error
        if cause is None:
            error = NotConnectedError(f"there was no connection yet: still connecting to {self._address}")
        else:
            error = NotConnectedError(f"not connected: {cause.text}")
            error.__cause__ = cause
            error.retryable = cause.retryable
        return error

    # -- the supervisor -----------------------------------------------------------------------------------------------

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        # The state changes now, not when the task first runs: what is asked in between must see it.
        self.state = State.CONNECTING
        self._engaged = True
        task = self._task = loop.create_task(self._supervise(loop), name=f"cqrs-brokers connection to {self._address}")
        # A loop that is closed without cancelling its tasks would report this one as destroyed, beside the
        # ResourceWarning that names the broker and the cure.
        task._log_destroy_pending = False  # type: ignore[attr-defined]

    async def _supervise(self, loop: asyncio.AbstractEventLoop) -> None:
        me = asyncio.current_task()
        try:
            await self._keep_connected(loop)
        except asyncio.CancelledError:
            if self.state is not State.CLOSED:  # asyncio.run() ends, or somebody cancels every task
                self._drop()
                self._host.connection_dropped()
            raise
        finally:
            # A supervisor whose loop was closed may be collected long after another one has taken its place.
            if self._task is me:
                self._task = self._lost = self._wake = None

    async def _keep_connected(self, loop: asyncio.AbstractEventLoop) -> None:
        was_ready = False
        failures = 0
        while True:
            self.state = State.CONNECTING
            self._host.connection_changed("connecting", "")
            self._lost = loop.create_future()
            error = await self._connect_once()
            if error is None:
                was_ready, failures = True, 0
                error = await self._ready_until_lost()
            else:
                failures += 1
                self._end_passes(error)
            self.last_error = error
            if error.permanent:
                self._fail(loop, error)
                return
            if self._retry_count is not None and failures >= self._retry_count:
                self._host.connection_failed(self.why_not_connected())
                was_ready = False
            if not was_ready and not self._host.anyone_waits() and not self._passes:
                self.state = State.IDLE
                self._host.connection_changed("idle", error.text)
                return
            if failures or not was_ready:
                logger.warning("cannot connect to %s, trying again: %s", self._address, error.text)
            await self._pause(loop, failures)

    async def _connect_once(self) -> ConnectError | None:
        timeout = self._timeout + OWN_TIMEOUT_SLACK
        what = f"no answer within {self._timeout:g} s: check the address, the network and the broker"
        return await self._bounded(self._driver.connect(), timeout, what)

    async def _bounded(self, work: Coroutine[Any, Any, None], timeout: float, silence: str) -> ConnectError | None:
        """Runs the driver's work in a task of its own: its cancellations are not ours, and ours reach it."""
        task = self._attempt = asyncio.get_running_loop().create_task(work)
        task._log_destroy_pending = False  # type: ignore[attr-defined] # as the supervisor, which owns it
        task.add_done_callback(retrieve_exception)
        try:
            await asyncio.wait((task,), timeout=timeout)
        except asyncio.CancelledError:
            await self._end_attempt(task)
            raise
        await self._end_attempt(task)
        error: ConnectError
        if not task.done():
            return UnreachableError(silence, broker=self._address)
        if task.cancelled():
            return UnreachableError(silence, broker=self._address)
        raised = task.exception()
        if raised is None:
            return None
        if isinstance(raised, ConnectError):
            error = raised
            error.broker = error.broker or self._address
        else:
            error = ConnectError(f"the driver raised an unclassified {type(raised).__name__}", broker=self._address)
            error.__cause__ = raised
        return error

    async def _end_attempt(self, task: asyncio.Task[None]) -> None:
        if not task.done():
            task.cancel()
            await asyncio.wait((task,), timeout=0.4)
            if not task.done():
                logger.error("the driver of %s does not let itself be cancelled", self._address)
        if self._attempt is task:
            self._attempt = None

    async def _ready_until_lost(self) -> ConnectError:
        assert self._lost is not None
        self.state = State.READY
        self.last_error = None
        self._host.connection_changed("connected", "")
        self._end_passes(None)
        if not self._lost.done() and self.blocked_by is None:  # both may have happened since the driver returned
            self._host.connection_open(True)
        error = await self._lost
        error.broker = error.broker or self._address
        self.state = State.CONNECTING
        self.blocked_by = self.throttled_by = None
        self.last_error = error
        self._host.connection_open(False)
        self._host.connection_changed("lost", error.text)
        logger.warning("lost the connection to %s: %s", self._address, error.text)
        return error

    def _fail(self, loop: asyncio.AbstractEventLoop, error: ConnectError) -> None:
        self.state = State.FAILED
        self._retry_at = loop.time() + RETRY_AFTER_PERMANENT
        logger.error("cannot connect to %s, not trying again by itself: %s", self._address, error.text)
        self._host.connection_changed("failed", error.text)
        self._host.connection_failed(self.why_not_connected())
        self._end_passes(error)

    def _end_passes(self, error: BrokerError | None) -> None:
        passes, self._passes = self._passes, []
        for outcome in passes:
            if not outcome.done():
                outcome.set_result(error)

    async def _pause(self, loop: asyncio.AbstractEventLoop, failures: int) -> None:
        if self._passes:
            return
        if self._retry_delay is not None:
            delay = self._retry_delay
        else:
            delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** max(0, failures - 1)) * (0.5 + self._jitter() / 2)
        self._wake = loop.create_future()
        await asyncio.wait((self._wake,), timeout=delay)
        self._wake = None

    # -- the end ------------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Ends the supervisor and its attempt. The driver is not closed here."""
        self.state = State.CLOSED
        self._end_passes(BrokerStateError("the broker was closed while it connected", broker=self._address))
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.wait((task,), timeout=0.5)
        self.state = State.CLOSED

    def drop(self) -> None:
        """The event loop is closed: forgets its tasks without I/O."""
        self._task = self._attempt = self._lost = self._wake = None
        self._passes.clear()
        self._drop()

    def _drop(self) -> None:
        self.state = State.IDLE
        self.blocked_by = self.throttled_by = None
        self._end_passes(ConnectError("the event loop is ending", broker=self._address))
        if not self._engaged:
            return
        self._engaged = False
        try:
            self._driver.abort()
        except Exception:
            logger.exception("the driver of %s raised in abort()", self._address)
