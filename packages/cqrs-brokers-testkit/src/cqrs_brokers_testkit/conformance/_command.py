"""The command line of the suite: `python -m cqrs_brokers_testkit SCHEME-OR-URL`."""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType

from cqrs_brokers.arguments import ArgumentParser
from cqrs_brokers_testkit.conformance._case import CASES
from cqrs_brokers_testkit.conformance._harness import Harness
from cqrs_brokers_testkit.conformance._runner import run

HARNESSES = "cqrs_brokers_conformance"
"""The entry-point group in which a distribution names its harness. The name of an entry point is the scheme."""

PASSED, FAILED, INCOMPLETE, USAGE = 0, 1, 3, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the suite.

    Returns:
        0: the plugin passed. 1: a case failed. 2: wrong usage. 3: no case failed, but some cases were not run.
    """
    parser = ArgumentParser(prog="python -m cqrs_brokers_testkit", description=__doc__)
    parser.add_argument("broker", nargs="?", help="a scheme, or the config string of a server that may be written to")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the report as conformance.json")
    parser.add_argument("--table", metavar="FILE", type=Path, help="write the report as a Markdown table")
    parser.add_argument("--badge", metavar="FILE", type=Path, help="write the verdict as shields.io's endpoint badge")
    parser.add_argument(
        "--only", metavar="ID", action="append", default=[], help="a case or a section; may be repeated"
    )
    parser.add_argument(
        "--harness",
        metavar="MODULE:CLASS",
        help="the harness, also as FILE:CLASS; default: the one that is registered for the scheme",
    )
    parser.add_argument("--list", action="store_true", help="list the cases and end")
    given = parser.parse_args(arguments)
    if given.list:
        for case in CASES.values():
            print(f"{case.id:45} {case.kind:6} {case.profile:20} {case.title}")
        return PASSED
    if not given.broker and not given.harness:
        parser.error("name a scheme or a config string")
    logging.getLogger().addHandler(logging.NullHandler())  # the clients under test log what the cases make them suffer
    try:
        harness = _harness(given.broker or "", given.harness)
        report = run(harness, only=given.only)
    except (LookupError, ImportError, AttributeError, TypeError) as error:
        parser.exit(USAGE, f"{parser.prog}: {error}\n")
    if given.json:
        report.write_json(given.json)
    if given.badge:
        report.write_badge(given.badge)
    if given.table:
        given.table.write_text(report.table(), encoding="utf-8")
    print(report.table())
    if not _harness_given(harness):
        print(f"no harness is registered for {report.scheme}:// (entry-point group {HARNESSES}); see --harness")
    return {"passed": PASSED, "failed": FAILED, "incomplete": INCOMPLETE}[report.verdict]


def _harness_given(harness: Harness) -> bool:
    """Whether a harness was written for the plugin. If not, only cases that need no harness can run."""
    return type(harness) is not Harness


def _imported(module: str) -> ModuleType:
    """Imports a module by its name or file. The folder of a file is put on the path, as pytest does. So the module can
    import the modules beside it."""
    file = Path(module if module.endswith(".py") else f"{module.replace('.', '/')}.py")
    if not file.exists():
        return importlib.import_module(module)
    sys.path.insert(0, str(file.parent.resolve()))
    return importlib.import_module(file.stem)


def _harness(broker: str, named: str | None) -> Harness:
    """Makes the harness: the named one, else the registered one, else a plain `Harness`."""
    scheme, _, rest = broker.partition("://")
    found: object = None
    if named is not None:
        module, _, attribute = named.rpartition(":")
        found = getattr(_imported(module), attribute)
    else:
        registered = list(metadata.entry_points(group=HARNESSES, name=scheme))
        if len(registered) > 1:
            owners = ", ".join(str(point.dist and point.dist.name) for point in registered)
            raise LookupError(f"{scheme} has more than one harness ({owners}): choose with --harness")
        if registered:
            found = registered[0].load()
    if found is None:
        return Harness(broker)
    if not (inspect.isclass(found) and issubclass(found, Harness)):
        raise TypeError(f"{named or scheme}: a harness is a subclass of cqrs_brokers_testkit.conformance.Harness")
    harness = found()
    if "://" in broker and rest:
        harness.url = broker
    return harness
