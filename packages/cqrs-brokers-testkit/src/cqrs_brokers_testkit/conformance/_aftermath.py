"""Cases about the time after trouble: late answers, messages that are sent again, and data that was written."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Literal

from cqrs_brokers import Broker, Message, NotDeliveredError, Receipt
from cqrs_brokers_testkit.conformance._case import (
    CaseFailed,
    Context,
    NotApplicable,
    Unsupported,
    case,
    check,
    check_order,
    check_receipt,
    check_truth,
    outcome_of,
    tally,
)
from cqrs_brokers_testkit.conformance._upkeep import deliveries
from cqrs_brokers_testkit.proxy import FaultProxy, ProxyConnection

_SETTLE = 1.0
"""Within this many seconds after a fault the bytes arrive that were in a socket."""


@case("delivery.repeated-in-doubt-arrives", "fault", needs=["stall", "reset", "read_back"], capability="confirms")
async def repeated_in_doubt_arrives(ctx: Context) -> None:
    """If messages were lost and their callers send the same messages again, a receipt means that a message arrived."""
    broker, harness = ctx.open(delivery_timeout=8.0), ctx.harness
    topic = await ctx.known_topic(broker)
    messages = [ctx.one_of_many(topic, n, 5_000) for n in range(10)]
    for ends in ("by a reset", "at the deadline"):
        await ctx.do(harness.stall)
        try:
            timeout = 8.0 if ends == "by a reset" else 1.0
            sends = [asyncio.ensure_future(outcome_of(broker.send_message(each, timeout=timeout))) for each in messages]
            await asyncio.sleep(0.3)
            if ends == "at the deadline":
                await asyncio.gather(*sends)
            await ctx.do(harness.reset)
        finally:
            await ctx.do(harness.resume)
        first = await asyncio.gather(*sends)
        await ctx.works_again(broker, await ctx.topic())
        again = [await outcome_of(broker.send_message(each)) for each in messages]
        received = [each for each, outcome in zip(messages, again, strict=True) if isinstance(outcome, Receipt)]
        there = {record.message_id for record in await ctx.read(topic, 1 + len(received))}
        lost = [each for each in received if str(each.message_id) not in there]
        check(
            not lost,
            f"{len(lost)} messages that were lost {ends} ({tally(first)}) and sent again got a receipt,"
            " and are not in the broker",
        )
        check(received, f"messages that were lost {ends} were sent again, and got {tally(again)}")
        messages = [ctx.one_of_many(topic, n, 5_000) for n in range(10)]


@case(
    "delivery.late-answers-confirm-nothing-new",
    "fault",
    needs=["proxy", "read_back"],
    capability="confirms",
    limit=90.0,
    waits=True,
)
async def late_answers_confirm_nothing_new(ctx: Context) -> None:
    """Late answers to messages that were given up confirm no message that was sent afterwards."""
    before, topic, other = set(ctx.proxy.connections), await ctx.topic(), await ctx.topic()
    broker = ctx.open(delivery_timeout=6.0)
    for each in (topic, other):
        check_receipt(await outcome_of(broker.send_message(ctx.message(each))))
    early, late = ([ctx.message(each) for _ in range(10)] for each in (topic, other))
    try:
        for connection in set(ctx.proxy.connections) - before:
            await ctx.do(lambda connection=connection: connection.stall("down"))  # type: ignore[misc]
        told = await asyncio.gather(*(outcome_of(broker.send_message(each, timeout=1.0)) for each in early))
        check(not any(isinstance(each, Receipt) for each in told), f"no answer came, and sends got {tally(told)}")

        async def let_go() -> bool:
            return broker.in_flight == 0

        await ctx.wait_for(let_go, ctx.harness.notices_within, "what was given up is still in flight")
        await ctx.do(lambda: ctx.proxy.stall("up"))  # on connections that come, too
        used = set(ctx.proxy.connections) - before
        sends = [asyncio.ensure_future(outcome_of(broker.send_message(each))) for each in late]
        await asyncio.sleep(0.2)
        for connection in used:
            await ctx.do(lambda connection=connection: connection.resume("down"))  # type: ignore[misc]
        done, _ = await asyncio.wait(sends, timeout=0.5)
        lied = sum(isinstance(send.result(), Receipt) for send in done)
        check(not lied, f"nothing got through, answers to earlier messages came, and {lied} sends got a receipt")
    finally:
        await ctx.do(ctx.proxy.heal)
    outcomes = await asyncio.gather(*sends)
    for sent, ends, where in ((early, told, topic), (late, outcomes, other)):
        received = sum(isinstance(each, Receipt) for each in ends)
        check_truth(sent, ends, await ctx.read_those_of(sent, where, 1 + received))


_PLACES = 4
"""In this many places the answers of an attempt to connect are cut off, beginning with the last."""
_TRIES_WITHIN = 4.0


def _half_way(connection: ProxyConnection, asks: int, answers: int) -> None:
    """Lets so many bytes through in each direction, and nothing more."""
    left = {"up": asks, "down": answers}

    def let(way: Literal["up", "down"]) -> Callable[[bytes], bytes]:
        def some(data: bytes) -> bytes:
            passed, left[way] = data[: left[way]], max(0, left[way] - len(data))
            return passed

        return some

    connection.rewrite(let("up"), "up")
    connection.rewrite(let("down"), "down")


async def _connected(ctx: Context) -> tuple[Broker, int, list[int]]:
    """Connects a broker. Returns also how many bytes its connection needs upwards, and the places where the answers can
    be cut off: how many bytes came before each of the last answers."""
    answers: dict[ProxyConnection, list[int]] = {}

    def watch(connection: ProxyConnection) -> None:
        sizes = answers[connection] = [0]

        def note(data: bytes) -> bytes:
            sizes.append(sizes[-1] + len(data))
            return data

        connection.rewrite(note)

    ctx.proxy.on_connection = watch
    try:
        broker = ctx.open(connect_timeout=0.7, delivery_timeout=15.0, max_in_flight_bytes=2**27)
        await broker.connect()
        places = max(answers.values(), key=len, default=[0])[:-1]
    finally:
        ctx.proxy.on_connection = None
    await asyncio.sleep(0.1)  # the proxy counts what it has passed on
    return broker, max((each.bytes_up for each in answers), default=0), places[-_PLACES:]


async def _has_accepted(proxy: FaultProxy, count: int) -> bool:
    return proxy.accepted >= count


@case(
    "delivery.failed-attempt-confirms-nothing",
    "fault",
    needs=["proxy", "read_back"],
    capability="confirms",
    limit=90.0,
    waits=True,
)
async def failed_attempt_confirms_nothing(ctx: Context) -> None:
    """If an attempt to connect again fails before its end, a message that was written in it is not confirmed later."""
    broker, asks, places = await _connected(ctx)
    proxy, topic, failed = ctx.proxy, await ctx.known_topic(broker), 0
    messages: list[Message] = []
    outcomes: list[object] = []
    for place in reversed(places):
        known = proxy.accepted
        sent = [ctx.message(topic, bytes([n]) * 60_000) for n in range(200)]
        for connection in list(proxy.connections):  # more than the sockets hold waits in the driver
            await ctx.do(lambda connection=connection: connection.stall("up"))  # type: ignore[misc]
        proxy.on_connection = partial(_half_way, asks=asks, answers=place)
        try:
            sends = [asyncio.ensure_future(outcome_of(broker.send_message(each))) for each in sent]
            await asyncio.sleep(0.3)
            await ctx.do(proxy.reset)
            with contextlib.suppress(CaseFailed):
                await ctx.wait_for(partial(_has_accepted, proxy, known + 2), _TRIES_WITHIN, "no second attempt")
        finally:
            proxy.on_connection = None
        if await _has_accepted(proxy, known + 2):
            failed += 1
        else:  # what came was enough for the driver
            await ctx.do(proxy.reset)
        # The answers to later messages must not be taken for answers to these.
        await ctx.works_again(broker, topic, ctx.harness.notices_within)
        messages += sent
        outcomes += await asyncio.gather(*sends)
    if not failed:
        raise NotApplicable("its broker says nothing while a client connects")
    received = sum(isinstance(outcome, Receipt) for outcome in outcomes)
    check_truth(messages, outcomes, await ctx.read(topic, 1 + received))


_SMALL, _TOGETHER = 4_000, 2**24
"""The bytes of one message, and of all messages. Together they are more than the sockets on the way can hold."""


@case("delivery.half-written-leaves-the-truth", "fault", needs=["proxy", "read_back"], limit=90.0)
async def half_written_leaves_the_truth(ctx: Context) -> None:
    """Order and truth survive when the broker ends the connection after half of a batch has arrived.

    The messages that wait are sent on the next connection.
    """
    broker = ctx.open(delivery_timeout=20.0, max_in_flight=5_000, max_in_flight_bytes=2**27)
    topic = await ctx.known_topic(broker)
    keyed = ctx.capabilities.ordering_key
    messages = [
        ctx.message(topic, n.to_bytes(4, "big") * (_SMALL // 4), key=f"key-{n // 4 % 4}" if keyed else None)
        for n in range(_TOGETHER // _SMALL)
    ]
    try:
        await ctx.do(lambda: ctx.proxy.stall("up"))
        sends = [asyncio.ensure_future(outcome_of(broker.send_message(message))) for message in messages]
        await asyncio.sleep(0.7)
        await ctx.do(lambda: ctx.proxy.half_close("down"))
        await asyncio.sleep(0.2)
    finally:
        await ctx.do(ctx.proxy.heal)
    outcomes = await asyncio.gather(*sends)
    await asyncio.sleep(_SETTLE)
    records = await ctx.read(topic, 1 + sum(isinstance(outcome, Receipt) for outcome in outcomes))
    check_truth(messages, outcomes, records)
    if keyed:
        check_order(messages, outcomes, records)
    dropped = any(isinstance(outcome, NotDeliveredError) for outcome in outcomes)
    check(not dropped, f"what waited for the next connection was not sent: {tally(outcomes)}")


_TROUBLED = 60
_REFUSALS = ("forbidden_destination", "make_unroutable", "missing_destination", "nacking_destination")


@case("delivery.nothing-is-kept-after-trouble", "fault", needs=["stall", "lose_answers", "reset"], limit=120.0)
async def nothing_is_kept_after_trouble(ctx: Context) -> None:
    """Once a driver works again, it holds no message that was late, lost, cancelled, refused or too large."""
    broker, topic, harness = ctx.open(delivery_timeout=15.0), await ctx.topic(), ctx.harness
    await ctx.works_again(broker, topic)
    before = await deliveries()
    for what in ("late", "cancelled", "lost"):
        for fault in (harness.stall, harness.lose_answers):
            await _troubled(ctx, broker, topic, what, fault)
            await ctx.works_again(broker, topic, 15.0)
        await _are_gone(ctx, before, what)
    for need in _REFUSALS:
        if harness.lacks(need) is None:
            with contextlib.suppress(NotApplicable, Unsupported):
                target = await ctx.once(getattr(harness, need))
                refused = ctx.open(target.url)
                for _ in range(_TROUBLED):
                    await outcome_of(refused.send_message(ctx.message(target.topic)))
                await _are_gone(ctx, before, f"answered as {need.replace('_', ' ')}")
    if harness.lacks("limited_size") is None:
        with contextlib.suppress(NotApplicable, Unsupported):
            limit = await ctx.once(harness.limited_size)
            limited = ctx.open(limit.url)
            for _ in range(_TROUBLED):
                await outcome_of(limited.send_message(ctx.message(limit.topic, bytes(limit.most_bytes + 4_096))))
            await _are_gone(ctx, before, "larger than the broker takes")


async def _troubled(ctx: Context, broker: Broker, topic: str, what: str, fault: Callable[[], object]) -> None:
    """Sends messages that end in this way. Keeps no outcome, because the traceback of an error holds the message."""
    await ctx.do(fault)
    try:
        timeout = 0.4 if what == "late" else 15.0
        sends = [
            asyncio.ensure_future(outcome_of(broker.send_message(ctx.message(topic), timeout=timeout)))
            for _ in range(_TROUBLED)
        ]
        await asyncio.sleep(0.6 if what == "late" else 0.2)
        for send in sends if what == "cancelled" else ():
            send.cancel()
        if what == "lost":
            await ctx.do(ctx.harness.reset)
    finally:
        await ctx.do(ctx.harness.resume)
    await asyncio.gather(*sends, return_exceptions=True)


async def _are_gone(ctx: Context, before: int, what: str) -> None:
    async def are_gone() -> bool:
        return await deliveries() < before + _TROUBLED // 3

    await ctx.wait_for(are_gone, ctx.harness.notices_within, f"messages were {what}, and something keeps them")
