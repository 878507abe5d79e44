"""Cases about connecting, closing, health, and what is left behind."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

from cqrs_brokers import (
    Broker,
    BrokerClosedError,
    ConnectError,
    DeliveryError,
    Receipt,
    UnreachableError,
    open_broker,
)
from cqrs_brokers_testkit.canary import shown
from cqrs_brokers_testkit.conformance._case import (
    Clock,
    Context,
    case,
    check,
    check_all_receipts,
    check_receipt,
    check_truth,
    outcome_of,
    show,
    takes_credentials,
    tally,
)
from cqrs_brokers_testkit.conformance._watching import io_watched, logger_levels, logs_at_debug, nothing_left

_GRACE = 1.0
"""By contract `close()` takes at most this many seconds more than its timeout."""
_TURNS_OF_AN_ATTEMPT = 12
"""After this many turns of the event loop, an attempt to connect to a port where nobody listens has failed."""

# -- connecting --------------------------------------------------------------------------------------------------------


@case("lifecycle.first-send-connects", "live")
async def first_send_connects(ctx: Context) -> None:
    """A send before `connect()` connects; `connect()` afterwards changes nothing."""
    broker = ctx.open()
    receipt = await broker.send_message(ctx.message(await ctx.topic()))
    check(isinstance(receipt, Receipt), "no receipt")
    await broker.connect()
    check(broker.describe()["state"] == "connected", f"the state is {broker.describe()['state']}")


@case("lifecycle.async-with-fails-early", "live", needs=["unreachable_url"], waits=True)
async def async_with_fails_early(ctx: Context) -> None:
    """`async with` raises at start-up when the broker cannot be reached, and says why."""
    broker = ctx.open(await ctx.do(ctx.harness.unreachable_url))
    try:
        async with broker:
            check(False, "it was entered")
    except ConnectError as error:
        check(type(error) is UnreachableError, f"expected UnreachableError, got {show(error)}")


@case("lifecycle.two-brokers-side-by-side", "live")
async def two_brokers_side_by_side(ctx: Context) -> None:
    """Two brokers of one config string work independently, and closing one does not affect the other."""
    first, second, topic = ctx.open(), ctx.open(), await ctx.topic()
    check_all_receipts([await outcome_of(broker.send_message(ctx.message(topic))) for broker in (first, second)])
    messages = [ctx.message(topic, {"n": n}) for n in range(200)]
    both = (first, second)
    sends = [outcome_of(both[n % 2].send_message(message)) for n, message in enumerate(messages)]
    outcomes = await asyncio.wait_for(asyncio.gather(*sends), 20.0)
    check_all_receipts(outcomes)
    if ctx.harness.lacks("read_back") is None:
        check_truth(messages, outcomes, (await ctx.read(topic, len(messages) + 2)))
    await first.close()
    check_all_receipts([await outcome_of(second.send_message(ctx.message(topic))) for _ in range(3)])


@case("lifecycle.reconnects-after-a-reset", "fault", needs=["reset"])
async def reconnects_after_a_reset(ctx: Context) -> None:
    """After a reset the broker connects again by itself, and the next sends succeed."""
    broker, topic = ctx.open(), await ctx.topic()
    made = ctx.harness.connections_made if ctx.harness.lacks("connections_made") is None else lambda: 0
    start = await ctx.do(made)
    await broker.send_message(ctx.message(topic))
    first = await ctx.do(made) - start
    for _ in range(3):
        await ctx.do(ctx.harness.reset)
        await asyncio.sleep(0.3)
        with Clock() as clock:
            outcome = await outcome_of(broker.send_message(ctx.message(topic)))
        check_receipt(outcome, "after a reset a good message")
        check(clock.seconds <= 3.0, f"it took {clock.seconds:.1f} s to be connected again")
    if first == 1:  # else it uses several connections, and makes them when it needs them
        await asyncio.sleep(0.7)
        again = await ctx.do(made) - start - first
        check(again <= 3, f"its one connection was reset three times, and it made {again} new ones")


@case("lifecycle.no-wire-opens-no-socket", "live")
async def no_wire_opens_no_socket(ctx: Context) -> None:
    """A broker whose harness says that there is no wire opens no socket. Any other broker opens one to connect."""
    topic = await ctx.topic()
    with io_watched() as io:
        async with ctx.open() as broker:
            await broker.send_message(ctx.message(topic))
    opened = [event for event in io if event.startswith("socket.")]
    if not ctx.harness.wire:
        check(not opened, f"the harness says wire = False, and the driver did {', '.join(sorted(set(opened)))}")


# -- closing -----------------------------------------------------------------------------------------------------------


@case("lifecycle.closed-refuses", "live")
async def closed_refuses(ctx: Context) -> None:
    """After `close()` a send is `BrokerClosedError`, also in a batch."""
    broker, topic = ctx.open(), await ctx.topic()
    await broker.send_message(ctx.message(topic))
    await broker.close()
    outcome = await outcome_of(broker.send_message(ctx.message(topic)))
    check(type(outcome) is BrokerClosedError, f"a send after close() got {show(outcome)}")
    outcomes = await broker.send_messages([ctx.message(topic)])
    check(type(outcomes[0]) is BrokerClosedError, f"a batch after close() got {show(outcomes[0])}")


@case("lifecycle.close-is-idempotent", "live")
async def close_is_idempotent(ctx: Context) -> None:
    """`close()` may be called twice, by several callers at once, and before any connection, and it is quick."""
    broker, topic = ctx.open(), await ctx.topic()
    await broker.send_message(ctx.message(topic))
    with Clock() as clock:
        await asyncio.gather(*(broker.close() for _ in range(5)))
        await broker.close()
        await ctx.open().close()
    check(clock.seconds <= 3.0, f"closing idle brokers took {clock.seconds:.1f} s")


@case("lifecycle.close-flushes", "live", limit=60.0)
async def close_flushes(ctx: Context) -> None:
    """After 10 000 messages from 20 tasks and `close()`, all messages are in the broker."""
    broker, topic = ctx.open(), await ctx.topic()
    messages = [ctx.message(topic, {"n": n}) for n in range(ctx.count(10_000))]
    await broker.connect()

    async def work(first: int) -> list[Receipt | DeliveryError]:
        return await asyncio.gather(*(outcome_of(broker.send_message(message)) for message in messages[first::20]))

    tasks = [asyncio.ensure_future(work(first)) for first in range(20)]
    for _ in range(3):  # the coroutines of all sends have run: they are accepted
        await asyncio.sleep(0)
    await broker.close(30.0)
    shares = await asyncio.gather(*tasks)
    outcomes = [shares[n % 20][n // 20] for n in range(len(messages))]
    check_all_receipts(outcomes)
    if ctx.harness.lacks("read_back") is None:
        check_truth(messages, outcomes, await ctx.read(topic, len(messages)))


@case("lifecycle.pending-at-close-is-no-success", "fault", needs=["stall", "read_back"])
async def pending_at_close_is_no_success(ctx: Context) -> None:
    """Messages without a confirm when `close()` gives up are no success, and a message in the broker is not denied."""
    await _pending_at_close(ctx, ctx.harness.stall)
    if ctx.harness.lacks("lose_answers") is None:
        await _pending_at_close(ctx, ctx.harness.lose_answers)


async def _pending_at_close(ctx: Context, fault: Callable[[], object]) -> None:
    broker = ctx.open()
    topic = await ctx.known_topic(broker)
    await ctx.do(fault)
    messages = [ctx.message(topic, key="k" if ctx.capabilities.ordering_key else None) for _ in range(200)]
    sends = [asyncio.ensure_future(outcome_of(broker.send_message(message))) for message in messages]
    await asyncio.sleep(0.1)
    try:
        with Clock() as clock:
            await broker.close(0.5)
        outcomes = await asyncio.wait_for(asyncio.gather(*sends), 1.0)
    finally:
        await ctx.do(ctx.harness.resume)
    check(clock.seconds <= 0.5 + _GRACE, f"close(0.5) took {clock.seconds:.1f} s")
    check(not any(isinstance(o, Receipt) for o in outcomes), f"no answer got through, outcomes {tally(outcomes)}")
    await asyncio.sleep(0.3)
    check_truth(messages, outcomes, await ctx.read(topic, 0))


@case("lifecycle.close-while-down", "live", needs=["unreachable_url"])
async def close_while_down(ctx: Context) -> None:
    """`close()` ends within its timeout while the broker cannot be reached, and waiting sends get their outcome.

    `close()` is called in each turn of an attempt to connect, also in the turn in which the attempt fails. No error may
    be left unhandled.
    """
    url = await ctx.do(ctx.harness.unreachable_url)
    for turns in range(_TURNS_OF_AN_ATTEMPT):
        broker = ctx.open(url)
        send = asyncio.ensure_future(outcome_of(broker.send_message(ctx.message("orders"))))
        for _ in range(turns):
            await asyncio.sleep(0)
        await broker.close(0.0)
        check(type(await send) is BrokerClosedError, f"never handed over, and told {show(await send)}")
    gc.collect()
    broker = ctx.open(url)
    sends = [asyncio.ensure_future(outcome_of(broker.send_message(ctx.message("orders")))) for _ in range(5)]
    await asyncio.sleep(0.3)
    with Clock() as clock:
        await broker.close(1.0)
    check(clock.seconds <= 1.0 + _GRACE, f"close(1.0) took {clock.seconds:.1f} s")
    outcomes = await asyncio.wait_for(asyncio.gather(*sends), 1.0)
    wrong = [outcome for outcome in outcomes if type(outcome) is not BrokerClosedError]
    check(not wrong, f"never handed over, and told {tally(wrong)}")


@case("lifecycle.nothing-is-left-behind", "live", limit=40.0)
async def nothing_is_left_behind(ctx: Context) -> None:
    """After `close()`, or a failed connect, no task, thread, socket or file descriptor is left."""
    topic = await ctx.topic()

    async def use(url: str | None = None) -> None:
        broker = open_broker(url or ctx.url, distribution=ctx.harness.distribution, **ctx.harness.options)
        try:
            if url is None:
                await asyncio.gather(*(broker.send_message(ctx.message(topic)) for _ in range(10)))
            else:
                await broker.connect()
        except ConnectError:
            pass
        await broker.close()

    await use()  # what is made once per process is made now
    async with nothing_left("after close()"):
        await use()
    if ctx.harness.lacks("unreachable_url") is None:
        url = await ctx.do(ctx.harness.unreachable_url)
        async with nothing_left("after a failed connect"):
            await use(url)


@case("lifecycle.cancelled-task-may-clean-up", "live")
async def cancelled_task_may_clean_up(ctx: Context) -> None:
    """A cancelled task that sends while it cleans up gets the true outcome of that send."""
    broker, topic = ctx.open(), await ctx.topic()
    await broker.connect()
    message = ctx.message(topic)

    async def work() -> object:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return await outcome_of(broker.send_message(message))
        return None

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0.01)
    task.cancel()
    outcome = await task
    check_receipt(outcome, "it")
    if ctx.harness.lacks("read_back") is None:
        check_truth([message], [outcome], await ctx.read(topic, 1))


# -- health, logs ------------------------------------------------------------------------------------------------------


@case("lifecycle.health-when-healthy", "live")
async def health_when_healthy(ctx: Context) -> None:
    """`health()` of a working broker is ok, before and after the first send, and it is quick."""
    broker = ctx.open()
    for _ in range(2):
        health = await _health(broker, 5.0)
        check(health.ok and not health.blocked and health.in_flight == 0, f"a working broker says {health}")
        check_all_receipts([await outcome_of(broker.send_message(ctx.message(await ctx.topic())))])
    await broker.close()
    check(not (await _health(broker, 2.0)).ok, "a closed broker says that it is well")


@case("lifecycle.health-when-down", "live", needs=["unreachable_url"], waits=True)
async def health_when_down(ctx: Context) -> None:
    """`health()` of a broker that cannot be reached says why, in bounded time, and does not raise."""
    broker = ctx.open(await ctx.do(ctx.harness.unreachable_url), connect_timeout=2.0)
    health = await _health(broker, 2.0 + _GRACE)
    check(not health.ok and health.reason not in ("", "ok"), f"it says {health}")
    check(isinstance(health.last_error, UnreachableError), f"its last error is {show(health.last_error)}")


@case("lifecycle.health-when-stalled", "fault", needs=["stall"])
async def health_when_stalled(ctx: Context) -> None:
    """`health()` of a broker that does not answer says so, in bounded time, and does not raise."""
    broker = ctx.open(connect_timeout=1.5)
    for _ in range(2):  # the first one connects
        health = await _health(broker, 5.0)
        check(health.ok, f"a working broker says {health}")
    await ctx.do(ctx.harness.stall)
    try:
        health = await _health(broker, 1.5 + _GRACE)
    finally:
        await ctx.do(ctx.harness.resume)
    check(not health.ok, f"nothing gets through, and it says {health}")


async def _health(broker: Broker, within: float):  # type: ignore[no-untyped-def]
    with Clock() as clock:
        try:
            health = await broker.health()
        except Exception as error:
            check(False, f"health() raised {show(error)}")
    check(clock.seconds <= within, f"health() took {clock.seconds:.1f} s")
    return health


@case("lifecycle.logger-levels-stay", "live")
async def logger_levels_stay(ctx: Context) -> None:
    """Opening, connecting, sending and closing change no logger's level."""
    before, topic = logger_levels(), await ctx.topic()
    async with ctx.open() as broker:
        await broker.send_message(ctx.message(topic))
    after = logger_levels()
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name, 0) != after.get(name, 0))
    check(not changed, f"the level of {', '.join(changed)} was changed")


_CANARIES = {"the body": "canary-body-41", "the key": "canary-key-42", "a header": "canary-header-43"}
_PASSWORD = "canary-password-44"  # noqa: S105


@case("lifecycle.nothing-confidential-is-logged", "live")
async def nothing_confidential_is_logged(ctx: Context) -> None:
    """No password, body, key or header value is in any log record (at DEBUG, the client's too), warning or error."""
    topic, told = await ctx.topic(), list[str]()
    keeps = ctx.capabilities
    fields: dict[str, Any] = {
        "headers": {"h": _CANARIES["a header"]} if keeps.headers else {},
        "key": _CANARIES["the key"] if keeps.ordering_key else None,
    }
    with logs_at_debug() as logs:
        broker = ctx.open(delivery_timeout=5.0)
        message = ctx.message(topic, _CANARIES["the body"].encode(), **fields)
        bad = ctx.message(topic, {"b": _CANARIES["the body"], "x": object()}, **fields)
        for candidate in (message, bad):
            told.append(show(await outcome_of(broker.send_message(candidate))))
        await broker.close()
        told.append(show(await outcome_of(broker.send_message(message))))
        if takes_credentials(ctx):
            await _try_password(ctx, told)
    secrets = {**_CANARIES, "the password": _PASSWORD}
    leaks = shown(secrets, [*logs, *told])
    check(not leaks, f"{' and '.join(leaks)} can be read in log records, warnings or errors")


async def _try_password(ctx: Context, told: list[str]) -> None:
    broker = ctx.open(
        ctx.harness.url_with_credentials("somebody", _PASSWORD), delivery_timeout=1.0, connect_timeout=2.0
    )
    try:
        await broker.connect()
    except ConnectError as error:
        told += [f"{error} {error!r}", f"{error.__cause__!r} {error.__cause__}"]
    told += [repr(broker), repr(broker.describe()), repr(await broker.health()), repr(vars(broker.driver))]
    await broker.close(1.0)
