"""What a message, a receipt and a message broker are. The author of a custom broker needs only this module.

Other modules validate and encode messages (`_message`) and send them (`_broker`).

This file is longer than 400 lines because a good part of it is the documentation of the API.
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
"""The types that a header's value may have. `Capabilities.header_types` says which of them a broker carries."""

NO_HEADERS: Final[Mapping[str, HeaderValue]] = MappingProxyType({})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_new = object.__new__


class Message:
    """A message for a broker.

    `str` and `repr` show the name, the id, the topic and the size, never the payload, a header or the key.

    Pass the first two arguments by name, as in `Message(message_name="OrderPlaced", topic="orders", …)`: both are text,
    so nobody would notice a swap.

    Attributes:
        message_name: What kind of message this is; consumers dispatch on it.
        topic: Where it goes: Kafka's topic, AMQP's routing key.
        payload: The content: bytes (sent as they are), anything that has a JSON form (sent as JSON), or `TOMBSTONE` (no
            body: a compacted topic then forgets the key). A broker's `encoder` also gets payloads of bytes, unless the
            message has a content type.
        message_id: Identifies the message for consumers that must recognise a duplicate. Default: a new random UUID.
        key: Messages with the same topic and key keep their order. None: unordered.
        headers: Values by name, for the transport. Every broker with headers carries text; `capabilities.header_types`
            says which other types a broker carries.
        content_type: MIME type of the body. None: `application/octet-stream` for a bytes payload, none for a tombstone,
            else `application/json`.
        timestamp: When the message was made, timezone-aware. Default: now.
        payload_bytes: The body, if it is already encoded. Then the payload only decides the default content type.
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
        """The bytes that go on the wire, encoded once for each send; None for a tombstone.

        A driver whose `Capabilities` do not declare `tombstones` never gets None.

        Raises:
            ValueError: The payload, or something in it, has no JSON form; the text names it by its path.
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
    """Gives the message an id whose text is known, for code that stores messages and sends them later.

    Args:
        message: The message.
        text: What `id_text` returned. It is not checked, and becomes a `UUID` only when somebody reads `message_id`.
    """
    message._id = text


raw_id: Callable[[Message], Any] = attrgetter("_id")
"""The message's id as the message keeps it: the text of an id, or what the caller set."""


def has_own_time(message: Message) -> bool:
    """Whether the message made its own timestamp. If not, the caller set it."""
    return type(message._time) is int


def has_own_id_and_time(message: Message) -> bool:
    """Whether the message made its own id and timestamp. Values that the caller set need a check."""
    return type(message._id) is bytes and type(message._time) is int


def encoded_anew(message: Message) -> bytes | None:
    """The message's body, encoded again: its payload may have changed since an earlier send."""
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
    """A copy of a message, with that body."""
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
    """A JSON-ready mapping that knows the event it came from.

    Frameworks pass on only what an event's `to_dict()` returned. The attributes carry the rest of the event to
    `Broker`, through such a framework. They are never part of the body.

    Attributes:
        event_name: The event's name.
        ordering_key: Its ordering key, or None.
        headers: Its headers.
        deleted: Whether the event reports a deletion. If so, the message has no body, whatever the mapping says.
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
    """Any object with these four attributes. Five more are used when it has them: `content_type`, `headers`, `key`,
    `payload_bytes`, `timestamp`.

    python-cqrs' `Message` is one.
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
    """What a `MessageEncoder` makes of a message.

    Attributes:
        body: The bytes that go on the wire.
        content_type: Their MIME type. None: the same as without an encoder.
        headers: Headers that consumers need to read the body; they are added to the message's own.
    """

    body: bytes
    content_type: str | None = None
    headers: Mapping[str, HeaderValue] = NO_HEADERS


@runtime_checkable
class MessageEncoder(Protocol):
    """An encoder that sees the message: for formats that need its topic or name, such as those of a schema registry."""

    def encode_message(self, message: Message, /) -> Encoded:
        """The body of a message, and what goes with it. Called before the message is sent; it must not block."""


Encoder = Callable[[object], bytes] | MessageEncoder
"""Makes the body of a message, from its payload alone or from the whole message."""


class Receipt:
    """What is known about a message that was sent.

    `to_dict()` and `dict(receipt)` give its fields, ready for JSON. pydantic and FastAPI can write and read it.

    Attributes:
        message_id: The message's id.
        topic: The message's topic.
        broker: The broker's name.
        confirmed: True: the broker confirmed it under the configured durability. False: handed over, unconfirmed.
        partition: Kafka's partition; None where the broker has none or does not say.
        offset: The record's offset in its partition; None where the broker has none or does not say.
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
    """What a broker can do. Its driver declares it honestly: the conformance suite checks both what is declared and
    what is not.

    Attributes:
        confirms: It confirms each message; a `Receipt` is then `confirmed=True`.
        ordering_key: Messages with the same topic and key keep their order.
        headers: The headers of a message arrive with it.
        header_types: Which types the values of headers may have, of str, bytes, int, float, bool and `type(None)`. A
            value arrives with its type.
        tombstones: A message can have no body at all (`TOMBSTONE`). That is not the same as an empty body.
        unroutable_detection: A message that no queue takes is reported, not dropped.
        durable: A confirmed message survives a restart of the broker.
        max_message_bytes: The most bytes that a message may have. None: the broker sets no limit of its own.
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
        """What it can do, ready for JSON; types by name."""
        names = sorted("None" if kind is type(None) else kind.__name__ for kind in self.header_types)
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return plain | {"header_types": names}


class MessageBroker(ABC):
    """The documented protocol: all that a custom broker must be."""

    @abstractmethod
    async def send_message(self, message: Message) -> Receipt | None:
        """Sends one message.

        Returns:
            A receipt. None: the message was handed over, without a confirm.
        """
