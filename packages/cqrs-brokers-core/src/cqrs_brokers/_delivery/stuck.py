"""Finds the destinations that take nothing (*stuck* destinations), and limits how many messages the driver holds for
them. A destination is the place to which the driver sends a message, for example a topic.

The window has `max_in_flight` places. A message that was handed over cannot be taken back. So the driver must not fill
more than half of the window before `Broker` knows which destinations are stuck. The window has three parts:

| part of the window | for |
|---|---|
| two fifths | every message, while all destinations take messages |
| a tenth | trials: single messages for destinations that take nothing |
| half | the other destinations, when some take nothing; this half is empty until then |

When some destinations take nothing, the others get two fifths of the free places, not all of them. So there is still
room if another destination becomes stuck later. If several destinations become stuck one after the other, the driver
may hold more than half of the window for them: of 2 500 places first 1 000, then 1 600, then 1 960. The driver never
holds more messages than the window has places.

The window checks all destinations at intervals. Such a check is called a *look*. The first look is 0.1 s after messages
begin to wait for room. Further looks follow, one a second, while messages wait or a destination is stuck. A destination
is stuck if the driver still holds every message for it that the driver held at the previous look. When the driver holds
two fifths of the window for stuck destinations, further messages for them wait outside the window, in the order of
calls.

A few of these further messages still go to the driver, one for each key. They are the *trials* of their destination.
Trials are needed because a destination may only seem stuck, while its messages wait behind messages of another
destination. If the driver can send a trial, the destination takes messages again. Without trials the destination would
seem stuck until the deadlines of its earlier messages. The trials have different keys, because a driver may not send a
message while an earlier message with the same key is stuck. A trial without a key does not wait for other messages, but
may itself be stuck. So the driver may get one more trial without a key after each look.
"""

from __future__ import annotations

from collections.abc import Callable

from cqrs_brokers.protocol import Message

from .delivery import RELEASED, Sending
from .in_flight import InFlight

__all__ = ["StuckDestinations"]


class StuckDestinations:
    """Knows the stuck destinations of one broker, and sets how much of the window may be used.

    Args:
        in_flight: The messages that the driver holds.
        destination: The driver's `destination`, which names the place where a message goes.
    """

    def __init__(self, in_flight: InFlight, destination: Callable[[Message], str]) -> None:
        self._in_flight = in_flight
        self._destination = destination
        self.clear()

    def clear(self) -> None:
        """Forgets everything about destinations."""
        self._before: dict[str, list[Sending]] = {}
        self._held: list[Sending] = []
        self._trials: dict[str, dict[object, Sending]] = {}
        """The trials, by destination and by key. A trial without a key is under None here until the next look. The look
        replaces None with the delivery itself. So one more trial without a key is possible after each look."""
        self.names: frozenset[str] = frozenset()
        """The stuck destinations."""
        self._again: set[str] = set()
        """The stuck destinations that get one more trial, even if the earlier trials have no answer."""
        self._keys: set[tuple[str, str]] = set()
        """Pairs of a stuck destination and a key for which the driver holds a message. A further message with the same
        destination and key is no trial, because it would wait for the earlier message."""
        self._looks_for_more = 0
        """How many of the next looks give one more trial to each destination that becomes stuck in that look.
        `try_again` sets this number. After that call, a destination may still seem stuck only because of messages that
        were submitted before the call."""
        self._set_limits()

    def look(self) -> None:
        """Finds the destinations that have taken nothing since the last look."""
        now: dict[str, list[Sending]] = {}
        for delivery in (*self._in_flight.ended, *self._in_flight.pending):
            now.setdefault(self._destination(delivery.message), []).append(delivery)
        before, self._before = self._before, now
        known = self.names
        self.names = frozenset(
            name for name in now if name in before and all(delivery.state < RELEASED for delivery in before[name])
        )
        self._again &= self.names
        if self._looks_for_more:
            self._looks_for_more -= 1
            self._again |= self.names - known
        self._held = [delivery for name in self.names for delivery in now[name]]
        if self._again:
            self._note_keys()
        self._trials = {name: _that_count(self._trials.get(name, {})) for name in self.names}
        self._set_limits()

    def forget_look(self) -> None:
        """Forgets the last look, because no message waits any more."""
        self._before = {}

    def try_again(self) -> None:
        """Gives each stuck destination one more trial, because the driver says that stuck destinations may take
        messages now."""
        self._again, self._looks_for_more = set(self.names), 2
        self._note_keys()

    def _note_keys(self) -> None:
        held = ((self._destination(held.message), held.message.key) for held in self._held if held.state < RELEASED)
        self._keys = {(name, key) for name, key in held if key is not None}

    def count(self) -> bool:
        """Counts what the driver holds for stuck destinations. While a destination is stuck, the window calls this
        method once before it submits messages, not for each message.

        Returns:
            Whether the driver has released any of these messages since the last count.
        """
        held = [held for held in self._held if held.state < RELEASED]
        if len(held) == len(self._held):
            return False
        self._held = held
        self._set_limits()
        return True

    def _set_limits(self) -> None:
        places = self._in_flight
        self._bytes = sum(delivery.size for delivery in self._held)
        held, size = len(self._held), min(self._bytes, places.max_bytes)
        self.limit = min(places.max_count, held + max(1, _two_fifths(places.max_count - held)))
        """How many messages the driver may hold now."""
        self.limit_bytes = size + _two_fifths(places.max_bytes - size)
        """How many bytes the driver may hold now. A message with more bytes is submitted when the driver holds nothing
        else."""
        self._most = _most_with_trials(held, places.max_count)
        self._most_bytes = _most_with_trials(size, places.max_bytes)
        # While something is stuck, no message goes to the driver before its destination was looked at.
        places.limit, places.limit_bytes = (0, 0) if self.names else (self.limit, self.limit_bytes)

    def is_alone(self, delivery: Sending) -> bool:
        """Whether a message may go to the driver although the driver would then hold more than `limit_bytes`. It may if
        the driver holds only messages for stuck destinations, and `max_in_flight_bytes` leaves room for the message."""
        places = self._in_flight
        return places.bytes <= self._bytes and places.bytes + delivery.size <= places.max_bytes

    def must_wait(self, delivery: Sending) -> bool:
        """Whether the message must wait, because its destination is stuck and may get no further message now."""
        name, key = self._destination(delivery.message), delivery.message.key
        trials = self._trials.get(name)
        if trials is None or not self._is_full(delivery):
            return False
        if name in self._again and (name, key) not in self._keys:
            return False
        if len(self._held) >= self._most or self._bytes + delivery.size > self._most_bytes:
            return True
        before = trials.get(key)
        if before is not None:
            return before.state < RELEASED
        unanswered = sum(trial.state < RELEASED for trial in trials.values())
        return unanswered >= max(1, self._in_flight.max_count // (10 * len(self.names)))

    def took(self, delivery: Sending) -> None:
        """Notes that the driver got the message."""
        name = self._destination(delivery.message)
        if name in self.names:
            self._again.discard(name)
            if self._is_full(delivery):
                self._trials[name][delivery.message.key] = delivery
            self._held.append(delivery)
            self._bytes += delivery.size

    def _is_full(self, delivery: Sending) -> bool:
        """Whether the driver holds so much for stuck destinations that a further message for them can only be a
        trial."""
        places = self._in_flight
        if len(self._held) + 1 > _two_fifths(places.max_count):
            return True
        return self._bytes + delivery.size > _two_fifths(places.max_bytes)

    def reason(self, delivery: Sending) -> str | None:
        """Why a message had no room, if its destination is stuck. None: its destination is not stuck."""
        name = self._destination(delivery.message)
        if name not in self.names:
            return None
        return (
            f"{name!r} took nothing until the deadline, and most places in flight are kept for other destinations: "
            "check this destination; send again later, or raise delivery_timeout"
        )


def _that_count(trials: dict[object, Sending]) -> dict[object, Sending]:
    """The trials that the driver still holds. The key None is replaced with the delivery, so that the destination may
    have one more trial without a key."""
    return {trial if key is None else key: trial for key, trial in trials.items() if trial.state < RELEASED}


def _most_with_trials(held: int, window: int) -> int:
    """How many messages (or bytes) the driver may hold for stuck destinations, including their trials: half of the
    window. If the driver already holds more than half for them, it may hold a tenth of the free part in addition."""
    half = window // 2
    return half if held <= half else held + (window - held) // 10


def _two_fifths(number: int) -> int:
    return 2 * number // 5
