"""The case about the form of a login on the wire."""

from __future__ import annotations

import asyncio
import base64
import json

from cqrs_brokers import ConfigError
from cqrs_brokers.url import BrokerURL, Host
from cqrs_brokers_testkit.canary import forms_of
from cqrs_brokers_testkit.conformance._case import Context, NotApplicable, case, check, takes_credentials
from cqrs_brokers_testkit.conformance._connecting import connect_error
from cqrs_brokers_testkit.proxy import FaultProxy

_USER, _PASSWORD = "canaryUser61", "canaryPassword62"
_ODD = {
    "a percent sign": "canary%pass",
    "what looks percent-encoded": "canary%41%2Bpass",
    "a plus sign": "canary+pass",
    "a colon": "canary:pass",
    "an at sign": "canary@pass",
    "slashes": "canary/pass//word",
    "marks of an address": "canary?pass#word&a=b",
    "spaces": " canary pass ",
    "quotes and backslashes": "canary\"pass'\\word",
    "letters beyond ASCII": "canaryé世pass",
    "decomposed letters": "canarye\u0301pass",
    "300 characters": "canary" + "x7" * 147,
}


@case("delivery.login-is-sent-as-it-is", "live", needs=["hosts_url"], waivable=True, like="delivery.wrong-password")
async def login_is_sent_as_it_is(ctx: Context) -> None:
    """User name and password go to the broker as they are, whatever characters they have, or they are refused."""
    if not takes_credentials(ctx):
        raise NotApplicable("its config string has no user and password")
    seen = await _written(ctx, _USER, _PASSWORD)
    how = [name for name, forms in _forms(_USER, _PASSWORD, _PASSWORD).items() if any(form in seen for form in forms)]
    if not how:
        raise NotApplicable("no password can be read on the wire, in no form that the suite knows")
    users = [name for name, forms in _forms(_USER, _PASSWORD, _USER).items() if any(form in seen for form in forms)]
    tried = [(f"a password with {what}", _USER, odd, odd, how) for what, odd in _ODD.items()]
    # A colon ends the name where both are one text with a colon between them.
    tried += [
        (f"a user's name with {what}", odd, _PASSWORD, odd, users) for what, odd in _ODD.items() if ":" not in odd
    ]
    written = await asyncio.gather(*(_written(ctx, user, password) for _, user, password, _, _ in tried))
    wrong = [
        what
        for (what, user, password, odd, as_before), bytes_seen in zip(tried, written, strict=True)
        if _has_login(bytes_seen, odd is user)
        and not any(form in bytes_seen for name in as_before for form in _forms(user, password, odd)[name])
    ]
    check(not wrong, f"something else than it goes to the broker for {', '.join(wrong)}")


def _has_login(seen: bytes, user_is_odd: bool) -> bool:
    """Whether a login was written at all. If not, the driver has refused to send this login."""
    known = _PASSWORD if user_is_odd else _USER
    return any(form.encode() in seen for form in forms_of(known).values())


def _forms(user: str, password: str, secret: str) -> dict[str, set[bytes]]:
    """Returns the forms that a user name or a password may have on the wire, by name. A form with escapes for some
    characters counts as the form without escapes."""
    escaped = secret.replace("\\", "\\\\")
    texts = {secret, escaped.replace(":", "\\c"), escaped.replace('"', '\\"')}
    texts |= {json.dumps(secret, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)}
    texts |= {text.replace("/", "\\/") for text in texts}
    both = {
        "base64 of name:password": f"{user}:{password}",
        "base64 of SASL PLAIN": f"\0{user}\0{password}",
        "base64 of SASL PLAIN for oneself": f"{user}\0{user}\0{password}",
        "base64": secret,
    }
    encoders = (base64.b64encode, base64.urlsafe_b64encode)
    coded = {name: {encode(text.encode()).rstrip(b"=") for encode in encoders} for name, text in both.items()}
    return {"as it is": {text.encode() for text in texts}, **coded}


async def _written(ctx: Context, user: str, password: str) -> bytes:
    """Returns the bytes that the driver writes to the real server with this login."""
    url = BrokerURL.parse(await ctx.do(lambda: ctx.harness.url_with_credentials(user, password)))
    if not url.hosts or url.hosts[0].port is None:
        raise NotApplicable("its config string names no host and port")
    seen = bytearray()

    def watch(data: bytes) -> bytes:
        seen.extend(data)
        return data

    async with FaultProxy((url.hosts[0].host, url.hosts[0].port)) as proxy:
        proxy.rewrite(watch, "up")
        text = url.replace(hosts=[Host(proxy.host, proxy.port)]).render(reveal=True)
        try:
            broker = ctx.open(text, connect_timeout=3.0)
        except ConfigError:
            return b""
        await connect_error(broker.connect())
        await broker.close(0.5)
    return bytes(seen)
