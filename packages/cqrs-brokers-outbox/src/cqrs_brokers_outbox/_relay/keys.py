"""Rows in the relay's memory, by key: which may go to the broker now.

Strict: a row goes when the one before it of its key has its receipt. When one fails, those behind it are forgotten:
the database has them, and the claim brings them again when their time has come.

A claim takes its time. What it read before a failure was marked says nothing about who has to wait: it may bring a row
whose predecessor has just failed. So a key takes no claimed rows from its failure until the failure is marked and every
claim that began before has ended.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cqrs_brokers import Message

__all__ = ["Item", "Keys"]


@dataclass(slots=True)
class Item:
    """A claimed row.

    Attributes:
        row: The columns.
        message: What is sent.
        partition: Its partition.
        token: The token of its partition when it was claimed.
        lane: What orders it: topic and key; without a key, itself.
    """

    row: Any
    message: Message
    partition: int
    token: int
    lane: Any = field(init=False)

    def __post_init__(self) -> None:
        row = self.row
        self.lane = row.id if row.message_key is None else (row.topic, bytes(row.message_key))


class Keys:
    """The claimed rows.

    Args:
        pipeline: Rows of a key go together.

    Attributes:
        busy: The numbers of all rows that the relay has, until they are marked.
    """

    def __init__(self, *, pipeline: bool) -> None:
        self._pipeline = pipeline
        self._waiting: dict[Any, deque[Item]] = {}
        self._flying: set[Any] = set()
        self._ready: deque[Any] = deque()
        self.busy: dict[int, int] = {}
        """Number of the row → its partition."""
        self._of_topics: Counter[str] = Counter()
        self._failed: Counter[Any] = Counter()
        """Keys of which rows have an outcome other than a receipt that is not marked yet."""
        self._settling: set[Any] = set()
        """Keys of which all is marked, while a claim runs that began before."""
        self._claiming = False

    def add(self, items: Iterable[Item]) -> None:
        """Takes claimed rows, in their order."""
        for item in items:
            self.have(item)
            lane = item.lane
            rows = self._waiting.get(lane)
            if rows is None:
                self._waiting[lane] = deque([item])
                if lane not in self._flying:
                    self._ready.append(lane)
            else:
                rows.append(item)

    def have(self, item: Item) -> None:
        """The row is the relay's until it is marked."""
        self.busy[item.row.id] = item.partition
        self._of_topics[item.row.topic] += 1

    def of_topic(self, topic: str) -> int:
        """How many rows of a topic the relay has."""
        return self._of_topics[topic]

    def claim_begins(self) -> None:
        """A claim is about to read."""
        self._claiming = True

    def claim_ended(self) -> None:
        """Its rows are taken in, or it failed."""
        self._claiming = False
        self._settling.clear()

    def accepts(self, item: Item) -> bool:
        """Whether the claim's row may be taken in: nothing of its key failed while the claim ran."""
        lane = item.lane
        return lane not in self._failed and lane not in self._settling

    def failed(self, item: Item) -> None:
        """A row has another outcome than a receipt; until `marked` its key takes no claimed rows."""
        self._failed[item.lane] += 1

    def failure_marked(self, item: Item) -> None:
        """The outcome is marked."""
        lane = item.lane
        self._failed[lane] -= 1
        if not self._failed[lane]:
            del self._failed[lane]
            self._settle(lane)

    def _settle(self, lane: Any) -> None:
        if self._claiming:
            self._settling.add(lane)

    def take(self) -> list[Item]:
        """All rows that may go now; the keys of those are in flight until `landed`."""
        items: list[Item] = []
        while self._ready:
            lane = self._ready.popleft()
            rows = self._waiting.get(lane)
            if not rows or lane in self._flying:
                continue
            if self._pipeline:
                items.extend(rows)
                del self._waiting[lane]
                continue
            items.append(rows.popleft())
            self._flying.add(lane)
            if not rows:
                del self._waiting[lane]
        if self._pipeline:
            items.sort(key=lambda item: item.row.id)
        return items

    def landed(self, item: Item, sent: bool) -> list[Item]:
        """A row has its outcome.

        Args:
            item: The row.
            sent: It has a receipt.

        Returns:
            The rows behind it, which are forgotten when it was not sent.
        """
        lane = item.lane
        self._flying.discard(lane)
        rows = self._waiting.get(lane)
        if rows is None:
            return []
        if sent:
            self._ready.append(lane)
            return []
        del self._waiting[lane]
        return list(rows)

    def forget_waiting(self, partitions: Iterable[int] | None = None) -> None:
        """Forgets what is not in flight: of these partitions, or all."""
        gone = None if partitions is None else set(partitions)
        for lane, rows in list(self._waiting.items()):
            if gone is None or rows[0].partition in gone:
                del self._waiting[lane]
                self.marked(rows)
                self._settle(lane)

    def marked(self, items: Iterable[Item]) -> None:
        """The rows are marked in the database, or are as they were: the claim may bring them again."""
        for item in items:
            if self.busy.pop(item.row.id, None) is not None:
                topic = item.row.topic
                self._of_topics[topic] -= 1
                if not self._of_topics[topic]:
                    del self._of_topics[topic]

    def let_go(self, item: Item) -> None:
        """A row that was to go does not, nor do those behind it: the partition is another relay's."""
        self.marked([item, *self.landed(item, sent=False)])
        self._settle(item.lane)

    def crowded(self, limit: int) -> set[int]:
        """Hashes of keys of which more rows wait than the limit: the claim need bring no more of them."""
        return {rows[0].row.hash for rows in self._waiting.values() if len(rows) > limit}

    @property
    def waiting(self) -> bool:
        """Whether something may go now."""
        return bool(self._ready)
