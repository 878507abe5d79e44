"""Cases about TLS: it works, it verifies, it is never given up, and what is true without it is true with it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import quote

from cqrs_brokers import Broker, ConfigError, ConnectError, Receipt, TLSError, UnreachableError
from cqrs_brokers.hooks import load_plugin
from cqrs_brokers.secret import Secret
from cqrs_brokers.tls import TLSOptions
from cqrs_brokers.url import BrokerURL, Host
from cqrs_brokers_testkit.certificates import Certificates, make_certificates
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
from cqrs_brokers_testkit.conformance._peers import Peer, peer
from cqrs_brokers_testkit.conformance._watching import nothing_left
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.servers import free_port

_LOGIN = "canary-login-45"
_TLS_RECORD = b"\x16\x03"
_GRACE = 1.0
_BODY = b"canary-tls-body"


@case("delivery.tls-failure", "live", needs=["tls_failures"], waivable=True)
async def tls_failure(ctx: Context) -> None:
    """An expired certificate, one for another host, one of an unknown authority: `TLSError` within 2 s."""
    await check_permanent(ctx, await ctx.once(ctx.harness.tls_failures), TLSError)


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
    limit=60.0,
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
            await _refused(ctx, ctx.open(at_plain, connect_timeout=3.0, delivery_timeout=1.0), answers)
    finally:
        await ctx.do(proxy.heal)
    check(_LOGIN.encode() not in seen, "the login went over the wire in plain text")
    check(_BODY not in seen, "a message went over the wire in plain text")


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


@contextlib.contextmanager
def _certificates() -> Iterator[Certificates]:
    with tempfile.TemporaryDirectory() as folder:
        yield make_certificates(Path(folder))


@contextlib.asynccontextmanager
async def _tls_peer(certificate: Path, key: Path) -> AsyncIterator[Peer]:
    """A peer that presents this certificate and then says nothing."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    async with peer(tls=context) as there:
        yield there


@case(
    "delivery.tls-verifies-certificates",
    "live",
    needs=["tls_destination"],
    waivable=True,
    like="delivery.tls-failure",
    limit=60.0,
)
async def tls_verifies_certificates(ctx: Context) -> None:
    """A certificate that has expired, is for another host or of another authority: `TLSError` in every combination.

    By name, by address, on a second host, with a client certificate; and nothing is written to such a peer.
    """
    known = BrokerURL.parse((await ctx.once(ctx.harness.tls_destination)).url)
    if not issubclass(load_plugin(known.scheme, ctx.harness.distribution).options_type(), TLSOptions):
        raise NotApplicable("its options for TLS are not those of `TLSOptions`, so the suite cannot name an authority")
    with _certificates() as made:
        async with _tls_peer(made.server, made.server_key) as good:
            error = await _error_at(ctx, known, [Host("localhost", good.port)], made.ca, within=1.5)
            if not good.accepted:
                raise NotApplicable("its TLS begins after a greeting in plain text")
            check(type(error) is not TLSError, f"the certificate is good, and connect() raised {show(error)}")
        for what, certificate, key, authority in (
            ("expired", made.expired, made.expired_key, made.ca),
            ("another host's", made.wrong_host, made.wrong_host_key, made.ca),
            ("of an unknown authority", made.server, made.server_key, made.other_ca),
        ):
            async with _tls_peer(certificate, key) as bad:
                for how, hosts, own in (
                    ("by name", [Host("localhost", bad.port)], None),
                    ("by address", [Host("127.0.0.1", bad.port)], None),
                    ("on the second host", [Host("127.0.0.1", free_port()), Host("localhost", bad.port)], None),
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


async def _error_at(
    ctx: Context,
    known: BrokerURL,
    hosts: list[Host],
    authority: Path,
    own: Certificates | None = None,
    *,
    within: float = 6.0,
) -> ConnectError | None:
    """The error of `connect()` with these hosts, this authority, and perhaps a client certificate."""
    text, _, query = known.replace(hosts=hosts).render(reveal=True).partition("?")
    options = [option for option in query.split("&") if option and not option.startswith("ssl_")]
    options.append(f"ssl_cafile={authority}")
    if own is not None:
        options += [f"ssl_certfile={own.client}", f"ssl_keyfile={own.client_key}"]
    broker = ctx.open(f"{text}?{'&'.join(options)}", connect_timeout=within, delivery_timeout=2.0)
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
    """Over TLS, too: no receipt before the answer, a reconnect that verifies again, a bounded close, nothing left."""
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
        await _is_verified_again(ctx, proxy, broker, known, target.topic)
        with Clock() as clock:
            await broker.close(1.0)
        check(clock.seconds <= 1.0 + _GRACE, f"close(1.0) took {clock.seconds:.1f} s over TLS")
        await _leaves_nothing(ctx, proxy, url, target.topic)


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
    """Demands that a peer which is not the server, but now listens at the same address, gets no login and no
    message."""
    server = proxy.target
    with _certificates() as made:
        async with _tls_peer(made.server, made.server_key) as other, peer() as plain:
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
