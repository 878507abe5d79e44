"""Runs the tests of a target and keeps the result, so that an interrupted run can be taken up again."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from .environments import ROOT, Environment
from .targets import Target

__all__ = ["Result", "load", "run", "save"]

LIMIT = 3600.0
"""Seconds after which a target is given up."""


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
        counts: Tests that `passed`, `failed`, were `skipped`, or are `not applicable`.
        failed: Ids of the tests that failed.
        seconds: How long they took.
        not_tried: Why nothing was tried; "": it was.
    """

    name: str
    commit: str
    date: str
    python: str = ""
    servers: list[str] = field(default_factory=list)
    dependencies: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    not_tried: str = ""

    @property
    def passed(self) -> bool:
        """Tests ran, none failed and none was skipped."""
        counts = self.counts
        return not self.not_tried and counts.get("passed", 0) > 0 and not counts["failed"] and not counts["skipped"]


def load(path: Path) -> dict[str, Result]:
    """The results of earlier runs, by name of the target."""
    if not path.exists():
        return {}
    return {entry["name"]: Result(**entry) for entry in json.loads(path.read_text())}


def save(path: Path, results: dict[str, Result]) -> None:
    """Keeps the results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(result) for result in results.values()], indent=1))


def run(target: Target, environment: Environment, result: Result, logs: Path, progress: Callable[[str], None]) -> None:
    """Runs the tests of a target; fills in the result.

    Args:
        target: What is tried.
        environment: Its environment.
        result: To be filled in.
        logs: Folder for pytest's output.
        progress: Called with each line of progress.
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
    tests = [test for test in target.tests if _exists(test)]
    logs.mkdir(parents=True, exist_ok=True)
    report, log = logs / f"{target.name}.xml", logs / f"{target.name}.txt"
    report.unlink(missing_ok=True)
    progress(f"{target.name}: {', '.join(result.servers)}, Python {result.python}; output in {log}")
    began = time.monotonic()
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *tests)
    with open(log, "w") as output:
        try:
            settings: dict[str, Any] = {"stdout": output, "stderr": subprocess.STDOUT, "timeout": LIMIT}
            code = environment.run(*arguments, variables=variables, **settings).returncode
        except subprocess.TimeoutExpired:
            code = -1
    result.seconds = round(time.monotonic() - began, 1)
    if not report.exists():
        result.counts = {"passed": 0, "failed": 1, "skipped": 0, "not applicable": 0}
        result.failed = [f"pytest ended with {code} and wrote no report: {log}"]
        return
    _read(report, result)


def _exists(test: str) -> bool:
    file, _, name = test.partition("::")
    path = ROOT / file
    return path.exists() and (not name or f"class {name}(" in path.read_text())


def _read(report: Path, result: Result) -> None:
    counts = {"passed": 0, "failed": 0, "skipped": 0, "not applicable": 0}
    failed = []
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
    result.counts, result.failed = counts, failed
