"""Who owns a scheme: the table of installed plugins, read from metadata. Nothing is imported here.

The table is read once per process, one distribution after the other, so that a corrupt file breaks only its own scheme.
Loading what was found is for `plugins`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import metadata
from typing import Final, Literal, NamedTuple

from cqrs_brokers._config.values import did_you_mean
from cqrs_brokers.exceptions import AmbiguousPluginError, ConfigError, PluginError, PluginLoadError, PluginNotFoundError
from cqrs_brokers.url import SCHEME

__all__ = ["BrokerInfo", "Claim", "available_brokers", "find_owner", "installed"]

GROUP: Final = "cqrs_brokers"
CORE: Final = "cqrs-brokers-core"
PIN_VARIABLE: Final = "CQRS_BROKERS_PIN"

OFFICIAL: Final[Mapping[str, str]] = {
    "amqp": "cqrs-broker-amqp",
    "amqps": "cqrs-broker-amqp",
    "devnull": "cqrs-broker-devnull",
    "kafka": "cqrs-broker-kafka",
    "memory": "cqrs-broker-memory",
}
"""Reserved schemes, and the only install hints there are: a hint made up from a name could name anybody's package."""

Status = Literal["ready", "ambiguous", "incompatible", "broken metadata", "refused"]


class BrokerInfo(NamedTuple):
    """A scheme that an installed distribution claims.

    Attributes:
        name: The scheme.
        distribution: Who claims it.
        version: The distribution's version, "" when its metadata does not say.
        entry_point: The module or object it names.
        status: "ready": `open_broker` will load it. "ambiguous": another distribution claims the scheme too.
            "incompatible": it needs another version of core. "broken metadata": it cannot be read. "refused": the
            scheme is reserved for another distribution.
        reason: Why it is not ready; "" when it is.
    """

    name: str
    distribution: str
    version: str
    entry_point: str
    status: Status
    reason: str


class Claim(NamedTuple):
    """One line of one distribution's entry points.

    Attributes:
        requires: The distribution's requirements on core, as written.
        broken: Why the line or the distribution's metadata cannot be used, or None.
    """

    scheme: str
    distribution: str
    version: str
    value: str
    requires: tuple[str, ...] = ()
    broken: str | None = None

    @property
    def title(self) -> str:
        """The distribution with its version, for errors."""
        return f"{self.distribution} {self.version}".rstrip()


class Installed(NamedTuple):
    """The table.

    Attributes:
        claims: In the order of `sys.path`.
        core_version: Of the running core; None when it runs without being installed.
    """

    claims: tuple[Claim, ...]
    core_version: str | None


def available_brokers() -> list[BrokerInfo]:
    """The schemes that installed distributions claim, by name. Imports no plugin.

    Raises:
        ConfigError: `CQRS_BROKERS_PIN` is not of the form `scheme=distribution,…`.
    """
    table, pins = installed(), _pins()
    infos = []
    for claim in table.claims:
        status, reason = _judge(claim, table, pins.get(claim.scheme))
        infos.append(BrokerInfo(claim.scheme, claim.distribution, claim.version, claim.value, status, reason))
    return sorted(infos, key=lambda info: (info.name, info.distribution))


def find_owner(scheme: str, distribution: str | None = None) -> Claim:
    """The one claim on the scheme that may be loaded.

    Args:
        distribution: A pin: only this distribution will do, also for a reserved scheme. None: the pin of
            `CQRS_BROKERS_PIN`, if there is one.

    Raises:
        ConfigError: `CQRS_BROKERS_PIN` is not of the form `scheme=distribution,…`.
        PluginNotFoundError: Not installed, misspelt, or reserved for a distribution that is not installed.
        AmbiguousPluginError: More than one distribution claims it, and none is pinned.
        PluginLoadError: Its metadata is broken, or it needs another version of core.
    """
    table = installed()
    pin = distribution if distribution is not None else _pins().get(scheme)
    claims = [claim for claim in table.claims if claim.scheme == scheme]
    if pin is not None:
        pinned = [claim for claim in claims if _canonical(claim.distribution) == _canonical(pin)]
        if not pinned:
            others = ", ".join(claim.title for claim in claims) or "no installed distribution"
            raise PluginNotFoundError(
                f"{scheme}:// is pinned to the distribution {pin!r:.80}, which is not installed or does not claim it; "
                f"claimed by: {others}"
            )
        claims = pinned
    elif scheme in OFFICIAL:
        allowed = [claim for claim in claims if _canonical(claim.distribution) == OFFICIAL[scheme]]
        if claims and not allowed:
            raise PluginNotFoundError(
                f"{scheme}:// is reserved for {OFFICIAL[scheme]}, which is not installed; {claims[0].title} claims it: "
                f"pip install {OFFICIAL[scheme]}, or trust the other with distribution={claims[0].distribution!r}"
            )
        claims = allowed
    usable = [claim for claim in claims if claim.broken is None]
    if len({_canonical(claim.distribution) for claim in usable}) > 1:
        raise AmbiguousPluginError(
            f"{scheme}:// is claimed by {_and(claim.title for claim in usable)}: uninstall all but one, or choose with "
            f"open_broker(url, distribution=…) or {PIN_VARIABLE}={scheme}=…"
        )
    for claim in usable or claims:
        problem = _problem(claim, table)
        if problem is not None:
            raise problem
        return claim
    raise _not_found(scheme, table)


@cache
def installed() -> Installed:
    """Reads the table; once per process (`installed.cache_clear()` forgets it)."""
    claims: list[Claim] = []
    seen: set[str] = set()
    core_version = None
    for distribution in _distributions():
        # As in importlib.metadata.entry_points: of two versions on the path only the first can be imported.
        try:
            # What the standard library compares too: made from the folder's name, without reading METADATA.
            name = getattr(distribution, "_normalized_name", "").replace("_", "-")
            name = name or _canonical(distribution.metadata["Name"])
        except Exception:
            name = ""
        if name in seen:
            continue
        if name:
            seen.add(name)
        claims += _claims(distribution, name)
        if name == CORE:
            core_version = _header(distribution)[1] or None
    return Installed(tuple(claims), core_version)


def _distributions() -> Iterator[metadata.Distribution]:
    """All of them; a broken finder on `sys.meta_path` ends the list instead of the program."""
    try:
        yield from metadata.distributions()
    except Exception:
        return


def _claims(distribution: metadata.Distribution, name: str) -> list[Claim]:
    """A distribution's lines in our group. The file is read, not parsed, when our group is not in it."""
    broken = None
    try:
        text = distribution.read_text("entry_points.txt") or ""
    except UnicodeDecodeError as error:
        text, broken = error.object.decode("ascii", "replace"), "its entry_points.txt is not UTF-8"
    except Exception as error:
        if not name.startswith("cqrs-broker-"):
            return []
        text, broken = f"[{GROUP}]", f"its entry_points.txt cannot be read ({type(error).__name__})"
    if GROUP not in text:
        return []
    title, version, requires, problem = _header(distribution)
    broken = broken or problem
    lines = _lines(text)
    if not lines and broken:
        lines = [(name.removeprefix("cqrs-broker-") if name.startswith("cqrs-broker-") else "", "", None)]
    found: dict[str, Claim] = {}
    for scheme, value, problem in lines:
        owner = _plain(title or name), _plain(version)
        claim = Claim(_plain(scheme), *owner, _plain(value), requires, broken or problem)
        other = found.get(scheme)
        if other is not None and other.value != claim.value:
            claim = claim._replace(broken=claim.broken or "its entry_points.txt names the scheme twice")
        found[scheme] = claim
    return list(found.values())


_VALUE = r"[^\W\d]\w*(\.[^\W\d]\w*)*(\s*:\s*[^\W\d]\w*(\.[^\W\d]\w*)*)?(\s*\[[^\]]*\])?"


def _lines(text: str) -> list[tuple[str, str, str | None]]:
    """Scheme, value and what is wrong with it, for each line of our group.

    The format is https://packaging.python.org/specifications/entry-points/. The standard library's parser gives up on a
    malformed line in any group; here a line is wrong by itself.
    """
    lines: list[tuple[str, str, str | None]] = []
    group = None
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        if line.startswith("["):
            group = line[1:-1].strip() if line.endswith("]") else None
        elif group == GROUP:
            scheme, equals, value = (part.strip() for part in line.partition("="))
            if not re.fullmatch(SCHEME, scheme):
                lines.append((_plain(scheme), value, "the name in its entry_points.txt is not a URL scheme"))
            elif not equals or not re.fullmatch(_VALUE, value):
                lines.append((scheme, value, "its entry_points.txt has a line that is not name = module:attribute"))
            else:
                lines.append((scheme, value, None))
    return lines


def _header(distribution: metadata.Distribution) -> tuple[str, str, tuple[str, ...], str | None]:
    """A distribution's name, version and requirements on core, and what is wrong with its metadata.

    Read line by line: the standard library parses each METADATA, long description included, as an e-mail.
    """
    fields: dict[str, list[str]] = {"Name": [], "Version": [], "Requires-Dist": []}
    try:
        text = distribution.read_text("METADATA")
        if text is None:  # not a wheel: egg-info has its requirements in a file of their own
            fields["Name"], fields["Version"] = [distribution.metadata["Name"]], [distribution.metadata["Version"]]
            fields["Requires-Dist"] = list(distribution.requires or ())
        else:
            for line in text.splitlines():
                if not line:
                    break
                field, _, value = line.partition(":")
                if field in fields:
                    fields[field].append(value.strip())
    except Exception as error:
        return "", "", (), f"its metadata cannot be read ({type(error).__name__})"
    name, version = (str(next(iter(fields[field]), None) or "") for field in ("Name", "Version"))
    requires = tuple(line for line in fields["Requires-Dist"] if _canonical(line).startswith(CORE))
    return name, version, requires, None if version else "its metadata gives no version"


def _plain(text: str) -> str:
    """For messages: nothing that cannot be printed, nothing endless."""
    return "".join(character if character.isprintable() else "?" for character in text[:200])


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", str(name).strip()).lower()


def _judge(claim: Claim, table: Installed, pin: str | None) -> tuple[Status, str]:
    """The status of one claim, as `available_brokers` shows it."""
    if claim.broken is not None:
        return "broken metadata", claim.broken
    owner = pin or OFFICIAL.get(claim.scheme)
    if owner is not None and _canonical(claim.distribution) != _canonical(owner):
        return "refused", f"the scheme is {'pinned to' if pin else 'reserved for'} {owner}"
    if owner is None:
        others = {
            other.title: None
            for other in table.claims
            if other.scheme == claim.scheme and other.broken is None and other.distribution != claim.distribution
        }
        if others:
            return "ambiguous", f"also claimed by {_and(others)}"
    return _compatible(claim, table.core_version)


def _problem(claim: Claim, table: Installed) -> PluginError | None:
    if claim.broken is not None:
        return PluginLoadError(
            f"{claim.scheme}:// is provided by {claim.title}, which is installed but broken: {claim.broken}; reinstall"
        )
    status, reason = _compatible(claim, table.core_version)
    if status == "ready":
        return None
    return PluginLoadError(f"{claim.scheme}:// is provided by {claim.title}, which cannot be used here: {reason}")


def _compatible(claim: Claim, core_version: str | None) -> tuple[Status, str]:
    """Whether the plugin's own requirement on core holds; told before it is imported."""
    if core_version is None:
        return "ready", ""
    requires = [line for line in claim.requires if not _plainly_holds(line, core_version)]
    if not requires:
        return "ready", ""
    from packaging.requirements import InvalidRequirement, Requirement  # imported here: a tenth of our import time

    for line in requires:
        try:
            requirement = Requirement(line)
            if _canonical(requirement.name) != CORE:
                continue
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            if requirement.specifier.contains(core_version, prereleases=True):
                continue
        except (InvalidRequirement, ValueError):
            return "broken metadata", f"its requirement on {CORE} cannot be read"
        needed = f"{CORE}{requirement.specifier}"
        return "incompatible", f"it needs {needed}, and {core_version} is running; upgrade one of them"
    return "ready", ""


def _plainly_holds(requirement: str, version: str) -> bool:
    """Whether a requirement like `cqrs-brokers-core<0.2,>=0.1` holds for a final release. False: ask `packaging`."""
    match = re.fullmatch(rf"{CORE}\s*((?:(?:>=|<)[0-9.]+,?)+)", requirement)
    if match is None or not re.fullmatch(_RELEASE, version):
        return False
    for clause in match[1].split(","):
        limit = clause.lstrip("<>=")
        if not re.fullmatch(_RELEASE, limit) or (_release(version) >= _release(limit)) != clause.startswith(">="):
            return False
    return True


_RELEASE = r"[0-9]+(\.[0-9]+)*"


def _release(version: str) -> list[int]:
    numbers = [int(number) for number in version.split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()  # 1.0 is 1
    return numbers


def _not_found(scheme: str, table: Installed) -> PluginNotFoundError:
    if scheme in OFFICIAL:
        return PluginNotFoundError(f"{scheme}:// is not installed: pip install {OFFICIAL[scheme]}")
    schemes = {claim.scheme for claim in table.claims if claim.broken is None}
    guess = did_you_mean(scheme, schemes | set(OFFICIAL))
    if guess:
        return PluginNotFoundError(f"unknown scheme {scheme!r}{guess}")
    return PluginNotFoundError(
        f"unknown scheme {scheme!r}; installed: {', '.join(sorted(schemes)) or 'none'}. A scheme comes with a "
        f"distribution that has an entry point of that name in the group {GROUP!r}"
    )


def _pins() -> dict[str, str]:
    pins: dict[str, str] = {}
    for item in filter(None, os.environ.get(PIN_VARIABLE, "").split(",")):
        scheme, equals, distribution = (part.strip() for part in item.partition("="))
        if not equals or not re.fullmatch(SCHEME, scheme) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", distribution):
            raise ConfigError(f"{PIN_VARIABLE} must be of the form scheme=distribution,scheme=distribution")
        if scheme in pins:
            raise ConfigError(f"{PIN_VARIABLE} names the scheme {scheme!r} twice")
        pins[scheme] = distribution
    return pins


def _and(names: Iterable[str]) -> str:
    return " and ".join(sorted(names))
