"""`SyncBroker`: a `Broker` for code without an event loop, in a thread of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from types import TracebackType
from typing import Self

from ._broker import Broker
from .exceptions import BrokerClosedError, WrongLoopError
from .protocol import MessageLike, Receipt

__all__ = ["SyncBroker"]


class SyncBroker:
    """Sends messages from synchronous code: scripts, Django views, Celery tasks, threads.

    The broker lives in a thread with an event loop of its own. The thread starts at the first send, so a `SyncBroker`
    may be made before the process forks. Any number of threads may send at the same time.

        with SyncBroker(open_broker("kafka://localhost:9092")) as broker:
            receipt = broker.send(Message("OrderPlaced", "orders", {"id": 1}))

    Args:
        broker: A broker that is used nowhere else.
    """

    def __init__(self, broker: Broker, /) -> None:
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
            message: A `Message`, or anything with its attributes.
            timeout: Seconds from the call to the outcome, at most. None: the broker's `delivery_timeout`.

        Returns:
            The receipt.

        Raises:
            NotDeliveredError: The message is not in the broker, and this call will not put it there.
                `BrokerClosedError` after `close()`; `WrongLoopError` in a process that was forked after the first send.
            DeliveryUnknownError: The message may be in the broker.
        """
        if self._forked:  # before the lock, which another thread may have held at the fork
            refusal = WrongLoopError(
                "this process was forked from the one that connected the broker: make a new SyncBroker after the fork"
            )
            raise self._broker.refuse(message, refusal)
        with self._lock:
            if self._closed:
                raise self._broker.refuse(message, BrokerClosedError("the broker is closed: make a new SyncBroker"))
            if self._thread is None:
                self._start()
            sending = asyncio.run_coroutine_threadsafe(self._broker.send_message(message, timeout=timeout), self._loop)
        try:
            return sending.result()
        except KeyboardInterrupt:
            sending.cancel()
            raise

    def close(self, timeout: float | None = None) -> None:
        """Flushes what was accepted, closes the connection and ends the thread. May be called again.

        Args:
            timeout: Seconds for flushing and closing. None: the broker's `close_timeout`.
        """
        if self._forked:  # the connection and its thread are the parent's
            return
        with self._lock:
            thread, first, self._closed = self._thread, not self._closed, True
        if thread is None:
            return
        if first:
            self._loop.call_soon_threadsafe(self._stop.set_result, timeout)
        thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _forked(self) -> bool:
        return self._pid not in (0, os.getpid())

    def _start(self) -> None:
        started = threading.Event()

        async def live() -> None:
            self._loop = asyncio.get_running_loop()
            self._stop = self._loop.create_future()
            started.set()
            await self._broker.close(await self._stop)

        self._pid = os.getpid()
        # A daemon: a program that forgets close() still ends. The broker then warns that it was not closed.
        self._thread = threading.Thread(target=lambda: asyncio.run(live()), name="cqrs-brokers", daemon=True)
        self._thread.start()
        started.wait()
