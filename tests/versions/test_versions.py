"""`nox -s versions`: what it counts, what it names as not tried, and what it takes up again. No server runs here."""

from pathlib import Path

import pytest
from versions.environments import ROOT, oldest
from versions.page import page
from versions.run import Result, _read, load, save
from versions.targets import TARGETS

REPORT = """<testsuites><testsuite>
<testcase classname="tests.kafka.test_a" name="test_one"/>
<testcase classname="tests.kafka.test_a" name="test_two"><failure message="no">x</failure></testcase>
<testcase classname="tests.kafka.test_a" name="test_three"><error message="no">x</error></testcase>
<testcase classname="tests.kafka.test_a" name="test_four"><skipped message="no server"/></testcase>
<testcase classname="tests.conformance.test_brokers.TestKafka" name="test[x]"><skipped message="no"/></testcase>
</testsuite></testsuites>"""


def read(folder: Path) -> Result:
    result = Result("kafka-3.9.1", "abc", "2026-01-01", python="3.11.7", servers=["Apache Kafka 3.9.1"])
    (folder / "report.xml").write_text(REPORT)
    _read(folder / "report.xml", result)
    return result


def test_results_are_counted(tmp_path: Path) -> None:
    """An error counts as failed, and only a case of the suite that is skipped counts as not applicable."""
    result = read(tmp_path)
    assert result.counts == {"passed": 1, "failed": 2, "skipped": 1, "not applicable": 1}
    assert result.failed == ["tests.kafka.test_a::test_two", "tests.kafka.test_a::test_three"]


@pytest.mark.parametrize(
    ("counts", "reason", "passed"),
    [
        ({"passed": 3, "failed": 0, "skipped": 0, "not applicable": 2}, "", True),
        ({"passed": 3, "failed": 0, "skipped": 1, "not applicable": 0}, "", False),
        ({"passed": 3, "failed": 1, "skipped": 0, "not applicable": 0}, "", False),
        ({"passed": 0, "failed": 0, "skipped": 0, "not applicable": 2}, "", False),
        ({}, "no python3.14 on this machine", False),
    ],
)
def test_what_passed(counts: dict[str, int], reason: str, passed: bool) -> None:
    """A skipped test, no test at all, and what was not tried are no pass: the next run tries them again."""
    assert Result("x", "abc", "2026-01-01", counts=counts, not_tried=reason).passed is passed


def test_results_are_kept(tmp_path: Path) -> None:
    """What one run has found the next one knows."""
    results = {"kafka-3.9.1": read(tmp_path)}
    save(tmp_path / "kept" / "results.json", results)
    assert load(tmp_path / "kept" / "results.json") == results
    assert load(tmp_path / "nothing.json") == {}


def test_the_page_names_failures_and_what_was_not_tried(tmp_path: Path) -> None:
    """Nothing is left out: what failed, what could not be had and what nobody ran are all there."""
    missing = Result("python-3.14", "abc", "2026-01-01", not_tried="no python3.14 on this machine")
    text = page({"kafka-3.9.1": read(tmp_path), "python-3.14": missing})
    assert "| Apache Kafka 3.9.1 | Apache Kafka 3.9.1 | 3.11.7 | 1 | 2 | 1 | 1 |" in text
    assert "* Apache Kafka 3.9.1: `tests.kafka.test_a::test_two`, `tests.kafka.test_a::test_three`" in text
    assert "* Python 3.14: no python3.14 on this machine." in text
    assert text.count("it was not run") == len(TARGETS) - 2
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
