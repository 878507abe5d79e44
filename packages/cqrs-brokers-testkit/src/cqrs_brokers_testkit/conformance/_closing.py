"""Cases about `close()` in each state that a connection can be in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cqrs_brokers import Broker
from cqrs_brokers_testkit.conformance._case import Clock, Context, case, check, outcome_of
from cqrs_brokers_testkit.conformance._peers import peer
from cqrs_brokers_testkit.conformance._watching import nothing_left
from cqrs_brokers_testkit.leaks import Resources

_GRACE = 1.0
_SMALL = (20, 5_000)
_LARGE = (30, 700_000)
"""The number and the size of messages. Together they are more than the sockets on the way can hold, so the rest waits
in the client. They are few, because a broker may limit the messages without an answer."""


async def _closes(
    ctx: Context, broken: Callable[[], object], mended: Callable[[], object], sends: tuple[int, int] = _SMALL
) -> None:
    """Demands that `close(1.0)` with messages in flight is bounded, and leaves nothing."""
    topic = await ctx.topic()

    async def use() -> None:
        broker = ctx.open_unowned()
        await broker.send_message(ctx.message(topic))
        await ctx.do(broken)
        try:
            await _in_time(ctx, broker, topic, sends)
            if ctx.harness.proxy is not None:  # a driver that lets the socket write on: after the fault it is gone
                await ctx.wait_for(no_socket_to_the_proxy, 0.5, "a socket is still open after close()")
        finally:
            await ctx.do(mended)

    async def no_socket_to_the_proxy() -> bool:
        there = f"remote port {ctx.proxy.port}"
        return not any(line.endswith(there) for line in Resources.now().since(before))

    before = Resources.now()
    async with ctx.open():  # what is made once per process is made now
        pass
    async with nothing_left("after close()"):
        await use()


async def _in_time(ctx: Context, broker: Broker, topic: str, what: tuple[int, int]) -> None:
    size = min(what[1], (ctx.capabilities.max_message_bytes or what[1]) - 1_000)
    messages = [ctx.message(topic, bytes(size)) for _ in range(what[0])]
    sends = [asyncio.ensure_future(outcome_of(broker.send_message(message))) for message in messages]
    asking = asyncio.ensure_future(broker.health())
    await asyncio.sleep(0.2)
    with Clock() as clock:
        await broker.close(1.0)
    await asking
    check(clock.seconds <= 1.0 + _GRACE, f"close(1.0) took {clock.seconds:.1f} s")
    _, pending = await asyncio.wait(sends, timeout=0.5)
    check(not pending, f"after close() {len(pending)} sends have no outcome")


def _mend(ctx: Context) -> Callable[[], None]:
    """Heals the proxy, and ends its connections. Otherwise they would look like something that the driver has left."""

    def mend() -> None:
        ctx.proxy.heal()
        ctx.proxy.reset()

    return mend


@case("faults.close-while-stalled", "fault", needs=["stall"])
async def close_while_stalled(ctx: Context) -> None:
    """`close()` is bounded, and leaves nothing, while nothing gets through."""
    await _closes(ctx, ctx.harness.stall, ctx.harness.resume, _LARGE)


@case("faults.close-after-a-reset", "fault", needs=["reset"])
async def close_after_a_reset(ctx: Context) -> None:
    """`close()` is bounded, and leaves nothing, right after the connection was reset."""
    await _closes(ctx, ctx.harness.reset, lambda: None)


@case("faults.close-while-half-open", "fault", needs=["proxy"])
async def close_while_half_open(ctx: Context) -> None:
    """`close()` is bounded, and leaves nothing, on a connection whose other side is finished."""
    await _closes(ctx, lambda: ctx.proxy.half_close("down"), _mend(ctx))


@case("faults.close-on-a-slow-link", "fault", needs=["proxy"])
async def close_on_a_slow_link(ctx: Context) -> None:
    """`close()` is bounded, and leaves nothing, at 1 kB/s."""
    await _closes(ctx, lambda: ctx.proxy.throttle(1_000), _mend(ctx))


@case("faults.close-with-garbage", "fault", needs=["proxy"])
async def close_with_garbage(ctx: Context) -> None:
    """`close()` is bounded, and leaves nothing, while the broker's answers are garbage."""
    await _closes(ctx, lambda: ctx.proxy.corrupt("down"), _mend(ctx))


@case("faults.close-with-a-silent-peer", "fault", needs=["peer_url"], waits=True)
async def close_with_a_silent_peer(ctx: Context) -> None:
    """`close()` is bounded while a connect is under way with a peer that says nothing."""
    async with peer() as nobody:
        url = await ctx.do(lambda: ctx.harness.peer_url(nobody.port))
        await _in_time(ctx, ctx.open(url), await ctx.topic(), _SMALL)
