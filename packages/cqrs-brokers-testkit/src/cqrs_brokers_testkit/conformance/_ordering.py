"""Cases about many messages at once: none is lost or doubled, keys keep their order, a cancellation hits one caller."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from cqrs_brokers import (
    Broker,
    DeliveryError,
    InvalidMessageError,
    Message,
    MessageTooLargeError,
    NotDeliveredError,
    Receipt,
)
from cqrs_brokers_testkit.conformance._case import (
    Context,
    NotApplicable,
    case,
    check,
    check_all_receipts,
    check_order,
    check_receipt,
    check_truth,
    outcome_of,
    send_from_tasks,
    show,
    tally,
)

_KEYS = 16
_TWINS = 13
_TIMEOUTS = (20.0, 8.0, 14.0)
"""Timeouts in seconds. The deadlines have another order than the calls."""


@case("ordering.many-tasks-lose-nothing", "live", needs=["read_back"], limit=60.0)
async def many_tasks_lose_nothing(ctx: Context) -> None:
    """Of 5 000 messages from 50 tasks every message arrives, and none arrives twice."""
    broker, topic = ctx.open(), await ctx.topic()
    messages = [ctx.message(topic, {"n": n}) for n in range(ctx.count(5_000, 300))]
    outcomes = await send_from_tasks(broker, messages, 50)
    check_all_receipts(outcomes)
    check_truth(messages, outcomes, await ctx.read(topic, len(messages)))


def _keyed_messages(ctx: Context, topic: str, count: int) -> list[Message]:
    """Makes messages with keys. Every ninth is large, every fifth has headers, and some have a name, a content type or
    a time of their own, because a driver may write such messages in another way. One key is empty.

    Four messages in a row have the same key, so that the case notices if two of them change places.
    """
    sizes = [20_000 if n % 9 == 0 else 1 for n in range(count)]
    headers = [{"n": str(n)} if n % 5 == 0 and ctx.capabilities.headers else {} for n in range(count)]
    now, messages = datetime.now(UTC), []
    for n in range(count):
        number = n // 4 % _KEYS
        fields: dict[str, Any] = {"content_type": "application/x-own"} if n % 6 == 0 else {}
        fields |= {"timestamp": now - timedelta(seconds=n)} if n % 7 == 0 else {}
        fields |= {"name": "AnotherEvent"} if n % 11 == 0 else {}
        content = {"n": n, "more": "x" * sizes[n]}
        messages.append(
            ctx.message(topic, content, key=f"key-{number}" if number else "", headers=headers[n], **fields)
        )
    return messages


@case("ordering.keys-keep-their-order", "live", needs=["read_back"], capability="ordering_key", limit=60.0)
async def keys_keep_their_order(ctx: Context) -> None:
    """1 000 messages of 16 keys are sent at the same time, and each key arrives in the order of the calls.

    The messages differ in size, headers, time, type and name, and their callers wait for different times. Then half of
    the messages are sent one by one, and half in small batches.
    """
    broker, topic = ctx.open(), await ctx.topic()
    messages = _keyed_messages(ctx, topic, ctx.count(1_000, 160))
    sends = [outcome_of(broker.send_message(message, timeout=_TIMEOUTS[n % 3])) for n, message in enumerate(messages)]
    outcomes = await asyncio.gather(*sends)
    await _check_everything(ctx, topic, messages, outcomes)
    topic = await ctx.topic()
    messages = _keyed_messages(ctx, topic, ctx.count(1_000, 160))
    sendings: list[asyncio.Future[list[Receipt | DeliveryError]]] = []
    for first in range(0, len(messages), 6):  # a batch of three, and three messages, of which two or more have one key
        part = messages[first : first + 6]
        sendings += [asyncio.ensure_future(broker.send_messages(part[:3]))]
        sendings += [asyncio.ensure_future(_one(broker, message)) for message in part[3:]]
        await asyncio.sleep(0)
    await _check_everything(ctx, topic, messages, [o for outcomes in await asyncio.gather(*sendings) for o in outcomes])


    topic = await ctx.topic()
    messages = [ctx.message(topic, b"0", key="k")]
    for n in range(1, _TWINS):
        same: dict[str, Any] = {"message_id": messages[0].message_id} if n % 3 == 0 else {}
        messages.append(ctx.message(topic, b"%d" % n, key="k", **same))
    await asyncio.gather(*(outcome_of(broker.send_message(message)) for message in messages))
    places = [int(record.body) for record in await ctx.read(topic, len(messages))]
    check(places == sorted(places), f"messages of one key, some with the id of the first, came in this order: {places}")


async def _one(broker: Broker, message: Message) -> list[Receipt | DeliveryError]:
    return [await outcome_of(broker.send_message(message))]


async def _check_everything(
    ctx: Context, topic: str, messages: Sequence[Message], outcomes: Sequence[Receipt | DeliveryError]
) -> None:
    check_all_receipts(outcomes)
    records = await ctx.read(topic, len(messages))
    check_truth(messages, outcomes, records)
    check_order(messages, outcomes, records)


@case("ordering.batch-keeps-its-order", "live", needs=["read_back"], capability="ordering_key", limit=60.0)
async def batch_keeps_its_order(ctx: Context) -> None:
    """In a batch that is larger than the window, each key arrives in the order of the batch."""
    broker, topic = ctx.open(max_in_flight=160), await ctx.topic()
    messages = _keyed_messages(ctx, topic, ctx.count(1_000, 160))
    outcomes = await broker.send_messages(messages)
    check_all_receipts(outcomes)
    records = await ctx.read(topic, len(messages))
    check_truth(messages, outcomes, records)
    check_order(messages, outcomes, records)


@case("ordering.order-survives-a-reset", "fault", needs=["reset", "read_back"], capability="ordering_key")
async def order_survives_a_reset(ctx: Context) -> None:
    """If connections are reset during sends, confirmed messages of a key keep their order, and none is doubled."""
    broker, topic = ctx.open(delivery_timeout=15.0, max_in_flight=320), await ctx.topic()
    await broker.connect()
    messages = _keyed_messages(ctx, topic, ctx.count(4_000, 800))
    sending = asyncio.ensure_future(broker.send_messages(messages))
    for _ in range(3):
        await asyncio.sleep(0.05)
        await ctx.do(ctx.harness.reset)
    outcomes = await sending
    await asyncio.sleep(0.2)
    records = await ctx.read(topic, sum(isinstance(outcome, Receipt) for outcome in outcomes))
    check_truth(messages, outcomes, records)
    check_order(messages, outcomes, records)
    check(any(isinstance(outcome, Receipt) for outcome in outcomes), f"nothing was delivered: {tally(outcomes)}")


@case(
    "ordering.order-survives-a-refusal",
    "live",
    needs=["refuse_next", "read_back"],
    capability="ordering_key",
    waivable=True,
    like="delivery.refused-is-not-delivered",
)
async def order_survives_a_refusal(ctx: Context) -> None:
    """If the broker refuses a message, the keyed messages behind it keep their order, and their outcomes are true.

    A broker that ends the connection with its refusal may do so before the refusal is read.
    """
    refusal = await ctx.do(ctx.harness.refuse_next)
    broker = ctx.open(refusal.url, delivery_timeout=15.0)
    # Together they are more than the sockets on the way hold: some wait in the driver. None is too large itself.
    count = ctx.count(800, 300)
    large = [ctx.message(refusal.topic, bytes(15_000), key=f"key-{n % _KEYS}") for n in range(count)]
    messages = [refusal.message, *large]
    outcomes = await broker.send_messages(messages)
    good, told = messages[1:], outcomes[1:]
    check(not isinstance(outcomes[0], Receipt), "the refused message got a receipt")
    await asyncio.sleep(0.2)
    records = await ctx.read(refusal.topic, sum(isinstance(outcome, Receipt) for outcome in told))
    check_truth(good, told, records)
    check_order(good, told, records)
    if all(isinstance(outcome, NotDeliveredError) for outcome in told):
        raise NotApplicable("the topic beside the refused message takes only a few small messages")
    check(any(isinstance(outcome, Receipt) for outcome in told), f"nothing was delivered: {tally(told)}")


@case("ordering.first-sends-share-a-connection", "live", needs=["connections_made"])
async def first_sends_share_a_connection(ctx: Context) -> None:
    """50 first sends at the same time make no more connections than one send."""
    topic, made = await ctx.topic(), ctx.harness.connections_made
    start = await ctx.do(made)
    async with ctx.open() as broker:
        await broker.send_message(ctx.message(topic))
    one = await ctx.do(made) - start
    broker = ctx.open()
    start = await ctx.do(made)
    check_all_receipts(await asyncio.gather(*(outcome_of(broker.send_message(ctx.message(topic))) for _ in range(50))))
    many = await ctx.do(made) - start
    check(many <= one, f"one send made {one} connections, 50 concurrent first sends made {many}")


@case("ordering.bad-ones-fail-alone", "live", limit=60.0)
async def bad_ones_fail_alone(ctx: Context) -> None:
    """In a batch of 1 000 with 20 bad messages, the 20 get errors at their places, and the others are delivered."""
    broker, topic = ctx.open(), await ctx.topic()
    count = ctx.count(1_000, 200)
    bad = {n: (object() if n % 2 else b"x" * 1_000_001) for n in range(7, count, count // 20)}
    messages = [ctx.message(topic, bad.get(n, {"n": n})) for n in range(count)]
    outcomes = await broker.send_messages(messages)
    check(len(outcomes) == count, f"{count} messages got {len(outcomes)} outcomes")
    for n, outcome in enumerate(outcomes):
        wanted = Receipt if n not in bad else InvalidMessageError if n % 2 else MessageTooLargeError
        check(type(outcome) is wanted, f"message {n}: expected {wanted.__name__}, got {show(outcome)}")
    if not ctx.harness.discards and ctx.harness.lacks("read_back") is None:
        check_truth(messages, outcomes, await ctx.read(topic, count - len(bad)))


@case("ordering.cancel-hits-one-caller", "live", needs=["read_back"])
async def cancel_hits_one_caller(ctx: Context) -> None:
    """A cancellation at any await point hits only its caller: other sends work, and no receipt lies."""
    broker, topic = ctx.open(), await ctx.topic()
    rng, messages, tasks = random.Random(7), [], []  # noqa: S311 - not for security
    for n in range(ctx.count(120, 60)):
        messages.append(ctx.message(topic, {"n": n}))
        task = asyncio.ensure_future(broker.send_message(messages[-1]))
        tasks.append(task)
        if n % 3 == 0:
            asyncio.get_running_loop().call_later(rng.choice((0, 0, 0.001, 0.003, 0.01)), task.cancel)
        if n % 5 == 0:
            await asyncio.sleep(0)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for n, outcome in enumerate(outcomes):
        allowed = (Receipt, asyncio.CancelledError) if n % 3 == 0 else (Receipt,)
        check(isinstance(outcome, allowed), f"message {n} was {'' if n % 3 == 0 else 'not '}cancelled: {show(outcome)}")
    later = [ctx.message(topic) for _ in range(10)]
    more = [await outcome_of(broker.send_message(message)) for message in later]
    check_all_receipts(more)
    received = sum(isinstance(outcome, Receipt) for outcome in [*outcomes, *more])
    check_truth([*messages, *later], [*outcomes, *more], await ctx.read(topic, received))


@case("ordering.failing-sibling-hits-nobody-else", "live", needs=["read_back"])
async def failing_sibling_hits_nobody_else(ctx: Context) -> None:
    """A TaskGroup with a failing task cancels only its own sends. Other sends and later sends succeed."""
    broker, topic = ctx.open(), await ctx.topic()
    await broker.connect()
    stalls = ctx.harness.lacks("stall") is None  # so that no answer comes before the cancellation
    if stalls:
        await ctx.do(ctx.harness.stall)
    outside_messages = [ctx.message(topic) for _ in range(40)]
    outside = [asyncio.ensure_future(broker.send_message(message)) for message in outside_messages[:20]]

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    inside = [ctx.message(topic) for _ in range(20)]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(broker.send_message(message)) for message in inside]
            group.create_task(fail())
            outside += [asyncio.ensure_future(broker.send_message(message)) for message in outside_messages[20:]]
    except* ZeroDivisionError:
        pass
    finally:
        if stalls:
            await ctx.do(ctx.harness.resume)
    results: list[object] = [task.result() if not task.cancelled() else None for task in tasks]
    outcomes = await asyncio.gather(*(outcome_of(send) for send in outside))
    check_all_receipts(outcomes)
    last = ctx.message(topic)
    check_receipt(await outcome_of(broker.send_message(last)), "a later message")
    expected = len(outside) + 1 + sum(isinstance(result, Receipt) for result in results)
    check_truth([*outside_messages, *inside], [*outcomes, *results], await ctx.read(topic, expected))
