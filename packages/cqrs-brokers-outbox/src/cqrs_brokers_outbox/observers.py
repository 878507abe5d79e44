"""Observers of a relay are told what it does: for metrics, tracing and tests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cqrs_brokers import DeliveryError, Message, Receipt

if TYPE_CHECKING:
    from .status import Lag

__all__ = ["RelayObserver", "RelayObservers"]

logger = logging.getLogger("cqrs_brokers.outbox")


class RelayObserver:
    """An object that is told what a relay does. Override the methods that you need. An exception in an observer is
    logged and changes nothing.

    The methods are called in the relay's event loop: they must not block it.

    If there was a trace context when the message was stored, it is in the headers of the message (`traceparent`,
    `tracestate`, `baggage`). So a span of the send can be a child of the writer's span, or have a link to it.
    """

    def claimed(self, count: int) -> None:
        """This many rows were claimed to be sent. Rows that another row holds up, and damaged rows, are not counted."""

    def sent(self, position: int, message: Message, outcome: Receipt | DeliveryError) -> None:
        """A send has its outcome: confirmed, not delivered, or unknown.

        Args:
            position: The row's number.
            message: What was sent, with its headers.
            outcome: The receipt or the error.
        """

    def parked(self, position: int, topic: str, error_class: str, error_text: str) -> None:
        """A row was parked, and is marked so in the database: it waits for a person.

        Args:
            position: The row's number.
            topic: Its topic.
            error_class: Why: the error's class.
            error_text: The error's text.
        """

    def refused(self, topic: str, error_class: str, error_text: str) -> None:
        """A topic is refused as a whole. Called for each partition, and again each time the row that stands for the
        topic there is tried and refused.

        Args:
            topic: The topic.
            error_class: Why: the error's class.
            error_text: The error's text.
        """

    def fenced(self, count: int) -> None:
        """This many marks were refused, because this relay has no longer the partition, or not with the same token."""

    def lag(self, lag: Sequence[Lag]) -> None:
        """The unsent rows of the whole outbox, by topic and partition, the oldest first. Called about every 10 s, while
        the database answers.

        Every relay of an outbox reports the same numbers. Take the largest of them, not the sum.
        """

    def leases_changed(self, partitions: Sequence[int]) -> None:
        """The relay has these partitions now."""

    def ended(self) -> None:
        """`Relay.run()` has ended. The relay works on no partition, and calls no method until it runs again."""

    def trouble(self, what: str, reason: str) -> None:
        """The relay cannot do something now; it tries again.

        Args:
            what: "claim", "send", "mark", "lease", "purge" or "lag".
            reason: Why not. A reason is told once, until another reason comes or the relay can do it again.
        """


class RelayObservers(RelayObserver):
    """All observers of one relay; none of them can break it."""

    def __init__(self, observers: Sequence[RelayObserver]) -> None:
        self._observers = tuple(observers)

    def __bool__(self) -> bool:
        return bool(self._observers)

    def claimed(self, count: int) -> None:
        self._tell("claimed", lambda observer: observer.claimed(count))

    def sent(self, position: int, message: Message, outcome: Receipt | DeliveryError) -> None:
        self._tell("sent", lambda observer: observer.sent(position, message, outcome))

    def parked(self, position: int, topic: str, error_class: str, error_text: str) -> None:
        self._tell("parked", lambda observer: observer.parked(position, topic, error_class, error_text))

    def refused(self, topic: str, error_class: str, error_text: str) -> None:
        self._tell("refused", lambda observer: observer.refused(topic, error_class, error_text))

    def fenced(self, count: int) -> None:
        self._tell("fenced", lambda observer: observer.fenced(count))

    def lag(self, lag: Sequence[Lag]) -> None:
        self._tell("lag", lambda observer: observer.lag(lag))

    def leases_changed(self, partitions: Sequence[int]) -> None:
        self._tell("leases_changed", lambda observer: observer.leases_changed(partitions))

    def ended(self) -> None:
        self._tell("ended", lambda observer: observer.ended())

    def trouble(self, what: str, reason: str) -> None:
        self._tell("trouble", lambda observer: observer.trouble(what, reason))

    def _tell(self, method: str, call: Callable[[RelayObserver], Any]) -> None:
        for observer in self._observers:
            try:
                call(observer)
            except Exception as error:
                # Not its traceback: an observer gets the message, and its errors may quote it.
                logger.error("observer %s raised %s in %s()", type(observer).__qualname__, type(error).__name__, method)  # noqa: TRY400
