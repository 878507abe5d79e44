"""Finds code that stops the event loop.

A busy machine must not count. So the time in which a thread was ready to run but got no processor is subtracted, if the
system tells this time (Linux). The same holds for the other threads of the process, because the loop may wait for
another thread for a moment: `Thread.start()` waits until the new thread runs.
"""

from __future__ import annotations

import os
import selectors
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

_LOOKS_EVERY = 0.03
_STANDS_STILL = 0.15
"""A call that has waited for this many seconds in one place has stopped the loop."""
_WAITS = ("S", "D")
"""The states of a thread that waits, but not for a processor."""
_STANDARD_LIBRARY = Path(threading.__file__).parent
_OURS = Path(__file__).parent.parent


class WatchedSelector(selectors.DefaultSelector):
    """The selector of an event loop. It knows when a turn of the loop begins and ends.

    The selector must be made in the loop's thread.

    Attributes:
        found: Calls that waited and so stopped the loop, each with its place in the code (on Linux). A watching thread
            looks a few times in each tenth of a second. On a busy machine it may miss such a call. But it never names a
            call that only computed for a long time.
        longest: The longest turn since `measure()`, in seconds, without the time in which there was no processor.
        where: The text in `found` about the longest turn, or "".
        count: The number of turns.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.longest, self.where = 0.0, ""
        self.count = 0
        self._measures = False
        self._turn: tuple[float, float] | None = None
        self._loop = threading.current_thread()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="conformance standstill", daemon=True)
        self._watcher.start()

    def measure(self) -> None:
        """Begins to measure each turn, including the current turn."""
        self._measures, self.longest, self.where = True, 0.0, ""
        self._turn = self._now()

    def select(self, timeout: float | None = None) -> Any:
        """See `selectors.BaseSelector`."""
        turn, self._turn = self._turn, None
        self.count += 1
        if turn is not None and self._measures:
            now = self._now()
            seconds = now[0] - turn[0] - (now[1] - turn[1])
            if seconds > self.longest:
                self.longest, self.where = seconds, self.found[-1] if self.found else ""
        ready = super().select(timeout)
        self._turn = self._now() if self._measures else (time.monotonic(), 0.0)
        return ready

    def close(self) -> None:
        """See `selectors.BaseSelector`."""
        self._ended.set()
        self._watcher.join()
        super().close()

    def _now(self) -> tuple[float, float]:
        return time.monotonic(), _scheduled(self._loop.native_id)[1]

    def _watch(self) -> None:
        began: float | None = None
        place: object = None
        others = _Others()
        while not self._ended.wait(_LOOKS_EVERY):
            turn, frame = self._turn, sys._current_frames().get(self._loop.ident or 0)  # noqa: SLF001
            if turn is None or frame is None or _state(self._loop.native_id) not in _WAITS:
                began = None
                continue
            here, idle = (turn, id(frame), frame.f_lasti), time.monotonic() - self._busy()
            if began is None or here != place:
                began, place, others = idle, here, _Others()
            elif idle - began - others.starved() >= _STANDS_STILL:
                stack = [each for each in traceback.extract_stack(frame) if not _is_standard(each.filename)]
                if self._turn is turn and stack and not Path(stack[-1].filename).is_relative_to(_OURS):
                    at = f"{Path(stack[-1].filename).name}:{stack[-1].lineno} in {stack[-1].name}()"
                    self.found.append(f"it stopped the event loop, at {at}")
                    began = float("inf")  # of this call all is said
            del frame

    def _busy(self) -> float:
        """Returns for how many seconds the loop's thread worked, or was ready to work but got no processor."""
        worked = time.clock_gettime(time.pthread_getcpuclockid(self._loop.ident or 0))
        return worked + _scheduled(self._loop.native_id)[1]


def _is_standard(file: str) -> bool:
    return file.startswith("<") or (Path(file).is_relative_to(_STANDARD_LIBRARY) and "site-packages" not in file)


class _Others:
    """Watches the other threads of the process from now on, because the loop's thread may wait for one of them."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._before = {thread_id: _scheduled(thread_id) for thread_id in _threads()}

    def starved(self) -> float:
        """Returns the most seconds for which one thread was ready to run but got no processor."""
        now = time.monotonic()
        return max((self._starved(thread_id, now - self._began) for thread_id in _threads()), default=0.0)

    def _starved(self, thread_id: str, seconds: float) -> float:
        worked, waited = _scheduled(thread_id)
        worked_before, waited_before = self._before.get(thread_id, (0.0, 0.0))
        if _state(thread_id) == "R":  # the system counts a wait for a processor only when it ends
            return seconds - (worked - worked_before)
        return waited - waited_before


def _threads() -> list[str]:
    """Returns all threads of the process except the current thread."""
    try:
        return [thread_id for thread_id in os.listdir("/proc/self/task") if int(thread_id) != threading.get_native_id()]
    except OSError:
        return []


def _scheduled(thread_id: int | str | None) -> tuple[float, float]:
    """Returns for how many seconds a thread has had a processor, and has waited for one. 0: the system does not say it.

    Args:
        thread_id: `Thread.native_id`.
    """
    try:
        worked, waited, _ = Path(f"/proc/self/task/{thread_id}/schedstat").read_text().split()
    except (OSError, ValueError):
        return 0.0, 0.0
    return int(worked) / 1e9, int(waited) / 1e9


def _state(thread_id: int | str | None) -> str:
    """Returns the state of a thread, as in /proc/PID/stat. "": the system does not say it."""
    try:
        return Path(f"/proc/self/task/{thread_id}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
