"""Cases about every way in which a connect fails or a connection ends: nothing secret is told, nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import warnings
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from cqrs_brokers import Broker
from cqrs_brokers.url import BrokerURL, Host
from cqrs_brokers_testkit.canary import shown
from cqrs_brokers_testkit.conformance._case import (
    CaseFailed,
    Context,
    NotApplicable,
    Unsupported,
    case,
    check,
    outcome_of,
    takes_credentials,
)
from cqrs_brokers_testkit.conformance._connecting import connect_error, own_address
from cqrs_brokers_testkit.conformance._failing import CUT, NO_BROKER, NONSENSE, PEERS, failing_connects
from cqrs_brokers_testkit.conformance._peers import peer
from cqrs_brokers_testkit.conformance._watching import everything, logs_at_debug, nothing_left
from cqrs_brokers_testkit.proxy import FaultProxy

_LOGIN = "canary-password-54"
_APART = 0.03
"""Seconds between the beginnings of two attempts, so that no turn of the event loop does the work of many attempts."""
_AT_ONCE = 16
"""This many attempts run at the same time. With more attempts, a driver on a busy machine could miss its times."""
_STOPS = 0.25
"""A turn of the event loop that takes this many seconds holds up everything else in the program."""
_SUCCESSORS = (
    *("says nothing", "speaks another protocol", "hangs up", "resets"),
    *("sends nonsense first", "writes back what it gets"),
)
"""The peers that take the broker's place while a driver is connected."""
_REFUSALS = ("forbidden_destination", "make_unroutable", "missing_destination", "nacking_destination")


def _losses() -> Mapping[str, Callable[[FaultProxy], object]]:
    """Returns the faults that can end a working connection, by name."""
    return {
        "is reset": lambda proxy: proxy.reset(),
        "is closed": lambda proxy: proxy.close_connections(),
        "is finished by the broker": lambda proxy: proxy.half_close("down"),
        "brings what nobody asked for": lambda proxy: proxy.insert(NO_BROKER + b"\0"),
        "brings nonsense": lambda proxy: proxy.insert(NONSENSE),
        "brings lines of garbage": lambda proxy: proxy.rewrite(lambda _: b"!garbage!\r\n"),
        "brings inverted bits": lambda proxy: proxy.corrupt(),
        "brings nothing any more": lambda proxy: proxy.stall("down"),
    }


async def _each(works: Mapping[str, Coroutine[Any, Any, None]]) -> None:
    """Runs all attempts, several at the same time. They begin one after the other."""
    places = asyncio.Semaphore(_AT_ONCE)

    async def begin(number: int, work: Coroutine[Any, Any, None]) -> None:
        with contextlib.closing(work):  # it may never be begun
            await asyncio.sleep(number * _APART)
            async with places:
                await work

    try:
        async with asyncio.TaskGroup() as group:
            for number, (what, work) in enumerate(works.items()):
                group.create_task(begin(number, work), name=f"conformance: {what}")
    except ExceptionGroup as group:  # `except*` would raise a group again
        for kind in (CaseFailed, NotApplicable):
            for each in group.exceptions:
                if isinstance(each, kind):
                    raise each from None
        raise


def _opened(ctx: Context, url: str, **options: float) -> tuple[Broker, list[str]]:
    """Opens a broker. Returns the broker and the warnings: a login to a host that is not loopback gives a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        broker = ctx.open(url, connect_timeout=1.0, **options)
    return broker, [str(warning.message) for warning in caught]


# -- the event loop ----------------------------------------------------------------------------------------------------


@case("faults.loop-goes-on-in-trouble", "fault", needs=["hosts_url"], limit=120.0)
async def loop_goes_on_in_trouble(ctx: Context) -> None:
    """Failed connects, ended connections and refused messages never stop the event loop."""
    assert ctx.turns is not None
    own_address(ctx)  # the case does not apply to a broker without one
    async with failing_connects(ctx, _LOGIN) as urls:
        for _ in range(3):  # in the first round is done what is done once per process
            before = len(ctx.turns.found)
            ctx.turns.measure()
            await _each({what: _fails(ctx, url) for what, url in urls.items()})
            await _each({what: _loses(ctx, act) for what, act in _losses().items()})
            await _is_refused(ctx)
            seconds, stopped = ctx.turns.longest, ctx.turns.found[before:]
            if seconds < _STOPS and not stopped:
                return
    check(False, f"{'; '.join(stopped) or 'the event loop was stopped'}; the longest time was {seconds:.2f} s")


async def _fails(ctx: Context, url: str) -> None:
    broker, _ = _opened(ctx, url, delivery_timeout=0.7)
    await connect_error(broker.connect())
    await outcome_of(broker.send_message(ctx.message("orders")))
    await broker.close(0.5)


async def _loses(ctx: Context, act: Callable[[FaultProxy], object]) -> None:
    topic = await ctx.topic()
    async with FaultProxy(own_address(ctx)) as proxy:
        url = await ctx.do(lambda: ctx.harness.hosts_url([Host(proxy.host, proxy.port)]))
        broker = ctx.open(url, delivery_timeout=1.0)
        await outcome_of(broker.send_message(ctx.message(topic)))
        sends = [asyncio.ensure_future(outcome_of(broker.send_message(ctx.message(topic)))) for _ in range(3)]
        act(proxy)
        sends += [asyncio.ensure_future(outcome_of(broker.send_message(ctx.message(topic)))) for _ in range(3)]
        await asyncio.gather(*sends)
        await broker.close(0.5)


async def _is_refused(ctx: Context) -> None:
    for need in _REFUSALS:
        if ctx.harness.lacks(need) is None:
            with contextlib.suppress(NotApplicable, Unsupported):
                target = await ctx.once(getattr(ctx.harness, need))
                broker = ctx.open(target.url, delivery_timeout=2.0)
                for _ in range(2):
                    await outcome_of(broker.send_message(ctx.message(target.topic)))
    if ctx.harness.lacks("wrong_password_url") is None:
        with contextlib.suppress(NotApplicable, Unsupported):
            await _fails(ctx, await ctx.do(ctx.harness.wrong_password_url))


# -- the login ---------------------------------------------------------------------------------------------------------


class _Told:
    """Looks for the password in everything that is told while something goes wrong."""

    def __init__(self, password: str) -> None:
        self._secrets = {"the password": password}
        self._leaks: dict[str, list[str]] = {}

    def hear(self, when: str, *said: object) -> None:
        """Looks into an error with its causes, the `repr` and `str` of other objects, and the names of tasks and
        threads."""
        texts = [everything(each) if isinstance(each, BaseException) else f"{each!r} {each}" for each in said]
        texts += [task.get_name() for task in asyncio.all_tasks()] + [thread.name for thread in threading.enumerate()]
        self._leaks.setdefault(when, []).extend(shown(self._secrets, texts))

    async def use(self, when: str, broker: Broker, message: object) -> None:
        """Looks into what a broker says about itself, and about a message that it cannot send."""
        outcome = await outcome_of(broker.send_message(message))  # type: ignore[arg-type]
        self.hear(when, outcome, broker, broker.describe(), await broker.health())

    def check(self, logs: list[str]) -> None:
        """Demands that the password was found nowhere."""
        told = [f"{leaks[0]} ({when})" for when, leaks in self._leaks.items() if leaks]
        told += [f"{each} (in a log record or warning)" for each in shown(self._secrets, logs)]
        where = "can be read in an error, a log record, a warning, a repr or a name"
        check(not told, f"{'; '.join(told[:4])} {where}")


@case("lifecycle.nothing-confidential-is-told-of-a-login", "fault", needs=["peer_url"], limit=90.0, waits=True)
async def nothing_confidential_is_told_of_a_login(ctx: Context) -> None:
    """If a login fails in any way, no password is in an error, a log record, `health()`, a `repr` or a name.

    The same holds if `close()` is called in the middle of a login.
    """
    if not takes_credentials(ctx):
        raise NotApplicable("its config string has no user and password")
    told = _Told(_LOGIN)

    async def try_with(what: str, url: str) -> None:
        broker, warned = _opened(ctx, url, delivery_timeout=1.0)
        other, _ = _opened(ctx, url, delivery_timeout=1.0)
        told.hear(what, *warned)
        connecting = asyncio.ensure_future(connect_error(other.connect()))
        told.hear(what, await connect_error(broker.connect()))
        await told.use(what, broker, ctx.message("orders"))
        await broker.close(1.0)
        told.hear(what, broker)
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)

    async def close_while_connecting(what: str, url: str) -> None:
        broker, _ = _opened(ctx, url, delivery_timeout=1.0)
        connecting = asyncio.ensure_future(broker.connect())
        sending = asyncio.ensure_future(broker.send_message(ctx.message("orders")))
        await asyncio.sleep(0.2)
        await broker.close(0.2)
        ends = await asyncio.gather(connecting, sending, return_exceptions=True)
        told.hear(f"{what}, close() while it connects", *ends, broker, await broker.health())

    async with failing_connects(ctx, _LOGIN) as urls:
        with logs_at_debug() as logs:
            for way in (try_with, close_while_connecting):
                await _each({what: way(what, url) for what, url in urls.items()})
    told.check(logs)


@case("lifecycle.nothing-confidential-is-told-of-a-later-login", "fault", needs=["hosts_url"], limit=90.0)
async def nothing_confidential_is_told_of_a_later_login(ctx: Context) -> None:
    """If the connection ends or brings nonsense, and others take the broker's place, nothing tells the password."""
    if not takes_credentials(ctx):
        raise NotApplicable("its config string has no user and password")
    server, topic = own_address(ctx), await ctx.topic()
    good, password = await _login_that_works(ctx)
    told = _Told(password)

    async def lose(what: str, act: Callable[[FaultProxy], object], called: Callable[[], int] | None = None) -> None:
        async with FaultProxy(server) as proxy:
            url = good.replace(hosts=[Host(proxy.host, proxy.port)]).render(reveal=True)
            broker = ctx.open(url, connect_timeout=1.0, delivery_timeout=1.0)
            await ctx.works_again(broker, topic, 10.0)
            sending = asyncio.ensure_future(outcome_of(broker.send_message(ctx.message(topic))))
            act(proxy)

            async def was_called() -> bool:
                return called is None or called() > 0

            # A message that is sent before the end of the connection is seen ends by it, and tells of no log-in.
            await ctx.wait_for(was_called, 5.0, "its connection was reset, and it made no other")
            await told.use(what, broker, ctx.message(topic))
            told.hear(what, await sending)
            told.hear(what, await outcome_of(broker.send_message(ctx.message(topic))))  # it may be connected again
            await broker.close(0.5)
            told.hear(f"{what}, after close()", broker, await broker.health())

    def taken_by(port: int) -> Callable[[FaultProxy], object]:
        def take(proxy: FaultProxy) -> None:
            proxy.target = ("127.0.0.1", port)
            proxy.reset()

        return take

    with logs_at_debug() as logs:
        async with contextlib.AsyncExitStack() as stack:
            actions = {f"a connection that {what}": (act, None) for what, act in _losses().items()}
            for what in _SUCCESSORS:
                here = await stack.enter_async_context(peer(**PEERS[what]))
                actions[f"a peer that {what}"] = (taken_by(here.port), lambda here=here: here.accepted)  # type: ignore[assignment]
            await _each({what: lose(what, *way) for what, way in actions.items()})
    told.check(logs)


async def _login_that_works(ctx: Context) -> tuple[BrokerURL, str]:
    """Returns a config string with a password that the broker takes, and the password.

    Raises:
        NotApplicable: There is no password that could be recognised in a text.
    """
    own = BrokerURL.parse(ctx.url)
    any_login = BrokerURL.parse(await ctx.do(lambda: ctx.harness.url_with_credentials("somebody", _LOGIN)))
    for known in (any_login, own):
        secret = "" if known.password is None else known.password.reveal()
        if len(secret) < 6 or secret == known.username:
            continue
        broker = ctx.open(known.replace(hosts=own.hosts).render(reveal=True), connect_timeout=2.0)
        error = await connect_error(broker.connect())
        await broker.close(1.0)
        if error is None:
            return known, secret
    raise NotApplicable("the broker takes no password that could be found in a text")


# -- what is left ------------------------------------------------------------------------------------------------------


@case("lifecycle.failed-connects-leave-nothing", "live", needs=["peer_url"], limit=90.0)
async def failed_connects_leave_nothing(ctx: Context) -> None:
    """An attempt to connect that fails by login, certificate, silence or another protocol leaves nothing."""
    async with failing_connects(ctx, _LOGIN, lasting=False) as urls:
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

        async def try_all() -> None:
            await _each({what: _fails_alone(ctx, what, url) for what, url in urls.items()})

        await try_all()  # what is made once per process is made now
        try:
            async with nothing_left("after connects that failed"):
                await try_all()
        except CaseFailed as failed:
            ports = {
                f"remote port {host.port}": what for what, url in urls.items() for host in BrokerURL.parse(url).hosts
            }
            of = sorted({what for port, what in ports.items() if port in str(failed)})
            raise CaseFailed(f"{failed} ({', '.join(of) or 'of no connection'})") from None


async def _fails_alone(ctx: Context, what: str, url: str) -> None:
    broker = ctx.open_unowned(url, connect_timeout=1.0)
    try:
        error = await connect_error(broker.connect())
    finally:
        await broker.close(1.0)
    check(error is not None or CUT in what, f"{what}: it cannot succeed, and connect() returned")
