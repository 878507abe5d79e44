"""Finds code that stops the event loop.

A busy machine is no reason: the time in which a thread was ready to run and got no processor is not counted, where the
system says how much that was (Linux).
"""

from __future__ import annotations

import selectors
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

_LOOKS_EVERY = 0.03
_STANDS_STILL = 0.15
"""Seconds. A call that has waited for so long in one place has stopped the loop."""
_STANDARD_LIBRARY = Path(threading.__file__).parent
_OURS = Path(__file__).parent.parent


class WatchedSelector(selectors.DefaultSelector):
    """The selector of an event loop. It knows when a turn of the loop begins and ends.

    It must be made in the loop's thread.

    Attributes:
        found: Calls that waited and so stopped the loop, each with its place in the code (on Linux). A watching thread
            looks a few times in each tenth of a second, so it may miss one on a busy machine, but names none that only
            took long.
        longest: Seconds of the longest turn since `measure()`, the time without a processor not counted.
        where: What `found` says of that turn, if anything.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.longest, self.where = 0.0, ""
        self._measures = False
        self._turn: tuple[float, float] | None = None
        self._loop = threading.current_thread()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="conformance standstill", daemon=True)
        self._watcher.start()

    def measure(self) -> None:
        """Begins to measure each turn, this one included."""
        self._measures, self.longest, self.where = True, 0.0, ""
        self._turn = self._now()

    def select(self, timeout: float | None = None) -> Any:
        """See `selectors.BaseSelector`."""
        turn, self._turn = self._turn, None
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
        return time.monotonic(), _starved(self._loop)

    def _watch(self) -> None:
        began: float | None = None
        place: object = None
        while not self._ended.wait(_LOOKS_EVERY):
            turn, frame = self._turn, sys._current_frames().get(self._loop.ident or 0)  # noqa: SLF001
            if turn is None or frame is None or not _waits(self._loop):
                began = None
                continue
            here, idle = (turn, id(frame), frame.f_lasti), time.monotonic() - self._busy()
            if began is None or here != place:
                began, place = idle, here
            elif idle - began >= _STANDS_STILL:
                stack = [each for each in traceback.extract_stack(frame) if not _is_standard(each.filename)]
                if self._turn is turn and stack and not Path(stack[-1].filename).is_relative_to(_OURS):
                    at = f"{Path(stack[-1].filename).name}:{stack[-1].lineno} in {stack[-1].name}()"
                    self.found.append(f"it stopped the event loop, at {at}")
                    began = float("inf")  # of this call all is said
            del frame

    def _busy(self) -> float:
        """Seconds in which the loop's thread worked, or was ready to and got no processor."""
        return time.clock_gettime(time.pthread_getcpuclockid(self._loop.ident or 0)) + _starved(self._loop)


def _is_standard(file: str) -> bool:
    return file.startswith("<") or (Path(file).is_relative_to(_STANDARD_LIBRARY) and "site-packages" not in file)


def _starved(thread: threading.Thread) -> float:
    """Seconds in which a thread was ready to run and got no processor; 0.0: the system does not say it."""
    try:
        return int(Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def _waits(thread: threading.Thread) -> bool:
    """Whether a thread waits in the kernel for something; False, too, if the system does not say it."""
    try:
        state = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in "SD"
