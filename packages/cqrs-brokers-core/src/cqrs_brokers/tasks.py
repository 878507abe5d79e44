"""For plugin authors: keeps and ends tasks, and drops tasks and connections even when their event loop is closed.

A driver's `abort()` must work without awaiting. The method must also work when the event loop was closed before anybody
closed the broker. Event loops are closed in this way by test frameworks with one event loop per test, and by programs
that call `asyncio.run` for each job. asyncio has no public function that drops tasks and connections of a closed event
loop. `drop_task` and `drop_transport` do this.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from ._stalls import patient_timeout

__all__ = ["Tasks", "drop_task", "drop_transport", "patient_timeout", "retrieve_exception"]

T = TypeVar("T")

_CLOSE_ATTEMPTS = 10
"""The most attempts to close a coroutine. Each `finally` block of the coroutine that awaits makes one attempt fail."""


def retrieve_exception(task: asyncio.Future[Any]) -> None:
    """A done callback for a task whose error does not matter. Without this callback, asyncio would log that nobody
    retrieved the error.

    Args:
        task: The task or future that is done.
    """
    if not task.cancelled():
        task.exception()


def drop_task(task: asyncio.Task[Any] | None) -> None:
    """Cancels a task without awaiting it. If the task's event loop is closed, the task's coroutine is closed at once,
    and asyncio logs nothing about the task.

    Args:
        task: Any task, also one that a client library started. If it is None or done, nothing happens.
    """
    if task is None or task.done():
        return
    if not task.get_loop().is_closed():
        task.add_done_callback(retrieve_exception)
        task.cancel()
        return
    task._log_destroy_pending = False  # type: ignore[attr-defined] # it can never finish: asyncio would log that
    coroutine: Any = task.get_coro()
    for _ in range(_CLOSE_ATTEMPTS):
        # Errors of the coroutine's own code are suppressed here. A ValueError says that the coroutine is running.
        with contextlib.suppress(Exception, asyncio.CancelledError):
            coroutine.close()
            return


def drop_transport(transport: asyncio.BaseTransport | None) -> None:
    """Closes a connection at once, without awaiting, also when its event loop is closed.

    Args:
        transport: A transport of asyncio or uvloop, with or without TLS. None: nothing is closed.
    """
    if transport is None:
        return
    layer: Any = transport
    if getattr(layer, "_loop", layer) is None:
        return  # asyncio has closed it; if `close()` still had bytes to write, `abort()` now fails
    with contextlib.suppress(RuntimeError):  # the event loop is closed
        layer.abort()
    loop: asyncio.AbstractEventLoop | None = getattr(layer, "_loop", None)
    if loop is None or not loop.is_closed():  # uvloop hides its loop and closes its sockets with it
        return
    protocol = getattr(layer, "_ssl_protocol", None)
    if protocol is not None:
        layer._closed = True  # or it warns, when it is collected, that nobody closed it
    for layer in (transport, getattr(protocol, "_transport", None)):
        sock = getattr(layer, "_sock", None)
        if sock is not None:
            sock.close()
            layer._sock = None  # or the transport warns
            layer._closing = True  # or a StreamWriter over it warns


class Tasks:
    """The tasks that one object has started and must end.

    A task that has ended is forgotten. If a task raises an error, asyncio logs the error as usual. `end()` and
    `abort()` switch this log off for the tasks that they end. If an event loop is closed before its tasks have ended,
    asyncio usually logs for each task that it was destroyed while it was pending. This log is switched off for these
    tasks, because `Broker` itself warns when nobody has closed it.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Starts a task in the running event loop.

        Args:
            work: The coroutine that the task runs.
            name: The task's name, for debugging.
        """
        task = asyncio.get_running_loop().create_task(work, name=name)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def end(self, timeout: float) -> bool:
        """Cancels every task except the task that calls this method, and waits until the cancelled tasks have ended.

        Args:
            timeout: How long the method waits, in seconds.

        Returns:
            Whether all cancelled tasks have ended. Tasks that have not ended stay in this object until they end or
            `abort()` drops them.
        """
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.add_done_callback(retrieve_exception)
            task.cancel()
        if not tasks:
            return True
        _, left = await asyncio.wait(tasks, timeout=timeout)
        return not left

    def abort(self) -> None:
        """Drops every task (see `drop_task`) and forgets it, without awaiting. This method also works when the event
        loop is closed."""
        for task in self:
            drop_task(task)
        self._tasks.clear()

    def __iter__(self) -> Iterator[asyncio.Task[Any]]:
        return iter(tuple(self._tasks))

    def __len__(self) -> int:
        return len(self._tasks)
