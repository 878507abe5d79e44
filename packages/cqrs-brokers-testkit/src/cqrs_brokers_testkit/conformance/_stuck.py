"""Cases about a destination or a broker that takes nothing, or only some messages without an answer."""

from __future__ import annotations

import asyncio

from cqrs_brokers import BrokerBlockedError, DeliveryError, DeliveryTimeoutError, Message, Receipt
from cqrs_brokers_testkit.conformance._case import (
    Clock,
    Context,
    NotApplicable,
    case,
    check,
    check_order,
    check_truth,
    outcome_of,
    show,
    tally,
)

_WINDOW = 100
"""The window in messages. A small window is full at once with messages to the stuck destination."""
_TIMEOUT = 9.0
_GO_ON_WITHIN = 8.0
"""Other destinations must be confirmed within this many seconds. A driver needs time to leave a silent channel."""
_SENT_FOR = 10.0
_GRACE = 1.0
"""By contract an outcome comes at most this many seconds after the deadline."""


@case(
    "delivery.stuck-destination-holds-up-no-other",
    "fault",
    needs=["stuck_destination", "read_back"],
    capability="confirms",
    limit=90.0,
)
async def stuck_destination_holds_up_no_other(ctx: Context) -> None:
    """While one destination takes nothing, others are confirmed within 8 s, keys keep their order, no outcome lies."""
    stuck = await ctx.do(ctx.harness.stuck_destination)
    window = min(_WINDOW, ctx.harness.most_unanswered or _WINDOW)
    keyed = ctx.capabilities.ordering_key
    try:
        broker = ctx.open(stuck.url, delivery_timeout=_TIMEOUT, max_in_flight=window)
        topics = [await ctx.topic() for _ in range(2)]
        for topic in topics:
            await ctx.works_again(broker, topic)
        into_it = [
            asyncio.ensure_future(
                outcome_of(broker.send_message(ctx.message(stuck.topic, key=f"key-{n % 2}" if keyed else None)))
            )
            for n in range(2 * window)
        ]
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        began, last = loop.time(), dict.fromkeys(topics, 0.0)
        messages: dict[str, list[Message]] = {topic: [] for topic in topics}
        sends: dict[str, list[asyncio.Future[Receipt | DeliveryError]]] = {topic: [] for topic in topics}
        longest = 0.0

        def ended(topic: str, send: asyncio.Future[Receipt | DeliveryError]) -> None:
            nonlocal longest
            if isinstance(send.result(), Receipt):
                now = loop.time() - began
                longest, last[topic] = max(longest, now - last[topic]), now

        while loop.time() < began + _SENT_FOR:
            for topic in topics:
                # Those with keys wait for a message of their key that was caught behind the stuck one; others do not.
                new = [ctx.message(topic, key=f"key-{n % 2}" if keyed and n % 3 else None) for n in range(6)]
                messages[topic] += new
                for message in new:
                    send = asyncio.ensure_future(outcome_of(broker.send_message(message)))
                    send.add_done_callback(lambda done, topic=topic: ended(topic, done))  # type: ignore[misc]
                    sends[topic].append(send)
            await asyncio.sleep(0.25)
        longest = max(longest, *(loop.time() - began - at for at in last.values()))
        lied = [send.result() for send in into_it if send.done() and isinstance(send.result(), Receipt)]
        check(not lied, f"the destination takes nothing, and {len(lied)} sends to it got a receipt")
    finally:
        await ctx.do(ctx.harness.resume)
    check(longest <= _GO_ON_WITHIN, f"another destination got no confirm for {longest:.1f} s")
    await asyncio.gather(*into_it)
    for topic in topics:
        outcomes = await asyncio.gather(*sends[topic])
        received = sum(isinstance(outcome, Receipt) for outcome in outcomes)
        check(received > len(outcomes) / 4, f"another destination takes everything, and sends got {tally(outcomes)}")
        records = await ctx.read_those_of(messages[topic], topic, received)
        check_truth(messages[topic], outcomes, records)
        if keyed:
            with_key = [n for n, message in enumerate(messages[topic]) if message.key is not None]
            told = [outcomes[n] for n in with_key]
            check_order([messages[topic][n] for n in with_key], told, [r for r in records if r.key is not None])


@case("delivery.most-unanswered-is-kept", "fault", needs=["lose_answers", "read_back"], capability="confirms")
async def most_unanswered_is_kept(ctx: Context) -> None:
    """No more messages are written than the broker takes without an answer. The others wait, and get receipts."""
    most = ctx.harness.most_unanswered
    if most is None:
        raise NotApplicable("the broker takes any number of messages that it has not answered")
    count = 3 * most + 10
    broker, topic = ctx.open(delivery_timeout=10.0, max_in_flight=2 * count), await ctx.topic()
    await ctx.works_again(broker, topic)
    await ctx.do(ctx.harness.lose_answers)
    messages = [ctx.message(topic) for _ in range(count)]
    sends = [asyncio.ensure_future(outcome_of(broker.send_message(message))) for message in messages]
    try:
        records = await ctx.read(topic, 1 + most)
        await asyncio.sleep(0.5)
        records = await ctx.read(topic, 1 + most)
        there = {record.message_id for record in records} & {str(message.message_id) for message in messages}
        check(len(there) <= most, f"{len(there)} messages were written, and none was answered: the broker takes {most}")
    finally:
        await ctx.do(ctx.harness.resume)
    outcomes = await asyncio.gather(*sends)
    check(all(isinstance(outcome, Receipt) for outcome in outcomes), f"answers came again, and got {tally(outcomes)}")


@case("delivery.blocked-is-waited-out", "live", needs=["blocked"], waivable=True)
async def blocked_is_waited_out(ctx: Context) -> None:
    """While the broker takes no messages, sends wait, and fail with `BrokerBlockedError` at the deadline."""
    broker, topic = ctx.open(delivery_timeout=3.0), await ctx.topic()
    await broker.send_message(ctx.message(topic))
    async with ctx.entered(ctx.harness.blocked):
        first = await outcome_of(broker.send_message(ctx.message(topic)))  # may be what makes the broker block
        with Clock() as clock:
            outcome = await outcome_of(broker.send_message(ctx.message(topic)))
        health = await broker.health()
    await _many_wait_while_blocked(ctx)
    await ctx.works_again(broker, topic)
    if ctx.harness.lacks("reset") is None:  # the next connection is not blocked because the last one was
        await ctx.do(ctx.harness.reset)
        await ctx.works_again(broker, topic)
    check(isinstance(first, BrokerBlockedError | DeliveryTimeoutError), f"the first send while blocked: {show(first)}")
    check(type(outcome) is BrokerBlockedError, f"a blocked send got {show(outcome)}")
    check(clock.seconds <= 3.0 + _GRACE, f"it took {clock.seconds:.1f} s, with delivery_timeout=3")
    check(not health.ok and health.blocked and "blocked" in health.reason, f"health while blocked: {health}")
    check(health.latency < 1.0, f"health() took {health.latency:.1f} s while the broker was blocked")


async def _many_wait_while_blocked(ctx: Context) -> None:
    """Demands that order and truth survive if the broker begins to take no messages while many are on their way."""
    broker, topic = ctx.open(delivery_timeout=20.0), await ctx.topic()
    await ctx.works_again(broker, await ctx.topic())
    keyed = ctx.capabilities.ordering_key
    messages = [ctx.message(topic, {"n": n}, key=f"key-{n // 4 % 4}" if keyed else None) for n in range(400)]
    sends = [asyncio.ensure_future(outcome_of(broker.send_message(message))) for message in messages]
    await asyncio.sleep(0)
    async with ctx.entered(ctx.harness.blocked):
        await asyncio.sleep(0.5)
    outcomes = await asyncio.gather(*sends)
    if ctx.harness.lacks("read_back") is None:
        records = await ctx.read(topic, sum(isinstance(outcome, Receipt) for outcome in outcomes))
        check_truth(messages, outcomes, records)
        if keyed:
            check_order(messages, outcomes, records)
