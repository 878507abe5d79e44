"""A message as AMQP 0-9-1 frames: Basic.Publish, content header, body.

What is the same for all messages of one topic, name and content type is marshalled once; the id, the time, the sizes,
the headers and the body are put in for each. That is what makes publishing cheap: the client's own marshalling costs
more than all the rest of a send.

    property        from
    content_type    content_type, else application/octet-stream for bytes, application/json
    headers         "ordering-key": key, and the message's headers; all long strings
    delivery_mode   2 (persistent)
    message_id      message_id, as 8-4-4-4-12 hex digits
    timestamp       timestamp, in whole seconds
    type            message_name
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct

from cqrs_brokers.driver import Message, content_type_of

__all__ = ["CHANNEL", "FRAME_END", "Renderer", "body_frames"]

CHANNEL = 1
"""The channel that messages are published on: always the same, so that what is rendered outlives a reconnect."""

FRAME_END = b"\xce"
FRAME_OVERHEAD = 8

_METHOD, _HEADER, _BODY = 1, 2, 3
_PUBLISH = Struct(">HHH").pack  # class 60, method 40, a reserved short
_frame = Struct(">BHI").pack  # type, channel, size
_content = Struct(">HHQH").pack  # class 60, weight 0, body size, property flags
_long, _long_long = Struct(">I").pack, Struct(">Q").pack
_MANDATORY = b"\x01"
# content-type, delivery-mode, message-id, timestamp, type; with bit 13: headers too (AMQP 0-9-1, 4.2.6.1).
_WITHOUT_HEADERS, _WITH_HEADERS = 0x90E0, 0xB0E0
_FIXED = 14 + 1 + 37 + 8  # class to flags, delivery mode, message id, timestamp
_REMEMBERED = 1000
_ORDERING_KEY = b"\x0cordering-keyS"


class Renderer:
    """Renders messages for one exchange.

    Args:
        exchange: The exchange's name.
    """

    def __init__(self, exchange: str) -> None:
        self._exchange = _short(exchange)
        self._routes: dict[tuple[str, str, str | None], tuple[bytes, bytes, bytes, bytes]] = {}
        self._names: dict[str, bytes] = {}

    def render(self, message: Message, message_id: str, size: int) -> bytes:
        """The frames before the body: the method and the content header.

        Args:
            message: A validated message.
            message_id: Its id as text.
            size: Of its body, in bytes.
        """
        content_type = message.content_type or content_type_of(message)
        route = self._routes.get((message.topic, message.message_name, content_type))
        if route is None:
            route = self._route(message.topic, message.message_name, content_type)
        publish, plain, short_type, short_name = route
        seconds = _long_long(int(message.timestamp.timestamp()))
        headers, key = message.headers, message.key
        if key is None and not headers:
            return b"%b%b%b\x02\x24%b%b%b\xce" % (
                publish + plain,
                _content(60, 0, size, _WITHOUT_HEADERS),
                short_type,
                message_id.encode(),
                seconds,
                short_name,
            )
        table = self._table(key, headers)
        length = len(table)
        return b"%b%b%b%b%b%b\x02\x24%b%b%b\xce" % (
            publish,
            _frame(_HEADER, CHANNEL, _FIXED + len(short_type) + 4 + length + len(short_name)),
            _content(60, 0, size, _WITH_HEADERS),
            short_type,
            _long(length),
            table,
            message_id.encode(),
            seconds,
            short_name,
        )

    def _route(self, topic: str, name: str, content_type: str) -> tuple[bytes, bytes, bytes, bytes]:
        """The method frame, the content header's frame header where there are no headers, content type and name."""
        if len(self._routes) >= _REMEMBERED:
            self._routes.clear()
        arguments = _PUBLISH(60, 40, 0) + self._exchange + _short(topic) + _MANDATORY
        method = _frame(_METHOD, CHANNEL, len(arguments)) + arguments + FRAME_END
        short_type, short_name = _short(content_type), _short(name)
        plain = _frame(_HEADER, CHANNEL, _FIXED + len(short_type) + len(short_name))
        route = self._routes[topic, name, content_type] = (method, plain, short_type, short_name)
        return route

    def _table(self, key: str | None, headers: Mapping[str, str]) -> bytes:
        fields: list[bytes] = []
        if key is not None:
            text = key.encode()
            fields += (_ORDERING_KEY, _long(len(text)), text)
        names = self._names
        for name, value in headers.items():
            text = value.encode()
            fields += (names.get(name) or self._name(name), _long(len(text)), text)
        return b"".join(fields)

    def _name(self, name: str) -> bytes:
        if len(self._names) >= _REMEMBERED:
            self._names.clear()
        known = self._names[name] = _short(name) + b"S"
        return known


def body_frames(body: bytes, frame_max: int, into: list[bytes]) -> None:
    """Appends the body as frames of at most `frame_max` bytes each; an empty body has none."""
    size, room = len(body), frame_max - FRAME_OVERHEAD
    if size <= room:
        if size:
            into += (_frame(_BODY, CHANNEL, size), body, FRAME_END)
        return
    for start in range(0, size, room):
        part = body[start : start + room]
        into += (_frame(_BODY, CHANNEL, len(part)), part, FRAME_END)


def _short(text: str) -> bytes:
    """A short string: at most 255 bytes, which `Broker` has checked."""
    raw = text.encode()
    return bytes((len(raw),)) + raw
