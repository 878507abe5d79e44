"""Since when a destination has confirmed nothing. The time also runs between a failed message and the outcome of the
next one."""

from __future__ import annotations

from time import monotonic

from cqrs_brokers import DeliveryError, InvalidMessageError, MessageTooLargeError, NotDeliveredError

from . import _names as names

__all__ = ["Failing"]

OF_THE_MESSAGE = (InvalidMessageError, MessageTooLargeError)


class Failing:
    """The destinations of one broker for which a message failed and none was confirmed since."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        """When the first message that failed was sent, by topic."""

    def confirmed(self, topic: str) -> None:
        """A message was confirmed."""
        if self._since:
            self._since.pop(topic, None)

    def failed(self, topic: str, error: DeliveryError, elapsed: float) -> None:
        """A message failed, `elapsed` seconds after the call. 0: it was refused before it was sent."""
        # What the message or its caller is to blame for says nothing about the destination.
        if not elapsed or type(error) is NotDeliveredError or isinstance(error, OF_THE_MESSAGE):
            return
        if topic in self._since or len(self._since) < names.MOST_TOPICS:
            self._since.setdefault(topic, monotonic() - elapsed)

    def seconds(self) -> list[tuple[str, float]]:
        """The topics, and for how many seconds each has failed."""
        now = monotonic()
        return [(topic, now - since) for topic, since in self._since.copy().items()]
