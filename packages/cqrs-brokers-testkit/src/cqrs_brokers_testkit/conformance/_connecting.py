"""Cases about credentials and hosts: who may connect, and where."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping

from cqrs_brokers import (
    AuthenticationError,
    AuthorizationError,
    Broker,
    ConfigError,
    ConnectError,
    Message,
    NotConnectedError,
    Receipt,
    UnreachableError,
)
from cqrs_brokers.url import BrokerURL, Host
from cqrs_brokers_testkit.conformance._case import (
    Clock,
    Context,
    NotApplicable,
    case,
    check,
    check_receipt,
    check_truth,
    outcome_of,
    show,
)
from cqrs_brokers_testkit.conformance._peers import peer
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.servers import free_port

_GRACE = 1.0

# -- several hosts -----------------------------------------------------------------------------------------------------


def own_address(ctx: Context) -> tuple[str, int]:
    """Returns the host and the port of the harness' broker.

    Raises:
        NotApplicable: The config string does not name a host and a port.
    """
    hosts = BrokerURL.parse(ctx.url).hosts
    if not hosts or hosts[0].port is None:
        raise NotApplicable("its config string names no host and port")
    return hosts[0].host, hosts[0].port


async def open_at(ctx: Context, *hosts: Host, **options: object) -> Broker:
    """Opens a broker at these hosts.

    Raises:
        NotApplicable: The config string does not take hosts.
    """
    url = await ctx.do(lambda: ctx.harness.hosts_url(hosts))
    try:
        return ctx.open(url, **options)
    except ConfigError:
        raise NotApplicable("its config string takes no such hosts") from None


async def _last_host_is_used(ctx: Context, *others: Host) -> None:
    good = BrokerURL.parse(ctx.url).hosts
    broker = await open_at(ctx, *others, *good, connect_timeout=4.0, delivery_timeout=6.0)
    topic = await ctx.topic()
    with Clock() as clock:
        try:
            await broker.connect()
        except ConnectError as error:
            check(False, f"the last host is good, and connect() raised {show(error)}")
    check(clock.seconds <= 4.0 + _GRACE, f"connect() took {clock.seconds:.1f} s, with connect_timeout=4")
    outcome = await outcome_of(broker.send_message(ctx.message(topic)))
    check_receipt(outcome, "the last host is good, and a send")


@case("lifecycle.dead-host-is-passed-over", "live", needs=["hosts_url"], waits=True)
async def dead_host_is_passed_over(ctx: Context) -> None:
    """If nobody listens at the first of two hosts, the second host is used, within `connect_timeout`."""
    await _last_host_is_used(ctx, Host("127.0.0.1", free_port()))


@case("lifecycle.silent-host-leaves-time", "live", needs=["hosts_url"], waits=True)
async def silent_host_leaves_time(ctx: Context) -> None:
    """Hosts that accept and say nothing (one or three) leave time for the last host within `connect_timeout`."""
    async with peer() as one, peer() as two, peer() as three:
        for silent in ((one,), (one, two, three)):
            await _last_host_is_used(ctx, *(Host("127.0.0.1", each.port) for each in silent))


@case("lifecycle.odd-host-is-passed-over", "live", needs=["hosts_url"], waits=True)
async def odd_host_is_passed_over(ctx: Context) -> None:
    """If the first of two hosts hangs up, resets the connection or speaks another protocol, the second is used."""
    no_broker = b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4 + b"\0"  # an end of line and of a frame, wherever one is read
    for first in (peer(hangs_up=True), peer(resets=True), peer(no_broker)):
        async with first as odd:
            await _last_host_is_used(ctx, Host("127.0.0.1", odd.port))


@case("lifecycle.fails-over-to-another-host", "fault", needs=["hosts_url"])
async def fails_over_to_another_host(ctx: Context) -> None:
    """If the connected host goes away and another host works, sends succeed again."""
    there = own_address(ctx)
    topic, last = await ctx.topic(), await ctx.topic()
    with FaultProxy(there) as first, FaultProxy(there) as second:
        broker = await open_at(ctx, Host(first.host, first.port), Host(second.host, second.port))
        check_receipt(await outcome_of(broker.send_message(ctx.message(last))))
        messages: list[Message] = []
        outcomes: list[object] = []
        for gone in (first, second):
            await ctx.do(lambda gone=gone: gone.stall("down"))  # type: ignore[misc]
            sent = [ctx.message(topic) for _ in range(5)]
            sends = [asyncio.ensure_future(outcome_of(broker.send_message(message))) for message in sent]
            await asyncio.sleep(0.5)
            # A cluster may name other addresses than those of the config string: then no answer is held here.
            early = gone.bytes_held and any(send.done() for send in sends)
            check(not early, "on that host a send ended before the broker had answered")
            await ctx.do(gone.refuse)
            await ctx.do(gone.reset)
            await ctx.do(gone.heal)
            messages += sent
            outcomes += await asyncio.gather(*sends)
            await ctx.works_again(broker, last)
            await ctx.do(gone.accept)
        await broker.close()
    if ctx.harness.lacks("read_back") is None:
        check_truth(messages, outcomes, await ctx.read(topic, sum(isinstance(o, Receipt) for o in outcomes)))


# -- nobody, and credentials -------------------------------------------------------------------------------------------


@case("delivery.unreachable-is-not-delivered", "live", needs=["unreachable_url"], waits=True)
async def unreachable_is_not_delivered(ctx: Context) -> None:
    """If nobody listens, `connect()` is `UnreachableError` within 2 s, a send `NotConnectedError` at its deadline."""
    url = await ctx.do(ctx.harness.unreachable_url)
    broker = ctx.open(url, delivery_timeout=1.5, connect_timeout=5.0)
    with Clock() as clock:
        error = await connect_error(broker.connect())
    check(type(error) is UnreachableError, f"connect() to nobody: expected UnreachableError, got {show(error)}")
    check(clock.seconds <= ctx.harness.connect_within, f"connect() took {clock.seconds:.1f} s to say so")
    with Clock() as clock:
        outcome = await outcome_of(broker.send_message(ctx.message("orders")))
    check(type(outcome) is NotConnectedError, f"a send to nobody got {show(outcome)}")
    cause = outcome.__cause__ if isinstance(outcome, NotConnectedError) else None
    check(type(cause) is UnreachableError, f"its cause is {show(cause)}")
    check(clock.seconds <= 1.5 + _GRACE, f"it took {clock.seconds:.1f} s, with delivery_timeout=1.5")


@case("delivery.wrong-password", "live", needs=["wrong_password_url"], waivable=True)
async def wrong_password(ctx: Context) -> None:
    """A wrong password is `AuthenticationError` within 2 s, also for sends, and is not tried again and again.

    The login goes to the second host as it does to the first: a server may let in a client that names no user.
    """
    url = await ctx.do(ctx.harness.wrong_password_url)
    await check_permanent(ctx, {"": url}, AuthenticationError)
    known = BrokerURL.parse(url)
    if not known.hosts or known.hosts[0].port is None:
        return
    two = known.replace(hosts=[Host("127.0.0.1", free_port()), *known.hosts]).render(reveal=True)
    try:
        broker = ctx.open(two)
    except ConfigError:
        return  # its config string takes one host
    error = await connect_error(broker.connect())
    check(type(error) is AuthenticationError, f"on the second host: expected AuthenticationError, got {show(error)}")


@case(
    "delivery.wrong-password-is-tried-once",
    "live",
    needs=["wrong_password_url", "connections_made"],
    waivable=True,
    like="delivery.wrong-password",
)
async def wrong_password_is_tried_once(ctx: Context) -> None:
    """One `connect()` with a wrong password makes one log-in, because more of them may lock accounts."""
    url = await ctx.do(ctx.harness.wrong_password_url)
    before = await ctx.do(ctx.harness.connections_made)
    error = await connect_error(ctx.open(url).connect())
    made = await ctx.do(ctx.harness.connections_made) - before
    check(type(error) is AuthenticationError, f"connect(): expected AuthenticationError, got {show(error)}")
    check(made <= 1, f"one connect() with a wrong password made {made} connections")


@case("delivery.wrong-permission", "live", needs=["wrong_permission_url"], waivable=True)
async def wrong_permission(ctx: Context) -> None:
    """Good credentials that may not use the virtual host or cluster give `AuthorizationError` within 2 s."""
    await check_permanent(ctx, {"": await ctx.do(ctx.harness.wrong_permission_url)}, AuthorizationError)


async def check_permanent(ctx: Context, urls: Mapping[str, str], expected: type[ConnectError]) -> None:
    """Demands that `connect()` and a waiting send raise this class at once, and that no further connection is made.

    Args:
        ctx: The case's context.
        urls: Config strings, by the fault of each. "": the case's title says the fault.
        expected: The class of the error.
    """
    for what, url in urls.items():
        said = f"{what}: " if what else ""
        broker = ctx.open(url, delivery_timeout=8.0)
        with Clock() as clock:
            error = await connect_error(broker.connect())
        check(type(error) is expected, f"{said}connect(): expected {expected.__name__}, got {show(error)}")
        check(clock.seconds <= ctx.harness.connect_within, f"{said}connect() took {clock.seconds:.1f} s to say so")
        other = ctx.open(url, delivery_timeout=8.0)
        with Clock() as clock:
            outcome = await outcome_of(other.send_message(Message("E", "orders", {})))
        check(type(outcome) is NotConnectedError, f"{said}a send: expected NotConnectedError, got {show(outcome)}")
        cause = outcome.__cause__ if isinstance(outcome, NotConnectedError) else None
        check(type(cause) is expected, f"{said}its cause is {show(cause)}")
        check(clock.seconds <= ctx.harness.connect_within, f"{said}the send took {clock.seconds:.1f} s to fail")
    if ctx.harness.lacks("connections_made") is None:
        before = await ctx.do(ctx.harness.connections_made)
        await asyncio.sleep(1.5)
        more = await ctx.do(ctx.harness.connections_made) - before
        check(more == 0, f"{more} more connections in 1.5 s although it cannot succeed")


async def connect_error(connecting: Awaitable[None]) -> ConnectError | None:
    try:
        await connecting
    except ConnectError as error:
        return error
    return None
