"""Runs the tests of a target and keeps the result, so that an interrupted run can be taken up again."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from .environments import ROOT, Environment
from .targets import Target

__all__ = ["Part", "Result", "load", "run", "save"]

LIMIT = 1200.0
"""Seconds after which a file of tests is given up."""
KINDS = ("passed", "failed", "skipped", "not applicable")


@dataclass
class Part:
    """What became of one file of tests.

    Attributes:
        counts: Number of tests by kind, see `KINDS`.
        failed: Ids of the tests that failed.
        seconds: How long they took.
        before: Ids of the tests that failed in earlier runs of the file, if it was run again.
        again: With which commit it was run again; "": it was not.
    """

    counts: dict[str, int]
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    before: list[str] = field(default_factory=list)
    again: str = ""


@dataclass
class Result:
    """What became of a target.

    Attributes:
        name: The target's.
        commit: Of the working tree, with "+" when files differ from it.
        date: When, in UTC.
        python: Version.
        servers: Names and versions.
        dependencies: Names and versions.
        parts: What became of each file of tests that has been run.
        complete: All files of tests have been run.
        not_tried: Why nothing was tried; "": it was.
    """

    name: str
    commit: str
    date: str
    python: str = ""
    servers: list[str] = field(default_factory=list)
    dependencies: dict[str, str] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    complete: bool = False
    not_tried: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """Tests that `passed`, `failed`, were `skipped`, or are `not applicable`."""
        return {kind: sum(part.counts[kind] for part in self.parts.values()) for kind in KINDS}

    @property
    def failed(self) -> list[str]:
        """Ids of the tests that failed."""
        return [test for part in self.parts.values() for test in part.failed]

    @property
    def seconds(self) -> float:
        """How long the tests took."""
        return sum(part.seconds for part in self.parts.values())

    @property
    def passed(self) -> bool:
        """All tests ran, none failed and none was skipped."""
        counts = self.counts
        return self.complete and counts["passed"] > 0 and not counts["failed"] and not counts["skipped"]


def load(path: Path) -> dict[str, Result]:
    """The results of earlier runs, by name of the target."""
    if not path.exists():
        return {}
    results = {}
    for entry in json.loads(path.read_text()):
        parts = {test: Part(**part) for test, part in entry.pop("parts").items()}
        results[entry["name"]] = Result(**entry, parts=parts)
    return results


def save(path: Path, results: dict[str, Result]) -> None:
    """Keeps the results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(result) for result in results.values()], indent=1))


def run(
    target: Target,
    environment: Environment,
    result: Result,
    logs: Path,
    progress: Callable[[str], None],
    keep: Callable[[], None],
    *,
    again: str = "",
) -> None:
    """Runs the files of tests of a target that have no result yet; fills in the result.

    Args:
        target: What is tried.
        environment: Its environment.
        result: To be filled in.
        logs: Folder for pytest's output.
        progress: Called with each line of progress.
        keep: Called after each file of tests, to save the result.
        again: The commit with which files with a failed test are run again; "": they are not.
    """
    result.python, result.dependencies = environment.version, environment.dependencies
    # CI: a missing server is a failure there, and not a skipped test.
    variables = {**target.variables, "CI": "true", "PYTHONDONTWRITEBYTECODE": "1"}
    ask = ("-m", "cqrs_brokers_testkit.servers", *target.servers)
    asked = environment.run(*ask, variables=variables, capture_output=True)
    if asked.returncode != 0:
        result.not_tried = (asked.stdout.strip() or asked.stderr.strip()).splitlines()[-1]
        return
    result.servers = [line.partition(":")[0] for line in asked.stdout.splitlines()]
    (logs / target.name).mkdir(parents=True, exist_ok=True)
    progress(f"{target.name}: {', '.join(result.servers)}, Python {result.python}; output in {logs / target.name}")
    tests = files(target.tests)
    for number, test in enumerate(tests, 1):
        first = result.parts.get(test)
        if first is None or (again and first.failed):
            part = _run_part(test, environment, variables, logs / target.name)
            if first is not None:
                part.before, part.again = list(dict.fromkeys([*first.before, *first.failed])), again
            result.parts[test] = part
            progress(f"{target.name}: {number} of {len(tests)}: {test}: {part.counts}, {part.seconds:.0f} s")
            keep()
    result.complete = True


def files(tests: Sequence[str]) -> list[str]:
    """The files of tests in folders, and what names a file or a class of it that exists."""
    found = []
    for test in tests:
        path, _, name = test.partition("::")
        if (ROOT / path).is_dir():
            found += sorted(str(file.relative_to(ROOT)) for file in (ROOT / path).rglob("test_*.py"))
        elif (ROOT / path).exists() and (not name or f"class {name}(" in (ROOT / path).read_text()):
            found.append(test)
    return found


def _run_part(test: str, environment: Environment, variables: Mapping[str, str], logs: Path) -> Part:
    name = test.removeprefix("tests/").replace("/", ".").replace("::", ".")
    report, log = logs / f"{name}.xml", logs / f"{name}.txt"
    report.unlink(missing_ok=True)
    began = time.monotonic()
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", test)
    with open(log, "w") as output:
        try:
            settings: dict[str, Any] = {"stdout": output, "stderr": subprocess.STDOUT, "timeout": LIMIT}
            code = environment.run(*arguments, variables=variables, **settings).returncode
        except subprocess.TimeoutExpired:
            code = -1
    if report.exists():
        part = _read(report)
    else:
        part = Part(dict.fromkeys(KINDS, 0) | {"failed": 1}, [f"{test}: pytest ended with {code}, without a report"])
    part.seconds = round(time.monotonic() - began, 1)
    return part


def _read(report: Path) -> Part:
    counts, failed = dict.fromkeys(KINDS, 0), list[str]()
    for case in ET.parse(report).iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            counts["failed"] += 1
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif skipped is not None:
            # The conformance suite skips only what has no meaning for a broker.
            suite = (case.get("classname") or "").startswith("tests.conformance.")
            counts["not applicable" if suite else "skipped"] += 1
        else:
            counts["passed"] += 1
    return Part(counts, failed)
