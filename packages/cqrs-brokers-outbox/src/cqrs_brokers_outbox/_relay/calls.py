"""The calls to the broker that have no outcome yet, by topic. These calls show which topics are slow, so that a slow
topic holds up no other topic.

`send_messages` returns when its last message has its outcome. So a call has the rows of one topic only. A call for a
slow topic has the rows of one key only, because other keys of the topic may go to a partition of the broker that takes
messages.
"""

from __future__ import annotations

from collections.abc import Sequence

from .keys import Item
from .leases import monotonic
from .outcomes import LONGEST_DELAY
from .trouble import FIRST_PAUSE, LONGEST_PAUSE

__all__ = ["Calls"]

LATE = 1.0
"""A topic is slow when one of its calls has been without an outcome for longer than this, in seconds."""
LINGER = LONGEST_DELAY + 30.0
"""How long the topic stays slow, in seconds, after such a call has failed while other calls got receipts. In this time
the failed rows become due again, after their delay."""


class Calls:
    """The calls of one relay."""

    def __init__(self) -> None:
        self._open: dict[str, dict[int, float]] = {}
        """Topic → number of the call → when it began; the oldest first."""
        self._number = 0
        self._last_receipt = 0.0
        self._slow_until: dict[str, float] = {}
        self._pauses: dict[str, tuple[float, float]] = {}
        """Topic → the length of its last pause, and when the pause ends. A topic is not claimed in its pause."""
        self._without_receipt: dict[str, float] = {}
        """Topic → since when it has had calls and no receipt."""
        self._touched: dict[str, float] = {}
        """Topic without a receipt → when a call of it last ended."""

    def __bool__(self) -> bool:
        """Whether a call has no outcome yet."""
        return bool(self._open)

    def apart(self, items: Sequence[Item]) -> list[list[Item]]:
        """Divides rows into calls, in their order: one call for each topic, and for a slow topic one for each key."""
        if len(items) == 1:  # a hot key has one at a time
            return [list(items)]
        slow = self.slow()
        calls: dict[object, list[Item]] = {}
        for item in items:
            topic = item.row.topic
            calls.setdefault((topic, item.lane) if topic in slow else topic, []).append(item)
        return list(calls.values())

    def began(self, topic: str) -> int:
        """A call begins. Returns its number."""
        self._number += 1
        now = monotonic()
        self._open.setdefault(topic, {})[self._number] = now
        self._without_receipt.setdefault(topic, now)
        return self._number

    def ended(self, topic: str, number: int, *, sent: bool, failed: bool) -> bool:
        """A call has its outcomes.

        Args:
            topic: The topic.
            number: The call's number.
            sent: Whether a row has a receipt.
            failed: Whether a row has to be sent again for another reason than a refused topic.

        Returns:
            Whether other calls got receipts meanwhile. If so, the broker works, and not all of this topic does.
        """
        now = monotonic()
        began = self._open[topic].pop(number)
        others = self._last_receipt > began
        if failed and others and now - began > LATE:
            self._slow_until[topic] = now + LINGER
        if sent:
            self._last_receipt = now
            self._pauses.pop(topic, None)
        calls = self._open[topic]
        if not calls:
            del self._open[topic]
        if sent or (not failed and not calls):
            self._without_receipt.pop(topic, None)
            if calls:
                self._without_receipt[topic] = next(iter(calls.values()))
        self._touched.pop(topic, None)
        if topic in self._without_receipt:
            self._touched[topic] = now
        return others

    def pause(self, topic: str) -> None:
        """Begins a pause in which the topic is not claimed. The pauses get longer, up to `LONGEST_PAUSE`,
        until the topic has a receipt."""
        length = min(LONGEST_PAUSE, max(FIRST_PAUSE, self._pauses.get(topic, (0.0, 0.0))[0] * 2))
        self._pauses[topic] = length, monotonic() + length

    def slow(self) -> set[str]:
        """The topics that are slow now."""
        now = monotonic()
        for topic in [topic for topic, until in self._slow_until.items() if until < now]:
            del self._slow_until[topic]
        late = {topic for topic, calls in self._open.items() if now - next(iter(calls.values())) > LATE}
        return late.union(self._slow_until)

    def paused(self) -> set[str]:
        """The topics that are not to be claimed now."""
        now = monotonic()
        return {topic for topic, (_, until) in self._pauses.items() if until > now}

    def unanswered(self, seconds: float) -> dict[str, float]:
        """Topic → for how long it has had rows at the broker and no receipt. Topics with less than `seconds` are left
        out."""
        now = monotonic()
        for topic, when in list(self._touched.items()):
            if topic not in self._open and now - when > LINGER:  # another relay may have its rows
                del self._touched[topic]
                self._without_receipt.pop(topic, None)
        return {topic: now - since for topic, since in self._without_receipt.items() if now - since > seconds}
