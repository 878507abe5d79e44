"""What was attempted, in the order of the calls, and what `Broker` said about each."""

import time
from collections import Counter
from collections.abc import Iterable

from cqrs_brokers import DeliveryError, Message, NotDeliveredError, Receipt

__all__ = ["CANCELLED", "NOT_DELIVERED", "PENDING", "RECEIPT", "UNKNOWN", "Entry", "Ledger", "Stream"]

PENDING, RECEIPT, NOT_DELIVERED, UNKNOWN, CANCELLED = "pending", "receipt", "not delivered", "unknown", "cancelled"

Stream = tuple[str, int | None]
"""A broker's name and a partition: where receipts come from."""


class Entry:
    """One message.

    Attributes:
        number: The place of its call among all calls.
        message_id, topic, key: Its own.
        broker: Through which broker it was sent.
        how: In which way: send_message, send_messages, to be cancelled.
        began, ended: When its call began and when its outcome came, in seconds (monotonic).
        outcome: Which of the outcomes.
        error: The class of the error, if it was one.
        partition, offset: What the receipt says.
    """

    __slots__ = (
        "number",
        "message_id",
        "topic",
        "key",
        "broker",
        "how",
        "began",
        "ended",
        "outcome",
        "error",
        "partition",
        "offset",
    )

    def __init__(self, number: int, message: Message, broker: str, how: str) -> None:
        self.number = number
        self.message_id = str(message.message_id)
        self.topic = message.topic
        self.key = message.key
        self.broker = broker
        self.how = how
        self.began = time.monotonic()
        self.ended = 0.0
        self.outcome = PENDING
        self.error = ""
        self.partition: int | None = None
        self.offset: int | None = None

    def __repr__(self) -> str:
        return (
            f"message {self.number} ({self.message_id}, {self.how} through {self.broker!r}, topic {self.topic!r}, "
            f"key {self.key!r}): {self.outcome} {self.error} after {self.ended - self.began:.2f} s"
        )


class Ledger:
    """All messages of a run.

    Args:
        apart: Topics whose destinations are broken apart from all others: their receipts say nothing about how soon
            the broker is back, so `receipt_times` has none of them.

    Attributes:
        apart: As given.
        entries: By message id, in the order of the calls.
        counts: How many have each outcome.
        errors: How many ended in each class of error.
        receipt_times: When receipts came, by stream.
        problems: Calls that ended as no call may: late, or with something that is no `BrokerError`.
    """

    def __init__(self, apart: Iterable[str] = ()) -> None:
        self.apart = frozenset(apart)
        self.entries: dict[str, Entry] = {}
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.receipt_times: dict[Stream, list[float]] = {}
        self.problems: list[str] = []

    @property
    def receipts(self) -> int:
        """How many receipts there are."""
        return self.counts[RECEIPT]

    @property
    def pending(self) -> int:
        """How many calls have no outcome yet."""
        return len(self.entries) - self.counts.total()

    def begin(self, message: Message, broker: str, how: str) -> Entry:
        """Notes a call. The call itself must follow at once: numbers are the order of calls."""
        entry = Entry(len(self.entries), message, broker, how)
        self.entries[entry.message_id] = entry
        return entry

    def end(self, entry: Entry, outcome: Receipt | DeliveryError | None, *, deadline: float) -> None:
        """Notes an outcome; None: our own cancellation.

        Args:
            entry: The message.
            outcome: What `Broker` said.
            deadline: How long a call may take, in seconds.
        """
        entry.ended = now = time.monotonic()
        if outcome is None:
            entry.outcome = CANCELLED
        elif isinstance(outcome, Receipt):
            entry.outcome = RECEIPT
            entry.partition, entry.offset = outcome.partition, outcome.offset
            if entry.topic not in self.apart:
                self.receipt_times.setdefault((entry.broker, outcome.partition), []).append(now)
            if not outcome.confirmed:
                self.problems.append(f"not confirmed: {entry!r}")
        else:
            entry.outcome = NOT_DELIVERED if isinstance(outcome, NotDeliveredError) else UNKNOWN
            entry.error = type(outcome).__name__
            self.errors[entry.error] += 1
        self.counts[entry.outcome] += 1
        if now - entry.began > deadline + 1:
            self.problems.append(f"late: {entry!r}")

    def broke(self, entries: Iterable[Entry], error: BaseException) -> None:
        """Notes that a call raised what it must not."""
        for entry in entries:
            entry.ended = time.monotonic()
            entry.outcome, entry.error = UNKNOWN, type(error).__name__
            self.counts[UNKNOWN] += 1
            self.problems.append(f"raised {error!r}: {entry!r}")
