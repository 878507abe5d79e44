"""Whether a plugin's own requirement on core holds. It is checked before the plugin is imported."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .installed import CORE, canonical

__all__ = ["why_incompatible"]


def why_incompatible(requires: Iterable[str], core_version: str) -> tuple[str | None, str | None]:
    """The requirement on core that does not hold, and the requirement that cannot be read, as texts for errors.

    Args:
        requires: A distribution's requirements on core, as written.
        core_version: The version of the running core.
    """
    unsure = [line for line in requires if not plainly_holds(line, core_version)]
    if not unsure:
        return None, None
    from packaging.requirements import InvalidRequirement, Requirement  # imported here: a tenth of our import time

    for line in unsure:
        try:
            requirement = Requirement(line)
            applies = canonical(requirement.name) == CORE and (
                requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            )
            if not applies or requirement.specifier.contains(core_version, prereleases=True):
                continue
        except (InvalidRequirement, ValueError):
            return None, f"its requirement on {CORE} cannot be read"
        return f"it needs {CORE}{requirement.specifier}, and {core_version} is running; upgrade one of them", None
    return None, None


def plainly_holds(requirement: str, version: str) -> bool:
    """Whether a requirement like `cqrs-brokers-core<0.2,>=0.1` holds for a final release. False: ask `packaging`."""
    limits = re.fullmatch(rf"{CORE}<([0-9]+)\.([0-9]+),>=([0-9]+)\.([0-9]+)", requirement)
    release = re.fullmatch(r"([0-9]+)\.([0-9]+)(?:\.[0-9]+)*", version)
    if limits is None or release is None:
        return False
    below, least = limits.groups()[:2], limits.groups()[2:]
    return _numbers(least) <= _numbers(release.groups()) < _numbers(below)


def _numbers(parts: Iterable[str]) -> tuple[int, ...]:
    return tuple(map(int, parts))
