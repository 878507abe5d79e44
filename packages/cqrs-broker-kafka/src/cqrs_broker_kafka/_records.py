"""Makes Kafka records from messages. Tests compare the records with golden vectors. A record contains:

value = body, null for a tombstone; key = `key` in UTF-8, or null; timestamp = `timestamp` in milliseconds
headers: message-id (UUID as text), message-name, content-type (a tombstone without a content type has no content-type
header), then the user's own headers: text in UTF-8, bytes as they are, None as null

A record is encoded once, when its message is submitted. Only a few bytes are added later, because they depend on the
record's place in a batch (Kafka protocol, record format v2). Many headers repeat, so their bytes are remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import compress, islice
from typing import Any

from cqrs_brokers.driver import Delivery, HeaderValue, Message, content_type_of, id_text, timestamp_ms

__all__ = ["Encode", "HEAD_SIZE", "PLACE_SIZE", "RecordMaker", "Records", "key_of", "varints"]

HEAD_SIZE = 61
"""The number of bytes in a batch before its records."""
PLACE_SIZE = 21
"""The most bytes that a record has in a batch besides its content (`Records.contents`). These bytes hold the record's
length, its attributes, and its differences from the batch's first timestamp and first offset."""
_REMEMBERED = 1000
_LONGEST_REMEMBERED = 256
"""The longest header that is remembered, in bytes."""


class Records:
    """Messages as encoded records, in order.

    A record has no object of its own, because each further object per message is more work for the garbage collector.
    When 1 000 messages are sent at a time, a fifth of the time is garbage collection. The parts of all records are in
    one list. So the parts of a record stay together even if a `KeyboardInterrupt` comes while a record is added.

    Attributes:
        parts: The delivery, the timestamp and the content of the first record, then those of the second, and so on.
    """

    __slots__ = ("parts",)

    def __init__(self, parts: list[Any] | None = None) -> None:
        self.parts = [] if parts is None else parts

    def __len__(self) -> int:
        return len(self.parts) // 3

    @property
    def deliveries(self) -> list[Delivery]:
        """The deliveries of the records, for their confirms and errors."""
        return self.parts[::3]

    @property
    def timestamps(self) -> list[int]:
        """The timestamps of the records, in milliseconds since 1970-01-01 UTC."""
        return self.parts[1::3]

    @property
    def contents(self) -> list[bytes]:
        """The key, value and headers of each record, in the format of a record batch."""
        return self.parts[2::3]

    def each(self) -> Iterator[tuple[Delivery, int, bytes]]:
        """The parts of each record."""
        return zip(self.deliveries, self.timestamps, self.contents, strict=True)

    def sizes(self) -> list[int]:
        """The most bytes that each record adds to a batch, before compression."""
        return [PLACE_SIZE + len(content) for content in self.contents]

    def fitting(self, most: int, room: int) -> int:
        """Returns how many records from the head go into one batch.

        Args:
            most: The largest number of records to count.
            room: The largest total size of the records, in bytes. The first record goes into the batch in any case.
        """
        count = 0
        for content in islice(self.parts, 2, 3 * most, 3):
            room -= PLACE_SIZE + len(content)
            if room < 0 and count:
                break
            count += 1
        return count

    def take(self, count: int) -> Records:
        """Removes this many records from the head, and returns them."""
        end = 3 * count
        if end == len(self.parts):
            taken, self.parts = self.parts, []
        else:
            taken = self.parts[:end]
            del self.parts[:end]
        return Records(taken)

    def only(self, wanted: Sequence[bool]) -> Records:
        """Returns the records that are wanted. `wanted` has one value for each record, in the same order."""
        return Records(list(compress(self.parts, (each for each in wanted for _ in range(3)))))

    def purge(self) -> list[bool]:
        """Removes records whose messages are over (`Delivery.done`), and releases their deliveries.

        Returns:
            One value for each record that was there before: whether this record stays.
        """
        deliveries = self.deliveries
        stay = [not delivery.done for delivery in deliveries]
        if False in stay:
            self.parts = self.only(stay).parts
            for delivery, stays in zip(deliveries, stay, strict=True):
                if not stays:
                    delivery.release()
        return stay

    def let_go(self) -> None:
        """Releases the deliveries whose messages are over (`Delivery.done`). Their records stay."""
        for place, delivery in enumerate(self.deliveries):
            if delivery.done:
                self.parts[3 * place] = _LET_GO
                delivery.release()


class _LetGo:
    """Stands in a batch for a delivery that was released before the batch had its answer. The record stays in the
    batch, because a batch in doubt is repeated byte for byte."""

    done = True

    def handed_over(self) -> bool:
        """Returns False: the message is over, so its record goes into no other batch."""
        return False

    def nothing(self, *_: object, **__: object) -> None:
        """Does nothing, because the message is over, and its place in flight is free."""

    release = returned = confirm = fail = nothing


_LET_GO = _LetGo()


Encode = Callable[[Records, int, int, int], bytes]
"""Makes the bytes of a batch from records, producer id, epoch and the sequence number of the first record."""


class _Varints(dict[int, bytes]):
    """Encodes integers as zigzag varints. Remembers the bytes of the integers from -1 to 19 999."""

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
    """Encodes headers. The bytes of the first 1 000 different headers are remembered, by name and value. Headers of
    more than 256 bytes are not remembered and do not count. Later headers are not remembered, because headers that
    repeat usually come early. For a header that never repeats, such as a trace id, remembering the bytes takes longer
    than encoding them."""

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


def key_of(record: tuple[Delivery, int, bytes]) -> str | None:
    """The key of a record. None: the message has no key."""
    content = record[2]
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
    """Makes records. Remembers the bytes of headers, because many headers repeat."""

    def __init__(self) -> None:
        self._known = _Headers()
        self._first: dict[tuple[str, str, int], tuple[bytes, bytes]] = {}
        self._usual: Mapping[str, HeaderValue] = {}
        """The headers of an earlier message."""
        self._usual_names: list[str] = []
        """The names of these headers, in order. Equal dictionaries may differ in their order, and a record keeps the
        order."""
        self._usual_bytes = b""
        self._repeat = False
        """Whether the last message that was compared had headers equal to `_usual`. In many programs all messages have
        equal headers. A comparison of headers takes a fifth of the time of encoding them."""

    def add(self, delivery: Delivery, records: Records) -> None:
        """Encodes a delivery's message and adds the record. Later changes of the message do not change the record."""
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
        ]
        if self._repeat and own == self._usual and [*own] == self._usual_names:
            content.append(self._usual_bytes)
        else:
            content += map(self._known.__getitem__, own.items())
            self._repeat = False
            if not records.parts:  # at most once for each batch
                self._look_for_repeats(own)
        records.parts += (delivery, timestamp_ms(message), b"".join(content))

    def _look_for_repeats(self, headers: Mapping[str, HeaderValue]) -> None:
        """Notes whether these headers are equal to `_usual`. If not, makes these headers the usual ones."""
        self._repeat = headers == self._usual
        if not self._repeat:
            self._usual, self._usual_names = dict(headers), [*headers]
            self._usual_bytes = b"".join(map(self._known.__getitem__, headers.items()))

    def _remember(self, message: Message, content_type: str) -> tuple[bytes, bytes]:
        """Makes and remembers the bytes before and after the message's id: the number of headers, and our own headers.
        These bytes are the same for all messages with this name, content type and number of headers."""
        if len(self._first) >= _REMEMBERED:
            self._first.clear()
        behind = self._known["message-name", message.message_name]
        if content_type:
            behind += self._known["content-type", content_type]
        count = len(message.headers) + (3 if content_type else 2)
        around_id = varints[count] + _sized(b"message-id") + varints[36], behind
        self._first[message.message_name, content_type, len(message.headers)] = around_id
        return around_id
