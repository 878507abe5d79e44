"""`SyncBroker` runs a `Broker` in a thread of its own, for code without an event loop."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import warnings
from typing import Self

from ._broker import Broker
from ._connection.closing import checked_timeout
from .exceptions import BrokerClosedError, BrokerStateError, NotConnectedError, WrongLoopError
from .protocol import MessageLike, Receipt

__all__ = ["SyncBroker"]

FORKED = "this process was forked from the one that used the broker: make a new SyncBroker after the fork"
OWN_THREAD = (
    "{} was called in the SyncBroker's own thread, by an observer or a logging handler: it would wait for itself "
    "forever. Call it in another thread"
)


class SyncBroker:
    """Sends messages from synchronous code: scripts, Django views, Celery tasks, threads.

    The broker runs in a thread with an event loop of its own. The thread starts at the first send, so a `SyncBroker`
    may be made before the process forks. Any number of threads may send at the same time.

        with SyncBroker(open_broker("kafka://localhost:9092")) as broker:
            receipt = broker.send(Message(message_name="OrderPlaced", topic="orders", payload={"id": 1}))

    Args:
        broker: A broker that is used nowhere else.

    Raises:
        TypeError: The argument is not a `Broker`.
    """

    def __init__(self, broker: Broker, /) -> None:
        if not isinstance(broker, Broker):
            raise TypeError(f"SyncBroker takes a Broker, not a {type(broker).__name__}: SyncBroker(open_broker(url))")
        self._broker = broker
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._closed = False
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Future[float | None]

    def send(self, message: MessageLike, timeout: float | None = None) -> Receipt:
        """Sends one message and waits for its outcome.

        Args:
            message: A `Message`, or any other `MessageLike`.
            timeout: The longest time from the call to the outcome, in seconds. None: the broker's `delivery_timeout`.

        Returns:
            The receipt.

        Raises:
            NotDeliveredError: The message is not in the broker, and this call will not put it there. After `close()`
                the error is a `BrokerClosedError`. The error is a `WrongLoopError` in a process that was forked after
                the first send, and in the SyncBroker's own thread, in which observers are called. If this thread cannot
                start, the error is a `NotConnectedError`, and the next send tries to start it again.
            DeliveryUnknownError: The message may be in the broker.
        """
        if self._forked:  # before the lock, which another thread may have held at the fork
            raise self._broker.refuse(message, WrongLoopError(FORKED))
        if threading.current_thread() is self._thread:
            raise self._broker.refuse(message, WrongLoopError(OWN_THREAD.format("send()")))
        self._pid = os.getpid()  # before the lock, which this thread may hold when another thread forks the process
        sending, cause = None, None
        with self._lock:
            try:
                if not self._closed:
                    loop = self._running()
                    sends = self._broker.send_message(message, timeout=timeout)
                    sending = asyncio.run_coroutine_threadsafe(sends, loop)
            except (RuntimeError, OSError) as error:  # no thread, or no file descriptors for an event loop
                cause = error
        if sending is None:  # outside the lock, because observers are told, and they may use this object
            closed = BrokerClosedError("the broker is closed: make a new SyncBroker")
            failed = NotConnectedError(f"the SyncBroker's thread cannot start: {cause}. Send again later")
            raise self._broker.refuse(message, failed if cause else closed) from cause
        try:
            return sending.result()
        except KeyboardInterrupt:
            sending.cancel()
            raise

    def close(self, timeout: float | None = None) -> None:
        """Flushes the accepted messages, closes the connection and ends the thread. This method may be called more than
        once: a later call waits until the first has ended. In a forked child of the process that sent, nothing happens.

        Args:
            timeout: Seconds for flushing and closing. None: the broker's `close_timeout`. The timeout of a later call
                has no effect.

        Raises:
            BrokerStateError: `close()` was called in the SyncBroker's own thread, for example by an observer.
            TypeError: The timeout is not a number.
            ValueError: The timeout is NaN.
        """
        if self._forked:  # the connection and its thread are the parent's
            return
        if threading.current_thread() is self._thread:
            raise BrokerStateError(OWN_THREAD.format("close()"), broker=self._broker.url or self._broker.name)
        checked_timeout(timeout)
        with self._lock:
            thread, first, self._closed = self._thread, not self._closed, True
        if thread is None:
            return
        if first and thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set_result, timeout)
        thread.join()
        atexit.unregister(self._warn)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _forked(self) -> bool:
        return self._pid not in (0, os.getpid())

    def _running(self) -> asyncio.AbstractEventLoop:
        """Returns the event loop of the thread. If the thread does not run, this method starts the thread first."""
        if self._thread is not None and self._thread.is_alive():
            return self._loop
        self._loop = loop = asyncio.new_event_loop()
        self._stop = loop.create_future()

        async def live() -> None:
            await self._broker.close(await self._stop)

        def run() -> None:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(live())

        # A daemon: a program that forgets close() still ends, with a warning.
        thread = threading.Thread(target=run, name="cqrs-brokers", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            loop.close()
            raise
        self._thread = thread
        atexit.unregister(self._warn)
        atexit.register(self._warn)
        return loop

    def _warn(self) -> None:
        if not (self._closed or self._forked):
            text = f"{self._broker!r} was not closed: use `with SyncBroker(…)`, or call close()"
            warnings.warn(text, ResourceWarning, source=self, stacklevel=2)
