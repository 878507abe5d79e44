"""The last case: what the logs of all cases before it say about the driver."""

from cqrs_brokers_testkit.conformance.case import Context, case, check


@case("contract.kept-in-every-case", "live")
async def kept_in_every_case(ctx: Context) -> None:
    """In no case the driver broke the contract of `Delivery`, resisted a cancel, or left an exception unhandled."""
    examples = {text.split(" ")[1]: text for text in ctx.breaches}  # one of each case
    check(not ctx.breaches, f"{len(ctx.breaches)} times, for example {'; '.join(list(examples.values())[:3])}")
