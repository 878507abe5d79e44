"""The table of installed plugins: which distribution claims which scheme. This module imports no plugin.

This module asks each distribution for its entry points, with the library importlib-metadata. So a malformed file breaks
only the schemes of its own distribution. importlib-metadata is imported at the first look-up, because the import
replaces the standard library's finder of distributions in the whole process.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from cqrs_brokers.url import SCHEME

if TYPE_CHECKING:
    from importlib_metadata import Distribution, EntryPoint

__all__ = ["CORE", "Claim", "GROUP", "Installed", "OFFICIAL", "canonical", "installed"]

GROUP: Final = "cqrs_brokers"
CORE: Final = "cqrs-brokers-core"

OFFICIAL: Final[Mapping[str, str]] = {
    "amqp": "cqrs-broker-amqp",
    "amqps": "cqrs-broker-amqp",
    "devnull": "cqrs-broker-devnull",
    "kafka": "cqrs-broker-kafka",
    "memory": "cqrs-broker-memory",
}
"""The reserved schemes, and the distribution that owns each. Errors suggest only these distributions to install,
because a package with any other name could be anybody's."""


class Claim(NamedTuple):
    """One entry point of one distribution: the distribution claims the scheme. A distribution whose entry points cannot
    be read has claims, too.

    Attributes:
        value: The module, or `module:attribute`. "": the entry points cannot be read.
        requires: The distribution's requirements on core, as they are written in its metadata.
        broken: Why the entry point or the distribution's metadata cannot be used, or None.
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
    """The table of installed plugins: the claims of the distributions, and the version of core.

    Attributes:
        claims: The claims, in the order in which the finders give the distributions (usually the order of `sys.path`).
        core_version: The version of the running core. None: core runs without being installed, or its metadata gives no
            version.
    """

    claims: tuple[Claim, ...]
    core_version: str | None


@cache
def installed(distribution: str | None = None) -> Installed:
    """Reads the table. The process keeps each result until `installed.cache_clear()` is called.

    Args:
        distribution: The normal form of a distribution's name. Only the claims of this distribution are read. None: all
            claims are read.
    """
    versions: dict[str, list[Distribution]] = {}
    for number, each in enumerate(_distributions(distribution)):
        versions.setdefault(_folder_name(each) or str(number), []).append(each)
    if distribution is not None:  # a finder of somebody else may give distributions of other names, too
        versions = {distribution: versions.get(distribution, [])}
    claims = (claim for several in versions.values() if several for claim in _claims(_first(several)))
    return Installed(tuple(claims), _core_version())


def _first(several: list[Distribution]) -> Distribution:
    """The distribution that comes first on `sys.path`, of several with the same name.

    An interrupted upgrade may leave a folder without metadata behind. Such a folder counts only if all folders are like
    this.
    """
    if len(several) == 1:
        return several[0]
    return next(filter(_has_metadata, several), several[0])


def canonical(name: str) -> str:
    """A distribution's name in its normal form."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _distributions(name: str | None) -> Iterator[Distribution]:
    """All distributions, or only the distributions with this name. If a finder on `sys.meta_path` raises an error, the
    distributions that were found before are still returned."""
    import importlib_metadata

    try:
        yield from cast("Iterable[Distribution]", importlib_metadata.distributions(name=name))
    except Exception:
        return


def _has_metadata(distribution: Distribution) -> bool:
    try:
        return any(distribution.read_text(file) for file in ("METADATA", "PKG-INFO"))
    except Exception:
        return True  # the file is there, and broken


def _folder_name(distribution: Distribution) -> str:
    """The normal form of a distribution's name, taken from the name of its folder where that is possible. "": the name
    cannot be read.

    The public attribute `name` needs METADATA to be parsed. Parsing is slow, and fails if METADATA is broken.
    """
    try:
        return str(distribution._normalized_name).replace("_", "-")
    except Exception:
        return ""


def _entry_points(distribution: Distribution) -> tuple[list[EntryPoint], str | None]:
    """Returns the entry points in our group, and why entry_points.txt cannot be read. The second value is None if the
    file can be read."""
    try:
        return [entry_point for entry_point in distribution.entry_points if entry_point.group == GROUP], None
    except Exception as error:
        return [], _why_unreadable(error)


def _is_ours(distribution: Distribution, name: str) -> bool:
    """Whether a distribution is probably a plugin. This function is called only if the distribution's entry_points.txt
    cannot be read."""
    if name.startswith("cqrs-broker-"):
        return True
    try:
        return GROUP in (distribution.read_text("entry_points.txt") or "")
    except UnicodeDecodeError as error:
        return GROUP.encode() in error.object
    except Exception:
        return False


def _claims(distribution: Distribution) -> list[Claim]:
    """A distribution's claims, one for each scheme. If its entry points cannot be read, the schemes are derived from
    its name."""
    name = _folder_name(distribution)
    entry_points, broken = _entry_points(distribution)
    if not entry_points and (broken is None or not _is_ours(distribution, name)):
        return []
    title, version, requires, problem = _header(distribution)
    owner = _printable(title or name), _printable(version)
    if broken is not None:
        own_name = name.removeprefix("cqrs-broker-") if name.startswith("cqrs-broker-") else ""
        schemes = [scheme for scheme, official in OFFICIAL.items() if official == name] or [own_name]
        return [Claim(_printable(scheme), *owner, "", requires, broken) for scheme in schemes]
    found: dict[str, Claim] = {}
    for entry_point in entry_points:
        scheme, value = entry_point.name, _printable(entry_point.value)
        wrong = problem or _why_unusable(entry_point)
        if scheme in found and found[scheme].value != value:
            wrong = wrong or "its entry_points.txt names the scheme twice"
        found[scheme] = Claim(_printable(scheme), *owner, value, requires, wrong)
    return list(found.values())


def _why_unreadable(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "its entry_points.txt is not UTF-8"
    if isinstance(error, OSError):
        return f"its entry_points.txt cannot be read ({type(error).__name__})"
    return "its entry_points.txt has a line that is not name = module:attribute"


def _why_unusable(entry_point: EntryPoint) -> str | None:
    """Says what is wrong with one entry point. None: the entry point can be used. The format is defined in
    packaging.python.org/specifications/entry-points."""
    if not re.fullmatch(SCHEME, entry_point.name):
        return "the name in its entry_points.txt is not a URL scheme"
    try:
        parts = [*entry_point.module.split("."), *(entry_point.attr.split(".") if entry_point.attr else ())]
    except Exception:
        parts = [""]
    if all(part.isidentifier() for part in parts):
        return None
    return "its entry_points.txt has a line that is not name = module:attribute"


def _header(distribution: Distribution) -> tuple[str, str, tuple[str, ...], str | None]:
    """A distribution's name, version and requirements on core, and what is wrong with its metadata. The last is None if
    nothing is wrong.

    The standard library's `HeaderParser` reads the text. `Distribution.metadata` takes twice the time, because it loads
    all the modules for mail headers.
    """
    from email.parser import HeaderParser

    try:
        text = distribution.read_text("METADATA")
        written = text or distribution.read_text("PKG-INFO") or ""
        header = HeaderParser().parsestr(written.partition("\n\n")[0])  # without the description, which is long
        requires = header.get_all("Requires-Dist") or []
        if text is None:  # an egg-info has its requirements in another file
            requires = distribution.requires or []
    except Exception as error:
        return "", "", (), f"its metadata cannot be read ({type(error).__name__})"
    name, version = str(header.get("Name", "")), str(header.get("Version", ""))
    on_core = tuple(line for line in requires if canonical(line).startswith(CORE))
    return name, version, on_core, None if version else "its metadata gives no version"


def _core_version() -> str | None:
    versions = [_header(core)[1] for core in _distributions(CORE)]
    return versions[0] or None if versions else None


def _printable(text: str) -> str:
    """The first 200 characters of the text, with "?" in place of each character that is not printable."""
    return "".join(character if character.isprintable() else "?" for character in text[:200])
