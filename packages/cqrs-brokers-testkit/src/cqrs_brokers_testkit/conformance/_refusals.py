"""Cases about messages that cannot be sent: they fail with their class before any I/O, and a good message succeeds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime

from cqrs_brokers import DeliveryError, InvalidMessageError, Message, MessageTooLargeError
from cqrs_brokers_testkit.conformance._case import Context, case, check, check_receipt, outcome_of, show


async def _refused(ctx: Context, expected: type[DeliveryError], bad: Iterable[tuple[str, Message]]) -> None:
    """Demands this class of error for each message, that no connection was made, and that a good message succeeds
    afterwards."""
    broker = ctx.open()
    for what, message in bad:
        outcome = await outcome_of(broker.send_message(message))
        check(type(outcome) is expected, f"{what}: expected {expected.__name__}, got {show(outcome)}")
    state = broker.describe()["state"]
    check(state == "idle", f"the broker is {state}: it began to connect for messages that it had to refuse")
    good = await outcome_of(broker.send_message(ctx.message(await ctx.topic())))
    check_receipt(good, "the next good message")


@case("refusals.illegal-topic", "live")
async def illegal_topic(ctx: Context) -> None:
    """Empty, unprintable, too long or otherwise illegal topics are `InvalidMessageError`."""
    topics = ["", "a\nb", "a\x00b", "x" * 256, *ctx.harness.illegal_topics]
    bad = [(f"topic {topic[:20]!r}", ctx.message(topic)) for topic in topics]
    bad.append(("a topic that is no text", ctx.message(7)))  # type: ignore[arg-type]
    await _refused(ctx, InvalidMessageError, bad)


@case("refusals.illegal-name-or-id", "live")
async def illegal_name_or_id(ctx: Context) -> None:
    """An empty or unprintable message name, an id that is no UUID, or a time without zone is `InvalidMessageError`."""
    topic = await ctx.topic()
    await _refused(
        ctx,
        InvalidMessageError,
        [
            ("an empty name", Message("", topic, {})),
            ("a name with a line break", Message("a\nb", topic, {})),
            ("a long name", Message("x" * 300, topic, {})),
            ("an id that is text", Message("E", topic, {}, message_id="1")),  # type: ignore[arg-type]
            ("a time without zone", Message("E", topic, {}, timestamp=datetime(2024, 1, 1))),  # noqa: DTZ001
            ("a content type with a line break", Message("E", topic, {}, content_type="a\r\nb")),
        ],
    )


@case("refusals.illegal-header", "live", capability="headers")
async def illegal_header(ctx: Context) -> None:
    """Headers of an undeclared type, too long, or more than a hundred are `InvalidMessageError`."""
    topic = await ctx.topic()
    headers: list[tuple[str, object]] = [
        ("a long name", {"x" * 200: "v"}),
        ("an empty name", {"": "v"}),
        ("a name that is no text", {1: "v"}),
        ("a value that is a list", {"a": ["v"]}),
        ("a long value", {"a": "v" * 40_000}),
        ("101 headers", {f"h{n}": "" for n in range(101)}),
        ("headers that are no mapping", [("a", "v")]),
    ]
    undeclared = [value for value in (b"v", 1, 0.5, True, None) if type(value) not in ctx.capabilities.header_types]
    headers += [(f"a value of type {type(value).__name__}", {"a": value}) for value in undeclared]
    await _refused(ctx, InvalidMessageError, [(what, ctx.message(topic, headers=value)) for what, value in headers])


@case("refusals.reserved-header", "live", capability="headers")
async def reserved_header(ctx: Context) -> None:
    """A user header with a reserved name, in any case, is `InvalidMessageError`."""
    topic, names = await ctx.topic(), ("message-id", "Message-Name", "CONTENT-TYPE", "ordering-key")
    await _refused(ctx, InvalidMessageError, [(name, ctx.message(topic, headers={name: "v"})) for name in names])


@case("refusals.too-large", "live")
async def too_large(ctx: Context) -> None:
    """A message above `max_message_bytes` is `MessageTooLargeError`, and a message of exactly that size is sent."""
    topic = await ctx.topic()
    await _refused(ctx, MessageTooLargeError, [("1 MB and a byte", ctx.message(topic, b"x" * 1_000_001))])
    broker = ctx.open(max_message_bytes=1000)
    outcome = await outcome_of(broker.send_message(ctx.message(topic, b"x" * 1001)))
    check(type(outcome) is MessageTooLargeError, f"1 byte too many got {show(outcome)}")
    outcome = await outcome_of(broker.send_message(ctx.message(topic, b"x" * 1000)))
    check_receipt(outcome, "a message of exactly max_message_bytes")


@case("refusals.unencodable-payload", "live")
async def unencodable_payload(ctx: Context) -> None:
    """A payload without a JSON form (None, NaN, a set, a generator, an object) is `InvalidMessageError`."""
    topic = await ctx.topic()
    payloads: list[object] = [math.nan, math.inf, {1, 2}, (n for n in "ab"), object(), {"a": object()}, {1: "a"}]
    bad = [(f"a payload of {type(value).__name__}", ctx.message(topic, value)) for value in payloads]
    bad.append(("a payload of None", Message("E", topic, None)))
    await _refused(ctx, InvalidMessageError, bad)


@case("refusals.key-without-the-capability", "live", without="ordering_key")
async def key_without_the_capability(ctx: Context) -> None:
    """A message with a key is `InvalidMessageError` when the driver keeps no order by key."""
    await _refused(ctx, InvalidMessageError, [("a key", ctx.message(await ctx.topic(), key="k"))])


@case("refusals.headers-without-the-capability", "live", without="headers")
async def headers_without_the_capability(ctx: Context) -> None:
    """A message with headers is `InvalidMessageError` when the driver carries no headers."""
    await _refused(ctx, InvalidMessageError, [("a header", ctx.message(await ctx.topic(), headers={"a": "v"}))])
