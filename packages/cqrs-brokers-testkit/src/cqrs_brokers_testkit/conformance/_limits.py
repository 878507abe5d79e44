"""Cases about values of the greatest length, and about answers that take longer than clients wait."""

from __future__ import annotations

import asyncio
import os

from cqrs_brokers import InvalidMessageError, Message, MessageTooLargeError, Receipt, RejectedError
from cqrs_brokers.url import Host
from cqrs_brokers_testkit.canary import chain, shown
from cqrs_brokers_testkit.conformance._case import (
    Context,
    NotApplicable,
    case,
    check,
    check_all_receipts,
    check_receipt,
    check_truth,
    outcome_of,
    show,
)
from cqrs_brokers_testkit.conformance._connecting import open_at, own_address
from cqrs_brokers_testkit.conformance._watching import logs_at_debug
from cqrs_brokers_testkit.proxy import FaultProxy

_LONGEST = 32_767
"""The most bytes of a key or a header's value."""
_PATIENCE = 16.0
"""How long no answer comes, in seconds. Clients give up after 5, 10, 12 or 15 seconds."""
_ABOUT_A_MESSAGE = 4_096
"""The most bytes that a broker counts for a message besides its body."""
_SENT = 20_000
"""The size of a message that compression does not make smaller, in bytes."""

# Written in another form (percent-encoded, escaped in JSON) they have more than 64 KiB.
_LONG_VALUES = {
    "letters": "x" * _LONGEST,
    "percent signs": "%" * _LONGEST,
    "control characters": "\x01" * _LONGEST,
    "characters of four bytes": "🎉" * (_LONGEST // 4),
}


@case("messages.longest-values-arrive-or-are-refused", "live", needs=["read_back"])
async def longest_values_arrive_or_are_refused(ctx: Context) -> None:
    """A key or header of 32 767 bytes arrives whole, even if escaping makes it longer, or its message is refused.

    The same holds for several headers that have more than 64 KiB together.
    """
    broker, keeps = ctx.open(), ctx.capabilities
    if not keeps.headers and not keeps.ordering_key:
        raise NotApplicable("its messages have neither keys nor headers")
    for what, value in _LONG_VALUES.items():
        messages: dict[str, Message] = {}
        if keeps.headers:
            messages["header"] = ctx.message(await ctx.topic(), headers={"h": value})
        if keeps.ordering_key:
            messages["key"] = ctx.message(await ctx.topic(), key=value)
        for where, message in messages.items():
            outcome = await outcome_of(broker.send_message(message))
            if isinstance(outcome, InvalidMessageError | MessageTooLargeError | RejectedError):
                continue
            check_receipt(outcome, f"a message whose {where} is {_LONGEST} bytes of {what}")
            record = await ctx.read_one(message.topic)
            got = record.headers.get("h") if where == "header" else record.key
            size = len(got) if isinstance(got, str) else 0
            check(got == value, f"of a {where} of {len(value)} {what} arrived {size}, or some changed")
    if keeps.headers:
        several = ctx.message(await ctx.topic(), headers={f"h{n}": f"{n}" * 20_000 for n in range(5)})
        outcome = await outcome_of(broker.send_message(several))
        if not isinstance(outcome, InvalidMessageError | MessageTooLargeError | RejectedError):
            check_receipt(outcome, "a message with headers of 100 kB")
            check_truth([several], [outcome], await ctx.read(several.topic, 1))


_CANARIES = {"the body": "canary-body-61", "the key": "canary-key-62", "a header": "canary-header-63"}


@case("lifecycle.nothing-confidential-is-told-of-what-is-large", "live")
async def nothing_confidential_is_told_of_what_is_large(ctx: Context) -> None:
    """Errors and log records about a message of the greatest size, or a larger one, contain no body, key or header."""
    topic, keeps, told = await ctx.topic(), ctx.capabilities, list[str]()
    body, key, header = ((canary + "x" * _LONGEST)[:_LONGEST] for canary in _CANARIES.values())
    messages = [ctx.message(topic, body.encode() * times) for times in (28, 40)]
    if keeps.ordering_key:
        messages += [ctx.message(topic, key=value) for value in (key, f"{key}x")]
    if keeps.headers:
        several = ({"h": header}, {"h": f"{header}x"}, {f"h{n}": header for n in range(29)})
        messages += [ctx.message(topic, headers=headers) for headers in several]
    with logs_at_debug() as logs:
        broker = ctx.open(delivery_timeout=8.0)
        for message in messages:
            outcome = await outcome_of(broker.send_message(message))
            if isinstance(outcome, BaseException):
                told += [f"{each} {each!r}" for each in chain(outcome)]
        await broker.close()
    leaks = shown(_CANARIES, [*logs, *told])
    check(not leaks, f"{' and '.join(leaks)} can be read in log records, warnings or errors")


@case("delivery.too-large-for-this-broker", "live", needs=["limited_size"])
async def too_large_for_this_broker(ctx: Context) -> None:
    """A message that is too large for this broker is not delivered and not quoted, and its neighbours get receipts."""
    limit = await ctx.once(ctx.harness.limited_size)
    body, _, header = _CANARIES.values()
    fitting = [ctx.message(limit.topic, {"n": n}) for n in range(20)]
    fitting.append(ctx.message(limit.topic, bytes(limit.most_bytes - _ABOUT_A_MESSAGE)))
    large = [ctx.message(limit.topic, (body + "x" * limit.most_bytes).encode())]
    if ctx.capabilities.headers:
        headers = {f"h{n}": (header + "x" * _LONGEST)[:_LONGEST] for n in range(limit.most_bytes // _LONGEST + 1)}
        large.append(ctx.message(limit.topic, b"small", headers=headers))
    with logs_at_debug() as logs:
        broker = ctx.open(limit.url, delivery_timeout=8.0)
        check_receipt(await outcome_of(broker.send_message(ctx.message(limit.topic))))
        messages = [*fitting[:10], *large, *fitting[10:]]
        sends = [asyncio.ensure_future(outcome_of(broker.send_message(message))) for message in messages]
        outcomes = dict(zip(map(id, messages), await asyncio.gather(*sends), strict=True))
        await broker.close()
    check_all_receipts([outcomes[id(message)] for message in fitting])
    for message in large:
        outcome = outcomes[id(message)]
        refused = isinstance(outcome, MessageTooLargeError | RejectedError)
        check(refused, f"a message above the {limit.most_bytes} bytes that this broker takes got {show(outcome)}")
        told = [f"{each} {each!r}" for each in chain(outcome)] if isinstance(outcome, BaseException) else []
        leaks = shown(_CANARIES, told)
        check(not leaks, f"{' and '.join(leaks)} can be read in the error about a message that is too large")
    leaks = shown(_CANARIES, logs)
    check(not leaks, f"{' and '.join(leaks)} can be read in log records or warnings")


@case("delivery.time-confirms-nothing", "fault", needs=["hosts_url"], capability="confirms", waits=True)
async def time_confirms_nothing(ctx: Context) -> None:
    """If no answer comes for 16 s, which is longer than clients wait, no message gets a receipt."""
    there, passed = own_address(ctx), 0

    def count(data: bytes) -> bytes:
        nonlocal passed
        passed += len(data)
        return data

    topic = await ctx.topic()
    with FaultProxy(there) as proxy:
        broker = await open_at(ctx, Host(proxy.host, proxy.port), delivery_timeout=_PATIENCE, connect_timeout=3.0)
        check_receipt(await outcome_of(broker.send_message(ctx.message(topic))))
        await ctx.do(lambda: proxy.rewrite(count, "up"))
        await ctx.do(lambda: proxy.swallow("down"))
        messages = [ctx.message(topic, os.urandom(_SENT)) for _ in range(3)]
        sends = [asyncio.ensure_future(outcome_of(broker.send_message(message))) for message in messages]
        for send in asyncio.as_completed(sends):
            outcome = await send
            if isinstance(outcome, Receipt) and passed < _SENT:
                raise NotApplicable("its connections do not go where its config string says")
            check(not isinstance(outcome, Receipt), f"no answer came, and a send got {show(outcome)}")
        await broker.close(1.0)
