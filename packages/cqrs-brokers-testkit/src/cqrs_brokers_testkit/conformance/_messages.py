"""Cases about messages that arrive exactly as they were given: bodies, identity, headers, keys, times."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import json
import os
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

from pydantic import BaseModel

from cqrs_brokers import (
    InvalidMessageError,
    MessageTooLargeError,
    NotDeliveredError,
    Receipt,
    RejectedError,
)
from cqrs_brokers_testkit.conformance._case import (
    Context,
    case,
    check,
    check_all_receipts,
    check_receipt,
    outcome_of,
    show,
)
from cqrs_brokers_testkit.readers import Record

DECOMPOSED = "e\u0301 \u212b \ufb01"
"""Text that Unicode normalisation changes. A driver that normalises this text changes the key."""
_ENDS_OF_LINES = "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g"
"""`str.splitlines` takes each of these characters for the end of a line."""
_MARKED = "\ufeffmarked"
"""Begins with a byte order mark, which the codec utf-8-sig takes away."""


@case("messages.body-is-untouched", "live", needs=["read_back"])
async def body_is_untouched(ctx: Context) -> None:
    """Bodies arrive byte for byte: empty, one byte, the largest body, bytes that are not text, JSON."""
    broker = ctx.open()
    largest = min(1_000_000, ctx.capabilities.max_message_bytes or 1_000_000)  # no more comes to the driver
    bodies = [b"", b"x", bytes(range(256)), b"\xff\xfe\x00\n\r\x00", b'{"a": 1}', os.urandom(largest)]
    for body in bodies:
        topic = await ctx.topic()
        await broker.send_message(ctx.message(topic, body))
        got = (await ctx.read_one(topic)).body
        check(got == body, f"a body of {len(body)} bytes arrived as {len(got)} bytes, or changed")


@case("messages.payload-bytes-go-first", "live", needs=["read_back"])
async def payload_bytes_go_first(ctx: Context) -> None:
    """`payload_bytes` arrive as the body byte for byte, with any payload and any content type beside them."""
    broker = ctx.open()
    for content_type, body in (
        (None, b"exactly this"),
        ("application/json", b'{"b":1 , "a": 1.0, "a": "\\u00e9"}\n'),
        ("text/plain; charset=utf-8", b"\xef\xbb\xbf line\r\n "),
        ("text/plain; charset=utf-8", DECOMPOSED.encode()),
        ("application/gzip", b"no gzip"),
    ):
        topic = await ctx.topic()
        fields = {} if content_type is None else {"content_type": content_type}
        await broker.send_message(ctx.message(topic, {"other": 1}, payload_bytes=body, **fields))
        got = (await ctx.read_one(topic)).body
        check(got == body, f"the body is not payload_bytes (content type {content_type})")


class _Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class _Item:
    name: str
    price: Decimal


class _Order(BaseModel):
    id: uuid.UUID
    at: datetime
    items: list[str]


@case("messages.payloads-become-json", "live", needs=["read_back"])
async def payloads_become_json(ctx: Context) -> None:
    """pydantic, dataclass, UUID, datetime, Decimal, Enum, text, numbers and containers arrive as JSON."""
    at, identity = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC), uuid.uuid4()
    payloads: list[tuple[object, object]] = [
        (_Order(id=identity, at=at, items=["a"]), {"id": str(identity), "at": "2024-05-06T07:08:09Z", "items": ["a"]}),
        (_Item("pen", Decimal("1.50")), {"name": "pen", "price": "1.50"}),
        ({"id": identity, "colour": _Colour.RED}, {"id": str(identity), "colour": "red"}),
        (["é", 1, 2.5, True, None], ["é", 1, 2.5, True, None]),
        ("text", "text"),
        (0, 0),
        (False, False),
        ({}, {}),
    ]
    broker, topic = ctx.open(), await ctx.topic()
    for payload, _ in payloads:
        await broker.send_message(ctx.message(topic, payload, key="k" if _keyed(ctx) else None))
    records = await ctx.read(topic, len(payloads))
    for (payload, wanted), record in zip(payloads, records, strict=True):
        check(json.loads(record.body) == wanted, f"a {type(payload).__name__} did not arrive as its JSON")
        check(record.content_type == "application/json", f"its content type is {record.content_type!r}")


def _keyed(ctx: Context) -> bool:
    return ctx.capabilities.ordering_key


@case("messages.identity-arrives", "live", needs=["read_back"])
async def identity_arrives(ctx: Context) -> None:
    """Message id, name and topic on the wire are the message's."""
    broker = ctx.open()
    odd = ('Order/Placed: 100% "quoted"', "Größe ключ", DECOMPOSED, " blanks ", "007", "n" * 250)
    for name in ("OrderPlaced.v2", *odd):
        topic = await ctx.topic()
        message = ctx.message(topic, {}, name=name)
        outcome = await outcome_of(broker.send_message(message))
        if isinstance(outcome, InvalidMessageError) and name != "OrderPlaced.v2":
            continue  # refused, not changed
        check_receipt(outcome, f"a message called {name:.20}")
        record = await ctx.read_one(topic)
        check(record.message_id == str(message.message_id), "another message id arrived")
        check(record.name == name, f"the name {name:.20} arrived as {record.name!r:.300}")
        check(record.topic == topic, f"the topic is {record.topic!r}")


_OWN_TYPES = ("application/x-protobuf; v=1", 'Text/X-Odd; Title="A B"', f"application/x-{'long' * 50}")


@case("messages.content-type-arrives", "live", needs=["read_back"])
async def content_type_arrives(ctx: Context) -> None:
    """The content type is the message's; without one it is `application/octet-stream` for bytes, else JSON's."""
    broker = ctx.open()
    examples: list[tuple[dict[str, Any], str]] = [
        ({"payload": b"x"}, "application/octet-stream"),
        ({"payload": {}}, "application/json"),
        ({"payload": {}, "payload_bytes": b"{}"}, "application/json"),
        *(({"payload": b"x", "content_type": own}, own) for own in _OWN_TYPES),
    ]
    for fields, wanted in examples:
        topic = await ctx.topic()
        outcome = await outcome_of(broker.send_message(ctx.message(topic, **fields)))
        if isinstance(outcome, InvalidMessageError) and len(wanted) > 100:
            continue  # refused, not changed
        check_receipt(outcome, f"a message of type {wanted:.40}")
        got = (await ctx.read_one(topic)).content_type
        check(got == wanted, f"expected content type {wanted!r}, and {got!r} arrived")


@case("messages.timestamp-arrives", "live", needs=["read_back"])
async def timestamp_arrives(ctx: Context) -> None:
    """The time on the wire is the message's own time, to the second, in any zone, and not the time of sending.

    A time that does not fit into 32 bits, that is before 1970, or that is exactly 1970, arrives or is refused.
    """
    broker, ago = ctx.open(), datetime.now(UTC) - timedelta(minutes=10)
    for at in (ago, ago.astimezone(timezone(timedelta(hours=5, minutes=30)))):
        topic = await ctx.topic()
        await broker.send_message(ctx.message(topic, timestamp=at))
        got = (await ctx.read_one(topic)).timestamp
        check(got is not None and abs(got - at) < timedelta(seconds=1), f"sent with {at}, and {got} arrived")
    for at in (
        datetime(1955, 11, 12, 6, 38, tzinfo=UTC),
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(2045, 10, 26, tzinfo=UTC),
    ):
        topic = await ctx.topic()
        outcome = await outcome_of(broker.send_message(ctx.message(topic, timestamp=at)))
        if isinstance(outcome, NotDeliveredError):
            continue  # refused, not changed
        check_receipt(outcome, f"a message of {at:%Y}")
        got = (await ctx.read_one(topic)).timestamp
        check(got is not None and abs(got - at) < timedelta(seconds=1), f"sent with {at}, and {got} arrived")


@case("messages.key-arrives", "live", needs=["read_back"], capability="ordering_key")
async def key_arrives(ctx: Context) -> None:
    """The ordering key arrives unchanged, also an empty key and a key with line breaks. No key stays no key.

    A key that is too long for the broker is refused. It is not cut.
    """
    broker = ctx.open()
    odd = ("Order-Ä", "ключ/ü 1", "100% %41", "first\r\ninjected: value", " blanks ", DECOMPOSED)
    odd_too = (_ENDS_OF_LINES, _MARKED, "k" * 1_000)
    like_others = ("007", "1e3", "null", "nul\x00l")  # like a number, or a word of JSON, or the end of a text in C
    for key in ("order-1", *odd, *odd_too, *like_others, "", None):
        topic = await ctx.topic()
        outcome = await outcome_of(broker.send_message(ctx.message(topic, key=key)))
        if isinstance(outcome, InvalidMessageError) and len(key or "") > 100:
            continue
        check_receipt(outcome, "a message with a key")
        got = (await ctx.read_one(topic)).key
        check(got == key, f"{'no key' if key is None else 'a key'} was sent and did not arrive as it was")


HEADERS = {
    "plain": "value",
    "with/slash": "a/b/../c",
    "x-quotes": "say \"hi\" 'there'",
    "with space": " leading and trailing ",
    "X-Mixed-Case": "x",
    "x-mixed-case": "another one",
    "non-ascii": "Grüße, 世界 🎉",
    "decomposed": DECOMPOSED,
    f"name {DECOMPOSED}": "x",
    "empty": "",
    "co:lon": "a: b",
    "percent": "100% %41 %zz",
    "lines": "first\r\ninjected: value\n\nbody",
    "nul": "a\x00b",
    "ends of lines": _ENDS_OF_LINES,
    "marked": _MARKED,
    **{f"looks like {value}": value for value in ("007", "1e3", "1.0", "true", "False", "null", "None", "NaN", "[]")},
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    **{name: f"a header called {name}" for name in ("id", "message_id", "name", "type", "topic", "key", "body")},
    **{name: f"a header called {name}" for name in ("headers", "timestamp", "time", "content_type", "expiration")},
    "long": "x" * 5_000,
    "n" * 128: "x",
}


@case("messages.headers-arrive", "live", needs=["read_back"], capability="headers")
async def headers_arrive(ctx: Context) -> None:
    """User headers arrive unchanged: slashes, `..`, quotes, any script, empty or long values, names of fields."""
    topic = await ctx.topic()
    message = ctx.message(topic, headers=HEADERS)
    await ctx.open().send_message(message)
    record = await ctx.read_one(topic)
    for what, is_now, was in (
        ("message id", record.message_id, str(message.message_id)),
        ("message's name", record.name, message.message_name),
    ):
        lost = "is missing, or the harness does not read it: an odd header hides what comes after it"
        check(is_now is not None, f"with odd headers the {what} {lost}")
        check(is_now == was, f"a header took the place of the {what}")
    got = dict(record.headers)
    wrong = sorted(name for name in HEADERS.keys() | got.keys() if HEADERS.get(name) != got.get(name))
    check(not wrong, f"these headers are missing, new or changed: {', '.join(wrong)}")
    topic, longest = await ctx.topic(), "é" * 15_000  # escaped, it is six times as long
    outcome = await outcome_of(ctx.open().send_message(ctx.message(topic, headers={"long": longest})))
    if isinstance(outcome, Receipt):  # else it is refused, not cut
        got = dict((await ctx.read_one(topic)).headers)
        check(got == {"long": longest}, f"a long header arrived with {len(got.get('long', ''))} of 15000 characters")
    else:
        refused = isinstance(outcome, InvalidMessageError | MessageTooLargeError | RejectedError)
        check(refused, f"a message with a long header got {show(outcome)}")


@case("messages.hundred-headers-arrive", "live", needs=["read_back"], capability="headers")
async def hundred_headers_arrive(ctx: Context) -> None:
    """A hundred headers arrive."""
    topic, headers = await ctx.topic(), {f"header-{n}": str(n) for n in range(100)}
    await ctx.open().send_message(ctx.message(topic, headers=headers))
    got = dict((await ctx.read_one(topic)).headers)
    check(got == headers, f"{len(got)} of 100 headers arrived, or some changed")


_CROWD = 20


@case("messages.carry-nothing-else", "live", needs=["read_back"])
async def carry_nothing_else(ctx: Context) -> None:
    """All messages of a driver carry the same flags and expiry, and no header that their sender did not give.

    This also holds for a message that is sent among others, and for a message after a reconnect.
    """
    keeps, given, flags = ctx.capabilities, {"a": "1"}, dict[str, dict[str, Any]]()
    kinds: dict[str, dict[str, Any]] = {
        "a plain message": {},
        "one without a body": {"payload": b""},
        "a large one": {"payload": bytes(min(300_000, (keeps.max_message_bytes or 300_000) - 1_000))},
        "one with a content type": {"content_type": "text/plain"},
        "one with a time": {"timestamp": datetime.now(UTC) - timedelta(days=1)},
    }
    if keeps.ordering_key:
        kinds["one with a key"] = {"key": "k"}
    if keeps.headers:
        kinds["one with headers"] = {"headers": given}
    broker = ctx.open()
    for what, fields in kinds.items():
        topic = await ctx.topic()
        check_receipt(await outcome_of(broker.send_message(ctx.message(topic, **fields))), what)
        record = await ctx.read_one(topic)
        flags[what] = _carried(what, record, fields.get("headers", {}))
    topic = await ctx.topic()
    check_all_receipts(await broker.send_messages([ctx.message(topic) for _ in range(_CROWD)]))
    for record in await ctx.read(topic, _CROWD):
        flags["one among others"] = _carried("one among others", record, {})
    if ctx.harness.lacks("reset") is None:
        await ctx.do(ctx.harness.reset)
        await ctx.works_again(broker, await ctx.topic())
        check_receipt(await outcome_of(broker.send_message(ctx.message(topic := await ctx.topic()))))
        flags["one after a reconnect"] = _carried("one after a reconnect", await ctx.read_one(topic), {})
    other = [f"{what}: {those}" for what, those in flags.items() if those != flags["a plain message"]]
    check(not other, f"a plain message arrived with {flags['a plain message']}, but {'; '.join(other)}")


def _carried(what: str, record: Record, given: Mapping[str, str]) -> dict[str, Any]:
    """Returns the flags of a record. Demands that the record has no headers except the given ones."""
    extra = dict(record.headers).keys() - given.keys()
    check(not extra, f"{what} arrived with headers that nobody gave it: {', '.join(sorted(extra))}")
    return dict(record.flags)


_FIELDS = (
    "message_name",
    "topic",
    "payload",
    "message_id",
    "key",
    "headers",
    "content_type",
    "timestamp",
    "payload_bytes",
)


@case("messages.callers-message-is-unchanged", "live")
async def callers_message_is_unchanged(ctx: Context) -> None:
    """Sending changes nothing in the caller's message, or in the objects that the message holds."""
    topic, headers, payload = await ctx.topic(), {"a": "1"}, {"n": 1}
    keep = ctx.capabilities
    message = ctx.message(
        topic, payload, headers=headers if keep.headers else {}, key="k" if keep.ordering_key else None
    )
    before = {name: getattr(message, name) for name in _FIELDS}
    copied = {name: dict(value) if isinstance(value, dict) else value for name, value in before.items()}
    broker = ctx.open()
    await broker.connect()  # a message that waits for a connection would be kept from the driver
    await broker.send_message(message)
    changed = [name for name in _FIELDS if getattr(message, name) is not before[name]]
    changed += [name for name in _FIELDS if getattr(message, name) != copied[name]]
    check(not changed, f"these fields of the caller's message were changed: {', '.join(sorted(set(changed)))}")


@case("messages.snapshot-is-taken", "live", needs=["read_back"])
async def snapshot_is_taken(ctx: Context) -> None:
    """Changes of a message after the call has begun change nothing on the wire or in the receipt."""
    for connected in (True, False):  # not connected: the message waits
        broker, topic, other = ctx.open(), await ctx.topic(), await ctx.topic()
        if connected:
            await broker.connect()
        headers = {"a": "before"} if ctx.capabilities.headers else {}
        message = ctx.message(topic, b"before", headers=headers, content_type="text/before")
        identity = message.message_id
        sending = asyncio.ensure_future(broker.send_message(message))
        await asyncio.sleep(0)  # one turn of the loop, and the call has begun
        message.payload, message.payload_bytes, message.topic = b"after", b"after", other
        message.message_name, message.content_type, message.message_id = "After", "text/after", uuid.uuid4()
        headers.update({"a": "after"} if headers else {})
        receipt = await sending
        record = await ctx.read_one(topic)
        got = (record.body, record.name, record.content_type, record.message_id, record.headers.get("a", "before"))
        wanted = (b"before", "ConformanceEvent", "text/before", str(identity), "before")
        changed = [n for n, a, b in zip(("body", "name", "type", "id", "header"), got, wanted, strict=True) if a != b]
        check(not changed, f"changed after the call, and changed on the wire: {', '.join(changed)}")
        check((receipt.message_id, receipt.topic) == (identity, topic), "changed after the call, and in the receipt")


_TOPICS = 40


@case("messages.topics-are-kept-apart", "live", needs=["read_back"])
async def topics_are_kept_apart(ctx: Context) -> None:
    """Each of many topics gets only its own messages, on the first connection and on a later one."""
    broker, topics = ctx.open(), [await ctx.topic() for _ in range(_TOPICS)]
    sent = [ctx.message(topic) for topic in topics * 2]
    check_all_receipts(await broker.send_messages(sent))
    if ctx.harness.lacks("reset") is None:
        await ctx.do(ctx.harness.reset)
        await ctx.works_again(broker, await ctx.topic())
        sent += (later := [ctx.message(topic) for topic in reversed(topics)])
        check_all_receipts(await broker.send_messages(later))
    for topic in (*topics[:2], *topics[-2:]):
        wanted = {str(message.message_id) for message in sent if message.topic == topic}
        got = {record.message_id for record in await ctx.read(topic, len(wanted))}
        check(got == wanted, f"{len(got - wanted)} messages of other topics arrived, {len(wanted - got)} are missing")


@case("messages.anything-message-like-is-sent", "live", needs=["read_back"])
async def anything_message_like_is_sent(ctx: Context) -> None:
    """Any object with name, topic, payload and id is a message, also python-cqrs' own messages."""
    topic, identity = await ctx.topic(), uuid.uuid4()
    ctx.made.add(str(identity).encode())
    like = SimpleNamespace(message_name="Like", topic=topic, payload={"a": 1}, message_id=identity)
    await ctx.open().send_message(like)
    record = await ctx.read_one(topic)
    check((record.name, record.message_id) == ("Like", str(identity)), "name or id did not arrive")
    check(record.json() == {"a": 1}, "the payload did not arrive")
