"""Who is told what a relay does: metrics, tracing, tests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from cqrs_brokers import DeliveryError, Message, Receipt

__all__ = ["RelayObserver", "RelayObservers"]

logger = logging.getLogger("cqrs_brokers.outbox")


class RelayObserver:
    """Is told what a relay does. Override what you need; an exception in an observer is logged and changes nothing."""

    def claimed(self, count: int) -> None:
        """So many rows were claimed."""

    def sent(self, position: int, message: Message, outcome: Receipt | DeliveryError) -> None:
        """A row's message has its outcome. `position` is the row's number."""

    def fenced(self, count: int) -> None:
        """So many marks were refused: another relay has the partition."""

    def leases_changed(self, partitions: Sequence[int]) -> None:
        """The relay has these partitions now."""

    def trouble(self, what: str, reason: str) -> None:
        """The relay cannot claim, send, mark, lease or purge; it tries again."""


class RelayObservers(RelayObserver):
    """All observers of one relay; none of them can break it."""

    def __init__(self, observers: Sequence[RelayObserver]) -> None:
        self._observers = tuple(observers)

    def claimed(self, count: int) -> None:
        self._tell("claimed", lambda observer: observer.claimed(count))

    def sent(self, position: int, message: Message, outcome: Receipt | DeliveryError) -> None:
        if self._observers:
            self._tell("sent", lambda observer: observer.sent(position, message, outcome))

    def fenced(self, count: int) -> None:
        self._tell("fenced", lambda observer: observer.fenced(count))

    def leases_changed(self, partitions: Sequence[int]) -> None:
        self._tell("leases_changed", lambda observer: observer.leases_changed(partitions))

    def trouble(self, what: str, reason: str) -> None:
        self._tell("trouble", lambda observer: observer.trouble(what, reason))

    def _tell(self, method: str, call: Callable[[RelayObserver], Any]) -> None:
        for observer in self._observers:
            try:
                call(observer)
            except Exception as error:
                # Not its traceback: an observer gets the message, and its errors may quote it.
                logger.error("observer %s raised %s in %s()", type(observer).__qualname__, type(error).__name__, method)  # noqa: TRY400
