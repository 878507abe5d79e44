"""Environments: our wheels, with a Python and with dependencies of a target."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from cqrs_brokers_testkit.servers._debian import DebianRoot, debian_root
from cqrs_brokers_testkit.servers._install import ServerUnavailable, cache_folder

from .targets import Target

__all__ = ["ROOT", "Environment", "NotHad", "make", "oldest"]

ROOT = Path(__file__).parent.parent
_PIP = ("-m", "pip", "--disable-pip-version-check")
_OURS = (
    "cqrs-brokers-core",
    "cqrs-broker-amqp",
    "cqrs-broker-devnull",
    "cqrs-broker-kafka[lz4,snappy,zstd]",
    "cqrs-broker-memory",
    "cqrs-brokers-cli",
    "cqrs-brokers-python-cqrs",
    "cqrs-brokers-testkit[pytest,amqp,kafka]",
)
_OLDEST = ("pydantic", "pluggy", "importlib-metadata", "aiokafka", "google-crc32c", "aio-pika", "python-cqrs")
_COMPLETE = "complete"
_SUITE_PACKAGES = (
    "python3",
    "python3-venv",
    "rabbitmq-server",
    "default-jre-headless",
    "postgresql",
    "mariadb-server",
    "git",
)


class NotHad(Exception):  # noqa: N818 - names a state of the machine
    """What a target needs cannot be had on this machine."""


@dataclass(frozen=True)
class Environment:
    """An installed environment.

    Attributes:
        python: Its interpreter.
        version: The interpreter's version.
        root: The root in which it runs; None: this machine.
        dependencies: Version by name, of what our ranges name.
    """

    python: Path
    version: str
    root: DebianRoot | None
    dependencies: dict[str, str]

    def run(self, *arguments: str, variables: Mapping[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs this Python in the workspace's root folder.

        Args:
            *arguments: Of Python.
            variables: Of the environment, besides this process's own.
            **options: Of `subprocess.run`.
        """
        command = _in(self.root, [str(self.python), *arguments], variables)
        return subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, text=True, check=False, **options)


def make(
    target: Target, wheels: Path, folder: Path, progress: Callable[[str], None], *, again: bool = True
) -> Environment:
    """Makes the environment of a target.

    Args:
        target: What is tried.
        wheels: Folder with the wheels of our distributions.
        folder: Where environments are.
        progress: Called with each line of progress.
        again: A complete environment of this name is made again, and not taken as it is.

    Raises:
        NotHad: The Python is not here and cannot be fetched, or a dependency does not install with it.
    """
    interpreter, root = _interpreter(target, progress)
    place = folder / target.name
    python = place / "bin" / "python"
    if again or not (place / _COMPLETE).exists():
        progress(f"{target.name}: making the environment")
        _install(target, interpreter, root, wheels, place)
    listed = _run(_in(root, [str(python), *_PIP, "list", "--format=freeze"]))
    pairs = [line.split("==") for line in listed.split() if "==" in line]
    versions = {name.lower().replace("_", "-"): version for name, version in pairs}
    found = {name: versions[name] for name in (*_OLDEST, "aiormq", "pamqp") if name in versions}
    version = _run(_in(root, [str(python), "-c", "import platform; print(platform.python_version())"]))
    return Environment(python, version.strip(), root, found)


def _install(target: Target, interpreter: Path, root: DebianRoot | None, wheels: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    _run(_in(root, [str(interpreter), "-m", "venv", str(place)]))
    python = place / "bin" / "python"
    _run(_in(root, [str(python), *_PIP, "install", "-q", "-U", "pip"]))  # an old one knows no extras in constraints
    constraints = place / "constraints.txt"
    lines = [f"{wheel.name.partition('-')[0].replace('_', '-')} @ {wheel.as_uri()}" for wheel in wheels.glob("*.whl")]
    lines += [f"{name}=={version}" for name, version in oldest().items()] if target.oldest else []
    constraints.write_text("\n".join(lines) + "\n")
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    wanted = [*_OURS, *groups["test"], *groups["typing"]]  # some tests run mypy
    _run(_in(root, [str(python), *_PIP, "install", "-q", "-c", str(constraints), *wanted]))
    (place / _COMPLETE).touch()


def oldest() -> dict[str, str]:
    """The lower bounds of the dependencies in our distributions' ranges; of several the highest."""
    bounds: dict[str, str] = {}
    for path in sorted(ROOT.glob("packages/*/pyproject.toml")):
        project = tomllib.loads(path.read_text())["project"]
        extras = [line for lines in project.get("optional-dependencies", {}).values() for line in lines]
        for line in [*project["dependencies"], *extras]:
            requirement = Requirement(line)
            lower = [clause.version for clause in requirement.specifier if clause.operator in (">=", "==", "~=")]
            if requirement.name in _OLDEST and lower:
                known = [bounds[requirement.name]] if requirement.name in bounds else []
                bounds[requirement.name] = max([*known, *lower], key=_parts)
    return bounds


def _parts(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def _interpreter(target: Target, progress: Callable[[str], None]) -> tuple[Path, DebianRoot | None]:
    if not target.python or target.python == f"{sys.version_info.major}.{sys.version_info.minor}":
        return Path(sys.executable), None
    name = f"python{target.python}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    installed = sorted(pyenv.glob(f"{target.python}.*/bin/{name}"), key=lambda path: _parts(str(path)), reverse=True)
    for place in (shutil.which(name), *installed):
        if place and subprocess.run([place, "-c", ""], capture_output=True, check=False).returncode == 0:
            return Path(place), None
    if not target.suite:
        raise NotHad(f"no {name} on this machine")
    try:
        root = debian_root(target.suite, _SUITE_PACKAGES, progress)
    except ServerUnavailable as error:
        raise NotHad(f"no {name} on this machine; {error}") from error
    if not (root.folder / "usr/bin" / name).exists():
        raise NotHad(f"no {name} on this machine, and Debian {target.suite} has another one by now")
    return Path("/usr/bin", name), root


def _in(root: DebianRoot | None, command: Sequence[str], variables: Mapping[str, str] | None = None) -> list[str]:
    if root is None:
        return list(command)
    folders = [ROOT, cache_folder(), Path.home() / ".cache" / "pip"]
    for path in ("/etc/ssl", "/usr/local/share/ca-certificates", *os.environ.get("PIP_FIND_LINKS", "").split()):
        folders += [Path(path)] if Path(path).exists() else []
    settings = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "CQRS_"))}
    settings |= {"HOME": str(Path.home()), "LANG": "C.UTF-8", "JAVA_HOME": "/usr/lib/jvm/default-java"}
    settings["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    named = [f"{name}={value}" for name, value in {**settings, **(variables or {})}.items()]
    # chroot begins in "/": the workspace's root is where pytest has to start.
    enter = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', str(ROOT)]
    return root.command(["/usr/bin/env", "-i", *named, *enter, *command], folders=folders)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise NotHad(" ".join(lines[-3:]) or f"exit status {done.returncode}")
    return done.stdout
