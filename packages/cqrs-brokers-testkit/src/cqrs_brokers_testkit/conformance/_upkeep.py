"""Cases about the objects that a driver keeps, the texts that it tells, and the connections after the first."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import threading
import time
from typing import Any
from unittest import mock

from cqrs_brokers import Broker
from cqrs_brokers.url import Host
from cqrs_brokers_testkit.canary import shown
from cqrs_brokers_testkit.conformance._case import (
    Context,
    NotApplicable,
    Unsupported,
    case,
    check,
    check_all_receipts,
    check_receipt,
    outcome_of,
)
from cqrs_brokers_testkit.conformance._connecting import open_at, own_address
from cqrs_brokers_testkit.conformance._peers import peer
from cqrs_brokers_testkit.conformance._watching import everything, logs_at_debug, nothing_left

_LET_GO = 0.5
"""Seconds after a deadline in which most drivers let go of a message without an answer."""
_CANARIES = {"the body": "canary-body-51", "the key": "canary-key-52", "a header": "canary-header-53"}


@case("lifecycle.nothing-is-left-by-reconnects", "fault", needs=["reset"])
async def nothing_is_left_by_reconnects(ctx: Context) -> None:
    """After four resets and `close()` no task, thread, socket or file descriptor of an earlier connection is left."""
    topic = await ctx.topic()

    async def use(resets: int) -> None:
        broker = ctx.open_unowned()
        try:
            check_receipt(await outcome_of(broker.send_message(ctx.message(topic))))
            for _ in range(resets):
                await ctx.do(ctx.harness.reset)
                await ctx.works_again(broker, topic)
        finally:
            await broker.close()

    await use(1)  # what is made once per process is made now
    async with nothing_left("after four reconnects"):
        await use(4)


@case("lifecycle.cancelled-connect-leaves-nothing", "fault", needs=["peer_url"])
async def cancelled_connect_leaves_nothing(ctx: Context) -> None:
    """`close()` in the middle of an attempt to connect leaves no task, thread or socket."""
    async with peer() as nobody:
        url = await ctx.do(lambda: ctx.harness.peer_url(nobody.port))

        async def use() -> None:
            before = nobody.accepted
            broker = ctx.open_unowned(url, connect_timeout=5.0)
            connecting = asyncio.ensure_future(broker.connect())

            async def is_there() -> bool:
                return nobody.accepted > before

            await ctx.wait_for(is_there, 4.0, "connect() made no connection to the peer")
            await broker.close(1.0)
            await asyncio.gather(connecting, return_exceptions=True)

        await use()
        async with nothing_left("after an attempt to connect that was cancelled"):
            await use()


_OF_A_DELIVERY = ("handed_over", "confirm", "fail", "release", "message")


async def deliveries() -> int:
    """Returns how many `Delivery` objects exist in this process, whoever holds them."""
    gc.collect()
    classes = {kind for kind in {type(each) for each in gc.get_objects()} if _is_a_delivery(kind)}
    return sum(type(each) in classes for each in gc.get_objects())


def _is_a_delivery(kind: type) -> bool:
    return all(hasattr(kind, name) for name in _OF_A_DELIVERY)


@case("delivery.nothing-is-kept-after-the-answer", "live")
async def nothing_is_kept_after_the_answer(ctx: Context) -> None:
    """A driver holds no message that has its outcome: after 1 000 answered messages it holds none."""
    broker, topic = ctx.open(), await ctx.topic()
    await broker.connect()
    before, count = await deliveries(), ctx.count(1_000, 200)
    check_all_receipts(await broker.send_messages([ctx.message(topic, {"n": n}) for n in range(count)]))

    async def are_gone() -> bool:
        return await deliveries() < before + 20

    await ctx.wait_for(are_gone, 2.0, f"{count} messages have their outcome, and something keeps them")


@case("lifecycle.nothing-confidential-is-told-in-trouble", "fault", needs=["stall", "reset"])
async def nothing_confidential_is_told_in_trouble(ctx: Context) -> None:
    """If messages are lost, late, waiting or refused, no body, key or header value is in a log record or error."""
    topic, told, keeps = await ctx.topic(), list[str](), ctx.capabilities
    fields: dict[str, Any] = {"headers": {"h": _CANARIES["a header"]} if keeps.headers else {}}
    fields["key"] = _CANARIES["the key"] if keeps.ordering_key else None

    def send(broker: Broker, to: str, count: int = 20) -> list[asyncio.Future[object]]:
        body = _CANARIES["the body"].encode()
        return [
            asyncio.ensure_future(outcome_of(broker.send_message(ctx.message(to, body, **fields))))
            for _ in range(count)
        ]

    with logs_at_debug() as logs:
        broker = ctx.open(delivery_timeout=1.0)
        await asyncio.gather(*send(broker, topic, 1))
        for ends_by in (None, ctx.harness.reset):
            await ctx.do(ctx.harness.stall)
            try:
                sends = send(broker, topic)
                await asyncio.sleep(0.2)  # some are handed over
                told += [repr(broker.driver), str(broker.driver), f"{broker.driver}", repr(broker)]
                if ends_by is not None:
                    await ctx.do(ends_by)
                    sends += send(broker, topic)
                told += map(everything, await asyncio.gather(*sends))
                if ends_by is None:
                    await asyncio.sleep(_LET_GO)
            finally:
                await ctx.do(ctx.harness.resume)
            await ctx.works_again(broker, topic)
        if ctx.harness.lacks("proxy") is None:
            async with ctx.healed() as proxy:
                await ctx.do(lambda: proxy.rewrite(lambda _: b"!garbage!\r\n", "down"))
                told += map(everything, await asyncio.gather(*send(broker, topic)))
                told += [repr(await broker.health()), repr(broker.describe())]
            await ctx.works_again(broker, topic)
        for need in ("forbidden_destination", "make_unroutable", "missing_destination", "nacking_destination"):
            if ctx.harness.lacks(need) is None:
                with contextlib.suppress(NotApplicable, Unsupported):
                    target = await ctx.once(getattr(ctx.harness, need))
                    told += map(everything, await asyncio.gather(*send(ctx.open(target.url), target.topic, 2)))
    leaks = shown(_CANARIES, [*logs, *told])
    check(not leaks, f"{' and '.join(leaks)} can be read in log records, warnings or errors")


_IDLE = 1.0
_A_LITTLE = 0.03
"""The share of one processor that an event loop may need while nothing happens."""
_FEW_TURNS = 18
"""The number of turns that an event loop may make in that time, for timers, heartbeats and bytes from the broker."""


@case("lifecycle.idle-is-idle", "live")
async def idle_is_idle(ctx: Context) -> None:
    """While nothing is sent, a connected driver uses next to no time of the event loop: it does not poll.

    The loop makes few turns in that time.
    """
    broker = ctx.open()
    check_receipt(await outcome_of(broker.send_message(ctx.message(await ctx.topic()))))
    await asyncio.sleep(0.3)  # what comes after an answer is over
    assert ctx.turns is not None
    before, turns = time.thread_time(), ctx.turns.count
    await asyncio.sleep(_IDLE)
    share, turns = (time.thread_time() - before) / _IDLE, ctx.turns.count - turns
    check(share < _A_LITTLE, f"nothing was sent, and the event loop was busy for {share:.0%} of the time")
    check(turns <= _FEW_TURNS, f"nothing was sent, and something woke the event loop {turns} times in {_IDLE:g} s")


@case("lifecycle.names-are-looked-up-beside-the-loop", "live", needs=["hosts_url"])
async def names_are_looked_up_beside_the_loop(ctx: Context) -> None:
    """Looking up a host's name does not stop the event loop, even if the name server is slow."""
    _, port = own_address(ctx)
    loop, in_the_loop = threading.get_ident(), list[str]()

    def watched(name: str) -> Any:
        real = getattr(socket, name)

        def look_up(host: object, *arguments: Any, **settings: Any) -> Any:
            if threading.get_ident() == loop and host in ("localhost", b"localhost"):
                in_the_loop.append(name)
            return real(host, *arguments, **settings)

        return mock.patch.object(socket, name, look_up)

    topic = await ctx.topic()
    with watched("getaddrinfo"), watched("gethostbyname"):
        broker = await open_at(ctx, Host("localhost", port))
        outcome = await outcome_of(broker.send_message(ctx.message(topic)))
    check_receipt(outcome, "its host is called localhost, and a message")
    check(not in_the_loop, f"it looked up a name in the event loop's thread, by {' and '.join(in_the_loop)}()")
