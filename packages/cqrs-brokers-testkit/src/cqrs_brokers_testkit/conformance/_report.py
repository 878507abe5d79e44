"""The result of a run, as data (`conformance.json`) and as a table. A run that left out a case is never a pass."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

SCHEMA = 1
"""The version of the format of `conformance.json`. It changes when a reader of the old format would misread the new
one."""

NOT_CHOSEN = "not chosen"
"""The reason of a case that `only` left out."""

Status = Literal["passed", "failed", "not run", "not applicable"]


class ConformanceFailed(AssertionError):  # noqa: N818 - names what happened
    """The plugin did not pass. The text lists the cases that failed and those that were not run."""


@dataclass(frozen=True)
class CaseResult:
    """How one case ended.

    Attributes:
        id: The case.
        kind: static, live or fault.
        profile: `core`, or the capability to which the case belongs.
        status: "passed", "failed", "not run" (it could not be run, so the report is not a pass), or "not applicable"
            (the broker does not have what the case is about).
        reason: The reason why the case is not "passed".
        seconds: How long the case took.
        detail: The traceback of a failure.
    """

    id: str
    kind: str
    profile: str
    status: Status
    reason: str = ""
    seconds: float = 0.0
    detail: str = field(default="", compare=False)


@dataclass
class Report:
    """The result of one run.

    Attributes:
        suite: Version of the test kit.
        core: Version of cqrs-brokers-core.
        python: Version of Python.
        scheme: The scheme that was tested.
        plugin: The plugin's distribution and version, or a text for a plugin without distribution.
        capabilities: The capabilities that the driver declares.
        server: Name and version of the server, as the harness gives them.
        cases: One result per case of the suite.
        notes: Facts that are not failures, for example that a capability works although it is not declared.
        filtered: Whether cases were chosen by hand.
    """

    suite: str
    core: str
    python: str
    scheme: str
    plugin: str
    capabilities: dict[str, Any]
    server: str = ""
    cases: list[CaseResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    filtered: bool = False

    def slowest(self, count: int) -> list[CaseResult]:
        """The cases that took longest, the slowest first."""
        ran = [result for result in self.cases if result.status in ("passed", "failed")]
        return sorted(ran, key=lambda result: -result.seconds)[:count]

    def with_status(self, status: Status) -> list[CaseResult]:
        """The cases with this status."""
        return [result for result in self.cases if result.status == status]

    @property
    def complete(self) -> bool:
        """Whether every case was run or does not apply, and none was filtered out."""
        return not self.filtered and bool(self.cases) and not self.with_status("not run")

    @property
    def passed(self) -> bool:
        """Whether the run is complete and no case failed."""
        return self.complete and not self.with_status("failed")

    @property
    def verdict(self) -> str:
        """The result in a word: passed, failed or incomplete."""
        if self.with_status("failed"):
            return "failed"
        return "passed" if self.complete else "incomplete"

    @property
    def profiles(self) -> dict[str, str]:
        """The verdict for `core` and for each declared capability.

        If no case of a declared capability passed, the verdict is "incomplete", because the capability is not proven.
        """
        verdicts = {}
        for profile in ["core", *(name for name, value in self.capabilities.items() if value is True)]:
            statuses = {result.status for result in self.cases if result.profile == profile}
            if "failed" in statuses:
                verdicts[profile] = "failed"
            elif self.filtered or "not run" in statuses or "passed" not in statuses:
                verdicts[profile] = "incomplete"
            else:
                verdicts[profile] = "passed"
        return verdicts

    def raise_for_failures(self) -> None:
        """Returns if the run is a pass.

        Raises:
            ConformanceFailed: A case failed, or was not run.
        """
        if self.passed:
            return
        lines = [f"{self.scheme}:// {self.verdict}: {self.summary}"]
        for status in ("failed", "not run"):
            lines += [f"- {result.id} {status}: {result.reason}" for result in self.cases if result.status == status]
        raise ConformanceFailed("\n".join(lines))

    @property
    def summary(self) -> str:
        """The number of cases with each status."""
        counts = Counter(result.status for result in self.cases)
        text = ", ".join(f"{counts[s]} {s}" for s in ("passed", "failed", "not run", "not applicable") if counts[s])
        return text + (" (only some cases were chosen)" if self.filtered else "")

    # -- forms --------------------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """The content of `conformance.json`."""
        cases = [{key: value for key, value in asdict(result).items() if key != "detail"} for result in self.cases]
        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "passed": self.passed,
            "suite": self.suite,
            "core": self.core,
            "python": self.python,
            "scheme": self.scheme,
            "plugin": self.plugin,
            "server": self.server,
            "capabilities": self.capabilities,
            "profiles": self.profiles,
            "filtered": self.filtered,
            "notes": self.notes,
            "cases": cases,
        }

    def badge(self) -> dict[str, Any]:
        """The verdict in the form of shields.io's endpoint badge."""
        passed = len(self.with_status("passed"))
        return {
            "schemaVersion": 1,
            "label": "cqrs-brokers conformance",
            "message": f"{self.verdict}: {passed} cases, suite {self.suite}",
            "color": {"passed": "brightgreen", "failed": "red", "incomplete": "yellow"}[self.verdict],
        }

    def write_badge(self, path: str | Path) -> None:
        """Writes the badge as JSON."""
        Path(path).write_text(json.dumps(self.badge(), indent=2) + "\n", encoding="utf-8")

    def write_json(self, path: str | Path) -> None:
        """Writes `conformance.json`."""
        Path(path).write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")

    def table(self) -> str:
        """The report as Markdown, readable as it is."""
        head = [
            f"`{self.scheme}://` of {self.plugin}: **{self.verdict}** ({self.summary})",
            "",
            f"{f'{self.server}, suite' if self.server else 'Suite'} {self.suite}, core {self.core}, "
            f"Python {self.python}. Profiles: "
            + ", ".join(f"{name} {verdict}" for name, verdict in self.profiles.items())
            + ".",
        ]
        if self.notes:
            head += ["", *(f"- {note}" for note in self.notes)]
        rows = [("case", "kind", "profile", "result"), ("---", "---", "---", "---")]
        for result in self.cases:
            if result.reason == NOT_CHOSEN:
                continue
            text = result.status + (f": {_one_line(result.reason)}" if result.reason else "")
            rows.append((f"`{result.id}`", result.kind, result.profile, text))
        return "\n".join([*head, "", *("| " + " | ".join(row) + " |" for row in rows), ""])


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:300]
