"""Cases about the message that an answer means, and about the sender of the answer."""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from datetime import timedelta
from typing import Any

from cqrs_brokers import (
    Broker,
    DeliveryTimeoutError,
    InvalidMessageError,
    Message,
    NotDeliveredError,
    PublishForbiddenError,
    Receipt,
)
from cqrs_brokers_testkit.conformance._case import (
    Context,
    NotApplicable,
    Unsupported,
    case,
    check,
    check_all_receipts,
    check_receipt,
    check_truth,
    outcome_of,
    show,
    tally,
)
from cqrs_brokers_testkit.readers import Record

_MOST = 1_000
"""At most this many messages are sent to find out whether a refused message keeps its place."""


def _twins(ctx: Context, topic: str, other_topic: str) -> list[Message]:
    """Messages of which no two are equal. They have one id, or the content of the first one.

    Some differ in one field only, some late in a long body. Of some the fields are equal when they are written one
    after the other without their lengths, as "k1" and "2", "k" and "12".
    """
    keyed, headers = ctx.capabilities.ordering_key, ctx.capabilities.headers
    first = ctx.message(topic, b"first", content_type="text/one")
    long = bytes(100_000)
    fields: list[dict[str, Any]] = [
        {"payload": b"second"},
        {"name": "Another"},
        {"content_type": "text/two"},
        {"timestamp": first.timestamp - timedelta(hours=1)},
        {"topic": other_topic},
        *({"payload": body} for body in (long, long[1:] + b"x", b"x" + long[1:])),
        *({"name": name, "payload": body} for name, body in (("Event1", b"2"), ("Event", b"12"))),
    ]
    if keyed:
        fields += [{"key": "another"}, *({"key": key, "payload": body} for key, body in (("k1", b"2"), ("k", b"12")))]
    if headers:
        fields += [{"headers": given} for given in ({"a": "1"}, {"b": "1"}, {"a": "2"}, {"ab": "c"}, {"a": "bc"})]
        fields += [{"headers": {"h": value}, "payload": body} for value, body in (("v1", b"2"), ("v", b"12"))]
    if keyed and headers:
        fields += [{"key": key, "headers": {"h": value}} for key, value in (("k1", "2"), ("k", "12"))]
    fields.append({"message_id": uuid.uuid4()})
    same = {"topic": topic, "payload": b"first", "content_type": "text/one", "timestamp": first.timestamp}
    return [first, *(ctx.message(**{**same, "message_id": first.message_id, **other}) for other in fields)]


def _identity(seen: Message | Record) -> tuple[object, ...]:
    """All of a message or record by which twins differ. Brokers keep times to the second."""
    name = seen.name if isinstance(seen, Record) else seen.message_name
    at, headers = seen.timestamp, frozenset(dict(seen.headers).items())
    second = None if at is None else int(at.timestamp())
    return str(seen.message_id), seen.topic, name, seen.key, headers, seen.content_type, second, seen.body


@case("delivery.equal-ids-are-not-equal-messages", "live", needs=["read_back"], capability="confirms", limit=60.0)
async def equal_ids_are_not_equal_messages(ctx: Context) -> None:
    """A second message with the id of an earlier one gets a receipt only if the second message is also in the broker.

    It may differ from the first one in any field, also in its topic. The same holds for a message that has the content
    of another message, and an id of its own.
    """
    broker, topics = ctx.open(delivery_timeout=5.0), [await ctx.topic(), await ctx.topic()]
    sent: list[Message] = []
    outcomes: list[object] = []
    for together in (False, True):
        twins = _twins(ctx, *topics)
        sent += twins
        if together:
            outcomes += await asyncio.gather(*(outcome_of(broker.send_message(message)) for message in twins))
        else:
            outcomes += [await outcome_of(broker.send_message(message)) for message in twins]
    forgotten = [outcome for outcome in outcomes if isinstance(outcome, DeliveryTimeoutError)]
    check(not forgotten, f"the broker answers every message, and of those with one id {len(forgotten)} had no answer")
    found: dict[tuple[object, ...], list[int | None]] = defaultdict(list)
    for topic in topics:
        confirmed = [o for m, o in zip(sent, outcomes, strict=True) if isinstance(o, Receipt) and m.topic == topic]
        for record in await ctx.read(topic, len(confirmed)):
            found[_identity(record)].append(record.offset)
    for number, (message, outcome) in enumerate(zip(sent, outcomes, strict=True)):
        there = found[_identity(message)]
        which = f"of {len(sent)} messages with one id, or one content, number {number} ({_told(message)})"
        if isinstance(outcome, Receipt):
            check(there, f"{which} got a receipt and is not in the broker: an earlier message's answer is not its own")
            named = outcome.offset is None or None in there or outcome.offset in there
            check(named, f"{which} got a receipt with the offset of another record")
        if isinstance(outcome, NotDeliveredError):
            check(not there, f"{which} was reported as not delivered and is in the broker")
    check_receipt(outcomes[0])


def _told(message: Message) -> str:
    body = message.body or b""
    given = f"{message.message_name}, key {message.key!r}, headers {dict(message.headers)}, {message.content_type}"
    return f"{given}, body {body[:10]!r} of {len(body)} bytes"


@case("delivery.offset-is-the-brokers", "live", needs=["read_back"])
async def offset_is_the_brokers(ctx: Context) -> None:
    """The partition and offset of a receipt are those at which the message is read back."""
    broker, other, topic = ctx.open(), ctx.open(), await ctx.topic()
    keyed = ctx.capabilities.ordering_key
    messages = [ctx.message(topic, key=f"k{n % 3}" if keyed else None) for n in range(30)]
    both = (broker, other)  # whoever counts by himself is wrong when somebody else writes there, too
    outcomes = await asyncio.gather(*(outcome_of(both[n % 2].send_message(each)) for n, each in enumerate(messages)))
    check_all_receipts(outcomes)
    if ctx.harness.lacks("reset") is None:  # nor is it what counted on an earlier connection
        await ctx.do(ctx.harness.reset)
        for each in both:
            await ctx.works_again(each, await ctx.topic())
        messages += (more := [ctx.message(topic, key=f"k{n % 3}" if keyed else None) for n in range(10)])
        outcomes += await broker.send_messages(more)
        check_all_receipts(outcomes)
    receipts = {str(receipt.message_id): receipt for receipt in outcomes if isinstance(receipt, Receipt)}
    if all(receipt.offset is None for receipt in receipts.values()):
        raise NotApplicable("its receipts name no offset")
    silent = [receipt for receipt in receipts.values() if receipt.offset is None]
    check(
        not silent, f"{len(silent)} of {len(receipts)} receipts name no offset, and the others do: whose answer was it?"
    )
    records = await ctx.read(topic, len(messages))
    if any(record.offset is None for record in records):
        raise Unsupported("the receipts name offsets, and the records of read_back do not: fill in Record.offset")
    check_truth(messages, outcomes, records)
    invented = {receipt.partition for receipt in receipts.values()} - {None}
    if all(record.partition is None for record in records):
        check(not invented, f"receipts name the partitions {invented}, and the records that were read back name none")


@case(
    "delivery.forbidden-spares-its-neighbours",
    "live",
    needs=["forbidden_destination"],
    waivable=True,
    like="delivery.forbidden-destination",
)
async def forbidden_spares_its_neighbours(ctx: Context) -> None:
    """If every second message in flight goes to a forbidden topic, these fail, and the others get their receipts."""
    target, topic = await ctx.once(ctx.harness.forbidden_destination), await ctx.topic()
    broker = ctx.open(target.url, delivery_timeout=10.0)
    alone = await outcome_of(broker.send_message(ctx.message(topic)))
    if isinstance(alone, PublishForbiddenError):
        raise NotApplicable("the credentials of forbidden_destination may publish nowhere")
    check_receipt(alone, "a good message with these credentials")
    count = max(20, 2 * min(ctx.harness.most_unanswered or 0, _MOST) + 20)  # refused ones keep no place
    for good_first in (True, False):
        messages = [ctx.message(topic if (n % 2 == 0) is good_first else target.topic) for n in range(count)]
        async with ctx.spared_by_the_broker():
            sends = [outcome_of(broker.send_message(message)) for message in messages if good_first]
            outcomes = await asyncio.gather(*sends) or await broker.send_messages(messages)
            good = [outcome for m, outcome in zip(messages, outcomes, strict=True) if m.topic == topic]
            bad = [outcome for m, outcome in zip(messages, outcomes, strict=True) if m.topic != topic]
            check(all(isinstance(o, Receipt) for o in good), f"their good neighbours got {tally(good)}")
            check(all(type(o) is PublishForbiddenError for o in bad), f"the forbidden ones got {tally(bad)}")
        if ctx.harness.lacks("read_back") is None:
            sent = [message for message in messages if message.topic == topic]
            check_truth(sent, good, await ctx.read_those_of(sent, topic, len(sent)))


@case("delivery.only-the-broker-confirms", "live", needs=["foreign_answers"], capability="confirms")
async def only_the_broker_confirms(ctx: Context) -> None:
    """An answer that is not a confirm of the broker (of somebody else, or of an unknown form) gives no receipt."""
    target = await ctx.do(ctx.harness.foreign_answers)
    broker = ctx.open(target.url, delivery_timeout=3.0)
    outcomes = await asyncio.gather(*(outcome_of(broker.send_message(ctx.message(target.topic))) for _ in range(3)))
    lied = any(isinstance(outcome, Receipt) for outcome in outcomes)
    check(not lied, "an answer that was not the broker's confirm became a receipt")
    good = await outcome_of(ctx.open().send_message(ctx.message(await ctx.topic())))
    check_receipt(good)


ODD_NAMES = (
    " ",
    " a",
    "a ",
    "a b",
    ".",
    "..",
    ".a",
    "a.",
    "a..b",
    "*",
    ">",
    "#",
    "a.*",
    "a.>",
    "a/b",
    "a\\b",
    "a+b",
    "$SYS.a",
    "%41",
    "ключ",
    "é",
    "e\u0301",
    "日本",
    "Mixed.Case-Name",
    "x" * 255,
    "ü" * 127,
)
"""Names of topics that some brokers can have and others cannot. Some look alike, because a broker may confuse them."""


@case("refusals.odd-topics-arrive-or-are-refused", "live", needs=["read_back"], limit=120.0)
async def odd_topics_arrive_or_are_refused(ctx: Context) -> None:
    """A topic with an odd name (dots, wildcards, blanks, not ASCII, 255 bytes) is refused or arrives unchanged."""
    broker = ctx.open(delivery_timeout=5.0)
    await broker.connect()
    for name in ODD_NAMES:
        try:
            await _arrives_or_is_refused(ctx, broker, name)
        finally:
            await ctx.do(lambda name=name: ctx.harness.delete_topic(name))  # type: ignore[misc]
    good = await outcome_of(broker.send_message(ctx.message(await ctx.topic())))
    check_receipt(good, "the next good message")


async def _arrives_or_is_refused(ctx: Context, broker: Broker, name: str) -> None:
    made = await ctx.try_to_create(name)
    message = ctx.message(name)
    outcome = await outcome_of(broker.send_message(message))
    shown = f"topic {name[:20]!r}"
    if isinstance(outcome, Receipt):
        check(outcome.topic == name, f"{shown}: the receipt names {outcome.topic!r:.40}")
        check(made, f"{shown}: a receipt, although the harness cannot create such a topic in the broker")
        records = [r for r in await ctx.read(name, 1) if r.message_id == str(message.message_id)]
        check(len(records) == 1, f"{shown}: a receipt, and {len(records)} messages under that name")
        check(records[0].topic == name, f"{shown}: it arrived under {records[0].topic!r:.40}")
    else:
        check(isinstance(outcome, NotDeliveredError), f"{shown}: {show(outcome)}")
        refused = isinstance(outcome, InvalidMessageError) or not made
        check(refused, f"{shown}: the broker has such a topic, and the driver fails late with {show(outcome)}")
