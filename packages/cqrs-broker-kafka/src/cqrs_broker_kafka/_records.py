"""How a message becomes a Kafka record. The tests check the following table, which is also in the documentation,
against golden vectors.

value = body, null for a tombstone; key = `key` in UTF-8, or none; timestamp = `timestamp` in milliseconds
headers: message-id (UUID as text), message-name, content-type (but not of a tombstone that names none), then the user's
own: text in UTF-8, bytes as they are, None as null

A record is encoded once, when its message is submitted: all but the few bytes that depend on its place in a batch
(Kafka protocol, record format v2). Headers repeat, so their bytes are remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from typing import Any

from cqrs_brokers.driver import Delivery, Message, content_type_of, id_text, timestamp_ms

__all__ = ["Encode", "HEAD_SIZE", "PLACE_SIZE", "RecordMaker", "Records", "key_of", "varints"]

HEAD_SIZE = 61
"""The bytes of a batch before its records."""
PLACE_SIZE = 21
"""The most bytes that a record has in a batch besides `content`: its length, its attributes, and its
differences from the batch's first timestamp and offset."""
_REMEMBERED = 1000
_LONGEST_REMEMBERED = 256
"""The longest header that is remembered, in bytes."""


class Records:
    """Messages in the form that goes on the wire, in order. The parts of a record have the same place in three lists.

    A record has no object of its own: that would be one more per message for the garbage collector, which takes a fifth
    of the time of a gather of 1 000.

    Attributes:
        deliveries: Who is told the outcomes.
        timestamps: Milliseconds since 1970-01-01 UTC.
        contents: Keys, values and headers, in the format of a record batch.
    """

    __slots__ = ("deliveries", "timestamps", "contents")

    def __init__(
        self,
        deliveries: list[Delivery] | None = None,
        timestamps: list[int] | None = None,
        contents: list[bytes] | None = None,
    ) -> None:
        self.deliveries = deliveries or []
        self.timestamps = timestamps or []
        self.contents = contents or []

    def __len__(self) -> int:
        return len(self.deliveries)

    def append(self, delivery: Delivery, timestamp: int, content: bytes) -> None:
        """Adds a record behind the others."""
        self.deliveries.append(delivery)
        self.timestamps.append(timestamp)
        self.contents.append(content)

    def extend(self, records: Records) -> None:
        """Adds records behind the others."""
        self.deliveries += records.deliveries
        self.timestamps += records.timestamps
        self.contents += records.contents

    def put_first(self, records: Records) -> None:
        """Adds records before the others."""
        self.deliveries[:0] = records.deliveries
        self.timestamps[:0] = records.timestamps
        self.contents[:0] = records.contents

    def each(self) -> Iterator[tuple[Delivery, int, bytes]]:
        """The parts of each record."""
        return zip(self.deliveries, self.timestamps, self.contents, strict=True)

    def take(self, count: int) -> Records:
        """Removes records from the head."""
        if count == len(self.deliveries):
            taken = Records(self.deliveries, self.timestamps, self.contents)
            self.deliveries, self.timestamps, self.contents = [], [], []
            return taken
        taken = Records(self.deliveries[:count], self.timestamps[:count], self.contents[:count])
        del self.deliveries[:count], self.timestamps[:count], self.contents[:count]
        return taken

    def only(self, wanted: Sequence[bool]) -> Records:
        """Those of the records that are wanted. The first value is about the first record, and so on."""
        return Records(*self._only(wanted))

    def _only(self, wanted: Sequence[bool]) -> tuple[list[Delivery], list[int], list[bytes]]:
        return (
            list(compress(self.deliveries, wanted)),
            list(compress(self.timestamps, wanted)),
            list(compress(self.contents, wanted)),
        )

    def purge(self) -> list[bool]:
        """Lets go of records whose callers have their outcome.

        Returns:
            Of each record, whether it stays.
        """
        stay = [not delivery.done for delivery in self.deliveries]
        if False in stay:
            for delivery in self.deliveries:
                if delivery.done:
                    delivery.release()
            self.deliveries, self.timestamps, self.contents = self._only(stay)
        return stay

    def sizes(self) -> list[int]:
        """The most bytes that each record adds to a batch."""
        return [PLACE_SIZE + len(content) for content in self.contents]


Encode = Callable[[Records, int, int, int], bytes]
"""Makes the bytes of a batch, from records, producer id, epoch and the sequence number of the first."""


class _Varints(dict[int, bytes]):
    """Integers as zigzag varints; small ones, which come often, are remembered."""

    def __missing__(self, number: int) -> bytes:
        left = (number << 1) ^ (number >> 63)
        encoded = bytearray()
        while left > 0x7F:
            encoded.append(left & 0x7F | 0x80)
            left >>= 7
        encoded.append(left)
        if -1 <= number < 20 * _REMEMBERED:
            self[number] = bytes(encoded)
        return bytes(encoded)


varints = _Varints()
_NULL = varints[-1]


class _Headers(dict[tuple[str, Any], bytes]):
    """Headers as bytes, by name and value. The first of them are remembered: those that repeat are mostly among them,
    and those that never repeat, such as a trace's, would cost more to remember than to encode."""

    def __init__(self) -> None:
        self._names: dict[str, bytes] = {}

    def __missing__(self, header: tuple[str, Any]) -> bytes:
        name, value = header
        data = value.encode() if isinstance(value, str) else value
        encoded = (self._names.get(name) or self._name(name)) + (_NULL if data is None else varints[len(data)] + data)
        if len(self) < _REMEMBERED and len(encoded) <= _LONGEST_REMEMBERED:
            self[header] = encoded
        return encoded

    def _name(self, name: str) -> bytes:
        if len(self._names) >= _REMEMBERED:
            self._names.clear()
        encoded = self._names[name] = _sized(name.encode())
        return encoded


def _sized(data: bytes) -> bytes:
    return varints[len(data)] + data


def key_of(content: bytes) -> str | None:
    """The key of a record."""
    at = shift = length = 0
    while True:
        length |= (content[at] & 0x7F) << shift
        shift += 7
        at += 1
        if content[at - 1] < 0x80:
            break
    length = (length >> 1) ^ -(length & 1)
    return None if length < 0 else content[at : at + length].decode()


class RecordMaker:
    """Makes records; remembers the headers that repeat."""

    def __init__(self) -> None:
        self._known = known = _Headers()
        self._header = known.__getitem__
        self._first: dict[tuple[str, str, int], tuple[bytes, bytes]] = {}

    def add(self, delivery: Delivery, records: Records) -> None:
        """Adds the record of a delivery's message, as the message is now: the caller may change it later."""
        message = delivery.message
        own, key = message.headers, message.key
        content_type = message.content_type or content_type_of(message)
        around_id = self._first.get((message.message_name, content_type, len(own)))
        if around_id is None:
            around_id = self._remember(message, content_type)
        key_bytes = None if key is None else key.encode()
        body = message.payload_bytes or message.body
        content = [
            _NULL if key_bytes is None else varints[len(key_bytes)],
            key_bytes or b"",
            _NULL if body is None else varints[len(body)],
            body or b"",
            around_id[0],
            id_text(message),
            around_id[1],
            *map(self._header, own.items()),
        ]
        # As `Records.append`, without the call: this runs once for each message.
        records.contents.append(b"".join(content))
        records.deliveries.append(delivery)
        records.timestamps.append(timestamp_ms(message))

    def _remember(self, message: Message, content_type: str) -> tuple[bytes, bytes]:
        """The bytes before and behind the id, for all messages of that name and content type: the number of headers,
        and our own headers."""
        if len(self._first) >= _REMEMBERED:
            self._first.clear()
        behind = self._known["message-name", message.message_name]
        if content_type:
            behind += self._known["content-type", content_type]
        count = len(message.headers) + (3 if content_type else 2)
        around_id = varints[count] + _sized(b"message-id") + varints[36], behind
        self._first[message.message_name, content_type, len(message.headers)] = around_id
        return around_id
