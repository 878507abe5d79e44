"""Checks whether the running core is a version that a plugin's distribution requires. The check happens before the
plugin is imported."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from .installed import CORE, canonical

__all__ = ["compatibility"]


def compatibility(
    requires: Iterable[str], core_version: str | None
) -> tuple[Literal["ready", "incompatible", "broken metadata"], str]:
    """Returns a plugin's status, and why the status is not "ready" ("" if it is). The status is "ready" if all
    requirements on core hold, or core's version is not known.

    Args:
        requires: The distribution's requirements on core, as they are written in its metadata.
        core_version: The version of the running core. None: the version is not known (see `Installed`).
    """
    if core_version is None or all(plainly_holds(line, core_version) for line in requires):
        return "ready", ""
    from packaging.requirements import InvalidRequirement, Requirement  # imported here: a tenth of core's import time

    for line in requires:
        try:
            requirement = Requirement(line)
            applies = canonical(requirement.name) == CORE and (
                requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            )
            if not applies or requirement.specifier.contains(core_version, prereleases=True):
                continue
        except (InvalidRequirement, ValueError):
            return "broken metadata", f"its requirement on {CORE} cannot be read"
        text = f"it needs {CORE}{requirement.specifier}, and {core_version} is running; upgrade one of them"
        return "incompatible", text
    return "ready", ""


def plainly_holds(requirement: str, version: str) -> bool:
    """Whether a requirement has a simple form like `cqrs-brokers-core<0.2,>=0.1`, and holds for a version that is a
    final release. False: only the library `packaging` can say whether the requirement holds."""
    limits = re.fullmatch(rf"{CORE}<([0-9]+)\.([0-9]+),>=([0-9]+)\.([0-9]+)", requirement)
    release = re.fullmatch(r"([0-9]+)\.([0-9]+)(?:\.[0-9]+)*", version)
    if limits is None or release is None:
        return False
    below, least = limits.groups()[:2], limits.groups()[2:]
    return _numbers(least) <= _numbers(release.groups()) < _numbers(below)


def _numbers(parts: Iterable[str]) -> tuple[int, ...]:
    return tuple(map(int, parts))
