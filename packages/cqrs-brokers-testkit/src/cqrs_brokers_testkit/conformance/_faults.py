"""Cases that break the broker or the way to the broker: restarts, half-open and slow links, garbage, silence."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from unittest import mock

from cqrs_brokers import Broker, ConnectError, DeliveryError, Message, NotConnectedError, Receipt, UnreachableError
from cqrs_brokers_testkit.conformance._case import (
    Clock,
    Context,
    case,
    check,
    check_all_receipts,
    check_truth,
    outcome_of,
    show,
    tally,
)
from cqrs_brokers_testkit.conformance._peers import peer

_MIB = 2**20
_GRACE = 1.0
_ROUNDS = 18
"""How many times a window full of messages is sent over a slow link. Together the messages are more than the sockets on
the way can hold."""
_HALF_AN_HOUR = 1800
"""How far the wall clock is moved, in seconds. Brokers may refuse messages whose time is farther in the future."""


# -- restarts ----------------------------------------------------------------------------------------------------------


async def _restarted(ctx: Context, at: float, *, reconnected: bool = False) -> None:
    broker, topic = ctx.open(delivery_timeout=30.0), await ctx.topic()
    messages = [ctx.one_of_many(topic, n, 5_000) for n in range(ctx.count(10_000, 1_000))]
    outcomes: list[object] = [None] * len(messages)
    ended = [0.0] * len(messages)
    begun: set[int] = set()
    reached = asyncio.Event()

    async def work(first: int) -> None:
        for index in range(first, len(messages), 100):
            begun.add(index)
            outcomes[index] = await outcome_of(broker.send_message(messages[index]))
            ended[index] = time.monotonic()
            if len(begun) >= len(messages) * at:
                reached.set()

    await broker.connect()
    if reconnected and ctx.harness.lacks("reset") is None:
        await ctx.do(ctx.harness.reset)
        await ctx.works_again(broker, await ctx.topic())
    tasks = [asyncio.ensure_future(work(first)) for first in range(100)]
    await asyncio.wait_for(reached.wait(), 30.0)
    await ctx.do(ctx.harness.kill)
    await ctx.do(ctx.harness.restart)
    back = time.monotonic()
    waiting = [index for index in begun if outcomes[index] is None]
    await asyncio.gather(*tasks)
    records = await ctx.read(topic, sum(isinstance(outcome, Receipt) for outcome in outcomes))
    check_truth(messages, outcomes, records)
    failed = [outcome for outcome in outcomes if not isinstance(outcome, Receipt)]
    check(len(failed) <= 200, f"100 tasks, and {len(failed)} sends failed: {tally(failed)}")
    if waiting:
        late = sorted(ended[index] - back for index in waiting)
        p95 = late[max(0, int(len(late) * 0.95) - 1)]
        limit = ctx.harness.reconnect_within
        check(p95 <= limit, f"95 % of {len(late)} waiting sends were through {p95:.1f} s after the server's return")


@case("faults.restart-at-a-third", "fault", needs=["kill", "restart", "read_back"], capability="durable", limit=120.0)
async def restart_at_a_third(ctx: Context) -> None:
    """If the server is killed and restarted after 1/3 of 10 000 messages of 100 tasks, none with a receipt is lost."""
    await _restarted(ctx, 1 / 3)


@case("faults.restart-at-half", "fault", needs=["kill", "restart", "read_back"], capability="durable", limit=120.0)
async def restart_at_half(ctx: Context) -> None:
    """If the same happens after 1/2, on a later connection than the first, no message with a receipt is lost."""
    await _restarted(ctx, 1 / 2, reconnected=True)


@case("faults.down-for-a-while", "fault", needs=["kill", "restart"], limit=90.0)
async def down_for_a_while(ctx: Context) -> None:
    """While the server is down, sends fail at their deadline with the reason, and `close()` is bounded."""
    broker, other, topic = ctx.open(delivery_timeout=2.0), ctx.open(), await ctx.topic()
    check_all_receipts([await outcome_of(one.send_message(ctx.message(topic))) for one in (broker, other)])
    await ctx.do(ctx.harness.kill)
    try:
        await asyncio.sleep(0.3)
        with Clock() as clock:
            outcome = await outcome_of(broker.send_message(ctx.message(topic)))
        with Clock() as closing:
            await other.close(1.0)
    finally:
        await ctx.do(ctx.harness.restart)
    check(not isinstance(outcome, Receipt), "the server was down, and the send got a receipt")
    check(clock.seconds <= 2.0 + _GRACE, f"the outcome took {clock.seconds:.1f} s, with delivery_timeout=2")
    check(closing.seconds <= 1.0 + _GRACE, f"close(1.0) took {closing.seconds:.1f} s while the server was down")
    await ctx.works_again(broker, topic, 15.0)


# -- the clock ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _wall_clock() -> Iterator[Callable[[int], None]]:
    """Yields a function that moves this process's wall clock this many seconds away from the true time. The monotonic
    clock does not change."""
    wall, wall_ns = time.time, time.time_ns
    ahead = 0

    def jump(by: int) -> None:
        nonlocal ahead
        ahead = by

    def shifted() -> float:
        return wall() + ahead

    def shifted_ns() -> int:
        return wall_ns() + ahead * 10**9

    with mock.patch.object(time, "time", shifted), mock.patch.object(time, "time_ns", shifted_ns):
        yield jump


@case("faults.wall-clock-jumps", "fault", needs=["stall", "read_back"])
async def wall_clock_jumps(ctx: Context) -> None:
    """Setting the wall clock forward or back, between or during sends, moves no deadline and makes no outcome false."""
    broker, topic = ctx.open(delivery_timeout=2.0), await ctx.topic()
    messages: list[Message] = []
    sends: list[asyncio.Future[Receipt | DeliveryError]] = []

    def send() -> list[asyncio.Future[Receipt | DeliveryError]]:
        new = [ctx.message(topic) for _ in range(20)]
        messages.extend(new)
        sends.extend(asyncio.ensure_future(outcome_of(broker.send_message(message))) for message in new)
        return sends[-len(new) :]

    with _wall_clock() as jump:
        for by in (0, _HALF_AN_HOUR, -_HALF_AN_HOUR):
            jump(by)
            check_all_receipts(await asyncio.gather(*send()))
        for by in (_HALF_AN_HOUR, -_HALF_AN_HOUR):
            jump(0)
            await ctx.do(ctx.harness.stall)
            try:
                with Clock() as last:
                    with Clock() as first:
                        waiting = send()
                        await asyncio.sleep(0.3)
                        jump(by)
                        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    outcomes = await asyncio.gather(*waiting)
            finally:
                await ctx.do(ctx.harness.resume)
            check(not any(isinstance(o, Receipt) for o in outcomes), f"nothing got through: {tally(outcomes)}")
            took = f"outcomes came after {first.seconds:.1f} to {last.seconds:.1f} s"
            in_time = first.seconds >= 1.9 and last.seconds <= 2.0 + _GRACE
            check(in_time, f"{took}, with delivery_timeout=2 and a clock set by {by} s: {tally(outcomes)}")
            await ctx.works_again(broker, topic)
    told = await asyncio.gather(*sends)
    records = await ctx.read(topic, sum(isinstance(outcome, Receipt) for outcome in told))
    check_truth(messages, told, records)


# -- the wire ----------------------------------------------------------------------------------------------------------


@case("faults.half-open", "fault", needs=["proxy"])
async def half_open(ctx: Context) -> None:
    """If the broker finishes its side of the connection, every send gets its outcome, and then sends succeed again."""
    broker, topic = ctx.open(delivery_timeout=4.0), await ctx.topic()
    await broker.send_message(ctx.message(topic))
    async with ctx.healed() as proxy:
        await ctx.do(lambda: proxy.half_close("down"))
        with Clock() as clock:
            await asyncio.gather(*(outcome_of(broker.send_message(ctx.message(topic))) for _ in range(10)))
        check(clock.seconds <= 4.0 + _GRACE, f"the last outcome took {clock.seconds:.1f} s, with delivery_timeout=4")
        await ctx.works_again(broker, topic, 4.0)


@case("faults.latency", "fault", needs=["proxy"])
async def latency(ctx: Context) -> None:
    """With 200 ms of latency and jitter, every message arrives once, in much less than a round trip per message."""
    async with ctx.healed() as proxy:
        await ctx.do(lambda: proxy.delay(0.2, jitter=0.1))
        broker, topic = ctx.open(), await ctx.topic()
        messages = [ctx.message(topic) for _ in range(200)]
        with Clock() as clock:
            outcomes = await broker.send_messages(messages)
        check_all_receipts(outcomes)
        check(clock.seconds <= 20.0, f"200 messages took {clock.seconds:.1f} s")
        await broker.close()
    if ctx.harness.lacks("read_back") is None:
        check_truth(messages, outcomes, await ctx.read(topic, len(messages)))


@case("faults.slow-link", "fault", needs=["proxy"])
async def slow_link(ctx: Context) -> None:
    """At 1 kB/s every send ends at its deadline, memory stays within the window, and later sends succeed again."""
    broker, topic = ctx.open(delivery_timeout=0.3, max_in_flight_bytes=4 * _MIB), await ctx.topic()
    topics = [await ctx.topic() for _ in range(_ROUNDS)]  # `Broker` sends less to a topic that takes nothing
    for each in (topic, *topics):
        await ctx.works_again(broker, each)
    tracemalloc.start()
    try:
        async with ctx.healed() as proxy:
            await ctx.do(lambda: proxy.throttle(1_000))
            kept, (before, _) = 0.0, tracemalloc.get_traced_memory()
            for each in topics:
                with Clock() as clock:
                    await asyncio.gather(
                        *(outcome_of(broker.send_message(ctx.message(each, bytes(70_000)))) for _ in range(60))
                    )
                check(clock.seconds <= 0.3 + _GRACE, f"outcomes took {clock.seconds:.1f} s, with delivery_timeout=0.3")
                gc.collect()
                held = await ctx.do(lambda: proxy.bytes_held)  # the proxy lives in this process
                kept = max(kept, (tracemalloc.get_traced_memory()[0] - before - held) / _MIB)
    finally:
        tracemalloc.stop()
    check(kept < 20, f"{4 * _ROUNDS} MB were sent into a slow link, and {kept:.1f} MiB are kept; the window is 4 MiB")
    await ctx.works_again(broker, topic)


@case("faults.partial-frame", "fault", needs=["proxy", "read_back"])
async def partial_frame(ctx: Context) -> None:
    """If the link is cut in the middle of a message with answers on their way, outcomes are true; later sends work."""
    broker = ctx.open(delivery_timeout=6.0)
    topic = await ctx.known_topic(broker)
    messages = [ctx.message(topic, bytes([n]) * 3_000) for n in range(50)]
    async with ctx.healed() as proxy:
        await ctx.do(lambda: proxy.delay(0.1, way="down"))  # so that some arrive of which the answers never do
        for connection in list(proxy.connections):
            await ctx.do(lambda connection=connection: connection.cut_after(20_000, "up"))  # type: ignore[misc]
        outcomes = await asyncio.gather(*(outcome_of(broker.send_message(message)) for message in messages))
        await asyncio.sleep(0.2)
    check_truth(messages, outcomes, await ctx.read(topic, 1 + sum(isinstance(o, Receipt) for o in outcomes)))
    await ctx.works_again(broker, topic)


@case("faults.garbage", "fault", needs=["proxy", "read_back"])
async def garbage(ctx: Context) -> None:
    """If the broker's answers are garbage, no send succeeds, each ends by its deadline, and later sends work again."""
    broker = ctx.open(delivery_timeout=3.0)
    topic = await ctx.known_topic(broker)
    messages = [ctx.message(topic) for _ in range(20)]
    async with ctx.healed() as proxy:
        await ctx.do(lambda: proxy.corrupt("down"))
        with Clock() as clock:
            outcomes = await asyncio.gather(*(outcome_of(broker.send_message(message)) for message in messages))
        check(clock.seconds <= 3.0 + _GRACE, f"the last outcome took {clock.seconds:.1f} s, with delivery_timeout=3")
    check(not any(isinstance(o, Receipt) for o in outcomes), f"answers are garbage, outcomes {tally(outcomes)}")
    check_truth(messages, outcomes, await ctx.read(topic, 0))
    await ctx.works_again(broker, topic)


_TICK = 0.02


@contextlib.asynccontextmanager
async def _loop_watched() -> AsyncIterator[list[int]]:
    """Yields how many times a thread could tick in each turn of the event loop. A busy machine slows down the thread
    and the loop, so it does not look like a blocked loop."""
    turns, ticks, over = [0], 0, threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not over.wait(_TICK):
            ticks += 1

    async def turn() -> None:
        while True:
            before = ticks
            await asyncio.sleep(_TICK)
            turns.append(ticks - before)

    thread, turning = threading.Thread(target=tick, daemon=True), asyncio.ensure_future(turn())
    thread.start()
    try:
        yield turns
        await asyncio.sleep(2 * _TICK)  # so that a turn that was held up until now is in the list
    finally:
        turning.cancel()
        over.set()
        thread.join()


@case("faults.silent-peer", "fault", needs=["peer_url"], waits=True)
async def silent_peer(ctx: Context) -> None:
    """With a silent peer `connect()` is `UnreachableError` in time, a send `NotConnectedError` at its deadline."""
    async with peer() as nobody:
        broker = ctx.open(
            await ctx.do(lambda: ctx.harness.peer_url(nobody.port)), connect_timeout=1.0, delivery_timeout=2.0
        )
        with Clock() as clock:
            async with _loop_watched() as turns:
                error = await _connect_error(broker)
        check(type(error) is UnreachableError, f"connect(): expected UnreachableError, got {show(error)}")
        check(max(turns) < 20, f"connect() stopped the event loop for {max(turns) * _TICK:.1f} s")
        check(clock.seconds <= 1.0 + _GRACE, f"connect() took {clock.seconds:.1f} s, with connect_timeout=1")
        with Clock() as clock:
            outcome = await outcome_of(broker.send_message(ctx.message("orders")))
        check(type(outcome) is NotConnectedError, f"a send got {show(outcome)}")
        check(clock.seconds <= 2.0 + _GRACE, f"the send took {clock.seconds:.1f} s, with delivery_timeout=2")
        with Clock() as clock:
            await broker.close(1.0)
        check(clock.seconds <= 1.0 + _GRACE, f"close(1.0) took {clock.seconds:.1f} s")


@case("faults.other-protocol", "fault", needs=["peer_url"], waits=True)
async def other_protocol(ctx: Context) -> None:
    """A peer that speaks another protocol gives a classified `ConnectError` within `connect_timeout`."""
    async with peer(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n" * 4) as other:
        broker = ctx.open(await ctx.do(lambda: ctx.harness.peer_url(other.port)), connect_timeout=2.0)
        with Clock() as clock:
            error = await _connect_error(broker)
        check(isinstance(error, ConnectError) and type(error) is not ConnectError, f"not classified: {show(error)}")
        check(clock.seconds <= 2.0 + _GRACE, f"connect() took {clock.seconds:.1f} s, with connect_timeout=2")


async def _connect_error(broker: Broker) -> ConnectError | None:
    try:
        await broker.connect()
    except ConnectError as error:
        return error
    return None
