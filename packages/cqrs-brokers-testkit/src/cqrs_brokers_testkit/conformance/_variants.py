"""The case about options: the options that a harness names change no truth."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from cqrs_brokers import Receipt
from cqrs_brokers_testkit.conformance._case import (
    Context,
    NotApplicable,
    case,
    check,
    check_all_receipts,
    check_truth,
    outcome_of,
    show,
    tally,
)


@case(
    "delivery.options-change-no-truth",
    "fault",
    needs=["lose_answers", "stall", "reset", "read_back"],
    capability="confirms",
    limit=120.0,
)
async def options_change_no_truth(ctx: Context) -> None:
    """With each set of options in `Harness.variants`: no receipt before an answer, and a reset leaves the truth."""
    if not ctx.harness.variants:
        raise NotApplicable("the harness names no options that could change how messages are sent or answers are read")
    for options in ctx.harness.variants:
        await _is_true(ctx, options)


async def _is_true(ctx: Context, options: Mapping[str, Any]) -> None:
    named = f"with {', '.join(options)}"
    broker, topic, harness = ctx.open(delivery_timeout=8.0, **options), await ctx.topic(), ctx.harness
    messages = [ctx.message(topic) for _ in range(10)]
    outcomes: list[object] = list(await broker.send_messages(messages))
    check_all_receipts(outcomes)
    await ctx.do(harness.lose_answers)
    unheard = [ctx.message(topic) for _ in range(10)]
    unsent = [ctx.message(topic) for _ in range(10)]
    try:
        sends = [asyncio.ensure_future(outcome_of(broker.send_message(message))) for message in unheard]
        done, _ = await asyncio.wait(sends, timeout=0.7)
        check(not done, f"{named} sends ended before the broker had answered: {show([s.result() for s in done])}")
        await ctx.do(harness.stall)
        sends += [asyncio.ensure_future(outcome_of(broker.send_message(message))) for message in unsent]
        await asyncio.sleep(0.2)
        await ctx.do(harness.reset)
    finally:
        await ctx.do(harness.resume)
    outcomes += await asyncio.gather(*sends)
    messages += [*unheard, *unsent]
    received = sum(isinstance(outcome, Receipt) for outcome in outcomes)
    check(received >= 10, f"{named} sends got {tally(outcomes)}")
    check_truth(messages, outcomes, await ctx.read(topic, received))
