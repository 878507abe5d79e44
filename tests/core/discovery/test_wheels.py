"""The five diagnoses, each shown with real wheels that pip installs into a fresh environment."""

import base64
import hashlib
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from .conftest import GOOD

pytestmark = pytest.mark.slow

PACKAGES = Path(__file__).parents[3] / "packages"


def needed_by(distribution: str) -> set[str]:
    """What a distribution needs from others, brought along from the environment that runs the tests: no network."""
    found: set[str] = set()
    pending = [distribution]
    while pending:
        for line in metadata.requires(pending.pop()) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                pending += {requirement.name} - found
                found.add(requirement.name)
    return found


def build_wheel(
    folder: Path,
    name: str,
    version: str,
    files: dict[str, bytes],
    entry_points: str = "",
    requires: tuple[str, ...] = (),
) -> Path:
    """Writes a wheel (https://packaging.python.org/specifications/binary-distribution-format/)."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    header = [
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}",
        *(f"Requires-Dist: {line}" for line in requires),
    ]
    content = dict(files) | {
        f"{info}/METADATA": "\n".join(header).encode() + b"\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": entry_points.encode(),
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip('=')},{len(data)}\n"
        for path, data in content.items()
    )
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in [*content.items(), (f"{info}/RECORD", f"{record}{info}/RECORD,,\n".encode())]:
            archive.writestr(path, data)
    return wheel


def our_wheel(folder: Path, distribution: str) -> Path:
    """A wheel of one of our own distributions, from its sources and its pyproject.toml."""
    project = tomllib.loads((PACKAGES / distribution / "pyproject.toml").read_text())["project"]
    source = PACKAGES / distribution / "src"
    files = {
        str(path.relative_to(source)): path.read_bytes()
        for path in source.rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    groups = "".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in lines.items())
        for group, lines in project.get("entry-points", {}).items()
    )
    return build_wheel(folder, distribution, project["version"], files, groups, tuple(project["dependencies"]))


class Environment:
    """A fresh virtual environment with core in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder / "env", with_pip=False, symlinks=True)
        self.python = folder / "env" / "bin" / "python"
        self.site = next((folder / "env" / "lib").glob("python*")) / "site-packages"
        for name in needed_by("cqrs-brokers-core"):
            distribution = metadata.distribution(name)
            tops = {Path(str(path)).parts[0] for path in distribution.files or () if not str(path).startswith("..")}
            for top in tops - {"__pycache__"}:
                source, target = Path(str(distribution.locate_file(top))), self.site / top
                shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        self.install(our_wheel(folder, "cqrs-brokers-core"))

    def install(self, *wheels: Path, target: Path | None = None) -> None:
        command = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(self.python),
            "install",
            "-q",
            "--no-index",
            "--no-deps",
        ]
        command += ["--disable-pip-version-check"] + (["--target", str(target)] if target else [])
        subprocess.run([*command, *map(str, wheels)], check=True, timeout=100, capture_output=True)

    def plugin(self, name: str, version: str, schemes: dict[str, str], source: str, requires: str = "") -> Path:
        """A wheel of a plugin with one module, named after the distribution."""
        module = name.replace("-", "_")
        lines = "[cqrs_brokers]\n" + "".join(f"{scheme} = {value or module}\n" for scheme, value in schemes.items())
        folder = self.folder / f"{name}-{version}"
        folder.mkdir()
        needed = (f"cqrs-brokers-core{requires}",)
        return build_wheel(folder, name, version, {f"{module}.py": source.encode()}, lines, needed)

    def run(self, code: str, **environment: str) -> str:
        """What the code prints, in a process of that environment."""
        result = subprocess.run(
            [str(self.python), "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, env=environment
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def open(self, url: str, **environment: str) -> str:
        """The class and text of the error that opening gives, or the broker's name; then what of ours was imported."""
        return self.run(
            "import sys\nfrom cqrs_brokers import open_broker, BrokerError\n"
            f"try:\n    print('opened', open_broker({url!r}).name)\n"
            "except BrokerError as error:\n    print(type(error).__name__ + ': ' + str(error))\n"
            "loaded = [m for m in sys.modules if m.startswith(('cqrs_broker_', 'other_'))]\n"
            "print(','.join(sorted(m for m in loaded if '.' not in m)))",
            **environment,
        )


@pytest.fixture
def environment(tmp_path: Path) -> Callable[[], Environment]:
    """A fresh environment for each test."""
    return lambda: Environment(tmp_path)


def test_not_installed(environment):
    """Core alone knows which distribution to install, for the schemes of a curated table only."""
    fresh = environment()
    assert fresh.open("kafka://h") == "PluginNotFoundError: kafka:// is not installed: pip install cqrs-broker-kafka"
    assert fresh.open("nats://h").startswith("PluginNotFoundError: unknown scheme 'nats'; installed: none.")


def test_misspelt(environment):
    """A near miss of an installed scheme is named; core with devnull has no broker client."""
    fresh = environment()
    fresh.install(our_wheel(fresh.folder, "cqrs-broker-devnull"))
    assert fresh.open("devnul://") == "PluginNotFoundError: unknown scheme 'devnul'; did you mean 'devnull'?"
    assert fresh.open("devnull://") == "opened devnull\ncqrs_broker_devnull"
    clients = "import cqrs_brokers; cqrs_brokers.open_broker('devnull://'); import importlib.util as u;"
    assert fresh.run(clients + "print(u.find_spec('aiokafka'), u.find_spec('aio_pika'))") == "None None"


def test_installed_but_broken(environment):
    """Distribution, version and cause; the others work, also after a plugin that calls `sys.exit` at import."""
    fresh = environment()
    fresh.install(
        fresh.plugin("cqrs-broker-acme", "1.5", {"acme": ""}, "import not_there"),
        fresh.plugin("cqrs-broker-quit", "2.0", {"quit": ""}, "import sys; sys.exit(1)"),
        fresh.plugin("cqrs-broker-torn", "3.0", {"torn": ""}, GOOD),
        fresh.plugin("cqrs-broker-good", "1.0", {"good": ""}, GOOD),
    )
    with (fresh.site / "cqrs_broker_torn-3.0.dist-info" / "entry_points.txt").open("ab") as file:
        file.write(b"# \xff")
    assert fresh.open("acme://") == (
        "PluginLoadError: acme:// is provided by cqrs-broker-acme 1.5, which is installed but broken: importing "
        "cqrs_broker_acme failed with ModuleNotFoundError: No module named 'not_there': "
        "reinstall or upgrade cqrs-broker-acme"
    )
    assert fresh.open("quit://") == (
        "PluginLoadError: quit:// is provided by cqrs-broker-quit 2.0, which is installed but broken: importing "
        "cqrs_broker_quit failed with SystemExit: 1: reinstall or upgrade cqrs-broker-quit"
    )
    assert fresh.open("torn://") == (
        "PluginLoadError: torn:// is provided by cqrs-broker-torn 3.0, which is installed but broken: its "
        "entry_points.txt is not UTF-8; reinstall"
    )
    assert fresh.open("good://") == "opened good\ncqrs_broker_good"
    listing = fresh.run(
        "import cqrs_brokers\nfor b in cqrs_brokers.available_brokers(): print(b.name, b.version, b.status)"
    )
    assert listing.splitlines() == ["acme 1.5 ready", "good 1.0 ready", "quit 2.0 ready", "torn 3.0 broken metadata"]


def test_incompatible_with_this_core(environment):
    """Both versions, before the plugin is imported."""
    fresh = environment()
    fresh.install(fresh.plugin("cqrs-broker-acme", "9.0", {"acme": ""}, GOOD, ">=0.9,<0.10"))
    core = fresh.run("from importlib.metadata import version; print(version('cqrs-brokers-core'))")
    assert fresh.open("acme://") == (
        "PluginLoadError: acme:// is provided by cqrs-broker-acme 9.0, which cannot be used here: it needs "
        f"cqrs-brokers-core<0.10,>=0.9, and {core} is running; upgrade one of them"
    )


def test_claimed_by_two(environment):
    """Both are named and neither is imported; a pin in the environment decides."""
    fresh = environment()
    fresh.install(
        fresh.plugin("cqrs-broker-acme", "1.0", {"acme": ""}, GOOD),
        fresh.plugin("other-acme", "2.0", {"acme": "", "kafka": ""}, GOOD),
    )
    assert fresh.open("acme://") == (
        "AmbiguousPluginError: acme:// is claimed by cqrs-broker-acme 1.0 and other-acme 2.0: uninstall all but one, "
        "or choose with open_broker(url, distribution=…) or CQRS_BROKERS_PIN=acme=…"
    )
    assert fresh.open("acme://", CQRS_BROKERS_PIN="acme=other-acme") == "opened acme\nother_acme"
    assert fresh.open("kafka://") == (
        "PluginNotFoundError: kafka:// is reserved for cqrs-broker-kafka, which is not installed; other-acme 2.0 "
        "claims it: pip install cqrs-broker-kafka, or trust the other with distribution='other-acme'"
    )
    assert fresh.open("kafka://", CQRS_BROKERS_PIN="kafka=other-acme") == "opened kafka\nother_acme"


def test_two_versions_on_the_path(environment):
    """The second one cannot be imported, so it is not seen."""
    fresh = environment()
    fresh.install(fresh.plugin("cqrs-broker-acme", "1.0", {"acme": "", "old": ""}, GOOD))
    fresh.install(fresh.plugin("cqrs-broker-acme", "2.0", {"acme": ""}, GOOD), target=fresh.folder / "first")
    listing = "import cqrs_brokers\nfor b in cqrs_brokers.available_brokers(): print(b.name, b.version)"
    assert fresh.run(listing, PYTHONPATH=str(fresh.folder / "first")) == "acme 2.0"
    assert fresh.open("old://", PYTHONPATH=str(fresh.folder / "first")).startswith("PluginNotFoundError")
