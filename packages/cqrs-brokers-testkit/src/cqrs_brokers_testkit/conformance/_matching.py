"""Cases about the message that an answer means, and about the sender of the answer."""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
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

_MOST = 1_000
"""At most this many messages are sent to find out whether a refused message keeps its place."""


@case("delivery.equal-ids-are-not-equal-messages", "live", needs=["read_back"], capability="confirms")
async def equal_ids_are_not_equal_messages(ctx: Context) -> None:
    """A second message with the id of an earlier one gets a receipt only if the second message is also in the broker.

    The same holds for a message that has the content of another message, and an id of its own.
    """
    broker, topic = ctx.open(delivery_timeout=5.0), await ctx.topic()
    sent: list[Message] = []
    outcomes: list[object] = []
    for together in (False, True):
        first = ctx.message(topic, b"first")
        same: dict[str, Any] = {"timestamp": first.timestamp}
        pair = [first, ctx.message(topic, b"second", message_id=first.message_id, **same)]
        others: list[dict[str, Any]] = [{"name": "Another"}, {"content_type": "text/another"}]
        others += [{"headers": {"twin": "1"}}] if ctx.capabilities.headers else []
        others += [{"key": "another"}] if ctx.capabilities.ordering_key else []
        others += [{"message_id": uuid.uuid4()}]
        for other in others:
            pair.append(ctx.message(topic, b"first", **{"message_id": first.message_id, **same, **other}))
        sent += pair
        if together:
            outcomes += await asyncio.gather(*(outcome_of(broker.send_message(message)) for message in pair))
        else:
            outcomes += [await outcome_of(broker.send_message(message)) for message in pair]
    forgotten = [outcome for outcome in outcomes if isinstance(outcome, DeliveryTimeoutError)]
    check(not forgotten, f"the broker answers every message, and of those with one id {len(forgotten)} had no answer")
    records = await ctx.read(topic, sum(isinstance(outcome, Receipt) for outcome in outcomes))
    found: dict[tuple[object, ...], list[int | None]] = defaultdict(list)
    for record in records:
        about = (record.body, record.name, record.content_type, "twin" in record.headers, record.key)
        found[record.message_id, *about].append(record.offset)
    for message, outcome in zip(sent, outcomes, strict=True):
        kind = message.content_type or "application/octet-stream"
        about = (message.body or b"", message.message_name, kind, "twin" in message.headers, message.key)
        there = found[str(message.message_id), *about]
        which = f"of messages with one id, or one content, the one with {about}"
        if isinstance(outcome, Receipt):
            check(there, f"{which} got a receipt and is not in the broker: an earlier message's answer is not its own")
            named = outcome.offset is None or None in there or outcome.offset in there
            check(named, f"{which} got a receipt with the offset of another record")
        if isinstance(outcome, NotDeliveredError):
            check(not there, f"{which} was reported as not delivered and is in the broker")
    check_receipt(outcomes[0])


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
