"""`nox -s bench -- --against REF`: its verdicts are those that the page states, and it runs. No speed is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.against.environments import Version, commit_of, differences
from benchmarks.against.page import Run, page
from benchmarks.against.rows import LATENCY, MANY_TOPICS, Row, rows_of
from benchmarks.against.servers import NoServer
from benchmarks.against.session import AGAIN, REF, TREE, Result, measure
from benchmarks.against.verdict import Compared, quantile

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("ratios", "control", "verdict"),
    [
        ([0.9] * 15, [1.0] * 15, "worse"),
        ([0.975] * 15, [1.0] * 15, "same"),  # above the bound
        ([0.9] * 15, [0.85] * 2 + [1.0] * 13, "same"),  # A/A falls as low
        ([0.9] * 7 + [1.0] * 8, [1.0] * 15, "same"),  # the median decides
        ([1.1] * 15, [1.0] * 15, "better"),
        ([1.1] * 15, [1.0] * 13 + [1.2] * 2, "same"),
    ],
)
def test_verdict(ratios, control, verdict):
    """A row is worse only if its median is below 0.97 and below the 5th percentile of the A/A ratios."""
    assert Compared(ratios, control).verdict == verdict


def test_quantile():
    """A quantile is interpolated between the neighbours, whatever the order of the values."""
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([0.0, 10.0], 0.05) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def result_of(tree_rate: float, tree_cpu: float) -> Result:
    """Three rounds in which REF makes 100 messages per second at 10 µs each."""
    rows = [Row("gather(100)"), Row(LATENCY)]
    result = Result("kafka", "Apache Kafka 0.0", rows)
    for side in (REF, AGAIN, TREE):
        rate, cpu = (tree_rate, tree_cpu) if side == TREE else (100.0, 10.0)
        entry = {"seconds": 1.0, "rate": rate, "cpu": cpu, "p50": 0.1 / rate, "p99": 0.2 / rate}
        for row in rows:
            result.rounds[row.title, side] = [entry] * 3
            result.counts[row.title] = 100
    return result


def test_throughput_cpu_and_latency_have_a_verdict():
    """Less throughput, more CPU and a longer median latency are each found, in the row where they are."""
    assert result_of(100, 10).worse() == []
    assert result_of(90, 10).worse() == ["kafka: gather(100): throughput", "kafka: 1000 per second: p50"]
    assert result_of(100, 11).worse() == ["kafka: gather(100): CPU", "kafka: 1000 per second: CPU"]


def test_page_says_what_is_slower():
    """The page names the slower rows, the reason for the run and, when there are too few rounds, that."""
    run = Run("v1", "c" * 40, "commit `d`", ["pydantic 1 → 2"], 3, 1.0, "a second run", [result_of(50, 20)])
    text = page(run)
    assert "| gather(100) | 100 | 100 | 50 | 0.50 | 1.00-1.00 | **slower** | 10.0 | 20.0 | 2.00 |" in text
    assert "**Slower: kafka: gather(100): throughput; kafka: gather(100): CPU;" in text
    assert "a second run" in text
    assert "pydantic 1 → 2" in text
    assert "verdicts here mean little" in text
    assert "**No row is slower.**" in page(Run("v1", "c" * 40, "t", [], 15, 1.0, "", [result_of(100, 10)]))


class Publisher:
    """Stands for a version's process; REF ends in the row with many topics."""

    def __init__(self, name, command):
        self.name, self.ended = name, False

    def answer(self):
        return {"pid": 1}

    def ask(self, order):
        assert not self.ended
        if order["topics"] and order["count"] > 1000 and "REF" in self.name:
            self.ended = True
            raise RuntimeError(f"{self.name} ended with code 1")
        return {"seconds": 1.0, "cpu": 0.1}

    def end(self):
        pass


def test_a_row_that_fails_does_not_end_the_run(monkeypatch):
    """The other rows are measured, in new processes, and the page names the row and the version that ended."""
    monkeypatch.setattr("benchmarks.against.session.Process", Publisher)
    versions = [Version(title, Path("python"), Path("workload.py"), {}) for title in ("REF c", "working tree")]
    rows = [Row(MANY_TOPICS), Row("gather(100)")]
    quiet = {"seconds": 1.0, "seed": 1, "progress": lambda line: None}
    result = measure("kafka", NoServer("Kafka", "kafka://h"), rows, tuple(versions), pairs=2, **quiet)
    assert [row.title for row in result.rows] == ["gather(100)"]
    assert len(result.rounds["gather(100)", TREE]) == 2
    text = page(Run("v1", "c" * 40, "t", [], 2, 1.0, "", [result]))
    assert "**Not measured: gather to 1000 topics, because a process ended: kafka: REF c ended with code 1.**" in text
    assert "| gather(100) |" in text


def test_rows():
    """A row that does not exist is an error that names those that do."""
    assert [row.title for row in rows_of("kafka", ["bulk 10 000"])] == ["bulk 10 000"]
    with pytest.raises(ValueError, match=r"no such row: sequential\. The rows are: one by one, "):
        rows_of("kafka", ["sequential"])


def test_job_has_whole_waves():
    """A job lasts about as long as asked, in whole waves, and a fixed rate decides its count itself."""
    assert Row("gather(1000)").count(rate=52_300, seconds=1) == 52_000
    assert Row("bulk 10 000").count(rate=9_000, seconds=0.5) == 10_000
    assert Row(LATENCY).count(rate=123, seconds=2) == 2_000


def test_packages_that_differ_are_named(tmp_path):
    """Another version, or a package in one environment only, is told."""
    one = Version("a", tmp_path, tmp_path, {"pydantic": "2.1", "pluggy": "1.5"})
    other = Version("b", tmp_path, tmp_path, {"pydantic": "2.2", "pluggy": "1.5", "zipp": "3"})
    assert differences(one, other) == ["pydantic 2.1 → 2.2", "zipp absent → 3"]


def test_unknown_commit():
    """A commit that git does not know is an error that names it."""
    with pytest.raises(ValueError, match="git knows no commit 'no-such-commit'"):
        commit_of(ROOT, "no-such-commit")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_short_run(tmp_path):
    """A run builds both versions, installs them apart, counts, and writes every row into the page."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git repository: there is no earlier version to build")
    command = [sys.executable, "-m", "benchmarks.against", "HEAD", "--broker", "instant", "--pairs", "1"]
    command += ["--seconds", "0.02", "--page", str(tmp_path / "against.md"), "--folder", str(tmp_path / "versions")]
    command += ["--results", str(tmp_path / "against.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode in (0, 1), done.stderr[
        -3000:
    ]
    found = json.loads((tmp_path / "against.json").read_text())["results"][0]
    titles = [row.title for row in rows_of("instant", [])]
    sides = {(entry["row"], entry["side"]): entry["rounds"] for entry in found["rounds"]}
    assert set(sides) == {(title, side) for title in titles for side in (REF, AGAIN, TREE)}
    assert all(rounds[0]["seconds"] > 0 for rounds in sides.values())
    text = (tmp_path / "against.md").read_text()
    assert all(f"| {title} | {found['counts'][title]:,} |" in text for title in titles)
    for side in ("ref", "tree"):
        installed = list((tmp_path / "versions" / side).glob("environment/lib/python*/site-packages/cqrs_brokers"))
        assert len(installed) == 1
