"""Cases about values that only some brokers carry: a message without a body, and headers that are not text."""

from __future__ import annotations

from cqrs_brokers import TOMBSTONE, InvalidMessageError, Message
from cqrs_brokers_testkit.conformance._case import Context, case, check, outcome_of, show


@case("messages.tombstone-is-no-value", "live", capability="tombstones", needs=["read_back"])
async def tombstone_is_no_value(ctx: Context) -> None:
    """A tombstone arrives with its key and without a value, and an empty body beside it arrives as an empty body."""
    topic = await ctx.topic()
    broker = ctx.open()
    for payload in (TOMBSTONE, b"", TOMBSTONE):
        await broker.send_message(ctx.message(topic, payload, name="Deleted", key="k"))
    records = await ctx.read(topic, 3)
    got = [record.tombstone or record.body is None for record in records]
    check(got == [True, False, True], f"sent: no value, empty, no value; arrived as no value: {got}")
    check({record.key for record in records} == {"k"}, "the key of a tombstone did not arrive")
    check({record.name for record in records} == {"Deleted"}, "the name of a tombstone did not arrive")


@case("refusals.tombstone-without-the-capability", "live", without="tombstones")
async def tombstone_without_the_capability(ctx: Context) -> None:
    """If the driver has no tombstones, a tombstone is `InvalidMessageError`, and the text says what to do instead."""
    message = Message("Deleted", await ctx.topic(), TOMBSTONE, key="k" if ctx.capabilities.ordering_key else None)
    outcome = await outcome_of(ctx.open().send_message(message))
    check(isinstance(outcome, InvalidMessageError), f"a tombstone got {show(outcome)}")
    check("send an event that reports it" in str(outcome), f"the refusal does not say what to do: {show(outcome)}")


@case("messages.headers-keep-their-types", "live", capability="headers", needs=["read_back"])
async def headers_keep_their_types(ctx: Context) -> None:
    """Headers of every type that the driver declares arrive with their types."""
    whole = float(2**53 + 2)  # pika reads a double as an integer; a float of 32 bits cannot hold this one
    examples: list[object] = ["text", b"\x00\xff", -(2**63), 2**63 - 1, whole, True, False, None]
    headers = {f"h{n}": value for n, value in enumerate(examples) if type(value) in ctx.capabilities.header_types}
    topic = await ctx.topic()
    await ctx.open().send_message(ctx.message(topic, headers=headers))
    record = await ctx.read_one(topic)
    arrived = dict(record.raw_headers) or dict(record.headers)
    for name, value in headers.items():
        got = arrived.get(name, "nothing")
        # A client may have a class of its own for large integers; a bool is none.
        kinds = (float, int) if isinstance(value, float) else type(value)
        same = isinstance(got, kinds) and isinstance(got, bool) is isinstance(value, bool) and got == value
        # Where all values are bytes, text is its UTF-8.
        check(same or got == (value.encode() if isinstance(value, str) else ...), f"{value!r} arrived as {got!r}")
