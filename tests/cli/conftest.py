"""The command as a process of its own, and plugins that a stranger has installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Said(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    def __repr__(self) -> str:
        """What failed, for a test that fails too."""
        if not self.out.startswith("{"):
            return f"<{self.code}: {self.out} {self.err}>"
        return f"<{self.code}: {[finding for finding in self.json.get('findings', ()) if finding['level'] == 'fail']}>"

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def findings(self, step: str, level: str | None = None) -> list[dict[str, str]]:
        """Of `check --json`: those of a step."""
        found = [finding for finding in self.json["findings"] if finding["step"] == step]
        return [finding for finding in found if level in (None, finding["level"])]

    def only(self, step: str, level: str) -> str:
        """Text and remedy of the one finding of that step and level."""
        (finding,) = self.findings(step, level)
        return f"{finding['text']} -> {finding['remedy']}"


Run = Callable[..., Said]
Install = Callable[..., None]


def run(*arguments: object, stdin: str = "", timeout: float = 60, **environment: str) -> Said:
    """Runs `cqrs-brokers` with these arguments in a process of its own."""
    command = [sys.executable, "-W", "error", "-m", "cqrs_brokers_cli", *map(str, arguments)]
    inherited = {name: value for name, value in os.environ.items() if name not in ("CQRS_BROKER_URL", "COLUMNS")}
    done = subprocess.run(
        command,
        env={**inherited, **environment},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Said(done.returncode, done.stdout, done.stderr)


def check(*arguments: object, **environment: str) -> Said:
    """`check --json`; nothing may be on stderr, and the exit code is the document's.

    A busy machine needs more than the five seconds of a step, unless the time is what a test is about.
    """
    patience = () if "--timeout" in arguments else ("--timeout", 30)
    said = run("check", "--json", *patience, *arguments, **environment)
    assert said.err == ""
    assert said.json["exit_code"] == said.code
    return said


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs the distribution `cqrs-broker-acme` 1.2 with this source for the processes of the test."""

    def installed(source: str, scheme: str = "acme", requires: str = "") -> None:
        (tmp_path / "cqrs_broker_acme.py").write_text(source)
        metadata = tmp_path / "cqrs_broker_acme-1.2.dist-info"
        metadata.mkdir()
        needed = f"Requires-Dist: {requires}\n" if requires else ""
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: cqrs-broker-acme\nVersion: 1.2\n{needed}")
        (metadata / "entry_points.txt").write_text(f"[cqrs_brokers]\n{scheme} = cqrs_broker_acme\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return installed
