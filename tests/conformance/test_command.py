"""The command of the suite, and the forms of its report."""

import json
import sys
from pathlib import Path

import pytest

from cqrs_brokers_testkit.conformance import CASES, run
from cqrs_brokers_testkit.conformance._command import main
from tests.conformance.few import Few, quiet


def test_report_as_data(three_cases: None, tmp_path: Path) -> None:
    """conformance.json says what was tested, and of each case how it ended and why."""
    path = tmp_path / "conformance.json"
    run(Few(), progress=quiet).write_json(path)
    data = json.loads(path.read_text())
    assert (data["schema"], data["passed"], data["scheme"]) == (1, True, "memory")
    assert data["plugin"].startswith("cqrs-broker-memory ")
    assert set(data["cases"][0]) == {"id", "kind", "profile", "status", "reason", "seconds"}
    assert data["cases"][2]["reason"]


def test_progress_has_a_line_per_case(three_cases: None) -> None:
    """Each case is named before it runs."""
    pieces: list[str] = []
    run(Few(), progress=pieces.append)
    lines = "".join(pieces).splitlines()
    assert lines[0].startswith("[  1/3] static.broker-is-true passed")
    assert lines[3].startswith("slowest: ")
    assert len(lines) == 5


def test_command_without_harness(
    three_cases: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a scheme without a harness the command runs what it can, says so, and does not end with 0."""
    monkeypatch.setattr("cqrs_brokers_testkit.conformance._command.HARNESSES", "nobody_registers_here")
    assert main(["memory"]) == 3
    assert "no harness is registered for memory://" in capsys.readouterr().out


def test_command_with_harness(three_cases: None, tmp_path: Path) -> None:
    """With a harness the command ends with 0 when all is proven, and writes the report."""
    name = "tests.conformance.few:Few"
    assert main(["memory", "--harness", name, "--json", str(tmp_path / "c.json")]) == 0
    assert json.loads((tmp_path / "c.json").read_text())["verdict"] == "passed"
    assert main(["--harness", name, "--only", "static"]) == 3


def test_command_with_a_wrong_harness(three_cases: None) -> None:
    """What is no harness is a wrong usage."""
    with pytest.raises(SystemExit) as ended:
        main(["memory", "--harness", "json:JSONDecoder"])
    assert ended.value.code == 2


def test_command_lists_the_cases(capsys: pytest.CaptureFixture[str]) -> None:
    """`--list` names every case with what it demands."""
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in CASES)


def test_only_prints_what_ran(three_cases: None, capsys: pytest.CaptureFixture[str]) -> None:
    """The table has no rows for what was not chosen."""
    main(["--harness", "tests.conformance.few:Few", "--only", "static"])
    out = capsys.readouterr().out
    assert "static.broker-is-true" in out
    assert "messages.identity-arrives" not in out


def test_a_harness_is_found_by_file_and_may_import_its_neighbours(
    three_cases: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the tutorial lays them out."""
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "neighbour_of_mine.py").write_text("from tests.conformance.few import Few\n")
    (tests / "harness_of_mine.py").write_text("from neighbour_of_mine import Few\n\nclass Mine(Few): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("tests/harness_of_mine.py:Mine", "tests.harness_of_mine:Mine"):
        assert main(["--harness", name]) == 0


def test_the_badge_says_the_verdict(three_cases: None, tmp_path: Path) -> None:
    """In the form of shields.io's endpoint badge."""
    main(["--harness", "tests.conformance.few:Few", "--badge", str(tmp_path / "badge.json")])
    badge = json.loads((tmp_path / "badge.json").read_text())
    assert (badge["schemaVersion"], badge["color"]) == (1, "brightgreen")
    assert badge["message"].startswith("passed: 2 cases")
