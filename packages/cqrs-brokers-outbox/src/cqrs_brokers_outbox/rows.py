"""A message as a row, and a row as a message again. The stored body is bytes, so no class of the application is needed.

A header keeps its type: `{"name": ["s", "text"]}`, with "s" text, "b" bytes (Base64), "i" and "f" numbers, "t" a
boolean, "n" None. A row that cannot be read raises `DamagedRow`, which says why and quotes nothing.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID

from cqrs_brokers import TOMBSTONE, InvalidMessageError, Message
from cqrs_brokers.protocol import id_text, set_id_text

__all__ = [
    "COLUMNS",
    "ClaimedRow",
    "DamagedRow",
    "EVENT_TIME",
    "OWN_HEADERS",
    "POSITION",
    "RESERVED_BYTES",
    "key_hash",
    "message_of",
    "row_of",
]

POSITION = "outbox-position"
EVENT_TIME = "event-time"
OWN_HEADERS = frozenset({POSITION, EVENT_TIME})
"""The headers that the relay adds to every message, if the broker carries headers. It also adds the writer's trace
context, if there is one."""

TRACE_HEADERS = frozenset({"traceparent", "tracestate", "baggage"})
RESERVED_BYTES = 1_024
"""How many bytes of the largest message are left for the headers that the relay adds."""
_OWN_BYTES = 128
"""How many of them `OWN_HEADERS` need, at most."""
MAX_HEADERS = 100 - len(OWN_HEADERS) - len(TRACE_HEADERS)

COLUMNS = (
    *("hash", "topic", "message_key", "message_name", "message_id", "body", "content_type", "headers", "made_at"),
    "trace",
)
"""The columns of a row that hold a message."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_LAST_TIME = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_is_id_text = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}").fullmatch
_ID_FOLLOWS = UUID(int=0)


class ClaimedRow(NamedTuple):
    """The columns that a claim reads, and whether another row holds this one up. Reading a column of SQLAlchemy's own
    rows takes ten times as long."""

    id: int
    state: int
    hash: int
    topic: str
    message_key: bytes | None
    message_name: str
    message_id: str
    body: bytes | None
    content_type: str | None
    headers: str | None
    made_at: int
    trace: str | None
    attempts: int
    attempts_unknown: int
    held: bool


class DamagedRow(Exception):  # noqa: N818 - names what the row is
    """The row does not hold a valid message."""


def key_hash(topic: str, key: str | None, message_id: bytes = b"") -> int:
    """The 32-bit hash that decides a row's partition: CRC-32 (ISO 3309, as zlib has it).

    It is computed from the topic in UTF-8, a zero byte, and the key in UTF-8. Without a key, it is computed from the
    text of the message id.
    """
    return zlib.crc32(message_id if key is None else topic.encode() + b"\0" + key.encode())


def row_of(message: Message, trace: Mapping[str, str] | None, most: int) -> dict[str, Any]:
    """The columns of a validated message, except `place`.

    Args:
        message: The message.
        trace: The writer's trace context.
        most: The most bytes of the message with the relay's headers. If the trace context does not fit, only
            `traceparent` is kept: its place is reserved.

    Raises:
        InvalidMessageError: The message has a header that the relay adds, or too many headers, or its time is after the
            year 9999 in UTC.
    """
    headers = message.headers
    if headers:
        taken = sorted(name for name in headers if name.lower() in OWN_HEADERS)
        if taken:
            raise InvalidMessageError(f"header {taken[0]!r} is written by the relay: choose another name").about(
                message.message_id, message.topic, ""
            )
        if len(headers) > MAX_HEADERS:
            raise InvalidMessageError(
                f"{len(headers)} headers, and {MAX_HEADERS} are allowed: the relay adds some of its own"
            ).about(message.message_id, message.topic, "")
    identity = id_text(message)
    key = None if message.key is None else message.key.encode()
    content_type = message.content_type
    body = message.body
    headers_text = _headers_text(headers) if headers else None
    if trace:
        size = sum(map(len, (body or b"", key or b"", headers_text or "", *trace, *trace.values())))
        if size > most - _OWN_BYTES:
            trace = {name: value for name, value in trace.items() if name == "traceparent"}
    if content_type is None and body is not None and type(message.payload) is not bytes:
        content_type = "application/json"  # the row has only the bytes of it
    values = (
        key_hash(message.topic, message.key, identity),
        message.topic,
        key,
        message.message_name,
        identity.decode(),
        body,
        content_type,
        headers_text,
        _microseconds(message),
        json.dumps(dict(trace)) if trace else None,
    )
    return dict(zip(COLUMNS, values, strict=True))


def message_of(row: Any, *, headers: bool, stamped: bool) -> Message:
    """The message of a row, with the relay's headers.

    Args:
        row: A row of the claim.
        headers: Whether the broker carries headers. If not, the relay adds none.
        stamped: Whether the message's timestamp is the time of sending, which is now. If not, it is the event's time.

    Raises:
        DamagedRow: The row cannot be read.
    """
    try:
        made_at = row.made_at
        all_headers: dict[str, Any] = _headers_of(row.headers) if row.headers else {}
        if headers:
            if row.trace:
                given = {name.lower() for name in all_headers}
                all_headers.update({name: value for name, value in _trace_of(row.trace).items() if name not in given})
            all_headers[POSITION] = str(row.id)
            second, microseconds = divmod(made_at, 1_000_000)
            fraction = f".{microseconds:06d}" if microseconds else ""
            all_headers[EVENT_TIME] = f"{_second(second)}{fraction}+00:00"
        identity, body, key = row.message_id, row.body, row.message_key
        is_text = _is_id_text(identity)  # then it need not be a `UUID` on its way to the broker
        message = Message(
            row.message_name,
            row.topic,
            TOMBSTONE if body is None else b"",
            _ID_FOLLOWS if is_text else UUID(identity),
            None if key is None else str(key, "utf-8"),
            all_headers,
            row.content_type,
            None if stamped else _EPOCH + timedelta(microseconds=made_at),
            body if body is None or type(body) is bytes else bytes(memoryview(body)),  # SQLite keeps any type
        )
        if is_text:
            set_id_text(message, identity.encode())
        return message
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"the row cannot be read as a message ({type(error).__name__})"
    raise DamagedRow(reason)


def _microseconds(message: Message) -> int:
    """The message's time, in microseconds since 1970 in UTC.

    Raises:
        InvalidMessageError: The time is in the last hours of the year 9999 in a zone west of Greenwich. UTC has no such
            time.
    """
    time = (message.timestamp - _EPOCH) // _MICROSECOND
    if time > _LAST_TIME:
        raise InvalidMessageError("timestamp is after the year 9999 in UTC, which no row can hold").about(
            message.message_id, message.topic, ""
        )
    return time


@lru_cache(maxsize=64)
def _second(second: int) -> str:
    """A time in whole seconds since 1970, in the form of RFC 3339 without the zone. Many rows have the same second."""
    return (_EPOCH + timedelta(seconds=second)).replace(tzinfo=None).isoformat()


def _headers_text(headers: Mapping[str, Any]) -> str:
    return json.dumps({name: _typed(value) for name, value in headers.items()}, separators=(",", ":"))


def _typed(value: Any) -> list[Any]:
    kind = type(value)
    if kind is str:
        return ["s", value]
    if kind is bytes:
        return ["b", base64.b64encode(value).decode()]
    if kind is bool:
        return ["t", value]
    if kind is int:
        return ["i", str(value)]
    if kind is float:
        return ["f", value.hex()]
    if value is None:
        return ["n"]
    raise InvalidMessageError(f"a header value is a {kind.__name__}, which no row can hold")


def _headers_of(text: str) -> dict[str, Any]:
    headers = {}
    for name, (kind, *values) in json.loads(text).items():
        headers[name] = _READERS[kind](*values)
    return headers


_READERS: dict[str, Any] = {
    "s": str,
    "b": lambda text: base64.b64decode(text, validate=True),
    "t": bool,
    "i": int,
    "f": float.fromhex,
    "n": lambda: None,
}


def _trace_of(text: str) -> dict[str, str]:
    return {name: value for name, value in json.loads(text).items() if name in TRACE_HEADERS}
