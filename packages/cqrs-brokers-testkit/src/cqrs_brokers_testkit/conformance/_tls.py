"""Cases about TLS: TLS works, verifies and is never given up, and outcomes over TLS are as true as without TLS."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import warnings
from collections.abc import AsyncIterator
from pathlib import Path

from cqrs_brokers import Broker, ConfigError, ConnectError, Receipt, TLSError, UnreachableError
from cqrs_brokers.url import BrokerURL, Host
from cqrs_brokers_testkit.certificates import ELSEWHERE, Certificates
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
from cqrs_brokers_testkit.conformance._connecting import check_permanent, connect_error
from cqrs_brokers_testkit.conformance._failing import (
    certificates,
    has_tls_options,
    serving,
    with_authority,
    with_hosts,
    with_login,
)
from cqrs_brokers_testkit.conformance._peers import TLS_RECORD, Peer, peer, tls_server, until_tls
from cqrs_brokers_testkit.conformance._watching import nothing_left
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.servers import free_port

_LOGIN = "canary-login-45"
_GRACE = 1.0
_BODY = b"canary-tls-body"


@case("delivery.tls-failure", "live", needs=["tls_failures"], waivable=True)
async def tls_failure(ctx: Context) -> None:
    """A certificate that is expired, for another host or of an unknown authority is `TLSError` within 2 s."""
    await check_permanent(ctx, await ctx.once(ctx.harness.tls_failures), TLSError)


@case("delivery.tls-works", "live", needs=["tls_destination"], waivable=True, like="delivery.tls-failure")
async def tls_works(ctx: Context) -> None:
    """With a good certificate the connection is made with TLS, and messages are delivered over this connection."""
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
    limit=60.0,
    needs=["tls_failures", "proxy"],
    waivable=True,
    like="delivery.tls-failure",
)
async def tls_is_never_given_up(ctx: Context) -> None:
    """With TLS in the config string, a server without TLS gets no login and no message, and the error is `TLSError`.

    With `require_tls=true` a config string without TLS is not opened.
    """
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
        if seen.startswith(TLS_RECORD):
            raise NotApplicable("the harness' own server speaks no plain text")
        if has_tls_options(ctx, BrokerURL.parse(ctx.url).scheme):
            _check_require_tls(ctx)
        seen.clear()
        for url in urls:
            at_plain = with_hosts(with_login(ctx, url, _LOGIN), [Host(proxy.host, proxy.port)])
            answers.clear()
            await _refused(ctx, ctx.open(at_plain, connect_timeout=3.0, delivery_timeout=1.0), answers)
    finally:
        await ctx.do(proxy.heal)
    check(_LOGIN.encode() not in seen, "the login went over the wire in plain text")
    check(_BODY not in seen, "a message went over the wire in plain text")


def _check_require_tls(ctx: Context) -> None:
    try:
        ctx.open(require_tls=True)
    except ConfigError:
        return
    check(False, "require_tls=true, and a config string without TLS was opened")


async def _refused(ctx: Context, broker: Broker, answers: bytearray) -> None:
    try:
        await broker.connect()
    except ConnectError as error:
        # A server may wait for the rest of what it takes for a line of its own: then it cannot be told from a dead one.
        right = type(error) is TLSError or (type(error) is UnreachableError and not answers)
        check(right, f"connect(): expected TLSError, got {show(error)}")
    else:
        check(False, "the server speaks plain text, and connect() returned")
    outcome = await outcome_of(broker.send_message(ctx.message("orders", _BODY)))
    check(not isinstance(outcome, Receipt), "the server speaks plain text, and a send got a receipt")
    await broker.close(1.0)


@contextlib.asynccontextmanager
async def _tls_peer(context: ssl.SSLContext, server: Host | None = None) -> AsyncIterator[Peer]:
    """Runs a peer that makes the handshake with this context and then says nothing.

    Args:
        context: The peer's certificate, and the versions that the peer speaks.
        server: The server that speaks until TLS begins, for a protocol with a greeting in plain text.
    """
    async with contextlib.AsyncExitStack() as stack:
        there = await stack.enter_async_context(tls_server(context))
        if server is not None:
            there.port = await stack.enter_async_context(until_tls((server.host, server.port or 0), there.port))
        yield there


async def _with_own_authority(ctx: Context) -> BrokerURL:
    """Returns the config string with TLS, for a driver whose authority the suite can name.

    Raises:
        NotApplicable: The driver has other options for TLS.
    """
    known = BrokerURL.parse((await ctx.once(ctx.harness.tls_destination)).url)
    if not has_tls_options(ctx, known.scheme):
        raise NotApplicable("its options for TLS are not those of `TLSOptions`, so the suite cannot name an authority")
    return known


async def _error_at_a_good_one(ctx: Context, known: BrokerURL, made: Certificates) -> ConnectError | None:
    """Returns the error of `connect()` with a peer whose certificate is good, and which then says nothing.

    Raises:
        NotApplicable: The driver makes no handshake with such a peer.
    """
    async with _tls_peer(serving(made.server, made.server_key), known.hosts[0]) as good:
        error = await _error_at(ctx, known, [Host("localhost", good.port)], made.ca, within=1.5)
        if not good.accepted:
            raise NotApplicable("its TLS begins neither at once nor after what the server says in plain text")
    return error


@case(
    "delivery.tls-verifies-certificates",
    "live",
    needs=["tls_destination"],
    waivable=True,
    like="delivery.tls-failure",
    limit=60.0,
    waits=True,
)
async def tls_verifies_certificates(ctx: Context) -> None:
    """A certificate that is expired, for another host or of another authority is `TLSError` in every combination.

    The combinations: by name, by address, on a second host, also with the certificate of the first host, and with a
    client certificate. Nothing is written to such a peer.
    """
    known = await _with_own_authority(ctx)
    async with certificates() as made:
        error = await _error_at_a_good_one(ctx, known, made)
        check(type(error) is not TLSError, f"the certificate is good, and connect() raised {show(error)}")
        for what, certificate, key, authority in (
            ("expired", made.expired, made.expired_key, made.ca),
            ("another host's", made.wrong_host, made.wrong_host_key, made.ca),
            ("of an unknown authority", made.server, made.server_key, made.other_ca),
        ):
            async with _tls_peer(serving(certificate, key), known.hosts[0]) as bad:
                for how, hosts, own in (
                    ("by name", [Host("localhost", bad.port)], None),
                    ("by address", [Host("127.0.0.1", bad.port)], None),
                    ("on the second host", [Host("127.0.0.1", free_port()), Host("localhost", bad.port)], None),
                    ("with another host's name", [Host(ELSEWHERE, free_port()), Host("localhost", bad.port)], None),
                    ("with a client certificate", [Host("localhost", bad.port)], made),
                ):
                    said = f"a certificate that is {what}, {how}"
                    try:
                        error = await _error_at(ctx, known, hosts, authority, own)
                    except ConfigError:
                        check(len(hosts) > 1, f"{said}: the config string is refused")
                        continue
                    check(type(error) is TLSError, f"{said}: expected TLSError, got {show(error)}")
                    check(not bad.received, f"{said}: something was written to that peer")


@case(
    "delivery.tls-shows-its-certificate",
    "live",
    needs=["tls_destination"],
    waivable=True,
    like="delivery.tls-failure",
    waits=True,
)
async def tls_shows_its_certificate(ctx: Context) -> None:
    """A server that demands a certificate of its client gets that of the config string."""
    known = await _with_own_authority(ctx)
    async with certificates() as made:
        await _error_at_a_good_one(ctx, known, made)
        context = serving(made.server, made.server_key)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(made.ca)
        async with _tls_peer(context, known.hosts[0]) as strict:
            await _error_at(ctx, known, [Host("localhost", strict.port)], made.ca, made, within=1.5)
            check(strict.accepted, "a peer demanded the certificate of the config string, and did not get it")


@case(
    "delivery.tls-takes-no-old-version",
    "live",
    needs=["tls_destination"],
    waivable=True,
    like="delivery.tls-failure",
    limit=60.0,
)
async def tls_takes_no_old_version(ctx: Context) -> None:
    """A server that speaks only TLS 1.0 or 1.1 gets no login and no message, and the error is `TLSError`."""
    known = await _with_own_authority(ctx)
    tried = 0
    async with certificates() as made:
        await _error_at_a_good_one(ctx, known, made)
        for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            context = serving(made.server, made.server_key)
            _speak_only(context, version)
            async with _tls_peer(context) as direct:
                spoken = await _is_spoken(direct.port, version)
            async with _tls_peer(context, known.hosts[0]) as old:
                if not spoken:
                    continue
                tried += 1
                error = await _error_at(ctx, known, [Host("localhost", old.port)], made.ca, within=3.0)
                said = f"a server that speaks no newer TLS than {version.name}"
                check(not old.accepted, f"with {said} the handshake succeeded")
                check(not old.received, f"something was written to {said}")
                check(type(error) is TLSError, f"{said}: expected TLSError, got {show(error)}")
    if not tried:
        raise NotApplicable("this system's OpenSSL cannot speak TLS 1.0 or 1.1, so nobody here can accept it")


def _speak_only(context: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    """Makes the context speak only one version, however old. At level 0 OpenSSL takes the hashes of old versions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it says that they are old
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")


async def _is_spoken(port: int, version: ssl.TLSVersion) -> bool:
    """Returns whether a client that takes this version can make the handshake with a peer on this system."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _speak_only(context, version)
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    except OSError:
        return False
    writer.transport.abort()
    return True


async def _error_at(
    ctx: Context,
    known: BrokerURL,
    hosts: list[Host],
    authority: Path,
    own: Certificates | None = None,
    *,
    within: float = 6.0,
) -> ConnectError | None:
    """Returns the error of `connect()` with these hosts, this authority, and perhaps a client certificate."""
    url = with_authority(known.replace(hosts=hosts).render(reveal=True), authority, own)
    broker = ctx.open(url, connect_timeout=within, delivery_timeout=2.0)
    error = await connect_error(broker.connect())
    await broker.close(1.0)
    return error


@case(
    "delivery.tls-is-as-true",
    "fault",
    needs=["tls_destination"],
    capability="confirms",
    waivable=True,
    like="delivery.tls-failure",
)
async def tls_is_as_true(ctx: Context) -> None:
    """TLS changes no rule: no receipt before the answer, each reconnect verifies, close is bounded, nothing is left."""
    target = await ctx.do(ctx.harness.tls_destination)
    known = BrokerURL.parse(target.url)
    host = known.hosts[0]
    with FaultProxy((host.host, host.port or 0)) as proxy:
        url = known.replace(hosts=[Host(host.host, proxy.port)]).render(reveal=True)
        broker = ctx.open(url, delivery_timeout=6.0)
        check_receipt(await outcome_of(broker.send_message(ctx.message(target.topic))), "over TLS a good message")
        await ctx.do(lambda: proxy.stall("down"))
        late = asyncio.ensure_future(outcome_of(broker.send_message(ctx.message(target.topic))))
        await asyncio.sleep(0.5)
        early, held = late.done(), proxy.bytes_held
        await ctx.do(proxy.heal)
        if not held:
            raise NotApplicable("its messages go to another address than that of the config string")
        check(not early, "over TLS the send ended before the broker had answered")
        check_receipt(await late, "the answer came, and the send")
        await _ends_without_answers(ctx, proxy, broker, target.topic)
        await _is_verified_again(ctx, proxy, broker, known, target.topic)
        with Clock() as clock:
            await broker.close(1.0)
        check(clock.seconds <= 1.0 + _GRACE, f"close(1.0) took {clock.seconds:.1f} s over TLS")
        await _leaves_nothing(ctx, proxy, url, target.topic)


async def _ends_without_answers(ctx: Context, proxy: FaultProxy, broker: Broker, topic: str) -> None:
    """Demands that the end of a stalled connection confirms nothing."""
    for end in (proxy.reset, proxy.close_connections):
        await ctx.do(lambda: proxy.stall("up"))
        sends = [asyncio.ensure_future(outcome_of(broker.send_message(ctx.message(topic)))) for _ in range(5)]
        await asyncio.sleep(0.3)
        early = [send for send in sends if not send.done()]
        await ctx.do(end)
        done, _ = await asyncio.wait(early, timeout=0.3) if early else (set(), set())
        lied = any(isinstance(send.result(), Receipt) for send in done)
        await ctx.do(proxy.heal)
        check(not lied, "over TLS nothing got through, the connection ended, and a send got a receipt")
        await asyncio.wait(sends)
        await ctx.works_again(broker, topic)


async def _leaves_nothing(ctx: Context, proxy: FaultProxy, url: str, topic: str) -> None:
    async def use() -> None:
        broker = ctx.open_unowned(url)
        try:
            await ctx.works_again(broker, topic)
            await ctx.do(proxy.reset)
            await ctx.works_again(broker, topic)
        finally:
            await broker.close(1.0)

    await use()  # what is made once per process is made now
    await ctx.do(proxy.reset)
    async with nothing_left("after a reconnect over TLS"):
        await use()


async def _is_verified_again(ctx: Context, proxy: FaultProxy, broker: Broker, known: BrokerURL, topic: str) -> None:
    """Demands that another peer, which now listens at the server's address, gets no login and no message."""
    server = proxy.target
    async with certificates() as made:
        async with _tls_peer(serving(made.server, made.server_key)) as other, peer() as plain:
            for what, there in (("with a certificate that is not trusted", other), ("without TLS", plain)):
                proxy.target = ("127.0.0.1", there.port)
                await ctx.do(proxy.reset)
                await asyncio.sleep(0.5)
                sending = asyncio.ensure_future(outcome_of(broker.send_message(ctx.message(topic, _BODY))))
                done, _ = await asyncio.wait([sending], timeout=1.5)
                check(not any(isinstance(o.result(), Receipt) for o in done), f"a peer {what} took its place: receipt")
                password = b"" if known.password is None else known.password.reveal().encode()
                secrets = [secret for secret in (_BODY, password) if secret and secret in there.received]
                told = secrets or (there is other and there.received)
                check(not told, f"after a reconnect to a peer {what} something was told to it")
                sending.cancel()
            proxy.target = server
    await ctx.do(proxy.reset)
