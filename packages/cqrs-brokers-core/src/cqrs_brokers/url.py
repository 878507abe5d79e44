"""The config string: `scheme://[user[:password]@]host[:port][,host[:port]…][/path][?option=value&…]`.

This module parses and makes such strings. `options` interprets the options, and `_discovery` finds the plugin.

The module has its own parser, because general URL parsers cannot read a list of hosts, accept ambiguous strings, and
put passwords into their errors. A `ConfigError` of this module quotes only known schemes and separators (see
`common_mistakes`) and the names of options. The error does not quote a name that comes after a secret: if the secret
contains an unencoded `&`, this name may be a part of the secret.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple, Self, final
from urllib.parse import quote, unquote_to_bytes

from ._config.common_mistakes import MAX_LENGTH, common_mistakes, silent_mistakes
from .exceptions import ConfigError
from .secret import MASK, Secret

__all__ = ["BrokerURL", "Host", "names_a_secret"]

MAX_HOSTS = 64
MAX_OPTIONS = 64

# Patterns as text: compiled when first used, because compiling them all is a good part of this module's import time.
SCHEME = r"[a-z][a-z0-9.+-]{0,63}"
OPTION_NAME = r"[A-Za-z][A-Za-z0-9_.-]{0,63}"
_ESCAPE = r"%[0-9A-Fa-f]{2}"
_CONTROL = r"[\x00-\x1f\x7f-\x9f]"
_HOST_NAME = r"(?=.{1,253}\Z)[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?"
_ZONE = r"[A-Za-z0-9._~-]{1,64}"
_PORT = r"[0-9]{1,5}"
_SECRET_WORDS = ("password", "passwd", "passphrase", "secret", "token", "credential")
_HIDDEN_ELSEWHERE = r"pwd|jaas|api_?key|access_?key|(^|[_.-])(pass|pw)([_.-]|$)"
"""Matches further names that other clients use for secrets. A config string may contain an option with such a name. The
string may be shown before the plugin of the scheme is known, so the value is masked."""
_ENCODE = "percent-encode / ? # @ % and spaces in user names, passwords and values (@ is %40, / is %2F)"


def names_a_secret(option: str) -> bool:
    """Whether the name of an option contains "password", "passwd", "passphrase", "secret", "token" or "credential", in
    upper or lower case. `cqrs_brokers.options` says when such an option must be a secret."""
    name = option.lower()
    return any(word in name for word in _SECRET_WORDS)


class Host(NamedTuple):
    """A host of a config string.

    Attributes:
        host: Name or address; an IPv6 address without brackets.
        port: The port. None if the config string gives no port: the plugin then uses its default port.
    """

    host: str
    port: int | None = None

    @property
    def is_loopback(self) -> bool:
        """Whether the host is `localhost` or a loopback address. No name is looked up."""
        import ipaddress  # imported here: only a check of credentials needs it

        if self.host.rstrip(".").lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback
        except ValueError:
            return False

    @property
    def normal(self) -> Host:
        """The same host in a uniform spelling, so that hosts can be compared: in lower case (except an IPv6 zone),
        without a dot at the end of a name, and with the short form of an IPv6 address."""
        address, percent, zone = self.host.partition("%")
        if ":" in address:
            address = socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, address))
        return Host(address.lower().rstrip(".") + percent + zone, self.port)

    def __str__(self) -> str:
        host = f"[{self.host.replace('%', '%25')}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


@final
@dataclass(frozen=True, slots=True, repr=False)
class BrokerURL:
    """A parsed config string. The object cannot be changed. `str` and `repr` show no secret.

    `str` and `repr` show the options only up to the first secret, and mask the rest. The reason: if a secret contains
    an unencoded `&`, the text after the `&` looks like further options.

    Make an object with `parse`, `build` or `replace`, which check the parts. An object with a secret cannot be pickled.

    Attributes:
        scheme: The scheme, in lower case.
        username: The user name, percent-decoded, or None.
        password: The password, percent-decoded, as a `Secret`, or None.
        hosts: The hosts, in the order given; empty for `devnull://`.
        path: The percent-decoded text after the first `/` that follows the hosts. None: there is no such `/`.
            `amqp://h/` has the path "", `amqp://h/%2F` has "/", `amqp://h/a/b` and `amqp://h/a%2Fb` have "a/b".
        query: The options by name. The values are percent-decoded. A value is a `Secret` if `names_a_secret` is true
            for the name of the option, or if other clients use the name for a secret (for example the name `pwd`).
    """

    scheme: str
    username: str | None
    password: Secret | None
    hosts: tuple[Host, ...]
    path: str | None
    query: Mapping[str, str | Secret] = field(hash=False)

    @classmethod
    def parse(cls, text: str | BrokerURL, *, source: str = "") -> BrokerURL:
        """Reads a config string.

        Args:
            text: The config string. A `BrokerURL` is returned as it is.
            source: Where the string came from, for example a variable's name. Each problem begins with this text.

        Raises:
            ConfigError: The text is not a valid config string, or contains a common mistake that changes its meaning,
                for example a placeholder that was not replaced. The error lists the problems, and quotes no secret.
        """
        if isinstance(text, BrokerURL):
            return text
        try:
            parsed = _parse(text)
            problems = silent_mistakes(text)
        except ConfigError as error:
            problems = common_mistakes(text) or list(error.problems)
        if not problems:
            return parsed
        raise ConfigError(f"{source}: {problem}" if source else problem for problem in problems)

    @classmethod
    def build(
        cls,
        scheme: str,
        *,
        hosts: Iterable[str | Host] = (),
        username: str | None = None,
        password: str | Secret | None = None,
        path: str | None = None,
    ) -> BrokerURL:
        """Makes a `BrokerURL` from parts that are not percent-encoded, by the same rules as `parse`.

        Args:
            hosts: The hosts, each as a `Host`, `name`, `name:port`, `[IPv6]` or `[IPv6]:port`.

        Raises:
            ConfigError: A part is invalid. The error lists the problems.
        """
        listed = [str(host) for host in hosts]
        if isinstance(hosts, str) or any(not host or re.search(r"[@/?#,]", host) for host in listed):
            raise ConfigError("hosts must be a list, and a host a name or an address, with an optional port")
        if password is not None and username is None:
            raise ConfigError("there is a password without a user name")
        userinfo = "" if username is None else _encode(username)
        if password is not None:
            userinfo += ":" + _encode(Secret(password).reveal())
        authority = (f"{userinfo}@" if username is not None else "") + ",".join(listed)
        return cls.parse(f"{scheme}://{authority}" + ("" if path is None else "/" + _encode(path)))

    def repeated_hosts(self, default_port: int) -> list[str]:
        """A sentence for each host that equals an earlier host, when each host without a port has the default port."""
        hosts = [(host if host.port else host._replace(port=default_port)).normal for host in self.hosts]
        return [f"host {n} is listed twice" for n, host in enumerate(hosts, 1) if host in hosts[: n - 1]]

    def replace(self, *, hosts: Iterable[str | Host] | None = None, password: str | Secret | None = None) -> BrokerURL:
        """A copy with other hosts (as in `build`), another password, or both. An argument that is None changes nothing.

        Raises:
            ConfigError: A host or the password is invalid. The error lists the problems.
        """
        changes: dict[str, Any] = {}
        if hosts is not None:
            changes["hosts"] = BrokerURL.build(self.scheme, hosts=hosts).hosts
        if password is not None:
            problems: list[str] = []
            text = _decode(_encode(Secret(password).reveal()), "the password", problems)
            changes["password"] = _secret(text, "the password", problems)
            if problems:
                raise ConfigError(problems)
        return replace(self, **changes)

    def render(self, *, reveal: bool = False) -> str:
        """Makes a config string from the parts. If the object comes from `parse` or `build`, and `reveal` is True,
        `parse` makes an equal object from the string.

        Args:
            reveal: Whether to show the secrets. True is only for code that needs the secrets, never for people or logs.
        """
        text = f"{self.scheme}://"
        if self.username is not None:
            text += _encode(self.username)
            if self.password is not None:
                text += ":" + (_encode(self.password.reveal()) if reveal else MASK)
            text += "@"
        text += ",".join(map(str, self.hosts))
        if self.path is not None:
            text += "/" + _encode(self.path)
        options = self.query if reveal else _shown(self.query)
        texts = [(name, value.reveal() if isinstance(value, Secret) else value) for name, value in options.items()]
        listed = [f"{name}={quote(text, safe=':/,+=*')}" if name else text for name, text in texts]
        return text + ("?" + "&".join(listed) if listed else "")

    def __str__(self) -> str:
        return self.render()

    def __repr__(self) -> str:
        return f"BrokerURL({self.render()!r})"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        if self.password is not None or any(isinstance(value, Secret) for value in self.query.values()):
            raise TypeError(f"{self!r} holds a secret and cannot be pickled: pass password_file= or password_env=")
        return BrokerURL.parse, (self.render(),)


class _Query(dict[str, str | Secret]):
    """The options of a config string, with a `repr` that shows no secret."""

    def __repr__(self) -> str:
        return repr(_shown(self))


def _shown(query: Mapping[str, str | Secret]) -> dict[str, str]:
    """The options that people may see: the options up to the first secret, which is masked. If more options follow, one
    mask without a name replaces them all."""
    shown: dict[str, str] = {}
    for name, value in query.items():
        if isinstance(value, Secret):
            return shown | {name: MASK} | ({"": MASK} if len(shown) + 1 < len(query) else {})
        shown[name] = value
    return shown


def _encode(text: str) -> str:
    return quote(text, safe="", errors="surrogatepass")


def _parse(text: object) -> BrokerURL:
    """The parts of the string.

    Raises:
        ConfigError: The string is wrong. The error lists the problems of all parts. But if one problem makes the rest
            unreadable, or may mean that a password was not encoded, the error lists only this problem.
    """
    if not isinstance(text, str):
        raise ConfigError(f"a config string must be str, not {type(text).__name__}")
    if len(text) > MAX_LENGTH:
        raise ConfigError(f"the config string is longer than {MAX_LENGTH} characters")
    if not text.isprintable() or " " in text:
        raise ConfigError("the config string contains a space or a character that cannot be printed: percent-encode it")
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator or not re.fullmatch(SCHEME, scheme):
        raise ConfigError("the config string must start with a scheme and '://', for example kafka://localhost:9092")
    if "#" in rest:
        raise ConfigError(f"the config string contains '#': {_ENCODE}")
    authority = rest.partition("/")[0].partition("?")[0]
    tail = rest.removeprefix(authority)
    userinfo, at, host_list = authority.rpartition("@")
    if "@" in userinfo or "@" in tail:
        raise ConfigError(
            f"the config string contains an '@' that does not separate the user from the hosts: {_ENCODE}"
        )
    path_text, _, query_text = tail.partition("?")

    problems: list[str] = []
    username = password = path = None
    if at:
        user_text, colon, password_text = userinfo.partition(":")
        username = _decode(user_text, "the user name", problems)
        if username == "":
            problems.append("the user name is empty")
        if colon:
            password = _secret(_decode(password_text, "the password", problems), "the password", problems)
        if not host_list:
            problems.append("there is a user but no host")
    hosts = _hosts(host_list, problems)
    if path_text:
        path = _decode(path_text[1:], "the path", problems)
    query = _query(query_text, problems)
    if problems:
        raise ConfigError(problems)
    return BrokerURL(scheme, username, password, hosts, path, MappingProxyType(query))


def _decode(text: str, what: str, problems: list[str]) -> str | None:
    """The percent-decoded text, or None if there is a problem. Escapes must be complete, and the decoded text must be
    UTF-8 without control characters. A `+` stays a plus."""
    if text.count("%") != len(re.findall(_ESCAPE, text)):
        problems.append(f"{what} contains a '%' that starts no escape: write %25")
        return None
    try:
        decoded = unquote_to_bytes(text).decode() if "%" in text else text
    except UnicodeDecodeError:
        problems.append(f"{what} contains an escape that is not UTF-8")
        return None
    if re.search(_CONTROL, decoded):
        problems.append(f"{what} contains a control character")
        return None
    return decoded


def _secret(text: str | None, what: str, problems: list[str]) -> Secret:
    if text == "":
        problems.append(f"{what} is empty")
    if text == MASK:
        problems.append(f"{what} is the mask of a redacted config string, not the real one")
    return Secret(text or "")


def _hosts(text: str, problems: list[str]) -> tuple[Host, ...]:
    items = text.split(",") if text else []
    if len(items) > MAX_HOSTS:
        problems.append(f"more than {MAX_HOSTS} hosts")
        return ()
    hosts: list[Host] = []
    known = set[Host]()
    for number, item in enumerate(items, 1):
        try:
            host = _host(item, f"host {number}")
        except ValueError as error:
            problems.append(str(error))
            continue
        if host.normal in known:
            problems.append(f"host {number} is listed twice")
        hosts.append(host)
        known.add(host.normal)
    return tuple(hosts)


def _host(text: str, what: str) -> Host:
    if not text:
        raise ValueError(f"{what} is empty")
    if text.startswith("["):
        inside, bracket, after = text[1:].partition("]")
        address, percent, zone = inside.partition("%25")
        if not bracket or (after and not after.startswith(":")) or not _is_ipv6(address):
            raise ValueError(f"{what} is not an IPv6 address in brackets with an optional port: [::1]:9092")
        if percent and not re.fullmatch(_ZONE, zone):
            raise ValueError(f"{what} has an IPv6 zone that is not a name")
        name, colon, port_text = f"{address}%{zone}" if percent else address, after[:1], after[1:]
    else:
        name, colon, port_text = text.partition(":")
        if ":" in port_text:
            raise ValueError(f"{what} has more than one ':'; an IPv6 address needs brackets: [::1]:9092")
        if not re.fullmatch(_HOST_NAME, name) or name.startswith("-"):
            raise ValueError(f"{what} is not a host name or address (letters, digits, '-', '_' and '.')")
    if not colon:
        return Host(name)
    port = int(port_text) if re.fullmatch(_PORT, port_text) else 0
    if not 1 <= port <= 65535:
        raise ValueError(f"the port of {what} is not a number from 1 to 65535")
    return Host(name, port)


def _is_ipv6(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):
        return False
    return True


def _query(text: str, problems: list[str]) -> _Query:
    options = _Query()
    items = text.split("&") if text else []
    if len(items) > MAX_OPTIONS:
        problems.append(f"more than {MAX_OPTIONS} options")
        return options
    after_secret = False
    for number, item in enumerate(items, 1):
        name, equals, value_text = item.partition("=")
        if not equals or not re.fullmatch(OPTION_NAME, name):
            problems.append(f"option {number} is not of the form name=value: percent-encode & in values as %26")
            continue
        what = f"option {number}" if after_secret else f"option {name!r}"
        secret = names_a_secret(name) or re.search(_HIDDEN_ELSEWHERE, name.lower()) is not None
        after_secret = after_secret or secret
        if not secret and re.search(r"[;?][a-z_]+=", value_text):
            problems.append(f"{what} is followed by ';' or '?': write '&' between options")
        value = _decode(value_text, what, problems)
        if name in options:
            problems.append(f"{what} is given twice")
        elif value is not None:
            options[name] = _secret(value, what, problems) if secret else value
    return options
