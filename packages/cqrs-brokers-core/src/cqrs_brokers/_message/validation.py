"""Checks every message before any I/O.

The same topics, names, content types and header names occur in many messages. So the texts that have passed the check
are remembered, up to a limit, and are not checked again. Keys are checked every time. Header values are checked every
time, unless the headers repeat (see `LOOK_EVERY` and `Validator.add_headers`). A text in the message may be an instance
of a subclass of `str`, such as an enum member. The validator replaces such a text in the message by a plain `str` with
the same characters, so that drivers get only `str`.

The limits for topics, names, content types and header names come from AMQP. AMQP allows at most 255 bytes for a short
string (AMQP 0-9-1, 4.2.5.3), and at most 128 characters for a field name (4.2.5.5). A driver may have further rules,
for example for topics (`refuse_topic`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import Any, NoReturn
from uuid import UUID

from cqrs_brokers.exceptions import InvalidMessageError, MessageTooLargeError
from cqrs_brokers.protocol import (
    TOMBSTONE,
    Capabilities,
    HeaderValue,
    Message,
    encoded_anew,
    has_own_id_and_time,
    has_own_time,
    raw_id,
)

from .coercion import readable
from .jsonable import UnencodableError

__all__ = ["RESERVED_HEADERS", "Validator"]

RESERVED_HEADERS = frozenset({"message-id", "message-name", "content-type", "ordering-key"})
"""Header names that some driver uses for the message's own fields. Upper and lower case do not matter."""

MAX_HEADERS = 100
MAX_NAME_BYTES = 255
MAX_HEADER_NAME_BYTES = 128
MAX_TEXT_BYTES = 32_767
MAX_INTEGER = 2**63 - 1
_REMEMBERED = 10_000
LOOK_EVERY = 16
"""After this many checks of headers the validator looks whether headers repeat. In many programs all messages have
equal headers. Then a comparison replaces the check, and takes less than half of the time."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _are_plain_texts(headers: Mapping[Any, object]) -> bool:
    """Whether every name and value is a `str`, and none is an instance of a derived class, such as a member of an
    enum."""
    for name, value in headers.items():  # noqa: SIM110 - `all` and a generator would take twice as long
        if type(name) is not str or type(value) is not str:
            return False
    return True


class Validator:
    """Checks messages for one broker, or for a `MessageValidator`.

    Args:
        address: The broker's redacted URL, or the broker's name if it has no URL, for errors. "": there is no broker.
        capabilities: What the driver can do. A message that needs a further capability is refused; nothing is left out
            silently. None: the driver declares nothing. Then messages may have headers of text, and a message with a
            key and a tombstone are refused.
        refuse_topic: Returns why the broker cannot have a topic, or None if the broker can have the topic. Without this
            function, the broker can have every topic.
        max_message_bytes: The most bytes that body, key and headers may have together.
    """

    def __init__(
        self,
        *,
        address: str,
        capabilities: Capabilities | None,
        refuse_topic: Callable[[str], str | None] | None,
        max_message_bytes: int,
    ) -> None:
        self._address = address
        self._declares = capabilities is not None
        self._keys = capabilities is not None and capabilities.ordering_key
        self._headers = capabilities is None or capabilities.headers
        self._header_types = frozenset({str}) if capabilities is None else capabilities.header_types
        self._tombstones = capabilities is not None and capabilities.tombstones
        self._refuse_topic = refuse_topic
        self._max = max_message_bytes
        # Texts that were checked, with their sizes in bytes.
        self._known_topics: dict[str, int] = {}
        self._known_names: dict[str, int] = {}
        self._known_types: dict[str, int] = {}
        self._known_headers: dict[str, int] = {}
        self._texts: Mapping[str, HeaderValue] = {}
        """The last added headers whose values were all text. Headers with other values are not kept, because the
        comparison uses `==`, for which 1 and True are equal."""
        self._texts_size = 0
        self._are_typed = False
        self._usual: Mapping[str, HeaderValue] = {}
        """The headers of an earlier message. All their values are text."""
        self._usual_size = self._checks = 0
        self._repeat = False
        """Whether the headers at the last look (see `LOOK_EVERY`) were equal to these headers."""

    def check(self, message: Message) -> int:
        """Checks the message. If a text in the message is of a class that is derived from `str`, this method replaces
        the text by a plain `str`.

        Returns:
            The message's size in bytes: body, key, header names and header values. Texts count in UTF-8, and other
            header values as in `_check_typed`.

        Raises:
            InvalidMessageError: The message cannot be sent.
            MessageTooLargeError: The message is larger than allowed.
        """
        topic = message.topic
        if type(topic) is not str or topic not in self._known_topics:
            message.topic = self._checked_topic(message, topic)
        name = message.message_name
        if type(name) is not str or name not in self._known_names:
            message.message_name = self._checked_name(self._known_names, name, message, "message_name", MAX_NAME_BYTES)
        content_type = message.content_type
        if content_type is not None and (type(content_type) is not str or content_type not in self._known_types):
            message.content_type = self._checked_name(
                self._known_types, content_type, message, "content_type", MAX_NAME_BYTES
            )
        if not has_own_id_and_time(message):
            self._check_id_and_time(message)
        body = message.payload_bytes
        if body is None:
            body = self._body(message)
        elif type(body) is not bytes or message.payload is TOMBSTONE:
            self._refuse_bytes(message, body)
        size = len(body)
        key = message.key
        if key is not None:
            if self._keys and type(key) is str and key.isascii() and len(key) <= MAX_TEXT_BYTES:
                size += len(key)
            else:
                size += self._check_key(message, key)
        headers = message.headers
        if headers:
            if self._repeat and headers == self._usual and _are_plain_texts(headers):
                size += self._usual_size
            else:
                more = self._check_headers(message, headers)
                size += more
                self._checks += 1
                if self._checks >= LOOK_EVERY:
                    self._look_for_repeats(message.headers, more)
        if size > self._max:
            self._refuse_size(message, size)
        return size

    def add_headers(self, message: Message, added: Mapping[str, HeaderValue], size: int) -> int:
        """Adds headers to a message that was checked before. If this method raises an error, the message stays as it
        was.

        The headers that the message keeps are not checked again, because a second check would double the cost. If the
        added headers are equal to earlier ones that were all text, these are not checked again, either.

        Args:
            message: The message. The mapping in `headers` is replaced, not changed.
            added: The headers. An added header replaces a header of the message that has the same name.
            size: The size that `check`, or an earlier call of this method for the same message, returned.

        Returns:
            The message's size with the added headers.

        Raises:
            InvalidMessageError: The headers cannot be sent.
            MessageTooLargeError: The message is larger than allowed with the added headers.
        """
        before = message.headers
        try:
            if added == self._texts:  # all messages of a batch get the same
                added = dict(self._texts)
                added_size = self._texts_size
            else:
                message.headers = dict(added)
                self._are_typed = False
                added_size = self._check_headers(message, message.headers)
                added = message.headers  # with plain `str` only
                if not self._are_typed:
                    self._texts, self._texts_size = added, added_size
            size += added_size
            if before:
                replaced = {name: before[name] for name in before if name in added}
                if replaced:
                    size -= self._check_headers(message, replaced)
                added = {**before, **added}
                if len(added) > MAX_HEADERS:
                    self._refuse_count(message, len(added))
            message.headers = added
            if size > self._max:
                self._refuse_size(message, size)
        except Exception:
            message.headers = before
            raise
        return size

    # -- parts --------------------------------------------------------------------------------------------------------

    def _refuse(self, message: Any, text: str, cause: BaseException | None = None) -> NoReturn:
        message_id, topic = readable(message, "message_id", UUID), readable(message, "topic", str)
        raise InvalidMessageError(text, message_id=message_id, topic=topic, broker=self._address) from cause

    def _refuse_size(self, message: Message, size: int) -> NoReturn:
        raise MessageTooLargeError(
            f"the message has {size} bytes and {self._max} are allowed: send less, or raise max_message_bytes here "
            "and the broker's own limit",
            message_id=message.message_id,
            topic=message.topic,
            broker=self._address,
        )

    def _refuse_count(self, message: Message, count: int) -> NoReturn:
        self._refuse(message, f"the message has {count} headers, and {MAX_HEADERS} are allowed: send fewer")

    def _checked_name(self, known: dict[str, int], text: Any, message: Message, what: str, limit: int) -> str:
        text = plain = self._plain(message, text, what)
        if text in known:
            return plain
        if not text:
            self._refuse(message, f"{what} is empty")
        if not text.isprintable():
            self._refuse(message, f"{what} has characters that are not printable")
        size = len(text.encode(errors="replace"))
        if size > limit:
            self._refuse(message, f"{what} is longer than {limit} bytes")
        if len(known) >= _REMEMBERED:
            known.clear()
        known[plain] = size
        return plain

    def _checked_header_name(self, message: Message, name: Any) -> str:
        name = self._plain(message, name, "a header name")
        if name.lower() in RESERVED_HEADERS:
            self._refuse(message, f"header {name.lower()!r} is reserved: it carries a field of the message")
        return self._checked_name(self._known_headers, name, message, "a header name", MAX_HEADER_NAME_BYTES)

    def _plain(self, message: Message, text: Any, what: str) -> str:
        if not isinstance(text, str):
            self._refuse(message, f"{what} must be text, not {type(text).__name__}")
        return str.__str__(text)

    def _check_id_and_time(self, message: Message) -> None:
        known = raw_id(message)
        if type(known) is not bytes and not isinstance(known, UUID):  # bytes: the text of an id, which needs no check
            self._refuse(message, "message_id must be a UUID")
        if has_own_time(message):
            return
        timestamp: Any = message.timestamp
        if not isinstance(timestamp, datetime) or timestamp.tzinfo is None:
            self._refuse(message, "timestamp must be a timezone-aware datetime: use datetime.now(UTC)")
        if timestamp.year <= 1970 and timestamp < _EPOCH:  # the year first, because that is cheap
            self._refuse(message, "timestamp is before 1970-01-01, which not every broker can carry")

    def _checked_topic(self, message: Message, topic: Any) -> str:
        topic = self._plain(message, topic, "topic")
        refuse = self._refuse_topic
        if refuse is not None and topic:
            try:
                reason = refuse(topic)
            except Exception as error:
                self._refuse(message, f"the driver's refuse_topic() raised {type(error).__name__}", error)
            if reason is not None:
                name = message.message_name
                if isinstance(name, str) and name and refuse(name) is None:
                    reason += (
                        "; message_name could be a topic here: if the two are swapped, write "
                        "Message(message_name=…, topic=…)"
                    )
                self._refuse(message, reason)
        return self._checked_name(self._known_topics, topic, message, "topic", MAX_NAME_BYTES)

    def _body(self, message: Message) -> bytes:
        """The bytes of the message's body. A tombstone gives `b""`."""
        if message.payload is TOMBSTONE:
            if not self._tombstones:
                self._refuse(
                    message,
                    "this broker has no tombstones (messages without a body, which report a deletion): send an event "
                    "that reports it",
                )
            if message.key is None:
                self._refuse(message, "a tombstone needs a key: it reports that the object with this key was deleted")
            return b""
        try:
            body = encoded_anew(message)
        except UnencodableError as error:
            reason, cause = str(error), error.__cause__
        else:
            assert body is not None
            return body
        try:
            self._refuse(message, reason, cause)
        finally:
            del cause

    def _refuse_bytes(self, message: Message, body: object) -> NoReturn:
        if message.payload is TOMBSTONE:
            self._refuse(message, "a tombstone has no body, and payload_bytes is given: leave one of the two out")
        self._refuse(message, f"payload_bytes must be bytes, not {type(body).__name__}")

    def _check_key(self, message: Message, key: Any) -> int:
        if not self._keys:
            self._refuse(
                message,
                "this broker keeps no order by key, and the message has a key: send it without one"
                if self._declares
                else "the broker's class does not say that it keeps the order of a key, and the message has one: give "
                "the class `capabilities = Capabilities(ordering_key=True, headers=True)`, or send it without a key",
            )
        if type(key) is not str:
            key = message.key = self._plain(message, key, "key")
        return self._text_bytes(message, key, "key")

    def _look_for_repeats(self, headers: Mapping[str, HeaderValue], size: int) -> None:
        """Notes whether these headers, which passed their check, are equal to the headers that were noted before. If
        they are not, and are all text, these headers are noted instead."""
        self._checks = 0
        self._repeat = headers == self._usual
        if not self._repeat and _are_plain_texts(headers):
            self._usual, self._usual_size = dict(headers), size

    def _check_headers(self, message: Message, headers: Any) -> int:
        if type(headers) is not dict and not isinstance(headers, Mapping):
            self._refuse(message, f"headers must be a mapping, not {type(headers).__name__}")
        if not self._headers:
            self._refuse(message, "this broker carries no headers, and the message has some: send it without")
        if len(headers) > MAX_HEADERS:
            self._refuse_count(message, len(headers))
        size = 0
        known = self._known_headers
        plain = True
        for name, value in headers.items():
            name_size = known.get(name)
            if name_size is None or type(name) is not str:
                text = self._checked_header_name(message, name)
                plain = plain and text is name
                name, name_size = text, known[text]
            size += name_size
            if type(value) is str and value.isascii() and len(value) <= MAX_TEXT_BYTES:
                size += len(value)
            elif isinstance(value, str):
                text = self._plain(message, value, "a header value")
                plain = plain and text is value
                size += self._text_bytes(message, text, "a header value")
            else:
                size += self._check_typed(message, name, value)
        if not plain:
            message.headers = {
                str.__str__(name): str.__str__(value) if isinstance(value, str) else value
                for name, value in headers.items()
            }
        return size

    def _check_typed(self, message: Message, name: str, value: object) -> int:
        """Checks a header value that is no text. Returns the size of the value: a number has 8 bytes, a bool 1, None 0,
        and bytes have their length."""
        self._are_typed = True
        kind = type(value)
        if kind not in self._header_types:
            what = "None" if value is None else f"of type {kind.__name__}"
            carried = sorted("None" if kind is type(None) else kind.__name__ for kind in self._header_types)
            self._refuse(
                message,
                f"header {name!r} is {what}, and this broker carries only {', '.join(carried)}: a header value must be "
                "text, or one of these",
            )
        if kind is bytes:
            if len(value) > MAX_TEXT_BYTES:  # type: ignore[arg-type]
                self._refuse(message, f"header {name!r} is longer than {MAX_TEXT_BYTES} bytes")
            return len(value)  # type: ignore[arg-type]
        if kind is int and not -MAX_INTEGER - 1 <= value <= MAX_INTEGER:  # type: ignore[operator]
            self._refuse(message, f"header {name!r} does not fit into a signed integer of 64 bits")
        if kind is float and not isfinite(value):  # type: ignore[arg-type]
            self._refuse(message, f"header {name!r} is not finite")
        return 0 if value is None else 1 if kind is bool else 8

    def _text_bytes(self, message: Message, text: str, what: str) -> int:
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
