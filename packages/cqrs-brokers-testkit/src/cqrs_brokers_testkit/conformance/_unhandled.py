"""Collects what asyncio reports as unhandled while cases run: exceptions that nobody retrieved, destroyed tasks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Unhandled", "asyncio_watched"]


class Unhandled(logging.Handler):
    """Collects asyncio's complaints.

    A complaint belongs to the case in whose thread it was made. If it was made in another thread, it belongs to all
    running cases.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._cases: dict[threading.Thread, list[str]] = {}

    @contextmanager
    def watching(self, thread: threading.Thread) -> Iterator[list[str]]:
        """Yields a list. The list gets the complaints about the case that runs in this thread."""
        found = self._cases[thread] = list[str]()
        try:
            yield found
        finally:
            del self._cases[thread]

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        raised = record.exc_info[1] if record.exc_info else None
        what = f" ({type(raised).__name__}: {raised})" if raised is not None else ""
        text = f"asyncio logged{what}: {record.getMessage()}"[:500]
        cases = dict(self._cases)
        own = cases.get(threading.current_thread())
        for found in cases.values() if own is None else [own]:
            found.append(text)


@contextmanager
def asyncio_watched() -> Iterator[Unhandled]:
    """Collects the complaints until its block ends."""
    handler, logger = Unhandled(), logging.getLogger("asyncio")
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
