"""How long a destination has been without a receipt. The time begins with a message that fails. It also runs between
its outcome and the outcome of the next one."""

from __future__ import annotations

from time import monotonic

from cqrs_brokers import DeliveryError, InvalidMessageError, MessageTooLargeError, NotDeliveredError

from . import _names as names

__all__ = ["Failing"]

OF_THE_MESSAGE = (InvalidMessageError, MessageTooLargeError)


class Failing:
    """The destinations of one broker for which a message failed and no receipt came after that: `MOST_TOPICS` at most.

    Attributes:
        topics: When the message was sent whose failure came first since the last receipt, by topic.
    """

    def __init__(self) -> None:
        self.topics: dict[str, float] = {}

    def confirmed(self, topic: str) -> None:
        """A message has its receipt."""
        self.topics.pop(topic, None)

    def failed(self, topic: str, error: DeliveryError, elapsed: float) -> None:
        """A message failed, `elapsed` seconds after the call. 0: it was refused before it was sent."""
        # A failure for which the message or its caller is the reason says nothing about the destination.
        if not elapsed or type(error) is NotDeliveredError or isinstance(error, OF_THE_MESSAGE):
            return
        if topic in self.topics or len(self.topics) < names.MOST_TOPICS:
            self.topics.setdefault(topic, monotonic() - elapsed)

    def seconds(self) -> list[tuple[str, float]]:
        """The topics, and for how many seconds each has failed."""
        now = monotonic()
        return [(topic, now - since) for topic, since in self.topics.copy().items()]
