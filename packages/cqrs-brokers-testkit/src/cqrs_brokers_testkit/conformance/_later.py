"""Cases about rules that hold on the first connection and must also hold later: after a reconnect or in silence."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime
from typing import Any

from cqrs_brokers import TOMBSTONE, Message, Receipt
from cqrs_brokers.url import Host
from cqrs_brokers_testkit.conformance._case import (
    Clock,
    Context,
    NotApplicable,
    Unsupported,
    case,
    check,
    check_all_receipts,
    check_receipt,
    check_truth,
    outcome_of,
    tally,
)
from cqrs_brokers_testkit.conformance._connecting import open_at, own_address
from cqrs_brokers_testkit.proxy import FaultProxy

_GRACE = 1.0
_LARGE = 300_000
_LARGE_IN_A_CROWD = 40_000
_IDLE = 15.0


_CONNECTIONS = 4
_TOPICS = 24


async def _refusing_topics(ctx: Context) -> list[str]:
    """Topics of the config string itself to which messages are refused."""
    topics = []
    for need in ("missing_destination", "forbidden_destination", "make_unroutable", "nacking_destination"):
        if ctx.harness.lacks(need) is None:
            with contextlib.suppress(NotApplicable, Unsupported):
                target = await ctx.once(getattr(ctx.harness, need))
                topics += [target.topic] if target.url == ctx.url else []
    return topics


@case(
    "delivery.no-receipt-before-any-answer",
    "fault",
    needs=["lose_answers", "reset"],
    capability="confirms",
)
async def no_receipt_before_any_answer(ctx: Context) -> None:
    """Without an answer no message gets a receipt: after a time-out, reconnects, refusals, and whatever it is."""
    broker = ctx.open(delivery_timeout=30.0, max_in_flight=2_000)
    topic, other, keeps = await ctx.topic(), await ctx.topic(), ctx.capabilities
    for each in (topic, other):
        await broker.send_message(ctx.message(each))
    await ctx.do(ctx.harness.lose_answers)
    try:
        late = [outcome_of(broker.send_message(ctx.message(other), timeout=0.5)) for _ in range(3)]
        outcomes = await asyncio.gather(*late)
        check(not any(isinstance(each, Receipt) for each in outcomes), f"no answer came: {tally(outcomes)}")
    finally:
        await ctx.do(ctx.harness.resume)
    for _ in range(_CONNECTIONS):
        await ctx.do(ctx.harness.reset)
        await ctx.works_again(broker, topic)
    for refusing in await _refusing_topics(ctx):
        await outcome_of(broker.send_message(ctx.message(refusing)))
    check_all_receipts(await broker.send_messages([ctx.message(await ctx.topic()) for _ in range(_TOPICS)]))
    hundreds = [ctx.message(topic) for _ in range(ctx.count(1_000, 300))]
    confirmed = await broker.send_messages(hundreds)
    check_all_receipts(confirmed)
    kinds: dict[str, Message] = {
        "the first to a topic": ctx.message(await ctx.topic()),
        "with an id that was confirmed": ctx.message(other, message_id=hundreds[0].message_id),
        "with a name of its own": ctx.message(topic, name="Größe.v2"),
        "small": ctx.message(topic),
        "empty": ctx.message(topic, b""),
        "with a content type of its own": ctx.message(topic, b"x", content_type="application/x-own"),
        "with a time of its own": ctx.message(topic, timestamp=datetime(2001, 9, 9, tzinfo=UTC)),
        "large": ctx.message(topic, bytes(min(_LARGE, (keeps.max_message_bytes or _LARGE) - 1_000))),
    }
    if keeps.ordering_key:
        kinds["with a key"] = ctx.message(topic, key="k")
        kinds["with a long key"] = ctx.message(topic, key="k" * 2_000)
    if keeps.tombstones:
        kinds["a tombstone"] = ctx.message(topic, TOMBSTONE, key="k" if keeps.ordering_key else None)
    if keeps.headers:
        kinds["with headers"] = ctx.message(topic, headers={"a": "1", "b": "2"})
    if await ctx.try_to_create(long_name := f"{ctx.harness.new_topic_name()}-{'x' * 150}"):
        kinds["to a topic with a long name"] = ctx.message(long_name)
    batch = [ctx.message(topic) for _ in range(40)]
    many = [ctx.message(topic) for _ in range(ctx.count(1_200, 300))]
    await ctx.do(ctx.harness.lose_answers)
    try:
        sends: dict[asyncio.Future[Any], str] = {}
        for what, message in kinds.items():
            sends[asyncio.ensure_future(outcome_of(broker.send_message(message)))] = what
            await asyncio.sleep(0.02)  # so that it is written alone
        together = asyncio.ensure_future(broker.send_messages(batch))
        hurried = asyncio.ensure_future(outcome_of(broker.send_message(ctx.message(topic), timeout=0.95)))
        for message in many:
            sends[asyncio.ensure_future(outcome_of(broker.send_message(message)))] = "at the same time as others"
        done, _ = await asyncio.wait([*sends, together, hurried], timeout=0.7)
        early = sorted({sends.get(each, "in a batch, or with little time") for each in done})
        check(not done, f"before the broker had answered, these sends ended: {', '.join(early)}")
    finally:
        await ctx.do(ctx.harness.resume)
    check_all_receipts([*await asyncio.gather(*sends), *await together])
    await hurried
    if ctx.harness.lacks("read_back") is None:
        sent, outcomes = [*hundreds, *many, *batch], [*confirmed, *[send.result() for send in sends][-len(many) :]]
        outcomes += await together
        check_truth(sent, outcomes, await ctx.read_those_of(sent, topic, 1 + len(sent)))


@case(
    "delivery.ended-connection-leaves-the-truth",
    "fault",
    needs=["proxy", "read_back"],
)
async def ended_connection_leaves_the_truth(ctx: Context) -> None:
    """If the connection is closed in good order while answers are on their way, each outcome is true."""
    broker, topic = ctx.open(delivery_timeout=8.0), await ctx.topic()
    messages: list[Message] = []
    outcomes: list[object] = []
    async with ctx.healed() as proxy:
        for close, arrives in (
            (proxy.close_connections, True),
            (lambda: proxy.half_close("down"), True),
            (proxy.close_connections, False),
        ):
            await ctx.works_again(broker, topic)  # what a driver has to ask about a topic has been asked
            there = len(await ctx.read(topic, 1))
            fault = (lambda: proxy.swallow("down")) if arrives else (lambda: proxy.swallow("both"))
            await ctx.do(fault)
            sent = [ctx.one_of_many(topic, n, _LARGE_IN_A_CROWD) for n in range(20)]
            sends = [asyncio.ensure_future(outcome_of(broker.send_message(message))) for message in sent]
            if arrives:
                await ctx.read(topic, there + 1)  # at least one is there
            await asyncio.sleep(0.2)
            await ctx.do(close)
            await ctx.do(proxy.heal)
            messages += sent
            outcomes += await asyncio.gather(*sends)
    await ctx.works_again(broker, await ctx.topic())
    await asyncio.sleep(0.2)
    received = sum(isinstance(outcome, Receipt) for outcome in outcomes)
    check_truth(messages, outcomes, await ctx.read(topic, 1 + received))


@case("lifecycle.health-asks-the-connection-in-use", "fault", needs=["proxy"])
async def health_asks_the_connection_in_use(ctx: Context) -> None:
    """If the connection in use is dead and new ones work, `health()` reports a problem, in bounded time."""
    broker, topic = ctx.open(connect_timeout=1.5), await ctx.topic()
    async with ctx.healed() as proxy:
        before = set(proxy.connections)
        check_receipt(await outcome_of(broker.send_message(ctx.message(topic))))
        in_use = set(proxy.connections) - before
        if len(in_use) > 1:
            raise NotApplicable("it uses several connections, and a new one in the place of one that is dead")
        for connection in in_use:
            await ctx.do(connection.stall)
        sending = asyncio.ensure_future(outcome_of(broker.send_message(ctx.message(topic))))
        with Clock() as clock:
            health = await broker.health()
        check(clock.seconds <= 1.5 + _GRACE, f"health() took {clock.seconds:.1f} s")
        check(not health.ok, f"no message gets through, and it says {health}")
        sending.cancel()
    check(not sending.done() or sending.cancelled() or tally([sending.result()]) != "1 receipt", "it got a receipt")


_LARGE_ONES = 20
_SLOW = 2_000_000
"""Bytes per second. At this rate the large messages need 3 s."""


@case("delivery.pings-break-nothing", "fault", needs=["proxy"], capability="confirms", waits=True)
async def pings_break_nothing(ctx: Context) -> None:
    """A question of `health()` while large messages wait on a slow link gets into the middle of no message."""
    broker, topic = ctx.open(delivery_timeout=15.0, connect_timeout=1.0), await ctx.topic()
    size = min(_LARGE, (ctx.capabilities.max_message_bytes or _LARGE) - 1_000)
    check_receipt(await outcome_of(broker.send_message(ctx.message(topic))))
    async with ctx.healed() as proxy:
        before = proxy.accepted
        await ctx.do(lambda: proxy.throttle(_SLOW))
        messages = [ctx.message(topic, bytes(size)) for _ in range(_LARGE_ONES)]
        sends = [asyncio.ensure_future(outcome_of(broker.send_message(message))) for message in messages]
        while not all(send.done() for send in sends):
            await asyncio.sleep(0.1)
            await broker.health()
        outcomes = [send.result() for send in sends]
        made = proxy.accepted - before
    check(not made, f"health() asked while messages waited, and the connection had to be made anew: {tally(outcomes)}")
    check_all_receipts(outcomes)


_CLOSED_FOR = 8.0


@case("lifecycle.stays-closed", "live", needs=["hosts_url", "read_back"], waits=True, limit=60.0)
async def stays_closed(ctx: Context) -> None:
    """For 8 s after a `close()` that left messages without answers, nothing connects, and nothing is sent again."""
    with FaultProxy(own_address(ctx)) as proxy:
        broker = await open_at(ctx, Host(proxy.host, proxy.port))
        topic, other = await ctx.topic(), await ctx.topic()
        check_receipt(await outcome_of(broker.send_message(ctx.message(other))))
        proxy.stall("down")
        messages = [ctx.message(topic) for _ in range(5)]
        sends = [asyncio.ensure_future(outcome_of(broker.send_message(message))) for message in messages]
        await asyncio.sleep(0.5)
        connected = proxy.accepted
        proxy.reset()
        # A connect that begins right before close() reaches the proxy after it. So the driver connects again first, if
        # it notices the reset without a send.
        for _ in range(40):
            await asyncio.sleep(0.05)
            if proxy.accepted > connected:
                break
        await asyncio.sleep(0.3)  # a driver may open several connections
        await broker.close(0.3)
        outcomes = await asyncio.gather(*sends)
        proxy.heal()
        before = proxy.accepted
        await asyncio.sleep(_CLOSED_FOR)
        again = proxy.accepted - before
        check(not again, f"it was closed, and connected {again} times in the {_CLOSED_FOR:g} s after that")
        check_truth(messages, outcomes, await ctx.read(topic, 0))


@case("lifecycle.idle-connection-stays", "live", needs=["hosts_url"], waits=True, limit=60.0)
async def idle_connection_stays(ctx: Context) -> None:
    """A connection on which nothing is sent for 15 s stays open, because the driver sends the promised heartbeats."""
    with FaultProxy(own_address(ctx)) as proxy:
        broker = await open_at(ctx, Host(proxy.host, proxy.port))
        topic = await ctx.topic()
        check_receipt(await outcome_of(broker.send_message(ctx.message(topic))))
        before = proxy.accepted
        await asyncio.sleep(_IDLE)
        again = proxy.accepted - before
        check(not again, f"nothing was sent for {_IDLE:g} s, and it connected {again} times")
        proxy.stall("down")
        sending = asyncio.ensure_future(outcome_of(broker.send_message(ctx.message(topic))))
        await asyncio.sleep(0.7)
        # A cluster may name other addresses than those of the config string: then no answer is held here.
        early = sending.done() and proxy.bytes_held
        check(not early, "after a long silence a send ended before the broker had answered")
        proxy.heal()
        check_receipt(await sending, "after a long silence a message")
        await broker.close()
