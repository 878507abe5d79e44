"""`nox -s versions`: what it counts, what it names as not tried, and what it takes up again. No server runs here."""

import subprocess
from pathlib import Path

import pytest
from versions.environments import ROOT, Environment, oldest
from versions.page import page
from versions.run import KINDS, Part, Result, _read, files, load, run, save
from versions.targets import TARGETS, Target

REPORT = """<testsuites><testsuite>
<testcase classname="tests.kafka.test_a" name="test_one"/>
<testcase classname="tests.kafka.test_a" name="test_two"><failure message="no">x</failure></testcase>
<testcase classname="tests.kafka.test_a" name="test_three"><error message="no">x</error></testcase>
<testcase classname="tests.kafka.test_a" name="test_four"><skipped message="no server"/></testcase>
<testcase classname="tests.conformance.test_brokers.TestKafka" name="test[x]"><skipped message="no"/></testcase>
</testsuite></testsuites>"""


def read(folder: Path) -> Result:
    (folder / "report.xml").write_text(REPORT)
    parts = {"tests/kafka/test_a.py": _read(folder / "report.xml")}
    servers = ["Apache Kafka 3.9.1"]
    return Result("kafka-3.9.1", "abc", "2026-01-01", python="3.11.7", servers=servers, parts=parts, complete=True)


def test_results_are_counted(tmp_path: Path) -> None:
    """An error counts as failed, and only a case of the suite that is skipped counts as not applicable."""
    result = read(tmp_path)
    assert result.counts == {"passed": 1, "failed": 2, "skipped": 1, "not applicable": 1}
    assert result.failed == ["tests.kafka.test_a::test_two", "tests.kafka.test_a::test_three"]


@pytest.mark.parametrize(
    ("counts", "complete", "passed"),
    [
        ({"passed": 3, "failed": 0, "skipped": 0, "not applicable": 2}, True, True),
        ({"passed": 3, "failed": 0, "skipped": 1, "not applicable": 0}, True, False),
        ({"passed": 3, "failed": 1, "skipped": 0, "not applicable": 0}, True, False),
        ({"passed": 0, "failed": 0, "skipped": 0, "not applicable": 2}, True, False),
        ({"passed": 3, "failed": 0, "skipped": 0, "not applicable": 2}, False, False),
    ],
)
def test_what_passed(counts: dict[str, int], complete: bool, passed: bool) -> None:
    """A skipped test, no test at all, and a run that was interrupted are no pass: the next run tries them again."""
    parts = {"one": Part(counts), "two": Part(dict.fromkeys(counts, 0))}
    assert Result("x", "abc", "2026-01-01", parts=parts, complete=complete).passed is passed


def test_what_was_not_tried_did_not_pass() -> None:
    """A target that the machine cannot try is tried again by the next run."""
    assert not Result("x", "abc", "2026-01-01", not_tried="no python3.14 on this machine").passed


def test_a_target_is_run_file_by_file() -> None:
    """An interrupted run goes on with the next file, so folders are taken apart; a class that is not there is not."""
    suite = "tests/conformance/test_brokers.py"
    assert files(["tests/versions", f"{suite}::TestKafka", f"{suite}::TestNothing", "tests/missing"]) == [
        "tests/versions/test_versions.py",
        f"{suite}::TestKafka",
    ]


def test_results_are_kept(tmp_path: Path) -> None:
    """What one run has found the next one knows."""
    results = {"kafka-3.9.1": read(tmp_path)}
    save(tmp_path / "kept" / "results.json", results)
    assert load(tmp_path / "kept" / "results.json") == results
    assert load(tmp_path / "nothing.json") == {}


def test_the_page_names_failures_and_what_was_not_tried(tmp_path: Path) -> None:
    """Nothing is left out: what failed, what could not be had and what nobody ran are all there."""
    missing = Result("python-3.14", "abc", "2026-01-01", not_tried="no python3.14 on this machine")
    begun = Result("qpid", "abc", "2026-01-01", parts={"a": Part(dict.fromkeys(("passed", "failed"), 1))})
    text = page({"kafka-3.9.1": read(tmp_path), "python-3.14": missing, "qpid": begun})
    assert "| Apache Kafka 3.9.1 | Apache Kafka 3.9.1 | 3.11.7 | 1 | 2 | 1 | 1 |" in text
    assert "* Apache Kafka 3.9.1: `tests.kafka.test_a::test_two`, `tests.kafka.test_a::test_three`" in text
    assert "* Python 3.14: no python3.14 on this machine." in text
    assert "* Apache Qpid Broker-J: its run has not ended." in text
    assert text.count("it was not run") == len(TARGETS) - 3
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Failed", "## Not tried"]
    assert text.count("test_two") == 1


def test_the_oldest_dependencies_are_the_lower_bounds() -> None:
    """Each range of ours has a lower bound, and the highest of several counts."""
    bounds = oldest()
    assert {"pydantic", "pluggy", "importlib-metadata", "aiokafka", "aio-pika"} <= bounds.keys()
    kafka = (ROOT / "packages/cqrs-broker-kafka/pyproject.toml").read_text()
    assert f"aiokafka>={bounds['aiokafka']}" in kafka


def test_the_tests_of_each_target_exist() -> None:
    """A renamed file would otherwise be left out in silence. Qpid's tests in the plugin are still to come."""
    for target in TARGETS:
        missing = [test for test in target.tests if not (ROOT / test.partition("::")[0]).exists()]
        assert not [test for test in missing if "qpid" not in test], target.name


def test_what_is_run_again_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a file with a failed test is run again; the page names all that failed before, also when it passes then."""
    good, bad = "tests/versions/test_versions.py", "tests/public_line/test_named_files.py"
    none = dict.fromkeys(KINDS, 0)
    result = Result("oldest", "abc", "2026-01-01", complete=True)
    result.parts = {good: Part(none | {"passed": 1}), bad: Part(none | {"failed": 1}, ["bad::test"])}
    ran: list[str] = []
    parts = [Part(none | {"failed": 1}, ["bad::other"]), Part(none | {"passed": 1})]

    def run_part(test: str, *_: object) -> Part:
        ran.append(test)
        return parts[len(ran) - 1]

    def answer(*arguments: str, **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(arguments, 0, stdout="", stderr="")

    monkeypatch.setattr("versions.run._run_part", run_part)
    monkeypatch.setattr(Environment, "run", answer)
    environment = Environment(Path("python"), "3.11.7", None, {})
    target = Target("oldest", "the oldest", (good, bad), ())
    for _ in range(3):  # what passes is not run once more
        run(target, environment, result, tmp_path, print, lambda: None, again="def, 2026-01-02")
    assert ran == [bad, bad]
    assert result.passed
    named = "* the oldest dependencies, again with def, 2026-01-02: `bad::test`, `bad::other`"
    assert named in page({"oldest": result})
