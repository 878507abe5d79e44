"""A broker that is not ours: examples/cqrs-broker-redis-streams, as somebody who has only the wheels would use it.

Its wheel and ours are installed into a fresh environment; what runs there is a copy, far away from this repository.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cqrs_brokers_testkit.conformance import CASES
from cqrs_brokers_testkit.servers import _install as install

pytestmark = [pytest.mark.slow, pytest.mark.live, pytest.mark.timeout(580)]

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "cqrs-broker-redis-streams"
OURS = ["cqrs-brokers-core", "cqrs-brokers-testkit", "cqrs-broker-memory", "cqrs-brokers-python-cqrs"]

BEFORE = """
import cqrs_brokers
try:
    cqrs_brokers.open_broker("redis-streams://localhost")
except cqrs_brokers.PluginNotFoundError:
    print("not installed")
"""

DEMO = """
import sys
sys.path[:0] = ["demo", "tests"]  # what stands beside this script
import run  # the demo application's runner, as it is
from redis_harness import RedisHarness

server = RedisHarness()
server.start()
try:
    print(run.run_shop(server.url, lambda: server.read_back(run.shop.TOPIC, len(run.EXPECTED)), "redis-py"))
finally:
    server.stop()
"""

WHERE = """
import importlib, sys
for name in ("cqrs_brokers", "cqrs_brokers_testkit", "cqrs_broker_redis_streams"):
    print(importlib.import_module(name).__file__)
print(*sys.path, sep="\\n")
"""


class Stranger:
    """A fresh environment, and a folder with copies of what is not in a wheel."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "environment" / "bin" / "python"
        self._run(sys.executable, "-m", "venv", "--without-pip", str(folder / "environment"))
        projects = [str(ROOT / "packages" / name) for name in OURS] + [str(EXAMPLE)]
        self._pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(folder / "wheels"), *projects)
        shutil.copytree(EXAMPLE / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "examples" / "demo", folder / "demo", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(EXAMPLE / "pyproject.toml", folder / "pyproject.toml")  # pytest's settings are in it

    def install(self, *names: str) -> None:
        """Our wheels come from the folder, everything else from the package index. A name may have an extra."""
        wheels = [
            str(self.wheel(name)) + bracket + extra for name, bracket, extra in (name.partition("[") for name in names)
        ]
        self._pip("--python", str(self.python), "install", "--find-links", str(self.folder / "wheels"), *wheels)

    def wheel(self, name: str) -> Path:
        (wheel,) = self.folder.joinpath("wheels").glob(f"{name.replace('-', '_')}-[0-9]*.whl")
        return wheel

    def run(self, *arguments: str) -> str:
        """Runs Python with nothing on its path but the environment; -I: no variable and no folder adds to it."""
        return self._run(str(self.python), "-I", *arguments)

    def _pip(self, *arguments: str) -> None:
        self._run(sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments)

    def _run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, f"{' '.join(command)[:200]}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
        return done.stdout


@pytest.fixture(scope="module", autouse=True)
def _redis_server() -> None:
    """Debian's redis-server, installed as the test kit installs RabbitMQ: only when root already, and not started."""
    if shutil.which("redis-server") is None and install._may_install() and os.geteuid() == 0:
        with install._install_lock():
            if shutil.which("redis-server") is None and shutil.which("apt-get"):
                install._apt_install("redis-server")
    if shutil.which("redis-server") is None:
        reason = "redis-server is not available. To make it available, run: sudo apt-get install -y redis-server"
        if os.environ.get("CI", "").lower() in ("true", "1"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    """Without the plugin, until the first test has installed it."""
    assert importlib.util.find_spec("hatchling"), "building wheels needs hatchling: pip install hatchling"
    stranger = Stranger(tmp_path_factory.mktemp("stranger"))
    stranger.install(*OURS)
    assert stranger.run("-c", BEFORE) == "not installed\n"
    stranger.install("cqrs-broker-redis-streams[test]")
    return stranger


def test_nothing_of_the_repository_is_on_the_path(stranger: Stranger) -> None:
    """What is tested is what is in the wheels."""
    places = stranger.run("-c", WHERE).splitlines()
    assert all(place.startswith(str(stranger.folder)) for place in places[:3])
    assert not [place for place in places if place.startswith(str(ROOT))]


def test_installing_the_plugin_is_all_that_the_demo_application_needs(stranger: Stranger) -> None:
    """The scheme was unknown before; after `pip install` the unchanged application publishes through it."""
    (stranger.folder / "on_redis.py").write_text(DEMO)
    said = stranger.run("on_redis.py")
    assert "config string: redis-streams://app:**********@127.0.0.1:" in said
    assert said.endswith("3 events published and read back with redis-py\n")


def test_the_authors_tests_pass(stranger: Stranger) -> None:
    """The whole conformance suite on a real Redis; nothing is skipped but what the harness waives with a reason."""
    said = stranger.run("-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--tb=short", "tests")
    outcome = re.search(r"^(\d+) passed, (\d+) skipped in", said, re.MULTILINE)
    assert outcome is not None, said[-2000:]
    assert int(outcome[1]) + int(outcome[2]) == len(CASES)
    waived = (EXAMPLE / "tests" / "redis_harness.py").read_text()
    waived += "its receipts name no offset; nobody but the broker can answer; may publish nowhere"  # the suite's own
    waived += "; the harness forges no answers; the harness names no options that could change how messages are sent "
    waived += "or answers are read; the broker takes any number of messages that it has not answered"
    waived += "; the harness has no destination with a small limit of size; the harness keeps no single answer back"
    waived += "; the harness has no forged answer whose meaning is 'one refused'"
    for line in re.findall(r"^SKIPPED .*", said, re.MULTILINE):
        reason = line.rpartition(".py:")[2].partition(": ")[2]
        reason = reason.removeprefix("the credentials of forbidden_destination ")
        assert reason in waived or reason.startswith("the driver d"), reason  # declares, does not declare


def test_the_authors_test_file_is_short() -> None:
    """Under 30 lines: the suite is in the wheel, not in each plugin."""
    assert len((EXAMPLE / "tests" / "test_conformance.py").read_text().splitlines()) < 30
