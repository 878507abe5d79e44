"""What may be sent: every message is checked before any I/O, and anything message-like becomes a `Message`.

Legal topics, names, content types and header names repeat; they are remembered in bounded sets. Values are checked
every time. The limits are those of the strictest broker we know, so that what is legal here is legal everywhere:
AMQP's short strings have 255 bytes (AMQP 0-9-1, 4.2.5.3), and its field names 128 (4.2.5.5).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn
from uuid import UUID

from cqrs_brokers.exceptions import InvalidMessageError, MessageTooLargeError
from cqrs_brokers.protocol import NO_HEADERS, Capabilities, EventBody, Message

__all__ = ["RESERVED_HEADERS", "Validator"]

RESERVED_HEADERS = frozenset({"message-id", "message-name", "content-type", "ordering-key"})
"""Header names that carry the message's own fields on some broker; compared without case."""

MAX_HEADERS = 100
MAX_NAME_BYTES = 255
MAX_HEADER_NAME_BYTES = 128
MAX_TEXT_BYTES = 32_767
_REMEMBERED = 10_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Validator:
    """Checks messages for one broker.

    Args:
        address: The broker's redacted URL, for errors.
        capabilities: What its driver can do; a message that needs more is refused, not silently reduced. None: the
            broker declares nothing and is given every message as it is.
        refuse_topic: Why the broker cannot have a topic, or None.
        max_message_bytes: The most that body, key and headers may have together.
        encoder: Encodes payloads that come without bytes and without a content type.
    """

    def __init__(
        self,
        *,
        address: str,
        capabilities: Capabilities | None,
        refuse_topic: Callable[[str], str | None] | None,
        max_message_bytes: int,
        encoder: Callable[[object], bytes] | None,
    ) -> None:
        self._address = address
        self._keys = capabilities is None or capabilities.ordering_key
        self._headers = capabilities is None or capabilities.headers
        self._refuse_topic = refuse_topic
        self._max = max_message_bytes
        self._encoder = encoder
        self.as_it_is = Message if encoder is None else None
        """What needs no `message()`: it would return the same."""
        self._known_topics: set[str] = set()
        self._known_names: set[str] = set()
        self._known_types: set[str] = set()
        self._known_headers: set[str] = set()

    def message(self, candidate: Any) -> Message:
        """The message to send: the caller's own when it is a `Message`, else one with the same content."""
        message = candidate if type(candidate) is Message else self._coerced(candidate)
        if self._encoder is not None and message.payload_bytes is None and message.content_type is None:
            message = self._encoded(message, self._encoder)
        return message

    def size(self, message: Message) -> int:
        """The message's size in bytes: body, key, header names and values in UTF-8.

        Raises:
            InvalidMessageError: It cannot be sent.
            MessageTooLargeError: It is larger than allowed.
        """
        try:
            if message.topic not in self._known_topics:
                self._check_topic(message)
            if message.message_name not in self._known_names:
                self._check_name(self._known_names, message.message_name, message, "message_name", MAX_NAME_BYTES)
            content_type = message.content_type
            if content_type is not None and content_type not in self._known_types:
                self._check_name(self._known_types, content_type, message, "content_type", MAX_NAME_BYTES)
        except TypeError:  # unhashable
            self._refuse(message, "topic, message_name and content_type must be text")
        if type(message._id) is not bytes and not isinstance(message._id, UUID):  # bytes: it is ours
            self._refuse(message, "message_id must be a UUID")
        if message._made_ns is None:  # else it is ours
            self._check_timestamp(message, message.timestamp)
        body = message.payload_bytes
        if body is None:
            body = self._body(message)
        elif type(body) is not bytes:
            self._refuse(message, f"payload_bytes must be bytes, not {type(body).__name__}")
        size = len(body)
        key = message.key
        if key is not None:
            if self._keys and type(key) is str and key.isascii() and len(key) <= MAX_TEXT_BYTES:
                size += len(key)
            else:
                size += self._check_key(message, key)
        if message.headers:
            size += self._check_headers(message, message.headers)
        if size > self._max:
            raise MessageTooLargeError(
                f"the message has {size} bytes and {self._max} are allowed: send less, or raise max_message_bytes here "
                "and the broker's own limit",
                message_id=message.message_id,
                topic=message.topic,
                broker=self._address,
            )
        return size

    def unreadable(self, error: Exception) -> InvalidMessageError:
        """The error for a message whose own code raised while it was looked at. No cause: it may quote the message."""
        return InvalidMessageError(f"reading the message raised {type(error).__name__}", broker=self._address)

    # -- parts --------------------------------------------------------------------------------------------------------

    def _refuse(self, message: Any, text: str) -> NoReturn:
        message_id, topic = getattr(message, "message_id", None), getattr(message, "topic", None)
        raise InvalidMessageError(
            text,
            message_id=message_id if isinstance(message_id, UUID) else None,
            topic=topic if isinstance(topic, str) else None,
            broker=self._address,
        )

    def _check_name(self, known: set[str], text: Any, message: Message, what: str, limit: int) -> None:
        if not isinstance(text, str):
            self._refuse(message, f"{what} must be text, not {type(text).__name__}")
        if not text:
            self._refuse(message, f"{what} is empty")
        if not text.isprintable():
            self._refuse(message, f"{what} has characters that are not printable")
        if len(text.encode(errors="replace")) > limit:
            self._refuse(message, f"{what} is longer than {limit} bytes")
        if len(known) >= _REMEMBERED:
            known.clear()
        known.add(text)

    def _check_timestamp(self, message: Message, timestamp: Any) -> None:
        if not isinstance(timestamp, datetime) or timestamp.tzinfo is None:
            self._refuse(message, "timestamp must be a timezone-aware datetime: use datetime.now(UTC)")
        if timestamp.year <= 1970 and timestamp < _EPOCH:  # the year is cheap to ask; no zone is a year off
            self._refuse(message, "timestamp is before 1970-01-01, which no broker can carry")

    def _check_topic(self, message: Message) -> None:
        topic = message.topic
        if self._refuse_topic is not None and isinstance(topic, str) and topic:
            reason = self._refuse_topic(topic)
            if reason is not None:
                self._refuse(message, reason)
        self._check_name(self._known_topics, topic, message, "topic", MAX_NAME_BYTES)

    def _body(self, message: Message) -> bytes:
        message._body = None  # the payload may have been changed since it was sent before
        try:
            body = message.body
        except (TypeError, ValueError) as error:
            reason = str(error)
        except Exception as error:  # a property of the payload's own class
            reason = f"encoding the payload raised {type(error).__name__}"
        else:
            return body
        return self._refuse(message, reason)

    def _check_key(self, message: Message, key: Any) -> int:
        if not self._keys:
            self._refuse(message, "this broker keeps no order by key, and the message has a key: send it without one")
        return self._text_bytes(message, key, "key")

    def _check_headers(self, message: Message, headers: Any) -> int:
        if type(headers) is not dict and not isinstance(headers, Mapping):
            self._refuse(message, f"headers must be a mapping, not {type(headers).__name__}")
        if not self._headers:
            self._refuse(message, "this broker carries no headers, and the message has some: send it without")
        if len(headers) > MAX_HEADERS:
            self._refuse(message, f"{len(headers)} headers, and {MAX_HEADERS} are allowed")
        size = 0
        known = self._known_headers
        for name, value in headers.items():
            if name not in known:
                if isinstance(name, str) and name.lower() in RESERVED_HEADERS:
                    self._refuse(message, f"header {name.lower()!r} is reserved: it carries a field of the message")
                self._check_name(known, name, message, "a header name", MAX_HEADER_NAME_BYTES)
            size += len(name) if name.isascii() else len(name.encode())
            if type(value) is str and value.isascii() and len(value) <= MAX_TEXT_BYTES:
                size += len(value)
            else:
                size += self._text_bytes(message, value, "a header value")
        return size

    def _text_bytes(self, message: Message, text: Any, what: str) -> int:
        if type(text) is not str:
            self._refuse(message, f"{what} must be text, not {type(text).__name__}")
        size = len(text)
        if not text.isascii():
            try:
                size = len(text.encode())
            except UnicodeEncodeError:
                size = -1
            if size < 0:
                self._refuse(message, f"{what} is not valid Unicode (a lone surrogate)")
        if size > MAX_TEXT_BYTES:
            self._refuse(message, f"{what} is longer than {MAX_TEXT_BYTES} bytes")
        return size

    def _coerced(self, candidate: Any) -> Message:
        if isinstance(candidate, Message):
            return candidate
        try:
            name, topic, payload = candidate.message_name, candidate.topic, candidate.payload
            message_id = candidate.message_id
        except AttributeError:
            name = None
        if name is None:
            self._refuse(
                None,
                f"a {type(candidate).__name__} is no message: it needs message_name, topic, payload and message_id "
                "(events go through Broker.publish)",
            )
        key = getattr(candidate, "key", None)
        if isinstance(payload, EventBody):
            name = payload.event_name
            key = payload.ordering_key if key is None else key
        optional: dict[str, Any] = {}
        timestamp = getattr(candidate, "timestamp", None)
        if timestamp is not None:
            optional["timestamp"] = timestamp
        headers = getattr(candidate, "headers", None)
        return Message(
            name,
            topic,
            payload,
            message_id,
            key=key,
            headers=NO_HEADERS if headers is None else headers,
            content_type=getattr(candidate, "content_type", None),
            payload_bytes=getattr(candidate, "payload_bytes", None),
            **optional,
        )

    def _encoded(self, message: Message, encoder: Callable[[object], bytes]) -> Message:
        reason = None
        body: Any = None
        try:
            body = encoder(message.payload)
        except Exception as error:
            reason = f"the encoder raised {type(error).__name__}"
        if reason is None and type(body) is not bytes:
            reason = f"the encoder must return bytes, not {type(body).__name__}"
        if reason is not None:
            self._refuse(message, reason)
        return Message(
            message.message_name,
            message.topic,
            message.payload,
            message.message_id,
            key=message.key,
            headers=message.headers,
            timestamp=message.timestamp,
            payload_bytes=body,
        )
