"""Destinations that take nothing, and how much of the window they may hold: together at most half.

Looked at 0.1 s after messages begin to wait for room, and then once a second while some wait. A destination takes
nothing when the driver has let go of none of the messages that it held at the look before. What such destinations held
beyond half of the window before that was known stays with the driver; as much is lent to the others, half a window at
most. Further messages for them wait outside the window, in the order of calls.

Of each such destination a few messages go to the driver all the same, one per key: its trials. They show when a
destination takes messages again whose earlier messages were caught behind those of another destination; without them it
would seem stuck until their deadlines. The trials have several keys, because a driver may have to keep back the next
message of a key that was caught.
"""

from __future__ import annotations

from collections.abc import Callable

from cqrs_brokers.protocol import Message

from .delivery import RELEASED, Sending
from .in_flight import InFlight

__all__ = ["StuckDestinations"]

TRIALS = 8
"""Trials of all stuck destinations together take an eighth of half the window; each destination has one at least."""


class StuckDestinations:
    """The stuck destinations of one broker.

    Args:
        in_flight: The messages that the driver holds.
        destination: Where a message goes, as the driver says it.
    """

    def __init__(self, in_flight: InFlight, destination: Callable[[Message], str]) -> None:
        self._in_flight = in_flight
        self._destination = destination
        self._before: dict[str, list[Sending]] = {}
        self._held: list[Sending] = []
        self._bytes = 0
        self._trials: dict[str, dict[str | None, Sending]] = {}
        """By destination and key."""
        self.names: frozenset[str] = frozenset()
        """The destinations that take nothing."""
        self.lent = 0
        """How many messages more than its limit the window may have."""
        self.lent_bytes = 0

    def clear(self) -> None:
        """Nothing is known any more."""
        self._before, self._held, self._bytes, self._trials, self.names = {}, [], 0, {}, frozenset()
        self.lent = self.lent_bytes = 0

    def look(self) -> None:
        """Finds the destinations that have taken nothing since the last look."""
        now: dict[str, list[Sending]] = {}
        for delivery in (*self._in_flight.ended, *self._in_flight.pending):
            now.setdefault(self._destination(delivery.message), []).append(delivery)
        before, self._before = self._before, now
        self.names = frozenset(
            name for name in now if name in before and all(delivery.state < RELEASED for delivery in before[name])
        )
        self._held = [delivery for name in self.names for delivery in now[name]]
        self._bytes = sum(delivery.size for delivery in self._held)
        self._trials = {
            name: {key: trial for key, trial in self._trials.get(name, {}).items() if trial.state < RELEASED}
            for name in self.names
        }
        count, size = len(self._held), self._bytes
        half, half_bytes = self._in_flight.max_count // 2, self._in_flight.max_bytes // 2
        self.lent, self.lent_bytes = min(half, max(0, count - half)), min(half_bytes, max(0, size - half_bytes))

    def must_wait(self, delivery: Sending) -> bool:
        """Whether the message goes to a stuck destination, and such destinations hold their half of the window."""
        if not self._full:
            return False
        trials = self._trials.get(self._destination(delivery.message))
        if trials is None:
            return False
        before = trials.get(delivery.message.key)
        if before is not None:
            return before.state < RELEASED
        unanswered = sum(trial.state < RELEASED for trial in trials.values())
        return unanswered >= max(1, self._in_flight.max_count // (2 * TRIALS * len(self.names)))

    def took(self, delivery: Sending) -> None:
        """The driver got the message."""
        name = self._destination(delivery.message)
        if name in self.names:
            if self._full:
                self._trials[name][delivery.message.key] = delivery
            self._held.append(delivery)
            self._bytes += delivery.size

    @property
    def _full(self) -> bool:
        """Whether stuck destinations hold their half of the window."""
        places = self._in_flight
        return 2 * len(self._held) >= places.max_count or 2 * self._bytes >= places.max_bytes

    def count(self) -> bool:
        """Counts what stuck destinations hold: once before the window is filled, not for each message.

        Returns:
            Whether the driver has let go of something since the last time.
        """
        held = [held for held in self._held if held.state < RELEASED]
        if len(held) == len(self._held):
            return False
        self._held, self._bytes = held, sum(held.size for held in held)
        return True

    def reason(self, delivery: Sending) -> str | None:
        """Why a message had no room, if it goes to a stuck destination."""
        name = self._destination(delivery.message)
        if name not in self.names:
            return None
        return (
            f"{name!r} took nothing until the deadline, and destinations that take nothing hold at most half of the "
            "messages in flight: look after it; send again later, or raise delivery_timeout"
        )
