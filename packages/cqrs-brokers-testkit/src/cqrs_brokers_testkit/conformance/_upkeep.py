"""Cases about what a driver keeps and tells beside the outcome, and about connections that come after the first."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import threading
import time
import warnings
from typing import Any
from unittest import mock

from cqrs_brokers import Broker
from cqrs_brokers.url import BrokerURL, Host
from cqrs_brokers_testkit.canary import chain, shown
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
    takes_credentials,
)
from cqrs_brokers_testkit.conformance._connecting import connect_error, open_at, own_address
from cqrs_brokers_testkit.conformance._peers import Peer, peer
from cqrs_brokers_testkit.conformance._watching import logs_at_debug, nothing_left
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.servers import free_port

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


async def _deliveries() -> int:
    """How many `Delivery` objects exist in this process, whoever holds them."""
    gc.collect()
    classes = {kind for kind in {type(each) for each in gc.get_objects()} if _is_a_delivery(kind)}
    return sum(type(each) in classes for each in gc.get_objects())


def _is_a_delivery(kind: type) -> bool:
    return all(hasattr(kind, name) for name in _OF_A_DELIVERY)


@case("delivery.nothing-is-kept-after-the-answer", "live")
async def nothing_is_kept_after_the_answer(ctx: Context) -> None:
    """A driver holds no message that has its outcome: 1 000 that were answered leave none behind."""
    broker, topic = ctx.open(), await ctx.topic()
    await broker.connect()
    before, count = await _deliveries(), ctx.count(1_000, 200)
    check_all_receipts(await broker.send_messages([ctx.message(topic, {"n": n}) for n in range(count)]))

    async def are_gone() -> bool:
        return await _deliveries() < before + 20

    await ctx.wait_for(are_gone, 2.0, f"{count} messages have their outcome, and something keeps them")


@case("lifecycle.nothing-confidential-is-told-in-trouble", "fault", needs=["stall", "reset"])
async def nothing_confidential_is_told_in_trouble(ctx: Context) -> None:
    """No body, key or header value is in a log record or error when messages are lost, late, waiting or refused."""
    topic, told, keeps = await ctx.topic(), list[str](), ctx.capabilities
    fields: dict[str, object] = {"headers": {"h": _CANARIES["a header"]} if keeps.headers else {}}
    fields["key"] = _CANARIES["the key"] if keeps.ordering_key else None

    def send(broker: Broker, to: str, count: int = 20) -> list[asyncio.Future[object]]:
        body = {"b": _CANARIES["the body"]}
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
                if ends_by is not None:
                    await ctx.do(ends_by)
                    sends += send(broker, topic)
                told += map(_everything, await asyncio.gather(*sends))
            finally:
                await ctx.do(ctx.harness.resume)
            await ctx.works_again(broker, topic)
        if ctx.harness.lacks("proxy") is None:
            async with ctx.healed() as proxy:
                await ctx.do(lambda: proxy.rewrite(lambda _: b"!garbage!\r\n", "down"))
                told += map(_everything, await asyncio.gather(*send(broker, topic)))
                told += [repr(await broker.health()), repr(broker.describe())]
            await ctx.works_again(broker, topic)
        for need in ("forbidden_destination", "make_unroutable", "missing_destination", "nacking_destination"):
            if ctx.harness.lacks(need) is None:
                with contextlib.suppress(NotApplicable, Unsupported):
                    target = await ctx.once(getattr(ctx.harness, need))
                    told += map(_everything, await asyncio.gather(*send(ctx.open(target.url), target.topic, 2)))
    leaks = shown(_CANARIES, [*logs, *told])
    check(not leaks, f"{' and '.join(leaks)} can be read in log records, warnings or errors")


def _everything(outcome: object) -> str:
    """The text of an error, with those of its causes."""
    led_to_it = chain(outcome) if isinstance(outcome, BaseException) else ()
    return "\n".join([show(outcome), *(f"{each!r} {each}" for each in led_to_it)])


@case("lifecycle.failed-connects-leave-nothing", "live", needs=["peer_url"], limit=60.0)
async def failed_connects_leave_nothing(ctx: Context) -> None:
    """Whatever an attempt to connect fails by (login, certificate, silence, another protocol), it leaves nothing."""
    async with peer() as nobody, peer(_NO_BROKER) as other:
        urls = {
            "a silent peer": await ctx.do(lambda: ctx.harness.peer_url(nobody.port)),
            "a peer of another protocol": await ctx.do(lambda: ctx.harness.peer_url(other.port)),
        }
        for need, what in (
            ("wrong_password_url", "a wrong password"),
            ("wrong_permission_url", "a missing permission"),
        ):
            if ctx.harness.lacks(need) is None:
                with contextlib.suppress(NotApplicable, Unsupported):
                    urls[what] = await ctx.do(getattr(ctx.harness, need))
        if ctx.harness.lacks("tls_failures") is None:
            with contextlib.suppress(NotApplicable, Unsupported):
                urls |= await ctx.once(ctx.harness.tls_failures)
        for what, url in urls.items():
            await _fails_to_connect(ctx, url)  # what is made once per process is made now
            async with nothing_left(f"after a connect that failed ({what})"):
                await _fails_to_connect(ctx, url)


async def _fails_to_connect(ctx: Context, url: str) -> None:
    broker = ctx.open_unowned(url, connect_timeout=1.0)
    try:
        error = await connect_error(broker.connect())
    finally:
        await broker.close(1.0)
    check(error is not None, "it cannot succeed, and connect() returned")


_NO_BROKER = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n" * 4
_LOGIN = "canary-password-54"


@case("lifecycle.nothing-confidential-is-told-of-a-login", "fault", needs=["peer_url"])
async def nothing_confidential_is_told_of_a_login(ctx: Context) -> None:
    """No password, in any form, is in an error, a log record, `health()`, `repr` or a name when a login fails oddly."""
    if not takes_credentials(ctx):
        raise NotApplicable("its config string has no user and password")
    told: list[str] = []

    async def try_at(hosts: list[Host]) -> None:
        text = await ctx.do(lambda: ctx.harness.url_with_credentials("somebody", _LOGIN))
        url = BrokerURL.parse(text).replace(hosts=hosts).render(reveal=True)
        with warnings.catch_warnings(record=True) as caught:
            broker = ctx.open(url, connect_timeout=0.7, delivery_timeout=1.0)
        error = await connect_error(broker.connect())
        outcome = await outcome_of(broker.send_message(ctx.message("orders")))
        told.extend([_everything(error), _everything(outcome), repr(broker), str(broker), repr(broker.describe())])
        told.extend([repr(await broker.health()), *(str(warning.message) for warning in caught)])
        told.extend(task.get_name() for task in asyncio.all_tasks())
        await broker.close(1.0)

    async with contextlib.AsyncExitStack() as stack:
        peers = (peer(), peer(_NO_BROKER), peer(b"\xff" * 64), peer(hangs_up=True), peer(resets=True))
        ports = [free_port(), *[(await stack.enter_async_context(each)).port for each in peers]]
        there = next(iter(BrokerURL.parse(ctx.url).hosts), None)
        if there is not None and there.port is not None:
            half = await stack.enter_async_context(FaultProxy((there.host, there.port)))
            half.cut_after(3, "down", by="close")
            ports.append(half.port)
        with logs_at_debug() as logs:
            await asyncio.gather(*(try_at([Host("127.0.0.1", port)]) for port in ports))
        told += logs
    told.extend(thread.name for thread in threading.enumerate())
    leaks = shown({"the password": _LOGIN}, told)
    check(not leaks, f"{' and '.join(leaks)} can be read in an error, a log record, a warning, a repr or a name")


@case("lifecycle.nothing-confidential-is-told-of-a-later-login", "fault", needs=["hosts_url"])
async def nothing_confidential_is_told_of_a_later_login(ctx: Context) -> None:
    """The broker's place is taken by others while the driver is connected: nothing tells the password then, either."""
    if not takes_credentials(ctx):
        raise NotApplicable("its config string has no user and password")
    topic, told = await ctx.topic(), list[str]()
    with FaultProxy(own_address(ctx)) as proxy, logs_at_debug() as logs:
        url, password = await _login_that_works(ctx, Host(proxy.host, proxy.port))
        server = proxy.target
        broker = ctx.open(url, connect_timeout=0.7, delivery_timeout=1.0)
        check_receipt(await outcome_of(broker.send_message(ctx.message(topic))))
        for other in (peer(), peer(_NO_BROKER), peer(hangs_up=True), peer(resets=True)):
            async with other as there:
                proxy.target = ("127.0.0.1", there.port)
                await ctx.do(proxy.reset)

                async def was_called(there: Peer = there) -> bool:
                    return there.accepted > 0

                # A message that is sent before the end of the connection is seen ends by it, and tells of no log-in.
                await ctx.wait_for(was_called, 5.0, "its connection was reset, and it made no other")
                told.append(_everything(await outcome_of(broker.send_message(ctx.message(topic)))))
                told += [repr(await broker.health()), repr(broker.describe())]
                told.extend(task.get_name() for task in asyncio.all_tasks())
            proxy.target = server
            await ctx.do(proxy.reset)
            await ctx.works_again(broker, topic, 15.0)
        await broker.close(1.0)
    leaks = shown({"the password": password}, [*logs, *told])
    check(not leaks, f"{' and '.join(leaks)} can be read in an error, a log record or a name when it connects again")


async def _login_that_works(ctx: Context, host: Host) -> tuple[str, str]:
    """A config string with a password that the broker takes, at this host, and the password.

    Raises:
        NotApplicable: There is none that could be found in a text.
    """
    own = BrokerURL.parse(ctx.url)
    any_login = BrokerURL.parse(await ctx.do(lambda: ctx.harness.url_with_credentials("somebody", _LOGIN)))
    for known in (any_login, own):
        secret = "" if known.password is None else known.password.reveal()
        if len(secret) < 6 or secret == known.username:
            continue
        url = known.replace(hosts=[host]).render(reveal=True)
        broker = ctx.open(url, connect_timeout=2.0)
        error = await connect_error(broker.connect())
        await broker.close(1.0)
        if error is None:
            return url, secret
    raise NotApplicable("the broker takes no password that could be found in a text")


_IDLE = 1.0
_A_LITTLE = 0.03
"""Which share of one processor an event loop may need while nothing happens."""


@case("lifecycle.idle-is-idle", "live")
async def idle_is_idle(ctx: Context) -> None:
    """While nothing is sent, a connected driver leaves the event loop alone: it does not ask again and again."""
    broker = ctx.open()
    check_receipt(await outcome_of(broker.send_message(ctx.message(await ctx.topic()))))
    await asyncio.sleep(0.3)  # what comes after an answer is over
    before = time.thread_time()
    await asyncio.sleep(_IDLE)
    share = (time.thread_time() - before) / _IDLE
    check(share < _A_LITTLE, f"nothing was sent, and the event loop was busy for {share:.0%} of the time")


@case("lifecycle.names-are-looked-up-beside-the-loop", "live", needs=["hosts_url"])
async def names_are_looked_up_beside_the_loop(ctx: Context) -> None:
    """A host's name is looked up without stopping the event loop, which a slow name server would else do."""
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
