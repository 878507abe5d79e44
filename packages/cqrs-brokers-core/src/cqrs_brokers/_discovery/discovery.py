"""Decides which distribution owns a URL scheme, before any plugin is imported.

This module reads the table of installed plugins and the *pins*. A pin names the only distribution that may provide a
scheme. The user sets pins with `open_broker(…, distribution=…)` or in the variable `CQRS_BROKERS_PIN`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple

from cqrs_brokers._config.common_mistakes import FOREIGN_SCHEMES
from cqrs_brokers._config.did_you_mean import did_you_mean
from cqrs_brokers.exceptions import AmbiguousPluginError, ConfigError, PluginLoadError, PluginNotFoundError
from cqrs_brokers.url import SCHEME

from .installed import GROUP, OFFICIAL, Claim, Installed, canonical, installed
from .requirements import compatibility

__all__ = ["BrokerInfo", "available_brokers", "find_owner"]

PIN_VARIABLE: Final = "CQRS_BROKERS_PIN"

Status = Literal["ready", "ambiguous", "incompatible", "broken metadata", "refused"]


class BrokerInfo(NamedTuple):
    """A scheme that an installed distribution claims: the distribution has an entry point with the scheme's name.

    Attributes:
        name: The scheme. If the distribution's entry points cannot be read, the scheme is derived from the name of the
            distribution, or is "".
        distribution: The distribution that claims the scheme.
        version: The distribution's version; "" if the metadata gives no version.
        entry_point: The module or object that the entry point names; "" if the entry points cannot be read.
        status: "ready": `open_broker` uses this distribution for the scheme, unless `register_plugin` has registered a
            plugin for the scheme. "ambiguous": another distribution claims the scheme too. "incompatible": the
            distribution needs another version of core. "broken metadata": the distribution's metadata or entry point
            cannot be used. "refused": the scheme is reserved for another distribution, or is pinned to another
            distribution.
        reason: Why the status is not "ready"; "" if the status is "ready".
    """

    name: str
    distribution: str
    version: str
    entry_point: str
    status: Status
    reason: str


def available_brokers() -> list[BrokerInfo]:
    """Lists the schemes that installed distributions claim, sorted by name. No plugin is imported. The process reads
    the installed distributions only once, so a distribution that is installed later is not listed.

    Raises:
        ConfigError: `CQRS_BROKERS_PIN` is not of the form `scheme=distribution,…`, or names a scheme twice.
    """
    table, pins = installed(), _pins()
    infos = []
    for claim in table.claims:
        status, reason = _status(claim, table, pins.get(claim.scheme))
        infos.append(BrokerInfo(claim.scheme, claim.distribution, claim.version, claim.value, status, reason))
    return sorted(infos, key=lambda info: (info.name, info.distribution))


def find_owner(scheme: str, distribution: str | None = None) -> Claim:
    """Returns the claim (the distribution's entry point) that may be loaded for the scheme.

    Args:
        distribution: The only distribution that may provide the scheme, even if the scheme is reserved for another
            distribution. None: the distribution that `CQRS_BROKERS_PIN` names for the scheme, if any.

    Raises:
        ConfigError: `CQRS_BROKERS_PIN` is not of the form `scheme=distribution,…`, or names a scheme twice. The
            variable is read only if no distribution is given.
        PluginNotFoundError: The scheme is misspelt or not installed. Or the scheme is reserved for a distribution, or
            pinned to a distribution, that is not installed or does not claim the scheme.
        AmbiguousPluginError: More than one distribution claims the scheme, and no distribution is pinned.
        PluginLoadError: The distribution's metadata is missing or broken, or the distribution needs another version of
            core.
    """
    pin = distribution if distribution is not None else _pins().get(scheme)
    owner = OFFICIAL.get(scheme) if pin is None else pin
    # If only one distribution can be the owner, the others are not read: there may be hundreds.
    table = installed(canonical(owner)) if owner else installed()
    allowed = _allowed(table.claims, scheme, pin)
    if not allowed:
        table = installed()
        allowed = _allowed(table.claims, scheme, pin)
    if not allowed:
        raise _not_found(scheme, pin, [claim for claim in table.claims if claim.scheme == scheme], table)
    usable = _usable(allowed)
    if len(usable) > 1:
        raise AmbiguousPluginError(
            f"{scheme}:// is claimed by {' and '.join(sorted(usable))}: uninstall all but one, or choose with "
            f"open_broker(url, distribution=…) or {PIN_VARIABLE}={scheme}=…"
        )
    claim = next(iter(usable.values()), allowed[0])
    status, reason = _status(claim, table, pin)
    if status == "broken metadata" and claim.broken:
        raise PluginLoadError(
            f"{scheme}:// is provided by {claim.title}, which is installed but broken: {reason}; reinstall"
        )
    if status != "ready":
        raise PluginLoadError(f"{scheme}:// is provided by {claim.title}, which cannot be used here: {reason}")
    return claim


def _allowed(claims: Iterable[Claim], scheme: str, pin: str | None) -> list[Claim]:
    """The claims on the scheme. If the scheme is pinned to a distribution, or is not pinned but reserved for a
    distribution, only the claims of that distribution are returned."""
    owner = OFFICIAL.get(scheme) if pin is None else pin
    found = [claim for claim in claims if claim.scheme == scheme]
    return [claim for claim in found if owner is None or canonical(claim.distribution) == canonical(owner)]


def _usable(claims: Sequence[Claim]) -> dict[str, Claim]:
    """The claims whose metadata can be used, one for each distribution, by `Claim.title`."""
    by_name = {canonical(claim.distribution): claim for claim in reversed(claims) if claim.broken is None}
    return {claim.title: claim for claim in by_name.values()}


def _status(claim: Claim, table: Installed, pin: str | None) -> tuple[Status, str]:
    """The status of one claim, and why it is not ready."""
    if claim.broken is not None:
        return "broken metadata", claim.broken
    allowed = _allowed(table.claims, claim.scheme, pin)
    if claim not in allowed:
        return "refused", f"the scheme is {'pinned to' if pin else 'reserved for'} {pin or OFFICIAL[claim.scheme]}"
    others = sorted(_usable(allowed).keys() - {claim.title})
    if others:
        return "ambiguous", f"also claimed by {' and '.join(others)}"
    return compatibility(claim.requires, table.core_version)


def _not_found(
    scheme: str, pin: str | None, claims: Sequence[Claim], table: Installed
) -> PluginNotFoundError | PluginLoadError:
    """The error that says why no installed distribution may provide the scheme."""
    if pin is not None:
        others = ", ".join(claim.title for claim in claims) or "no installed distribution"
        return PluginNotFoundError(
            f"{scheme}:// is pinned to the distribution {pin!r:.80}, which is not installed or does not claim it; "
            f"claimed by: {others}"
        )
    if claims:
        return PluginNotFoundError(
            f"{scheme}:// is reserved for {OFFICIAL[scheme]}, which is not installed; {claims[0].title} claims it: "
            f"pip install {OFFICIAL[scheme]}, or trust the other with distribution={claims[0].distribution!r}"
        )
    distribution = OFFICIAL.get(scheme, f"cqrs-broker-{scheme}")
    module = distribution.replace("-", "_")
    if _importable(module):
        return PluginLoadError(
            f"{scheme}:// is not registered: the module {module} is here, but the metadata of {distribution} "
            f"(its folder .dist-info) is not. Bundle the metadata too (PyInstaller: --copy-metadata {distribution} "
            f"--hidden-import {module}), or call cqrs_brokers.hooks.register_plugin({scheme!r}, {module})"
        )
    if scheme in OFFICIAL and getattr(sys, "frozen", False):
        return PluginNotFoundError(
            f"{scheme}:// is not in this frozen application: bundle {distribution} "
            f"(PyInstaller: --copy-metadata {distribution} --hidden-import {module})"
        )
    if scheme in OFFICIAL:
        return PluginNotFoundError(f"{scheme}:// is not installed: pip install {distribution}")
    if scheme in FOREIGN_SCHEMES:
        return PluginNotFoundError(f"{scheme}:// is not a scheme here: {FOREIGN_SCHEMES[scheme]}")
    schemes = {claim.scheme for claim in table.claims if claim.broken is None}
    guess = did_you_mean(scheme, schemes | set(OFFICIAL))
    if guess:
        return PluginNotFoundError(f"unknown scheme {scheme!r}{guess}")
    return PluginNotFoundError(
        f"unknown scheme {scheme!r}; installed: {', '.join(sorted(schemes)) or 'none'}. A scheme comes with a "
        f"distribution that has an entry point of that name in the group {GROUP!r}"
    )


def _importable(module: str) -> bool:
    if not module.isidentifier():  # looking for "a.b" would import "a"
        return False
    try:
        return importlib.util.find_spec(module) is not None
    except Exception:  # the finder is somebody else's
        return False


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
