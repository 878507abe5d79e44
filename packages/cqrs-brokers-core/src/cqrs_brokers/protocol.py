"""The classes for messages, receipts and message brokers. The author of a custom broker needs only this module and the
errors in `exceptions`.

Other modules validate and encode messages (`_message`) and send them (`_broker`).

This file is longer than 400 lines because a large part of it is the documentation of the API.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from time import time_ns
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable
from uuid import UUID

from ._message.encoding import encode
from ._message.ids import from_text, new_text, text_of
from ._message.tombstone import TOMBSTONE, Tombstone

__all__ = [
    "Capabilities",
    "Encoded",
    "Encoder",
    "EventBody",
    "HeaderValue",
    "Message",
    "MessageBroker",
    "MessageEncoder",
    "MessageLike",
    "Receipt",
    "TOMBSTONE",
    "Tombstone",
    "id_text",
    "set_id_text",
    "snapshot",
    "timestamp_ms",
]

HeaderValue = str | bytes | int | float | bool | None
"""The types that a header's value may have. `Capabilities.header_types` says which of these types a broker
transports."""

NO_HEADERS: Final[Mapping[str, HeaderValue]] = MappingProxyType({})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_new = object.__new__


class Message:
    """A message for a broker.

    `str` and `repr` show the name, the id, the topic and the size of the body. They never show the payload, a header or
    the key.

    Pass the first two arguments by name, as in `Message(message_name="OrderPlaced", topic="orders", …)`: both are text,
    so it would be easy to swap them by mistake.

    Attributes:
        message_name: The kind of message. Consumers choose their handler by this name.
        topic: Where the message goes: Kafka's topic, AMQP's routing key.
        payload: The content. Bytes are sent as they are. Any other value is sent as JSON, and must have a JSON form.
            With `TOMBSTONE` the message has no body: Kafka then removes the earlier messages with the same key from a
            compacted topic. If the broker has an `encoder`, the encoder makes the body from every payload except
            `TOMBSTONE`, also from bytes, unless the message has a content type or `payload_bytes`.
        message_id: Identifies the message for consumers that must recognise a duplicate. Default: a new random UUID.
        key: Messages with the same topic and key keep their order. None: the message has no order.
        headers: Values by name. The headers are sent with the message, but not in its body. Every broker with headers
            transports text values. `capabilities.header_types` says which other types a broker transports.
        content_type: MIME type of the body. None: the message gets the content type that the encoder returns in
            `Encoded`. If there is no such content type, a payload of bytes gets `application/octet-stream`, a tombstone
            gets no content type, and every other payload gets `application/json`.
        timestamp: When the message was made, timezone-aware. Default: now.
        payload_bytes: The body, if it is already encoded. Then the payload is used only to choose the default content
            type.
    """

    __slots__ = (
        "message_name",
        "topic",
        "payload",
        "key",
        "headers",
        "content_type",
        "payload_bytes",
        "_id",
        "_time",
        "_body",
    )

    # A new id is kept as the text that goes on the wire, and the time of a new message as nanoseconds. They become a
    # `UUID` and a `datetime` only when somebody reads them: making those costs more than the rest of the message.

    def __init__(
        self,
        message_name: str,
        topic: str,
        payload: Any,
        message_id: UUID | None = None,
        key: str | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
        content_type: str | None = None,
        timestamp: datetime | None = None,
        payload_bytes: bytes | None = None,
    ) -> None:
        self.message_name = message_name
        self.topic = topic
        self.payload = payload
        now = time_ns()
        if message_id is None:
            self._id: Any = new_text(now)
        else:
            self.message_id = message_id
        self.key = key
        self.headers: Mapping[str, HeaderValue] = NO_HEADERS if headers is None else headers
        self.content_type = content_type
        if timestamp is None:
            self._time: Any = now
        else:
            self.timestamp = timestamp
        self.payload_bytes = payload_bytes
        self._body: bytes | None = None

    @property
    def message_id(self) -> UUID:
        known = self._id
        if type(known) is bytes:
            known = self._id = from_text(known)
        return known  # type: ignore[no-any-return]

    @message_id.setter
    def message_id(self, message_id: UUID) -> None:
        known: Any = message_id
        self._id = None if type(known) is bytes else known  # bytes would count as the text of an id made here

    @property
    def timestamp(self) -> datetime:
        known = self._time
        if type(known) is int:
            known = self._time = _EPOCH + timedelta(microseconds=known // 1000)
        return known  # type: ignore[no-any-return]

    @timestamp.setter
    def timestamp(self, timestamp: datetime) -> None:
        known: Any = timestamp
        self._time = None if type(known) is int else known  # an int would count as a time that was made here

    @property
    def body(self) -> bytes | None:
        """The bytes that go on the wire. They are encoded once for each send. None for a tombstone.

        A driver whose `Capabilities` do not declare `tombstones` never gets None.

        Raises:
            ValueError: The payload, or a value in the payload, has no JSON form. The error's text contains the path of
                that value.
        """
        body = self.payload_bytes
        if body is None:
            body = self._body
            if body is None:
                payload = self.payload
                if payload is TOMBSTONE:
                    return None
                body = self._body = payload if type(payload) is bytes else encode(payload)
        return body

    def __repr__(self) -> str:
        body = self.payload_bytes if self.payload_bytes is not None else self._body
        size = "tombstone" if self.payload is TOMBSTONE else "not encoded yet" if body is None else f"{len(body)} bytes"
        return f"<Message {self.message_name!r:.80} {self.message_id} topic={self.topic!r:.80} {size}>"

    def __getstate__(self) -> tuple[object, dict[str, Any]]:
        state: Any = super().__getstate__()
        rest, slots = state  # of a class with slots
        # The default headers cannot be copied; and the copy may get another payload, so it is encoded anew.
        return rest, slots | {"headers": dict(self.headers), "_body": None}


def id_text(message: Message) -> bytes:
    """The message's id as it goes on the wire: 8-4-4-4-12 hex digits."""
    known = message._id
    return known if type(known) is bytes else text_of(known.int)


def set_id_text(message: Message, text: bytes) -> None:
    """Sets the id of a message from the id's text. This function is for code that stores messages and sends them later.

    Args:
        message: The message.
        text: The result of `id_text`. The text is not checked. It becomes a `UUID` only when somebody reads
            `message_id`.
    """
    message._id = text


raw_id: Callable[[Message], Any] = attrgetter("_id")
"""Returns the id in the form in which the message stores it. The form is the text for the wire (as bytes) if the
message made the id or `set_id_text` set it, and nobody has read `message_id` yet. If not, the form is the object that
was given as `message_id`, or the `UUID` that was made from the text."""


def has_own_time(message: Message) -> bool:
    """Whether the message made its own timestamp, and nobody has read the timestamp since."""
    return type(message._time) is int


def has_own_id_and_time(message: Message) -> bool:
    """Whether the id (see `raw_id`) is text, and the timestamp is the message's own (see `has_own_time`). Other values
    need a check."""
    return type(message._id) is bytes and type(message._time) is int


def encoded_anew(message: Message) -> bytes | None:
    """The message's body, encoded again, because the payload may have changed since an earlier send."""
    message._body = None
    return message.body


def timestamp_ms(message: Message) -> int:
    """When the message was made, in whole milliseconds since 1970-01-01 UTC, rounded down."""
    known = message._time
    if type(known) is int:
        return known // 1_000_000
    # Not by way of `datetime.timestamp()`: a float of seconds gets the millisecond wrong after the year 2100.
    since = known - _EPOCH
    return int(since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000)


def snapshot(message: Message) -> Message:
    """A copy of a validated message, because the caller may change the original before the driver reads it."""
    return with_body(message, message.body)  # what was validated, whatever becomes of the payload


def with_body(message: Message, body: bytes | None) -> Message:
    """A copy of a message with the given body."""
    headers = message.headers
    kept = _new(Message) if type(message) is Message else copy.copy(message)
    kept.message_name = message.message_name
    kept.topic = message.topic
    kept.payload = message.payload
    kept.key = message.key
    kept.headers = headers
    if headers and (type(headers) is dict or isinstance(headers, Mapping)):  # anything else is refused later
        kept.headers = dict(headers)
    kept.content_type = message.content_type
    kept.payload_bytes = body
    kept._id = message._id
    kept._time = message._time
    kept._body = None
    return kept


class EventBody(dict[str, Any]):
    """The body of an event: a mapping, ready for JSON, that also has attributes from the event.

    A framework such as python-cqrs gives a broker only the result of an event's `to_dict()`. So this result has the
    other data of the event as attributes, and `Broker` reads these attributes.

    Attributes:
        event_name: The event's name.
        ordering_key: The event's ordering key, or None.
        headers: The event's headers.
        deleted: Whether the event reports a deletion. If so, the message has no body, and the content of the mapping is
            not sent.
    """

    __slots__ = ("event_name", "ordering_key", "headers", "deleted")

    def __init__(
        self,
        body: Mapping[str, Any],
        *,
        event_name: str,
        ordering_key: str | None,
        headers: Mapping[str, HeaderValue] = NO_HEADERS,
        deleted: bool = False,
    ) -> None:
        super().__init__(body)
        self.event_name = event_name
        self.ordering_key = ordering_key
        self.headers = dict(headers)  # the default headers cannot be pickled
        self.deleted = deleted


@runtime_checkable
class MessageLike(Protocol):
    """Any object with the attributes `message_name`, `topic`, `payload` and `message_id`. The class `Message` of
    python-cqrs is an example.

    Five further attributes are used if the object has them: `content_type`, `headers`, `key`, `payload_bytes`,
    `timestamp`.
    """

    @property
    def message_name(self) -> str: ...
    @property
    def topic(self) -> str: ...
    @property
    def payload(self) -> Any: ...
    @property
    def message_id(self) -> UUID: ...


class Encoded(NamedTuple):
    """The result of a `MessageEncoder` for one message.

    Attributes:
        body: The bytes that go on the wire.
        content_type: The MIME type of the body. None: the message gets the same content type as without an encoder.
        headers: Headers that consumers need in order to read the body. They are added to the headers of the message. If
            the message already has a header of the same name, the message is refused.
    """

    body: bytes
    content_type: str | None = None
    headers: Mapping[str, HeaderValue] = NO_HEADERS


@runtime_checkable
class MessageEncoder(Protocol):
    """An encoder that gets the whole message, not only the payload. Such an encoder is for formats that depend on the
    topic or the name of the message, such as the formats of a schema registry."""

    def encode_message(self, message: Message, /) -> Encoded:
        """Returns the body of a message, the body's content type, and headers. `Broker` calls this method before it
        checks the message. The method must not block. If the method raises an exception, the message is refused."""


Encoder = Callable[[object], bytes] | MessageEncoder
"""Makes the body of a message. A function gets only the payload, and a `MessageEncoder` gets the whole message."""


class Receipt:
    """The result of a send that succeeded.

    `to_dict()` and `dict(receipt)` give the fields, ready for JSON. pydantic and FastAPI can write and read receipts.

    Attributes:
        message_id: The message's id.
        topic: The message's topic.
        broker: The broker's name.
        confirmed: True: the broker confirmed the message, with the durability that is configured. False: the message
            was handed over without a confirm.
        partition: The partition (Kafka). None if the broker has no partitions or does not report the partition.
        offset: The record's offset in the partition. None if the broker has no offsets or does not report the offset.
    """

    __slots__ = ("_id", "topic", "broker", "confirmed", "partition", "offset")

    def __init__(
        self,
        message_id: UUID,
        topic: str,
        broker: str,
        confirmed: bool = True,
        partition: int | None = None,
        offset: int | None = None,
    ) -> None:
        self._id: Any = message_id
        self.topic = topic
        self.broker = broker
        self.confirmed = confirmed
        self.partition = partition
        self.offset = offset

    @property
    def message_id(self) -> UUID:
        known = self._id
        if type(known) is bytes:
            known = self._id = from_text(known)
        return known  # type: ignore[no-any-return]

    def to_dict(self) -> dict[str, str | int | bool | None]:
        """The fields, ready for JSON. The id is text."""
        others = {name: getattr(self, name) for name in Receipt.__slots__[1:]}
        return {"message_id": str(self.message_id), **others}

    def __iter__(self) -> Iterator[tuple[str, str | int | bool | None]]:
        """Pairs of name and value, so that `dict(receipt)` and FastAPI's encoder work."""
        return iter(self.to_dict().items())

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from ._message.receipts import schema  # it imports pydantic, which is slow, and not everybody needs it

        return schema(cls)

    def __repr__(self) -> str:
        where = "" if self.partition is None else f" partition={self.partition}"
        where += "" if self.offset is None else f" offset={self.offset}"
        state = "confirmed" if self.confirmed else "not confirmed"
        return f"<Receipt {self.message_id} topic={self.topic!r:.80} broker={self.broker!r} {state}{where}>"

    def __eq__(self, other: object) -> bool:
        return self.to_dict() == other.to_dict() if isinstance(other, Receipt) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a broker can do. The driver declares these capabilities. The conformance suite of the test kit tests whether
    the broker has them, and whether a message is refused if it needs a capability that is not declared.

    Attributes:
        confirms: The broker confirms each message. Without this capability, no receipt for a message of a
            `PipelinedDriver` has `confirmed=True`.
        ordering_key: Messages with the same topic and key keep their order.
        headers: The headers of a message arrive with it.
        header_types: The types that header values may have: some or all of str, bytes, int, float, bool and
            `type(None)`. A value of such a type arrives with the same type.
        tombstones: A message can have no body at all (`TOMBSTONE`). A missing body is not the same as an empty body.
        unroutable_detection: If no queue takes a message, the broker reports this, and does not drop the message
            silently.
        durable: A confirmed message survives a restart of the broker.
        max_message_bytes: The most bytes that a message may have: body, key and headers together. None: the broker has
            no limit of its own.
    """

    confirms: bool = False
    ordering_key: bool = False
    headers: bool = False
    unroutable_detection: bool = False
    durable: bool = False
    max_message_bytes: int | None = None
    tombstones: bool = False
    header_types: frozenset[type] = frozenset({str})

    def to_dict(self) -> dict[str, bool | int | list[str] | None]:
        """The capabilities, ready for JSON. Types are given by their names."""
        names = sorted("None" if kind is type(None) else kind.__name__ for kind in self.header_types)
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return plain | {"header_types": names}


class MessageBroker(ABC):
    """The base class of a custom broker. Such a broker needs only the method `send_message`."""

    @abstractmethod
    async def send_message(self, message: Message) -> Receipt | None:
        """Sends one message.

        Returns:
            A receipt. None: the message was handed over, but the broker has not confirmed it.

        Raises:
            NotDeliveredError: The message is not in the broker, and this call will not put it there.
            Exception: Any other error. The broker may have the message: `Broker` raises a `DeliveryUnknownError`.
        """
