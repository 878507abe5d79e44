"""The benchmark runs, and what it counted is right. No figure is asserted: speed is for `nox -s bench`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cqrs_brokers_testkit.servers import ServerUnavailable
from cqrs_brokers_testkit.servers._brokers import kafka_installation, rabbitmq_installation

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def run(what: str, folder: Path) -> dict:
    command = [sys.executable, "-m", "benchmarks", what, "--quick", "--docs", str(folder), "--results", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / f"{what}.json").read_text())


@pytest.mark.live
@pytest.mark.parametrize(("what", "installation"), [("amqp", rabbitmq_installation), ("kafka", kafka_installation)])
def test_every_contender_publishes_exactly_what_it_says(what, installation, tmp_path):
    """A short run verifies every count with an independent client and writes the page and the plot."""
    for module in ("faststream", "matplotlib", "uvloop"):
        pytest.importorskip(module, reason="the benchmark's dependencies are not installed")
    try:
        installation(print)
    except ServerUnavailable as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    result = run(what, tmp_path)
    assert result["verified"] == sum(
        round(entry["rate"] * entry["seconds"]) for figure in result["figures"] for entry in figure["rounds"]
    )
    assert {"ours", "raw"} <= {figure["contender"] for figure in result["figures"]}
    outcomes = result["memory"]["outcomes"]
    assert sum(outcomes.values()) == result["memory"]["sends"]
    assert "Receipt" not in outcomes
    assert "## Goals" in (tmp_path / f"{what}.md").read_text()
    assert (tmp_path / f"{what}.png").stat().st_size > 10_000


def test_the_import_benchmark_writes_its_page(tmp_path):
    """It sees the distributions that it made, the figures are those of processes, and the page shows them."""
    result = run("imports", tmp_path)
    assert result["distributions"] > 200  # those that it makes, and what is installed here
    # Python itself takes longer than a millisecond to import pydantic, and no import here takes ten seconds.
    assert all(1 < result[name] < 10_000 for name in ("ours", "by_hand"))
    page = (tmp_path / "imports.md").read_text()
    assert f"| {result['import_ratio']:.2f} |" in page
    assert f"among {result['distributions']} distributions" in page
