"""The messages on a channel that have no answer, by delivery tag.

The messages of one write are kept together, because they have consecutive tags. RabbitMQ often answers several of them
with one ack, and then a whole range is removed at once. The garbage collector has no further object per message.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from cqrs_brokers.driver import Delivery

__all__ = ["Entry", "Unanswered"]

Entry = tuple[Delivery, bytes, bytes, bytes, "str | None", bool]
"""A rendered message: the delivery, the message's id, its frames, its body (b"" if the frames contain the body), its
ordering key, and whether RabbitMQ has returned the message before."""


class _Write:
    """The messages of one write. The message at `index` has the delivery tag `first + index`."""

    __slots__ = ("answered", "columns", "deliveries", "first", "ids", "size", "start")

    def __init__(self, first: int, entries: Sequence[Entry]) -> None:
        self.first = first
        self.size = len(entries)
        self.columns: tuple[Any, ...] = tuple(zip(*entries))  # noqa: B905 -- they are of one type
        """The deliveries, the ids and so on, in the order of `Entry`."""
        self.deliveries: tuple[Delivery, ...] = self.columns[0]
        self.ids: tuple[bytes, ...] = self.columns[1]
        self.start = 0
        """The index below which every message has its answer."""
        self.answered: set[int] | None = None
        """The indexes of further messages that have their answer."""

    def waits(self, index: int) -> bool:
        """Whether this message has no answer."""
        return self.start <= index < self.size and (self.answered is None or index not in self.answered)

    def outstanding(self, end: int) -> Sequence[int]:
        """The indexes of the messages without an answer, as far as they are below `end`."""
        indexes = range(self.start, end)
        return indexes if self.answered is None else [index for index in indexes if index not in self.answered]

    def take_until(self, end: int, in_flight: set[bytes]) -> Sequence[Delivery]:
        """Takes out the messages below index `end` that have no answer. Also removes their ids from `in_flight`."""
        start, deliveries, ids = self.start, self.deliveries, self.ids
        taken: Sequence[Delivery]
        if self.answered is None:
            in_flight.difference_update(ids[start:end])
            taken = deliveries[start:end]
        else:
            indexes = self.outstanding(end)
            in_flight.difference_update([ids[index] for index in indexes])
            taken = [deliveries[index] for index in indexes]
        self._go_to(end)
        return taken

    def take(self, index: int) -> bool:
        """Takes out the message at this index. Returns False if the message had its answer before."""
        if not self.waits(index):
            return False
        if index == self.start:
            self._go_to(index + 1)
        elif self.answered is None:
            self.answered = {index}
        else:
            self.answered.add(index)
        return True

    def _go_to(self, start: int) -> None:
        answered = self.answered
        if answered is not None:
            while start in answered:
                start += 1
        if start > self.start:
            self.start = start

    def entry(self, index: int) -> Entry:
        """The message at this index."""
        delivery, message_id, frames, body, key, before = (column[index] for column in self.columns)
        return delivery, message_id, frames, body, key, before


class Unanswered:
    """The messages on a channel that have no answer.

    Args:
        in_flight: The channel's set of ids. This class adds the ids of its messages to the set, and removes them again.
    """

    def __init__(self, in_flight: set[bytes]) -> None:
        self._in_flight = in_flight
        self._writes: list[_Write] = []
        self._firsts: list[int] = []
        """The first tag of each write, in ascending order."""

    def add(self, first: int, entries: Sequence[Entry]) -> None:
        """Adds the messages of one write.

        Args:
            first: The delivery tag of the first message. It is higher than all earlier tags.
            entries: At least one message.
        """
        write = _Write(first, entries)
        self._in_flight.update(write.ids)
        self._writes.append(write)
        self._firsts.append(first)

    def take_until(self, last: int) -> Sequence[Delivery]:
        """Takes out the messages with this tag and with lower tags, and returns their deliveries."""
        count = bisect_right(self._firsts, last)
        taken: list[Delivery] = []
        for write in self._writes[:count]:
            taken += write.take_until(min(last + 1 - write.first, write.size), self._in_flight)
        if count and self._writes[count - 1].start < self._writes[count - 1].size:
            count -= 1
        del self._writes[:count], self._firsts[:count]
        return taken

    def take(self, tag: int) -> Delivery | None:
        """Takes out the message with this tag. None: no message without an answer has this tag."""
        found = self._take(tag)
        return None if found is None else found[0].deliveries[found[1]]

    def take_entry(self, tag: int) -> Entry | None:
        """Does the same as `take`, but returns the whole entry."""
        found = self._take(tag)
        return None if found is None else found[0].entry(found[1])

    def _take(self, tag: int) -> tuple[_Write, int] | None:
        at = bisect_right(self._firsts, tag) - 1
        if at < 0:
            return None
        write = self._writes[at]
        index = tag - write.first
        if not write.take(index):
            return None
        if write.start == write.size:
            del self._writes[at], self._firsts[at]
        self._in_flight.discard(write.ids[index])
        return write, index

    def tags(self, last: int) -> list[int]:
        """The delivery tags of the messages without an answer, up to `last`, in ascending order."""
        return [
            write.first + index
            for write in self._writes[: bisect_right(self._firsts, last)]
            for index in write.outstanding(min(last + 1 - write.first, write.size))
        ]

    def tag_of(self, message_id: bytes) -> int | None:
        """The delivery tag of the message with this id. None: no message without an answer has this id."""
        if message_id in self._in_flight:
            for write in self._writes:
                if message_id in write.ids:  # at most once: no id is in flight twice
                    index = write.ids.index(message_id)
                    if write.waits(index):
                        return write.first + index
        return None

    def entries(self) -> list[Entry]:
        """The messages, in the order in which they were sent."""
        return [write.entry(index) for write in self._writes for index in write.outstanding(write.size)]

    def oldest(self) -> Delivery | None:
        """The message that was sent first. None: every message has its answer."""
        return self._writes[0].deliveries[self._writes[0].start] if self._writes else None

    def clear(self) -> None:
        """Takes out all messages."""
        self._in_flight.clear()
        self._writes.clear()
        self._firsts.clear()

    def __bool__(self) -> bool:
        return bool(self._writes)
