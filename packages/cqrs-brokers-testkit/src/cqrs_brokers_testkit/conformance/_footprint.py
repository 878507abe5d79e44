"""Cases about what a driver does beside its task: what it writes, what it keeps, what it changes in its process."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import weakref
from collections.abc import Iterator
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, ModuleType

from cqrs_brokers import Broker, DeliveryUnknownError, MessageTooLargeError, Receipt, RejectedError
from cqrs_brokers.url import BrokerURL, Host
from cqrs_brokers_testkit.conformance._case import (
    Context,
    NotApplicable,
    Unsupported,
    case,
    check,
    check_all_receipts,
    check_receipt,
    outcome_of,
    show,
)
from cqrs_brokers_testkit.conformance._connecting import open_at, own_address
from cqrs_brokers_testkit.conformance._peers import peer
from cqrs_brokers_testkit.conformance._probes import AT_START, CHANGES_OF_THE_PROCESS, probe
from cqrs_brokers_testkit.conformance._processes import arguments
from cqrs_brokers_testkit.proxy import FaultProxy

_REFUSALS = ("missing_destination", "forbidden_destination", "make_unroutable", "nacking_destination")
_BODY = 50_000
_MOST_TIMES = 1.9
"""How many bytes are written for one byte of a body, at most. Text that is written in base64 needs 1.34."""
_SETTLE = 0.5
"""Seconds in which a driver that writes a message again does so."""


@case("delivery.each-is-written-once", "fault", needs=["proxy"], capability="confirms")
async def each_is_written_once(ctx: Context) -> None:
    """A message that arrives, is refused, nacked or returned is written once, and nowhere else: the bytes are counted.

    So a message that is written twice is found also where the broker stores it once, or not at all.
    """
    up = 0

    def counted(data: bytes) -> bytes:
        nonlocal up
        up += len(data)
        return data

    async def written(broker: Broker, topic: str) -> int:
        await broker.connect()
        await asyncio.sleep(0.1)
        before = up
        outcome = await outcome_of(broker.send_message(ctx.message(topic, os.urandom(_BODY))))
        await asyncio.sleep(_SETTLE)
        if topic == good:
            check_receipt(outcome)
        return up - before

    good = await ctx.topic()
    async with ctx.healed() as proxy:
        await ctx.do(lambda: proxy.rewrite(counted, "up"))
        bytes_of_one = await written(ctx.open(), good)
        if bytes_of_one < _BODY:
            raise NotApplicable("its messages do not pass through the proxy as they are")
        times = bytes_of_one / _BODY
        check(times < _MOST_TIMES, f"for each byte of a message {times:.1f} bytes were written to the broker")
        for need in _REFUSALS:
            if ctx.harness.lacks(need) is None:
                with contextlib.suppress(NotApplicable, Unsupported):
                    target = await ctx.once(getattr(ctx.harness, need))
                    times = await written(ctx.open(target.url), target.topic) / _BODY
                    what = f"a message to what {need} gives"
                    check(times < _MOST_TIMES, f"of {what} {times:.1f} bytes were written for each byte of its body")


@case("delivery.limit-is-the-servers", "fault", needs=["limited_size", "hosts_url"], limit=60.0)
async def limit_is_the_servers(ctx: Context) -> None:
    """A server that takes smaller messages takes the place of another one: its own limit counts, not the first one's.

    What is too large for it fails alone, and the connection stays.
    """
    limit = await ctx.once(ctx.harness.limited_size)
    limited, here = BrokerURL.parse(limit.url), BrokerURL.parse(ctx.url)
    if limited.hosts == here.hosts or limited.username != here.username:
        raise NotApplicable("the limit is not that of another server")
    await ctx.works_again(ctx.open(limit.url), limit.topic)  # what its config string declares is there now
    with FaultProxy(own_address(ctx)) as first:
        broker = await open_at(ctx, Host(first.host, first.port), *limited.hosts, delivery_timeout=8.0)
        await broker.connect()
        check(bool(first.connections), "the first of two hosts works, and connect() did not use it")
        first.refuse()
        first.reset()
        await ctx.works_again(broker, limit.topic)
        messages = [ctx.message(limit.topic, bytes(limit.most_bytes + 4_096 if n == 3 else 10)) for n in range(6)]
        outcomes = await asyncio.gather(*(outcome_of(broker.send_message(message)) for message in messages))
        large = outcomes.pop(3)
        refused = isinstance(large, MessageTooLargeError | RejectedError)
        check(refused, f"a message above the {limit.most_bytes} bytes that the second server takes got {show(large)}")
        check_all_receipts(outcomes)
        await broker.close(1.0)


# -- what is kept ------------------------------------------------------------------------------------------------------

_ROUNDS = 12
_STILL = 3
"""In so many rounds nothing must grow."""
_LOOKS = 4
_MOST_PER_MESSAGE = 24
"""Bytes. The smallest object of Python and the reference to it have more together."""
_NOT_ITS_OWN = (
    ModuleType,
    type,
    FunctionType,
    BuiltinFunctionType,
    CodeType,
    FrameType,
    asyncio.AbstractEventLoop,
    asyncio.Future,
    Broker,
)
"""What a driver refers to, and what does not belong to it."""


@case("delivery.what-is-kept-does-not-grow", "live")
async def what_is_kept_does_not_grow(ctx: Context) -> None:
    """What the driver keeps does not grow with the number of messages: not by the shortest word for each."""
    if not ctx.harness.wire:
        raise NotApplicable("the broker is an object in this process, and keeps the messages")
    broker, topic, count = ctx.open(), await ctx.topic(), ctx.count(1_000, 300)
    sizes: list[int] = []
    for _ in range(_ROUNDS):
        check_all_receipts(await broker.send_messages([ctx.message(topic, {"n": n}) for n in range(count)]))
        sizes.append(await _least_size(broker.driver))
        if len(sizes) > _STILL and sizes[-1] - sizes[-1 - _STILL] < _STILL * count * _MOST_PER_MESSAGE:
            return  # what has a limit, such as a cache, grew until then
    grew = f"grew from {sizes[0]} to {sizes[-1]} bytes"
    check(False, f"in {_ROUNDS} rounds of {count} messages each, what the driver keeps {grew}")


async def _least_size(driver: object) -> int:
    """The least of several sizes: buffers come and go."""
    sizes = []
    for _ in range(_LOOKS):
        await asyncio.sleep(0.1)
        sizes.append(_size_of_all(driver))
    return min(sizes)


def _size_of_all(driver: object) -> int:
    """Bytes of all objects that the driver, its class and its module refer to."""
    gc.collect()
    kinds = [kind for kind in type(driver).__mro__ if not kind.__module__.startswith("cqrs_brokers.")]
    roots: list[object] = [driver, *(vars(kind).values() for kind in kinds)]
    roots += [
        [value for value in vars(sys.modules[kind.__module__]).values() if not isinstance(value, _NOT_ITS_OWN)]
        for kind in kinds
        if kind is not object and kind.__module__ in sys.modules
    ]
    return sum(sys.getsizeof(each) for each in _reachable(roots))


def _reachable(roots: list[object]) -> Iterator[object]:
    seen: set[int] = set()
    left = list(roots)
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(each, _NOT_ITS_OWN):
            continue
        seen.add(id(each))
        yield each
        left += gc.get_referents(each)


@case("lifecycle.nothing-keeps-a-closed-driver", "live")
async def nothing_keeps_a_closed_driver(ctx: Context) -> None:
    """After `close()` nothing in the process holds the driver: no list of its module, no timer, no handler at exit."""
    topic = await ctx.topic()

    async def use() -> weakref.ref[object]:
        broker = ctx.open_unowned()
        check_receipt(await outcome_of(broker.send_message(ctx.message(topic))))
        await broker.health()
        await broker.close()
        try:
            return weakref.ref(broker.driver)
        except TypeError:
            raise NotApplicable("its class has slots and no room for weak references") from None

    driver = await use()

    async def is_gone() -> bool:
        gc.collect()
        return driver() is None

    await ctx.wait_for(is_gone, 3.0, "the broker was closed and forgotten, and something still holds its driver")


# -- what others use, too ----------------------------------------------------------------------------------------------


@case("lifecycle.process-stays-as-it-is", "live")
def process_stays_as_it_is(ctx: Context) -> None:
    """Nothing that others use changes: signal handlers, hooks for errors, warning filters, the environment, sockets."""
    probed = probe(CHANGES_OF_THE_PROCESS, *arguments(ctx), variables=AT_START)
    if probed.code != 0:  # the harness has set variables that the plugin needs
        probed = probe(CHANGES_OF_THE_PROCESS, *arguments(ctx))
    check(probed.code == 0, f"it ended with {probed.code}: {probed.stderr[-400:]}")
    check(probed.answer == [], f"it changed {', '.join(probed.answer or ['something'])}")


# -- other brokers in the process --------------------------------------------------------------------------------------

_AT_ONCE = 3.0
"""The seconds in which a broker connects and sends, while another broker waits for a silent host."""


@case("lifecycle.trouble-is-its-own", "fault", needs=["peer_url"])
async def trouble_is_its_own(ctx: Context) -> None:
    """While one broker waits for a silent host, another one connects and sends at once, also in another event loop."""
    topic = await ctx.topic()

    async def use() -> object:
        broker = ctx.open_unowned(delivery_timeout=_AT_ONCE)
        try:
            return await outcome_of(broker.send_message(ctx.message(topic)))
        finally:
            await broker.close(1.0)

    async with peer() as silent:
        url = await ctx.do(lambda: ctx.harness.peer_url(silent.port))
        stuck = ctx.open_unowned(url, connect_timeout=20.0)
        connecting = asyncio.ensure_future(stuck.connect())

        async def is_there() -> bool:
            return silent.accepted > 0

        try:
            await ctx.wait_for(is_there, 4.0, "connect() made no connection to the peer")
            check_receipt(await use(), "while another broker waits for a silent host, a message")
            outcome = await asyncio.to_thread(lambda: asyncio.run(use()))
            check_receipt(outcome, "in another event loop, while another broker waits for a silent host, a message")
        finally:
            await stuck.close(1.0)
            await asyncio.gather(connecting, return_exceptions=True)


# -- health ------------------------------------------------------------------------------------------------------------

_STALLED_FOR = 20.0
_QUIET = 1.0
"""Seconds between two calls. The driver may begin to ask by itself in between, and has no answer at the next call."""


@case("lifecycle.health-stays-true", "fault", needs=["hosts_url"], waits=True, limit=60.0)
async def health_stays_true(ctx: Context) -> None:
    """While nothing gets through, `health()` never says that all is well, also while the driver itself is asking."""
    with FaultProxy(own_address(ctx)) as proxy:
        broker = await open_at(ctx, Host(proxy.host, proxy.port), connect_timeout=0.5)
        topic = await ctx.topic()
        check_receipt(await outcome_of(broker.send_message(ctx.message(topic))))
        proxy.stall()
        try:
            outcome = await outcome_of(broker.send_message(ctx.message(topic), timeout=0.5))
            if isinstance(outcome, Receipt):
                raise NotApplicable("its brokers name other addresses than that of the config string")
            check(isinstance(outcome, DeliveryUnknownError), f"nothing gets through, and a send got {show(outcome)}")
            loop = asyncio.get_running_loop()
            end = loop.time() + min(ctx.harness.notices_within, _STALLED_FOR)
            asked = 0
            while loop.time() < end:
                await asyncio.sleep(_QUIET)
                health = await broker.health()
                asked += 1
                check(not health.ok, f"nothing gets through, and the health() number {asked} says {health}")
        finally:
            proxy.heal()
        await broker.close(1.0)
