"""Renders a message as AMQP 0-9-1 frames: Basic.Publish, content header, body.

The bytes that are the same for all messages of one topic, name and content type are remembered. The id, the time, the
sizes, the headers and the body are put in for each message. aiormq's own marshalling takes more than ten times as
long.

    property        from
    content_type    content_type. The default is application/octet-stream for a bytes payload, else application/json
    headers         "ordering-key" with the key as long string, and the message's headers: str as long string, bytes as
                    byte array, int as 64-bit integer, float as double, bool as boolean, None as void
    delivery_mode   2 (persistent)
    message_id      message_id, as 8-4-4-4-12 hex digits
    timestamp       timestamp, in whole seconds
    type            message_name
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from typing import NamedTuple

from cqrs_brokers.driver import Message, content_type_of, id_text, timestamp_ms
from cqrs_brokers.exceptions import InvalidMessageError

__all__ = ["CHANNEL", "Renderer", "SMALL_BODY", "body_frames", "body_size", "header_frame_size", "on_channel"]

CHANNEL = 1
"""The channel number in rendered frames. Nearly all messages are sent on the channel with this number, also after a
reconnect."""

FRAME_END = b"\xce"
FRAME_OVERHEAD = 8
SMALL_BODY = 4096 - FRAME_OVERHEAD
"""A body of at most this size fits into one frame, whatever frame size was negotiated (AMQP 0-9-1, 1.2:
frame-min-size)."""

_METHOD, _HEADER, _BODY = 1, 2, 3
_PUBLISH = Struct(">HHH").pack  # class 60, method 40, a reserved short
_frame = Struct(">BHI").pack  # type, channel, size
_long, _long_long = Struct(">I").pack, Struct(">Q").pack
_MANDATORY = b"\x01"
_CLASS = b"\x00\x3c\x00\x00"  # class 60, weight 0; the size of the body follows
# content-type, delivery-mode, message-id, timestamp, type; with bit 13: headers too (AMQP 0-9-1, 4.2.6.1).
_WITHOUT_HEADERS, _WITH_HEADERS = b"\x90\xe0", b"\xb0\xe0"
_FIXED = 14 + 1 + 37 + 8  # class to flags, delivery mode, message id, timestamp
_BEFORE_ID = b"\x02\x24"  # delivery mode 2, and the size of the id
_HEADER_FRAME = b"\x02" + CHANNEL.to_bytes(2, "big")
_BODY_FRAME = b"\x03" + CHANNEL.to_bytes(2, "big")
_rich_start = Struct(">I4sQ").pack  # size of the header frame, class, size of the body
_REMEMBERED = 1000
_ORDERING_KEY = b"\x0cordering-keyS"
_int64, _double = Struct(">cq").pack, Struct(">cd").pack
_RABBITMQS_OWN = frozenset({"CC", "BCC"})
"""RabbitMQ reads further routing keys from these headers, and closes the channel if they are not lists."""


class _Route(NamedTuple):
    """The bytes that are the same for all messages with one topic, one name and one content type. The ordering key
    counts as a header."""

    start: bytes
    """For messages without headers: the bytes from the method frame up to the size of the body."""
    before_id: bytes
    """For messages without headers: the bytes after the size of the body, up to the id."""
    end: bytes
    """The bytes after the timestamp."""
    end_and_body: bytes
    """The bytes of `end`, and the start of a body frame."""
    fixed: int
    """For messages with headers: the size of the header frame without the table of headers."""
    rich_start: bytes
    """For messages with headers: the bytes from the method frame up to the size of the header frame."""
    rich_type: bytes
    """For messages with headers: the bytes after the size of the body, up to the table of headers."""


class Renderer:
    """Renders messages for one exchange.

    Args:
        exchange: The exchange's name.
    """

    def __init__(self, exchange: str) -> None:
        self._exchange = _short(exchange)
        self._routes: dict[tuple[str, str, str], _Route] = {}
        self._names: dict[str, bytes] = {}

    def render(self, message: Message) -> tuple[bytes, bytes, bytes]:
        """Renders a message.

        Args:
            message: A validated message.

        Returns:
            The message's id, its frames, and its body. A small body is part of the frames; then the last value is b"".
            A large body is not part of the frames, because it may need several frames.

        Raises:
            InvalidMessageError: There is a header `CC` or `BCC`. RabbitMQ would refuse this header, and close the
                channel for the other messages too.
        """
        body = message.payload_bytes or message.body or b""  # never None: this broker has no tombstones
        size = len(body)
        content_type = message.content_type or content_type_of(message)
        route = self._routes.get((message.topic, message.message_name, content_type))
        if route is None:
            route = self._route(message.topic, message.message_name, content_type)
        start, before_id, end, end_and_body, fixed, rich_start, rich_type = route
        message_id = id_text(message)
        seconds = _long_long(timestamp_ms(message) // 1000)
        headers, key = message.headers, message.key
        small = 0 < size <= SMALL_BODY
        if key is None and not headers:
            if small:
                frames = b"".join(
                    (
                        start,
                        _long_long(size),
                        before_id,
                        message_id,
                        seconds,
                        end_and_body,
                        _long(size),
                        body,
                        FRAME_END,
                    )
                )
                return message_id, frames, b""
            return message_id, b"".join((start, _long_long(size), before_id, message_id, seconds, end)), body
        table = self._table(key, headers)
        length = len(table)
        parts = (
            rich_start,
            _rich_start(fixed + length, _CLASS, size),
            rich_type,
            _long(length),
            table,
            _BEFORE_ID,
            message_id,
            seconds,
        )
        if small:
            return message_id, b"".join((*parts, end_and_body, _long(size), body, FRAME_END)), b""
        return message_id, b"".join((*parts, end)), body

    def _route(self, topic: str, name: str, content_type: str) -> _Route:
        """Makes the bytes that are the same for all messages with this topic, name and content type."""
        if len(self._routes) >= _REMEMBERED:
            self._routes.clear()
        arguments = _PUBLISH(60, 40, 0) + self._exchange + _short(topic) + _MANDATORY
        publish = _frame(_METHOD, CHANNEL, len(arguments)) + arguments + FRAME_END
        short_type, end = _short(content_type), _short(name) + FRAME_END
        size = _FIXED + len(short_type) + len(end) - len(FRAME_END)
        route = self._routes[topic, name, content_type] = _Route(
            start=publish + _frame(_HEADER, CHANNEL, size) + _CLASS,
            before_id=_WITHOUT_HEADERS + short_type + _BEFORE_ID,
            end=end,
            end_and_body=end + _BODY_FRAME,
            fixed=size + 4,
            rich_start=publish + _HEADER_FRAME,
            rich_type=_WITH_HEADERS + short_type,
        )
        return route

    def _table(self, key: str | None, headers: Mapping[str, object]) -> bytes:
        fields: list[bytes] = []
        if key is not None:
            text = key.encode()
            fields += (_ORDERING_KEY, _long(len(text)), text)
        names = self._names
        for name, value in headers.items():
            text_name = names.get(name) or self._text_name(name)
            if type(value) is str:
                text = value.encode()
                fields += (text_name, _long(len(text)), text)
            else:
                fields += (text_name[:-1], _typed(value))
        return b"".join(fields)

    def _text_name(self, name: str) -> bytes:
        """The name of a header as a short string, and then the type byte of a long string."""
        if name in _RABBITMQS_OWN:
            raise InvalidMessageError(
                f"the header {name!r} is RabbitMQ's own, for further routing keys: give yours another name"
            )
        if len(self._names) >= _REMEMBERED:
            self._names.clear()
        known = self._names[name] = _short(name) + b"S"
        return known


def _typed(value: object) -> bytes:
    """The type byte and the value of a header that is not text. pamqp would write floats with 32 bits."""
    if value is None:
        return b"V"
    if isinstance(value, bool):
        return b"t\x01" if value else b"t\x00"
    if isinstance(value, bytes):
        return b"x" + _long(len(value)) + value
    if isinstance(value, int):
        return _int64(b"l", value)
    return _double(b"d", value)


def header_frame_size(frames: bytes) -> int:
    """The size of the content header's frame. This frame cannot be divided."""
    start = FRAME_OVERHEAD + int.from_bytes(frames[3:7])
    return FRAME_OVERHEAD + int.from_bytes(frames[start + 3 : start + 7])


def body_size(frames: bytes) -> int:
    """The size of the body, read from the content header."""
    start = 2 * FRAME_OVERHEAD + int.from_bytes(frames[3:7]) + 3  # after the class and the weight in the second frame
    return int.from_bytes(frames[start : start + 8])


def on_channel(frames: bytes, number: int) -> bytes:
    """A copy of the frames with another channel number."""
    changed, channel, start = bytearray(frames), number.to_bytes(2, "big"), 0
    while start < len(changed):
        changed[start + 1 : start + 3] = channel
        start += FRAME_OVERHEAD + int.from_bytes(changed[start + 3 : start + 7])
    return bytes(changed)


def body_frames(body: bytes, frame_max: int, number: int, into: list[bytes]) -> None:
    """Appends the body as frames of at most `frame_max` bytes each; an empty body has none."""
    size, room = len(body), frame_max - FRAME_OVERHEAD
    for start in range(0, size, room):
        part = body if size <= room else body[start : start + room]
        into += (_frame(_BODY, number, len(part)), part, FRAME_END)


def _short(text: str) -> bytes:
    """Encodes a short string. `Broker` and the options have checked that the text has at most 255 bytes."""
    raw = text.encode()
    return bytes((len(raw),)) + raw
