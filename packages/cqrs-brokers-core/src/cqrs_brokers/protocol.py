"""What a message, a receipt and a message broker are. All that a custom broker must know.

Not here: how messages are validated (`validation`), encoded (`encoding`) or sent (`broker`).
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from struct import Struct
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable
from uuid import UUID, SafeUUID

from .encoding import encode

__all__ = ["Capabilities", "EventBody", "Message", "MessageBroker", "MessageLike", "Receipt"]

NO_HEADERS: Mapping[str, str] = MappingProxyType({})

# Random UUIDs (version 4) from a pool of os.urandom: the same bits as uuid.uuid4, four times cheaper, and the largest
# single saving of the send path. Emptied in a forked child, which would otherwise repeat its parent's ids.
_POOLED = 128
_pool: list[int] = []
_split_pool = Struct("16s" * _POOLED).unpack
# For all of a pool at once: what RFC 9562, 5.4 leaves to chance, and the version and the variant.
_RANDOM = int.from_bytes((~(0xC000 << 48 | 0xF000 << 64) & (1 << 128) - 1).to_bytes(16) * _POOLED)
_VERSION_4 = int.from_bytes((0x8000 << 48 | 4 << 76).to_bytes(16) * _POOLED)
_new_uuid = UUID.__new__
# Where a UUID keeps them: its own `__setattr__` refuses, and `object.__setattr__` costs twice as much.
_set_int, _set_is_safe = UUID.__dict__["int"].__set__, UUID.__dict__["is_safe"].__set__
_UNKNOWN = SafeUUID.unknown


def new_message_id() -> UUID:
    """A random UUID (RFC 9562, version 4)."""
    if not _pool:
        fresh = int.from_bytes(os.urandom(16 * _POOLED)) & _RANDOM | _VERSION_4
        _pool.extend(map(int.from_bytes, _split_pool(fresh.to_bytes(16 * _POOLED))))
    new = _new_uuid(UUID)
    _set_int(new, _pool.pop())
    _set_is_safe(new, _UNKNOWN)
    return new


os.register_at_fork(after_in_child=_pool.clear)


_utc_now = partial(datetime.now, UTC)
_NEW: Any = object()
"""Stands for what is made anew for each message."""


@dataclass(slots=True, eq=False, init=False)
class Message:
    """A message for a broker.

    `str` and `repr` show the name, the id, the topic and the size, never the payload, a header or the key.

    Attributes:
        message_name: What kind of message this is; consumers dispatch on it.
        topic: Where it goes: Kafka's topic, AMQP's routing key.
        payload: What it says: bytes (sent as they are) or anything that `encode` accepts (sent as JSON).
        message_id: Identifies the message for consumers that must recognise a duplicate.
        key: Messages with the same topic and key keep their order. None: unordered.
        headers: Text by name, for the transport.
        content_type: MIME type of the body. None: `application/octet-stream` for a bytes payload, else
            `application/json`.
        timestamp: When it was made, timezone-aware.
        payload_bytes: The body, when it is already encoded; then the payload is not looked at.
    """

    message_name: str
    topic: str
    payload: Any
    message_id: UUID
    key: str | None
    headers: Mapping[str, str]
    content_type: str | None
    timestamp: datetime
    payload_bytes: bytes | None
    _body: bytes | None = field(init=False)

    # By hand: dataclass' own, with its default factories, takes twice as long.
    def __init__(
        self,
        message_name: str,
        topic: str,
        payload: Any,
        message_id: UUID = _NEW,
        key: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        content_type: str | None = None,
        timestamp: datetime = _NEW,
        payload_bytes: bytes | None = None,
    ) -> None:
        self.message_name = message_name
        self.topic = topic
        self.payload = payload
        self.message_id = new_message_id() if message_id is _NEW else message_id
        self.key = key
        self.headers = headers
        self.content_type = content_type
        self.timestamp = _utc_now() if timestamp is _NEW else timestamp
        self.payload_bytes = payload_bytes
        self._body = None

    @property
    def body(self) -> bytes:
        """The bytes that go on the wire; encoded once.

        Raises:
            TypeError: The payload, or something in it, is of a type that has no JSON form.
            ValueError: It has no JSON form because of its value (NaN, infinite, circular).
        """
        body = self.payload_bytes
        if body is None:
            body = self._body
            if body is None:
                payload = self.payload
                body = self._body = payload if type(payload) is bytes else encode(payload)
        return body

    def __repr__(self) -> str:
        body = self.payload_bytes if self.payload_bytes is not None else self._body
        size = "not encoded yet" if body is None else f"{len(body)} bytes"
        return f"<Message {self.message_name!r:.80} {self.message_id} topic={self.topic!r:.80} {size}>"


class EventBody(dict[str, Any]):
    """A JSON-ready mapping that knows the event it came from.

    Frameworks hand on only what an event's `to_dict()` returned; this carries the event's name and ordering key through
    them, as attributes that are never part of the body. `Broker` reads them.
    """

    __slots__ = ("event_name", "ordering_key")

    def __init__(self, body: Mapping[str, Any], *, event_name: str, ordering_key: str | None) -> None:
        super().__init__(body)
        self.event_name = event_name
        self.ordering_key = ordering_key

    def __reduce__(self) -> tuple[Any, ...]:
        return _event_body, (dict(self), self.event_name, self.ordering_key)


def _event_body(body: dict[str, Any], event_name: str, ordering_key: str | None) -> EventBody:
    return EventBody(body, event_name=event_name, ordering_key=ordering_key)


@runtime_checkable
class MessageLike(Protocol):
    """Any object with these four. `payload_bytes`, `content_type`, `headers`, `key`, `timestamp`: used when there.

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


class Receipt:
    """What is known about a message that was sent.

    Attributes:
        message_id: The message's id.
        topic: The message's topic.
        broker: The broker's name.
        confirmed: True: the broker confirmed it under the configured durability. False: handed over, unconfirmed.
        partition: Kafka's partition; None where the broker has none or does not say.
        offset: The record's offset in its partition; None where the broker has none or does not say.
    """

    __slots__ = ("message_id", "topic", "broker", "confirmed", "partition", "offset")

    def __init__(
        self,
        message_id: UUID,
        topic: str,
        broker: str,
        confirmed: bool = True,
        partition: int | None = None,
        offset: int | None = None,
    ) -> None:
        self.message_id = message_id
        self.topic = topic
        self.broker = broker
        self.confirmed = confirmed
        self.partition = partition
        self.offset = offset

    def _fields(self) -> tuple[Any, ...]:
        return self.message_id, self.topic, self.broker, self.confirmed, self.partition, self.offset

    def __repr__(self) -> str:
        where = "" if self.partition is None else f" partition={self.partition} offset={self.offset}"
        state = "confirmed" if self.confirmed else "not confirmed"
        return f"<Receipt {self.message_id} topic={self.topic!r:.80} broker={self.broker!r} {state}{where}>"

    def __eq__(self, other: object) -> bool:
        return self._fields() == other._fields() if isinstance(other, Receipt) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._fields())


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a broker can do. Declared honestly by its driver; the conformance suite checks both ways.

    Attributes:
        confirms: It confirms each message; a `Receipt` is then `confirmed=True`.
        ordering_key: Messages with the same topic and key keep their order.
        headers: Headers arrive.
        unroutable_detection: A message that no queue takes is reported, not dropped.
        durable: A confirmed message survives a restart of the broker.
        max_message_bytes: The most a message may have, or None when the broker sets no limit of its own.
    """

    confirms: bool = False
    ordering_key: bool = False
    headers: bool = False
    unroutable_detection: bool = False
    durable: bool = False
    max_message_bytes: int | None = None


class MessageBroker(ABC):
    """The documented protocol: all that a custom broker must be."""

    @abstractmethod
    async def send_message(self, message: Message) -> Receipt | None:
        """Sends one message.

        Returns:
            A receipt, or None when nothing is known beyond that it was handed over.
        """
