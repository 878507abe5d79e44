"""A case about the contract of `Delivery`. Every case checks the contract; this case does all that can break it."""

import asyncio

from cqrs_brokers import DeliveryError, Receipt
from cqrs_brokers_testkit.conformance._case import Context, breach_text, case, check, outcome_of, tally


@case("contract.kept-in-every-case", "live")
async def kept_in_every_case(ctx: Context) -> None:
    """The driver keeps the contract of `Delivery` with answers, refusals, deadlines, cancellations and closing."""
    topic, ends = await ctx.topic(), list[DeliveryError | Receipt]()
    patient, hasty, closed = ctx.open(), ctx.open(delivery_timeout=0.01), ctx.open()
    await patient.connect()
    ends += await patient.send_messages([ctx.message(topic, {"n": n}) for n in range(100)])
    for broker in (patient, hasty, closed):  # not connected: some wait for it, some are over before it is made
        sends = [asyncio.ensure_future(broker.send_message(ctx.message(topic))) for _ in range(50)]
        for number, send in enumerate(sends):
            if number % 5 == 0:
                await asyncio.sleep(0)
            if number % 3 == 0:
                send.cancel()
        if broker is closed:
            await broker.close(0.0)
        results = await asyncio.gather(*map(outcome_of, sends), return_exceptions=True)
        ends += [end for end in results if isinstance(end, DeliveryError | Receipt)]
    await asyncio.sleep(0.2)  # what ended is answered, too
    for broker in (patient, hasty):
        await broker.close()
    breaches = [breach_text(breach) for broker in (patient, hasty, closed) for breach in broker.contract_breaches]
    check(not breaches, f"{len(breaches)} times, for example {'; '.join(breaches[:3])}")
    check(all(isinstance(end, Receipt) for end in ends[:100]), f"100 good messages got {tally(ends[:100])}")
