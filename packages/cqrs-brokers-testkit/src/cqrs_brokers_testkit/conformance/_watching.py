"""Watches a piece of code: its I/O (by Python's audit events), its log records, logger levels and warnings, and the
things that it leaves behind."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from cqrs_brokers_testkit.canary import chain
from cqrs_brokers_testkit.conformance._case import check, show
from cqrs_brokers_testkit.leaks import Leak, no_leaks

_IO = frozenset(
    {
        "socket.connect",
        "socket.bind",
        "socket.sendto",
        "socket.sendmsg",
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "socket.__new__",
        "subprocess.Popen",
        "os.system",
        "os.fork",
        "os.posix_spawn",
    }
)
_watching = threading.local()
_installed = threading.Lock()


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _IO:
        seen: list[str] | None = getattr(_watching, "seen", None)
        if seen is not None:
            seen.append(event)


@contextlib.contextmanager
def io_watched() -> Iterator[list[str]]:
    """Lists the sockets, look-ups and processes that this thread makes in the block.

    Audit hooks cannot be removed. So one hook is added once, and does nothing outside such a block.
    """
    if _installed.acquire(blocking=False):
        sys.addaudithook(_hook)
    before = getattr(_watching, "seen", None)
    seen: list[str] = []
    _watching.seen = seen
    try:
        yield seen
    finally:
        _watching.seen = before


class _Texts(logging.Handler):
    """Collects every log record as text, with its traceback."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.texts: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.texts.append(self.format(record))
        except Exception as error:  # a record that cannot be formatted is somebody else's fault, but still has parts
            self.texts.append(f"{record.name} {record.msg!r} {record.args!r} ({error!r})")


@contextlib.contextmanager
def logs_at_debug() -> Iterator[list[str]]:
    """Lists everything that anybody logs or warns, at any level, and shows nothing.

    Sets the level of the root logger and of loggers with a level of their own. Restores all levels at the end.
    """
    root, handler = logging.getLogger(), _Texts()
    levels = {logger: logger.level for logger in [root, *_loggers().values()] if logger is root or logger.level}
    shown = root.handlers[:]
    for logger in levels:
        logger.setLevel(logging.DEBUG)
    root.handlers[:] = [handler]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield handler.texts
            handler.texts += [str(warning.message) for warning in caught]
    finally:
        root.handlers[:] = shown
        for logger, level in levels.items():
            logger.setLevel(level)


def logger_levels() -> Mapping[str, int]:
    """Returns the level of every logger that has a level of its own."""
    levels = {name: logger.level for name, logger in _loggers().items() if logger.level}
    return {"root": logging.getLogger().level, **levels}


def _loggers() -> dict[str, logging.Logger]:
    known = logging.getLogger().manager.loggerDict.copy()
    return {name: logger for name, logger in known.items() if isinstance(logger, logging.Logger)}


@contextlib.asynccontextmanager
async def nothing_left(after: str) -> AsyncIterator[None]:
    """Demands that the block leaves no task, thread, socket or file descriptor.

    Args:
        after: A text for the failure: the action in the block.
    """
    try:
        async with no_leaks():
            yield
    except Leak as leak:
        check(False, f"{after}: {leak}")


def everything(outcome: object) -> str:
    """Returns the text of an error with its notes and attributes, and the same of its causes."""
    led_to_it = chain(outcome) if isinstance(outcome, BaseException) else ()
    return "\n".join([show(outcome), *(f"{each!r} {each} {each.args} {vars(each)}" for each in led_to_it)])
