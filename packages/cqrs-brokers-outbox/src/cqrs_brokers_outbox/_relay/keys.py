"""The rows in the relay's memory, by key. Decides which of them may go to the broker now.

A row goes to the broker only when the row before it with the same key has its receipt (unless `pipeline` is set). When
a row fails, the rows behind it are forgotten here. The database has them, and a claim brings them again when they are
due.

A claim takes some time. Rows that it read before a failure was marked may be out of date: the claim may bring a row
whose predecessor has just failed. So after a failure a key takes no claimed rows until the failure is marked and every
claim that began before the mark has ended.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

from cqrs_brokers import Message

__all__ = ["Item", "Keys"]


class Item:
    """A claimed row.

    Attributes:
        row: The columns of the row.
        message: What is sent. It is set before the row is added to `Keys`.
        partition: The row's partition.
        token: The token of its partition when it was claimed.
        lane: The topic and the key; rows with the same lane keep their order. Without a key: the row's own number.
    """

    __slots__ = ("row", "message", "partition", "token", "lane")

    def __init__(self, row: Any, partition: int, token: int) -> None:
        self.row = row
        self.message: Message
        self.partition = partition
        self.token = token
        key = row.message_key
        self.lane: Any = row.id if key is None else (row.topic, key)


class Keys:
    """The claimed rows.

    Args:
        pipeline: Whether all waiting rows of a key are sent together.

    Attributes:
        busy: The numbers of all rows that the relay has, until they are marked or forgotten.
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
        """For each key: how many of its rows have an outcome that is not a receipt and is not marked yet."""
        self._settling: set[Any] = set()
        """Keys whose failures are all marked, while a claim still runs that began before the last mark."""
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
        """Notes that the relay has the row, until the row is marked."""
        self.busy[item.row.id] = item.partition
        self._of_topics[item.row.topic] += 1

    def of_topic(self, topic: str) -> int:
        """How many rows of a topic the relay has."""
        return self._of_topics[topic]

    def claim_begins(self) -> None:
        """A claim is about to read."""
        self._claiming = True

    def claim_ended(self) -> None:
        """The claim has ended: its rows were taken in, or it failed."""
        self._claiming = False
        self._settling.clear()

    def accepts(self, item: Item) -> bool:
        """Whether the claim's row may be taken in: nothing of its key failed while the claim ran."""
        lane = item.lane
        return lane not in self._failed and lane not in self._settling

    def failed(self, item: Item) -> None:
        """A row has an outcome that is not a receipt. Its key takes no claimed rows until `failure_marked`."""
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
        """Takes out all rows that may go now. Without `pipeline` their keys are in flight until `landed`, and no
        further row of them may go."""
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
            sent: Whether it has a receipt.

        Returns:
            The rows behind it, if it was not sent. They are forgotten here.
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
        """Forgets the rows that are not in flight, of these partitions or of all."""
        gone = None if partitions is None else set(partitions)
        for lane, rows in list(self._waiting.items()):
            if gone is None or rows[0].partition in gone:
                del self._waiting[lane]
                self.marked(rows)
                self._settle(lane)

    def marked(self, items: Iterable[Item]) -> None:
        """The rows are marked in the database, or are to stay as they are. From now on a claim may bring them again."""
        for item in items:
            if self.busy.pop(item.row.id, None) is not None:
                topic = item.row.topic
                self._of_topics[topic] -= 1
                if not self._of_topics[topic]:
                    del self._of_topics[topic]

    def let_go(self, item: Item) -> None:
        """Drops a row that was about to be sent, and the rows behind it, because this relay has the partition no
        longer."""
        self.marked([item, *self.landed(item, sent=False)])
        self._settle(item.lane)

    def crowded(self, limit: int) -> set[int]:
        """Hashes of the keys with more waiting rows than the limit. The next claim brings no rows of these keys."""
        return {rows[0].row.hash for rows in self._waiting.values() if len(rows) > limit}

    @property
    def waiting(self) -> bool:
        """Whether there may be a row that may go now. Its key may have been forgotten."""
        return bool(self._ready)
