"""A broker belongs to the event loop, and to the process, in which it is used first."""

from __future__ import annotations

import os
import weakref
from asyncio import AbstractEventLoop, get_running_loop
from typing import Any

from cqrs_brokers.exceptions import WrongLoopError

__all__ = ["LoopBinding", "running_loop"]

FORKED = "this process was forked from the one that used the broker: make a new Broker after the fork"
OTHER_LOOP = (
    "the broker belongs to another event loop that is still open: use one Broker per loop, or close it there "
    "first. The other loop may run in another thread, or belong to a test fixture with another loop scope (loop_scope)"
)
NO_LOOP = (
    "no asyncio event loop runs here: a Broker works with asyncio only, not with another library such as trio; "
    "a forked child needs an event loop of its own"
)


class LoopBinding:
    """Knows the event loop to which one broker is bound. `loop` is None until the broker is used for the first time. If
    a process is forked after that, `loop` is no event loop in the child."""

    def __init__(self) -> None:
        self.loop: AbstractEventLoop | None = None
        self.forked = False
        _bindings.add(self)

    def checked(self, running: AbstractEventLoop | None) -> AbstractEventLoop:
        """The running loop, if the broker may be used in it.

        Raises:
            WrongLoopError: The process was forked after the first use, no event loop runs, or the loop of the broker is
                still open.
        """
        if self.forked:
            raise WrongLoopError(FORKED)
        if running is None:
            raise WrongLoopError(NO_LOOP)
        if self.loop is not None and not self.loop.is_closed():
            raise WrongLoopError(OTHER_LOOP)
        return running


def running_loop() -> AbstractEventLoop | None:
    """The running event loop, or None. The result is also None in a child process that was forked inside a
    coroutine."""
    try:
        return get_running_loop()
    except RuntimeError:
        return None


_bindings: weakref.WeakSet[LoopBinding] = weakref.WeakSet()
_PARENTS_LOOP: Any = object()
"""This object replaces the parent's event loop in a forked child process. No running loop is equal to it."""


def _mark_forked() -> None:
    for binding in _bindings:
        if binding.loop is not None:
            binding.forked = True
            binding.loop = _PARENTS_LOOP


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_mark_forked)
