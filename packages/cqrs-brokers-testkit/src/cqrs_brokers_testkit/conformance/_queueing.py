"""Cases whose messages fill the driver's own queue, and those about answers that never come."""

from __future__ import annotations

import asyncio

from cqrs_brokers import Broker, DeliveryUnknownError, Message, NotDeliveredError, Receipt
from cqrs_brokers_testkit.conformance._case import (
    Context,
    case,
    check,
    check_all_receipts,
    check_order,
    check_truth,
    outcome_of,
    tally,
)
from cqrs_brokers_testkit.proxy import FaultProxy

_LARGE = 40_000
"""Bytes. A few hundred such messages fill a socket, a client's buffer, and then the driver's own queue."""
_KEYS = 4
_SETTLE = 1.0
"""Seconds in which what was in a socket arrives after a fault."""


def _proxy(ctx: Context) -> FaultProxy:
    proxy = ctx.harness.proxy
    assert proxy is not None  # the runner has looked: the case needs it
    return proxy


def _large_messages(ctx: Context, topic: str, count: int) -> list[Message]:
    keyed = ctx.capabilities.ordering_key
    return [
        ctx.message(topic, n.to_bytes(4, "big") * (_LARGE // 4), key=f"key-{n % _KEYS}" if keyed else None)
        for n in range(count)
    ]


async def _stalled_with_a_full_queue(
    ctx: Context, broker: Broker, messages: list[Message], wait: float
) -> list[asyncio.Future[Receipt | NotDeliveredError | DeliveryUnknownError]]:
    """Stalls the way to the broker and sends; then some are with the client and some still with the driver."""
    await ctx.do(lambda: _proxy(ctx).stall("up"))
    sends = [asyncio.ensure_future(outcome_of(broker.send_message(message))) for message in messages]
    await asyncio.sleep(wait)
    return sends  # type: ignore[return-value] # every delivery error is one of the two


@case(
    "ordering.queued-messages-keep-their-order",
    "fault",
    needs=["proxy", "read_back"],
    capability="ordering_key",
    limit=90.0,
)
async def queued_messages_keep_their_order(ctx: Context) -> None:
    """400 messages of 40 kB wait in the driver's queue when the connection breaks: order and truth survive it."""
    proxy, topic = _proxy(ctx), await ctx.topic()
    broker = ctx.open(delivery_timeout=25.0, max_in_flight=1000, max_in_flight_bytes=2**27)
    await broker.send_message(ctx.message(await ctx.topic()))
    messages = _large_messages(ctx, topic, ctx.count(400, 200))
    try:
        sends = await _stalled_with_a_full_queue(ctx, broker, messages, 0.7)
        await ctx.do(proxy.reset)
    finally:
        await ctx.do(proxy.heal)
    outcomes = await asyncio.gather(*sends)
    await asyncio.sleep(_SETTLE)
    records = await ctx.read(topic, sum(isinstance(outcome, Receipt) for outcome in outcomes))
    check_truth(messages, outcomes, records)
    check_order(messages, outcomes, records)
    check(isinstance(outcomes[-1], Receipt), f"what waited for the next connection was not sent: {tally(outcomes)}")


@case("delivery.denied-never-arrives", "fault", needs=["proxy", "read_back"], limit=60.0)
async def denied_never_arrives(ctx: Context) -> None:
    """The way to the broker stalls beyond the deadline of 400 large messages: none that was denied arrives later."""
    proxy, topic = _proxy(ctx), await ctx.topic()
    broker = ctx.open(delivery_timeout=1.5, max_in_flight=1000, max_in_flight_bytes=2**27)
    await broker.send_message(ctx.message(await ctx.topic()))
    messages = _large_messages(ctx, topic, ctx.count(400, 200))
    try:
        sends = await _stalled_with_a_full_queue(ctx, broker, messages, 0.0)
        outcomes = await asyncio.gather(*sends)
    finally:
        await ctx.do(proxy.heal)
    check(not any(isinstance(o, Receipt) for o in outcomes), f"nothing got through: {tally(outcomes)}")
    last = ctx.message(topic)
    await ctx.works_again(broker, last.topic)
    await asyncio.sleep(_SETTLE)
    check_truth(messages, outcomes, await ctx.read(topic, 1))


@case("delivery.unanswered-is-let-go", "fault", needs=["proxy", "read_back"], capability="confirms", limit=120.0)
async def unanswered_is_let_go(ctx: Context) -> None:
    """One answer is lost on a connection that lives: the outcome is unknown, the place is free again, sends work."""
    proxy = _proxy(ctx)
    broker = ctx.open(delivery_timeout=2.0, max_in_flight=8)
    # A topic each: a driver may let a message wait for the answer of the one before it.
    topics = [await ctx.topic() for _ in range(3)]
    for topic in topics:  # what the driver has to ask about a topic has been asked
        await broker.send_message(ctx.message(topic))
    lost = [ctx.message(topic) for topic in topics]
    await ctx.do(lambda: proxy.swallow("down"))
    try:
        sends = [asyncio.ensure_future(outcome_of(broker.send_message(message))) for message in lost]
        for topic in topics:
            await ctx.read(topic, 2)
        await asyncio.sleep(0.3)
    finally:
        await ctx.do(proxy.heal)
    outcomes = await asyncio.gather(*sends)
    wrong = [outcome for outcome in outcomes if not isinstance(outcome, DeliveryUnknownError)]
    check(not wrong, f"their answers were lost, and they got {tally(outcomes)}")
    free_within = ctx.harness.notices_within
    await ctx.wait_for(
        lambda: _window_is_empty(broker),
        free_within,
        f"{free_within:g} s after the deadline the driver still holds messages that will never be answered",
    )
    await ctx.works_again(broker, topic, free_within)
    later = [await outcome_of(broker.send_message(ctx.message(topic))) for _ in range(6)]
    check_all_receipts(later)


async def _window_is_empty(broker: Broker) -> bool:
    return (await broker.health()).in_flight == 0


@case("faults.dead-connection-is-noticed", "fault", needs=["proxy"], limit=180.0)
async def dead_connection_is_noticed(ctx: Context) -> None:
    """The connections that exist are dead, new ones work: a send succeeds within the time that the harness declares."""
    proxy, topic = _proxy(ctx), await ctx.topic()
    broker = ctx.open(delivery_timeout=2.0)
    await broker.send_message(ctx.message(topic))
    for connection in list(proxy.connections):
        await ctx.do(connection.stall)
    try:
        await ctx.works_again(broker, topic, ctx.harness.notices_within)
    finally:
        await ctx.do(proxy.heal)
