"""All ways in which an attempt to connect can fail and for which the suite has a peer."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cqrs_brokers.hooks import load_plugin
from cqrs_brokers.secret import Secret
from cqrs_brokers.tls import TLSOptions
from cqrs_brokers.url import BrokerURL, Host
from cqrs_brokers_testkit.certificates import Certificates, make_certificates
from cqrs_brokers_testkit.conformance._case import Context, NotApplicable, Unsupported, takes_credentials
from cqrs_brokers_testkit.conformance._peers import peer
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.servers import free_port

NO_BROKER = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n" * 4
CUT = " that is cut"
"""The end of the key of a peer whose answer is cut. A short answer may still be whole."""
NONSENSE = b"\xff" * 64
_HALVES = (1, 3, 12, 40, 120)
"""The answers of the real server are cut after these numbers of bytes."""
PEERS: Mapping[str, Mapping[str, Any]] = {
    "says nothing": {},
    "hangs up": {"hangs_up": True},
    "hangs up at once": {"hangs_up": True, "at_once": True},
    "resets": {"resets": True},
    "resets at once": {"resets": True, "at_once": True},
    "speaks another protocol": {"answer": NO_BROKER},
    "speaks another protocol first": {"answer": NO_BROKER, "at_once": True},
    "sends nonsense": {"answer": NONSENSE},
    "sends nonsense first": {"answer": NONSENSE, "at_once": True},
    "sends nonsense and hangs up": {"answer": NONSENSE, "hangs_up": True},
    "sends zeros": {"answer": bytes(64)},
    "sends a line without end": {"answer": b"x" * 200_000},
    "writes back what it gets": {"echoes": True},
}
"""The arguments of `peer`, by the behaviour of the peer."""


@contextlib.asynccontextmanager
async def certificates() -> AsyncIterator[Certificates]:
    """Makes throw-away certificates, and removes them at the end of the block."""
    with tempfile.TemporaryDirectory() as folder:
        yield await asyncio.to_thread(make_certificates, folder)


def serving(certificate: Path, key: Path) -> ssl.SSLContext:
    """Makes the TLS context of a server with this certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


def with_hosts(url: str, hosts: Iterable[Host]) -> str:
    """Returns the config string with these hosts."""
    return BrokerURL.parse(url).replace(hosts=list(hosts)).render(reveal=True)


def with_login(ctx: Context, url: str, login: str) -> str:
    """Returns the config string with this text in the place of its password and other secrets, except those of TLS."""
    known = BrokerURL.parse(url)
    text = known.render(reveal=True)
    for name, value in known.query.items():
        if isinstance(value, Secret) and not name.startswith(("ssl", "tls")):
            text = text.replace(f"{name}={quote(value.reveal(), safe=':/,+=*')}", f"{name}={quote(login, safe='')}")
    if "userinfo" in load_plugin(known.scheme, ctx.harness.distribution).options_type().url_parts:
        scheme, _, rest = text.partition("://")
        user = quote(known.username or "somebody", safe="")
        rest = rest if known.username is None else rest.partition("@")[2]
        text = f"{scheme}://{user}:{quote(login, safe='')}@{rest}"
    return text


def with_authority(url: str, authority: Path, own: Certificates | None = None) -> str:
    """Returns the config string with this authority, and perhaps a client certificate, in the place of its own."""
    text, _, query = url.partition("?")
    options = [option for option in query.split("&") if option and not option.startswith("ssl_")]
    options.append(f"ssl_cafile={authority}")
    if own is not None:
        options += [f"ssl_certfile={own.client}", f"ssl_keyfile={own.client_key}"]
    return f"{text}?{'&'.join(options)}"


def has_tls_options(ctx: Context, scheme: str) -> bool:
    """Whether the suite can name an authority in a config string of this scheme."""
    return issubclass(load_plugin(scheme, ctx.harness.distribution).options_type(), TLSOptions)


@contextlib.asynccontextmanager
async def failing_connects(ctx: Context, login: str, *, lasting: bool = True) -> AsyncIterator[dict[str, str]]:
    """Yields config strings with which `connect()` fails, or whose connection soon ends, by the behaviour of the peer.

    The peers end with the block.

    Args:
        ctx: The case's context.
        login: The password in all config strings that take a password.
        lasting: Whether to include peers that leave something of the suite for a while: a thread that looks up a name,
            or a stalled connection.
    """
    plain = ctx.url
    if takes_credentials(ctx):
        plain = await ctx.do(lambda: ctx.harness.url_with_credentials("somebody", login))
    async with contextlib.AsyncExitStack() as stack:
        made = await stack.enter_async_context(certificates())
        ports = {"where nobody listens": free_port()}
        for what, settings in PEERS.items():
            ports[f"a peer that {what}"] = (await stack.enter_async_context(peer(**settings))).port
        good = serving(made.server, made.server_key)
        foreign = (await stack.enter_async_context(peer(tls=good))).port
        server = next(iter(BrokerURL.parse(plain).hosts), None)
        halves = {}
        if server is not None and server.port is not None:
            halves = await _halves(stack, (server.host, server.port), "an answer", lasting)
        urls = _at_each(ctx, plain, {**ports, "a peer with TLS": foreign, **halves}, names=lasting)
        secure = await _secure_url(ctx)
        if secure is not None:
            secure = with_login(ctx, secure, login)
            at = {**ports, "a peer of an unknown authority": foreign}
            at |= await _halves(stack, ("127.0.0.1", foreign), "a handshake", lasting)
            urls |= {f"with TLS: {what}": url for what, url in _at_each(ctx, secure, at, names=lasting).items()}
            if has_tls_options(ctx, secure.partition("://")[0]):
                secure, at = with_authority(secure, made.ca), {}
                for what, settings in PEERS.items():
                    there = peer(tls=good, **settings)
                    at[f"a peer with TLS that {what}"] = (await stack.enter_async_context(there)).port
                for which in ("expired", "wrong_host"):
                    bad = serving(made.serving(which).server, made.serving(which).server_key)
                    at[f"a peer with a certificate: {which}"] = (await stack.enter_async_context(peer(tls=bad))).port
                urls |= _at_each(ctx, secure, at, names=False)
        yield urls


async def _halves(stack: contextlib.AsyncExitStack, there: tuple[str, int], what: str, lasting: bool) -> dict[str, int]:
    ports = {}
    for by in ("close", "reset", "stall") if lasting else ("close", "reset"):
        for count in _HALVES:
            proxy = await stack.enter_async_context(FaultProxy(there))
            proxy.cut_after(count, "down", by=by)
            ports[f"{what}{CUT} after {count} bytes by {by}"] = proxy.port
    return ports


async def _secure_url(ctx: Context) -> str | None:
    """Returns a config string with TLS. None: the harness has no such string."""
    if ctx.harness.lacks("tls_destination") is None:
        with contextlib.suppress(NotApplicable, Unsupported):
            return str((await ctx.once(ctx.harness.tls_destination)).url)
    return None


def _at_each(ctx: Context, url: str, ports: Mapping[str, int], *, names: bool) -> dict[str, str]:
    place = functools.partial(with_hosts, url)
    urls = {what: place([Host("127.0.0.1", port)]) for what, port in ports.items()}
    if names:
        urls["a name that does not exist"] = place([Host("no-such-host.invalid", 1)])
    return urls
