"""Find what a piece of code left behind: tasks, threads, sockets and other file descriptors.

    async with no_leaks():
        async with open_broker(url) as broker:
            ...

Warnings are not checked here: run tests with `-W error`.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

__all__ = ["Leak", "Resources", "no_leaks", "no_leaks_sync"]


class Leak(AssertionError):  # noqa: N818 - names what was found
    """Something was left behind. The text lists it.

    Attributes:
        found: One line for each thing that was left.
    """

    def __init__(self, found: list[str]) -> None:
        super().__init__("left behind: " + "; ".join(found))
        self.found = found


@dataclass(frozen=True)
class Resources:
    """What this process holds at one moment.

    Attributes:
        tasks: Tasks of the running event loop, if there is one.
        threads: Threads, without those of an event loop's default executor, which belong to the loop.
        descriptors: The number of each open file descriptor, and what it is, such as "socket:[4711]".
    """

    tasks: frozenset["asyncio.Task[object]"]
    threads: frozenset[threading.Thread]
    descriptors: frozenset[tuple[int, str]]

    @classmethod
    def now(cls) -> Self:
        """List what this process holds now."""
        try:
            tasks = asyncio.all_tasks()
        except RuntimeError:  # no running loop
            tasks = set()
        threads = {thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")}
        return cls(frozenset(tasks), frozenset(threads), frozenset(_descriptors()))

    def since(self, before: "Resources") -> list[str]:
        """Describe what is here but was not there before."""
        lines = [f"task {task.get_name()} ({task.get_coro()})" for task in self.tasks - before.tasks if not task.done()]
        lines += [f"thread {thread.name}" for thread in self.threads - before.threads if thread.is_alive()]
        new = self.descriptors - before.descriptors
        addresses = _addresses() if new else {}
        lines += [f"file descriptor {number}: {addresses.get(what, what)}" for number, what in sorted(new)]
        return lines


@contextlib.asynccontextmanager
async def no_leaks(settle: float = 1.0, *, ignore: Callable[[str], bool] = lambda _: False) -> AsyncIterator[None]:
    """Check that the block leaves no task, thread, socket or file descriptor behind.

    Args:
        settle: Seconds to wait until tasks, threads and sockets have ended.
        ignore: Called with the line of each finding. True: the finding is not a leak.

    Raises:
        Leak: Something was left. This error is not raised if the block itself raises an exception.
    """
    before = Resources.now()
    yield
    give_up = time.monotonic() + settle
    while found := [line for line in Resources.now().since(before) if not ignore(line)]:
        if time.monotonic() > give_up:
            raise Leak(found)
        await asyncio.sleep(0.02)


@contextlib.contextmanager
def no_leaks_sync(settle: float = 1.0, *, ignore: Callable[[str], bool] = lambda _: False) -> Iterator[None]:
    """Do the same as `no_leaks`, for code that runs its own event loops or no event loop."""
    before = Resources.now()
    yield
    give_up = time.monotonic() + settle
    while found := [line for line in Resources.now().since(before) if not ignore(line)]:
        if time.monotonic() > give_up:
            raise Leak(found)
        time.sleep(0.02)


def _descriptors() -> Iterator[tuple[int, str]]:
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    for name in os.listdir(folder):
        try:
            what = os.readlink(f"{folder}/{name}") if folder.startswith("/proc") else "file"
        except OSError:  # the listing's own descriptor, closed by now
            continue
        yield int(name), what


def _addresses() -> dict[str, str]:
    """The local and the remote address of each TCP socket, by its "socket:[inode]" (Linux)."""
    found = {}
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                local, remote = (int(fields[i].rpartition(":")[2], 16) for i in (1, 2))
                found[f"socket:[{fields[9]}]"] = f"TCP socket, local port {local}, remote port {remote}"
    return found
