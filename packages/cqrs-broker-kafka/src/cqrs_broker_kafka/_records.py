"""How a message becomes a Kafka record. The wire table of the documentation; golden vectors in the tests hold it still.

value = body, null for a tombstone; key = `key` in UTF-8, or none; timestamp = `timestamp` in milliseconds
headers: message-id (UUID as text), message-name, content-type (but not of a tombstone that names none), then the user's
own: text in UTF-8, bytes as they are, None as null
"""

from typing import Any, NamedTuple

from cqrs_brokers.driver import Delivery, Message, content_type_of, id_text, timestamp_ms

__all__ = ["Headers", "Record", "RecordMaker"]

Headers = list[tuple[str, bytes | None]]

_REMEMBERED = 1000
_new = tuple.__new__


class Record(NamedTuple):
    """A message as it goes on the wire, taken when it was submitted: the caller may change the message later."""

    delivery: Delivery
    timestamp: int
    """Milliseconds since 1970-01-01 UTC."""
    key: bytes | None
    value: bytes | None
    message_id: bytes
    repeating: Headers
    """The headers that other records have too."""
    own: Headers | None
    """The message's own headers."""

    def headers(self) -> Headers:
        """All headers. Not kept: while a message waits, every list is one more for the garbage collector to visit."""
        headers: Headers = [("message-id", self.message_id), *self.repeating]
        if self.own is not None:
            headers += self.own
        return headers

    def size(self) -> int:
        """Its size in a batch, at most (Kafka protocol, record format v2)."""
        size = 32 + len(self.value or b"") + len(self.key or b"")
        for name, value in self.headers():
            size += 10 + 4 * len(name) + len(value or b"")
        return size


class RecordMaker:
    """Makes records; remembers the headers that repeat."""

    def __init__(self) -> None:
        self._repeating: dict[tuple[str, str], Headers] = {}

    def record(self, delivery: Delivery) -> Record:
        """The record of a delivery's message."""
        message = delivery.message
        content_type = message.content_type or content_type_of(message)
        repeating = self._repeating.get((message.message_name, content_type))
        if repeating is None:
            repeating = self._remember(message, content_type)
        headers, key = message.headers, message.key
        fields = (
            delivery,
            timestamp_ms(message),
            None if key is None else key.encode(),
            message.payload_bytes or message.body,
            id_text(message),
            repeating,
            [(name, _bytes(value)) for name, value in headers.items()] if headers else None,
        )
        return _new(Record, fields)  # a NamedTuple's own constructor costs four times as much

    def _remember(self, message: Message, content_type: str) -> Headers:
        if len(self._repeating) >= _REMEMBERED:
            self._repeating.clear()
        headers: Headers = [("message-name", message.message_name.encode())]
        if content_type:
            headers.append(("content-type", content_type.encode()))
        self._repeating[message.message_name, content_type] = headers
        return headers


def _bytes(value: Any) -> bytes | None:
    return value.encode() if type(value) is str else value
