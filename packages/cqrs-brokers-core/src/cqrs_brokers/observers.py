"""Who is told what happens: metrics, tracing, tests. Costs nothing when there is nobody."""

from __future__ import annotations

import logging
from asyncio import CancelledError
from collections.abc import Iterable, Sequence
from typing import Protocol

from .exceptions import ConfigError, DeliveryError
from .protocol import Message, Receipt

__all__ = ["Observer"]

logger = logging.getLogger("cqrs_brokers.observers")


class Observer(Protocol):
    """Is told what happens. An exception in an observer is logged and changes nothing."""

    def sent(self, message: Message, outcome: Receipt | DeliveryError, elapsed: float) -> None:
        """A message has its outcome, `elapsed` seconds after the call."""

    def connection_changed(self, state: str, reason: str) -> None:
        """The connection is connecting, connected, reconnecting, lost, failed, idle or closed; or it is connected, and
        the broker began or ceased to take no messages (blocked, unblocked) or fewer (throttled, unthrottled)."""


class Observers:
    """All observers of one broker; none of them can break a send."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        if not isinstance(observers, Iterable):
            raise ConfigError(f"observers takes a sequence: observers=[{type(observers).__name__}(…)]")
        self._observers = tuple(observers)

    def __bool__(self) -> bool:
        return bool(self._observers)

    def sent(self, message: Message, outcome: Receipt | DeliveryError, elapsed: float) -> None:
        """See `Observer.sent`."""
        for observer in self._observers:
            try:
                observer.sent(message, outcome, elapsed)
            except (Exception, CancelledError) as error:
                self._broken(observer, "sent", error)

    def connection_changed(self, state: str, reason: str) -> None:
        """See `Observer.connection_changed`."""
        for observer in self._observers:
            try:
                observer.connection_changed(state, reason)
            except (Exception, CancelledError) as error:
                self._broken(observer, "connection_changed", error)

    @staticmethod
    def _broken(observer: Observer, method: str, error: BaseException) -> None:
        # Not its traceback: an observer gets the message object, and its errors may quote what is in it.
        logger.error("observer %s raised %s in %s()", type(observer).__qualname__, type(error).__name__, method)
