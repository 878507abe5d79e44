"""Cases about `close()` in each state that a connection can be in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cqrs_brokers_testkit.conformance._case import Clock, Context, case, check, outcome_of
from cqrs_brokers_testkit.conformance._peers import peer

_GRACE = 1.0


async def _closes(ctx: Context, broken: Callable[[], object], url: str | None = None) -> None:
    """Demands that `close(1.0)` with messages in flight is bounded and leaves no send without outcome."""
    broker, topic = ctx.open(url), await ctx.topic()
    if url is None:
        await broker.send_message(ctx.message(topic))
    await ctx.do(broken)
    sends = [
        asyncio.ensure_future(outcome_of(broker.send_message(ctx.message(topic, bytes(5_000))))) for _ in range(20)
    ]
    await asyncio.sleep(0.2)
    with Clock() as clock:
        await broker.close(1.0)
    check(clock.seconds <= 1.0 + _GRACE, f"close(1.0) took {clock.seconds:.1f} s")
    _, pending = await asyncio.wait(sends, timeout=0.5)
    check(not pending, f"after close() {len(pending)} sends have no outcome")


@case("faults.close-while-stalled", "fault", needs=["stall"])
async def close_while_stalled(ctx: Context) -> None:
    """`close()` is bounded while nothing gets through."""
    try:
        await _closes(ctx, ctx.harness.stall)
    finally:
        await ctx.do(ctx.harness.resume)


@case("faults.close-after-a-reset", "fault", needs=["reset"])
async def close_after_a_reset(ctx: Context) -> None:
    """`close()` is bounded right after the connection was reset."""
    await _closes(ctx, ctx.harness.reset)


@case("faults.close-while-half-open", "fault", needs=["proxy"])
async def close_while_half_open(ctx: Context) -> None:
    """`close()` is bounded on a connection whose other side is finished."""
    async with ctx.healed() as proxy:
        await _closes(ctx, lambda: proxy.half_close("down"))


@case("faults.close-on-a-slow-link", "fault", needs=["proxy"])
async def close_on_a_slow_link(ctx: Context) -> None:
    """`close()` is bounded at 1 kB/s."""
    async with ctx.healed() as proxy:
        await _closes(ctx, lambda: proxy.throttle(1_000))


@case("faults.close-with-garbage", "fault", needs=["proxy"])
async def close_with_garbage(ctx: Context) -> None:
    """`close()` is bounded while the broker's answers are garbage."""
    async with ctx.healed() as proxy:
        await _closes(ctx, lambda: proxy.corrupt("down"))


@case("faults.close-with-a-silent-peer", "fault", needs=["peer_url"], waits=True)
async def close_with_a_silent_peer(ctx: Context) -> None:
    """`close()` is bounded while a connect is under way with a peer that says nothing."""
    async with peer() as nobody:
        await _closes(ctx, lambda: None, await ctx.do(lambda: ctx.harness.peer_url(nobody.port)))
