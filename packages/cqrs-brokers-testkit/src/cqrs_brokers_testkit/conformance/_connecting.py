"""Cases about who may connect, where, and with TLS."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import quote

from cqrs_brokers import (
    AuthenticationError,
    AuthorizationError,
    Broker,
    ConfigError,
    ConnectError,
    Message,
    NotConnectedError,
    Receipt,
    TLSError,
    UnreachableError,
)
from cqrs_brokers.hooks import load_plugin
from cqrs_brokers.secret import Secret
from cqrs_brokers.url import BrokerURL, Host
from cqrs_brokers_testkit.conformance._case import (
    Clock,
    Context,
    NotApplicable,
    case,
    check,
    check_receipt,
    outcome_of,
    show,
)
from cqrs_brokers_testkit.conformance._peers import peer
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.servers import free_port

_LOGIN = "canary-login-45"
_TLS_RECORD = b"\x16\x03"
_GRACE = 1.0

# -- several hosts -----------------------------------------------------------------------------------------------------


async def _second_host_is_used(ctx: Context, first: Host) -> None:
    good = BrokerURL.parse(ctx.url).hosts
    url = await ctx.do(lambda: ctx.harness.hosts_url((first, *good)))
    try:
        broker = ctx.open(url, connect_timeout=4.0, delivery_timeout=6.0)
    except ConfigError:
        raise NotApplicable("its config string takes one host") from None
    topic = await ctx.topic()
    with Clock() as clock:
        try:
            await broker.connect()
        except ConnectError as error:
            check(False, f"the second host is good, and connect() raised {show(error)}")
    check(clock.seconds <= 4.0 + _GRACE, f"connect() took {clock.seconds:.1f} s, with connect_timeout=4")
    outcome = await outcome_of(broker.send_message(ctx.message(topic)))
    check_receipt(outcome, "the second host is good, and a send")


@case("lifecycle.dead-host-is-passed-over", "live", needs=["hosts_url"], waits=True)
async def dead_host_is_passed_over(ctx: Context) -> None:
    """Nobody listens at the first of two hosts: the second one is used, within `connect_timeout`."""
    await _second_host_is_used(ctx, Host("127.0.0.1", free_port()))


@case("lifecycle.silent-host-leaves-time", "live", needs=["hosts_url"], waits=True)
async def silent_host_leaves_time(ctx: Context) -> None:
    """The first of two hosts accepts and says nothing: it leaves time for the second within `connect_timeout`."""
    async with peer() as nobody:
        await _second_host_is_used(ctx, Host("127.0.0.1", nobody.port))


@case("lifecycle.fails-over-to-another-host", "fault", needs=["hosts_url"])
async def fails_over_to_another_host(ctx: Context) -> None:
    """The host that it is connected to goes away, and another one works: sends succeed again."""
    good = BrokerURL.parse(ctx.url).hosts
    if not good or good[0].port is None:
        raise NotApplicable("its config string names no host and port")
    topic = await ctx.topic()
    with FaultProxy((good[0].host, good[0].port)) as first, FaultProxy((good[0].host, good[0].port)) as second:
        url = await ctx.do(
            lambda: ctx.harness.hosts_url((Host(first.host, first.port), Host(second.host, second.port)))
        )
        try:
            broker = ctx.open(url)
        except ConfigError:
            raise NotApplicable("its config string takes one host") from None
        check_receipt(await outcome_of(broker.send_message(ctx.message(topic))))
        for gone in (first, second):
            await ctx.do(gone.refuse)
            await ctx.do(gone.reset)
            await ctx.works_again(broker, topic)
            await ctx.do(gone.accept)
        await broker.close()


# -- nobody, and credentials -------------------------------------------------------------------------------------------


@case("delivery.unreachable-is-not-delivered", "live", needs=["unreachable_url"], waits=True)
async def unreachable_is_not_delivered(ctx: Context) -> None:
    """Nobody there: `connect()` raises `UnreachableError` within 2 s, a send `NotConnectedError` at its deadline."""
    url = await ctx.do(ctx.harness.unreachable_url)
    broker = ctx.open(url, delivery_timeout=1.5, connect_timeout=5.0)
    with Clock() as clock:
        error = await _connect_error(broker.connect())
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
    """A wrong password is `AuthenticationError` within 2 s, for sends too, and is not tried again and again."""
    await _permanent(ctx, {"": await ctx.do(ctx.harness.wrong_password_url)}, AuthenticationError)


@case("delivery.wrong-permission", "live", needs=["wrong_permission_url"], waivable=True)
async def wrong_permission(ctx: Context) -> None:
    """Good credentials for a virtual host or cluster that they may not use: `AuthorizationError` within 2 s."""
    await _permanent(ctx, {"": await ctx.do(ctx.harness.wrong_permission_url)}, AuthorizationError)


async def _permanent(ctx: Context, urls: Mapping[str, str], expected: type[ConnectError]) -> None:
    """Demands this class from `connect()` and from a waiting send, at once, and no further connection.

    Args:
        ctx: The case's.
        urls: Config strings by what is wrong with each; "" where the case says it.
        expected: The class.
    """
    for what, url in urls.items():
        said = f"{what}: " if what else ""
        broker = ctx.open(url, delivery_timeout=8.0)
        with Clock() as clock:
            error = await _connect_error(broker.connect())
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


async def _connect_error(connecting: object) -> BaseException | None:
    try:
        await connecting  # type: ignore[misc]
    except ConnectError as error:
        return error
    return None


# -- TLS ---------------------------------------------------------------------------------------------------------------


@case("delivery.tls-failure", "live", needs=["tls_failures"], waivable=True)
async def tls_failure(ctx: Context) -> None:
    """An expired certificate, one for another host, one of an unknown authority: `TLSError` within 2 s."""
    await _permanent(ctx, await ctx.once(ctx.harness.tls_failures), TLSError)


@case("delivery.tls-works", "live", needs=["tls_destination"], waivable=True, like="delivery.tls-failure")
async def tls_works(ctx: Context) -> None:
    """With a good certificate the connection is made with TLS, and messages are delivered over it."""
    target = await ctx.do(ctx.harness.tls_destination)
    broker = ctx.open(target.url)
    try:
        await broker.connect()
    except ConnectError as error:
        check(False, f"the certificate is good, and connect() raised {show(error)}")
    outcome = await outcome_of(broker.send_message(ctx.message(target.topic)))
    check_receipt(outcome, "over TLS a good message")


@case(
    "delivery.tls-is-never-given-up",
    "live",
    needs=["tls_failures", "proxy"],
    waivable=True,
    like="delivery.tls-failure",
)
async def tls_is_never_given_up(ctx: Context) -> None:
    """With TLS in the config string, a server that speaks plain text gets no login and no message: `TLSError`."""
    proxy = ctx.proxy
    urls = [*(await ctx.once(ctx.harness.tls_failures)).values()]
    seen, answers = bytearray(), bytearray()

    def watch(data: bytes) -> bytes:
        seen.extend(data)
        return data

    def hear(data: bytes) -> bytes:
        answers.extend(data)
        return data

    await ctx.do(lambda: proxy.rewrite(watch, "up"))
    await ctx.do(lambda: proxy.rewrite(hear, "down"))
    try:
        async with ctx.open():
            pass
        if seen.startswith(_TLS_RECORD):
            raise NotApplicable("the harness' own server speaks no plain text")
        seen.clear()
        for url in urls:
            at_plain = _at(ctx, url, Host(proxy.host, proxy.port))
            answers.clear()
            await _refused(ctx, ctx.open(at_plain, connect_timeout=1.0, delivery_timeout=1.0), answers)
    finally:
        await ctx.do(proxy.heal)
    check(_LOGIN.encode() not in seen, "the login went over the wire in plain text")
    check(b"canary-tls-body" not in seen, "a message went over the wire in plain text")


async def _refused(ctx: Context, broker: Broker, answers: bytearray) -> None:
    try:
        await broker.connect()
    except ConnectError as error:
        # A server may wait for the rest of what it takes for a line of its own: then it cannot be told from a dead one.
        right = type(error) is TLSError or (type(error) is UnreachableError and not answers)
        check(right, f"connect(): expected TLSError, got {show(error)}")
    else:
        check(False, "the server speaks plain text, and connect() returned")
    outcome = await outcome_of(broker.send_message(ctx.message("orders", b"canary-tls-body")))
    check(not isinstance(outcome, Receipt), "the server speaks plain text, and a send got a receipt")
    await broker.close(1.0)


def _at(ctx: Context, url: str, host: Host) -> str:
    """The config string with another host, and with a login that can be found on the wire."""
    known = BrokerURL.parse(url)
    text = known.replace(hosts=[host]).render(reveal=True)
    for name, value in known.query.items():
        if isinstance(value, Secret) and not name.startswith(("ssl", "tls")):
            text = text.replace(f"{name}={quote(value.reveal(), safe=':/,+=*')}", f"{name}={_LOGIN}")
    if "userinfo" in load_plugin(known.scheme, ctx.harness.distribution).options_type().url_parts:
        scheme, _, rest = text.partition("://")
        user = quote(known.username or "somebody", safe="")
        text = f"{scheme}://{user}:{_LOGIN}@{rest if known.username is None else rest.partition('@')[2]}"
    return text
