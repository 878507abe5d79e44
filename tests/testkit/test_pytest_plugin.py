"""The pytest plugin where no server can be had."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
from cqrs_brokers_testkit.servers import _brokers as brokers
brokers.find_rabbitmq = lambda folders: None
def test_one(rabbitmq): pass
def test_two(rabbitmq): pass
def test_names(unique_name):
    assert unique_name("a").startswith("a-") and unique_name("a") != unique_name("a")
"""


def run(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(TESTS)
    variables = {key: value for key, value in os.environ.items() if key not in ("CI", "CQRS_TEST_AMQP_URL")}
    variables |= {"PATH": str(folder), "CQRS_TEST_INSTALL": "0", **environment}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    return subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_tests_without_a_server_are_skipped_and_the_last_line_says_so(tmp_path: Path) -> None:
    """Two tests are skipped, the rest passes, and one line tells how many, why, and what to run."""
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout
    *_, told, outcome = done.stdout.strip().splitlines()
    assert "1 passed, 2 skipped" in outcome
    assert told.startswith("NOT TESTED: 2 live test(s) were skipped. RabbitMQ is not available")
    assert "To make it available, run: " in told


@pytest.mark.parametrize("value", ["true", "1"])
def test_in_ci_a_missing_server_is_a_failure(tmp_path: Path, value: str) -> None:
    """With CI=true nothing is skipped: the run fails and names the command."""
    done = run(tmp_path, CI=value)
    assert done.returncode == 1
    assert "1 passed, 2 errors" in done.stdout
    assert "with CI=true a missing server is a failure" in done.stdout
    assert "To make it available, run: " in done.stdout
