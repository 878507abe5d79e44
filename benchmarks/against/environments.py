"""A version of this workspace as an installed environment: its wheels, what they need, and the workload's script."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Version", "build", "commit_of", "differences", "extract"]

NAMES = ("cqrs-brokers-core", "cqrs-broker-amqp", "cqrs-broker-devnull", "cqrs-broker-kafka")
_WORKLOAD = Path(__file__).with_name("workload.py")
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Version:
    """An installed version.

    Attributes:
        title: What the report calls it.
        python: Its interpreter.
        workload: Its copy of the script.
        packages: Distribution and version of everything that is installed, without our own.
    """

    title: str
    python: Path
    workload: Path
    packages: dict[str, str]


def commit_of(root: Path, reference: str) -> str:
    """The full hash of a commit, tag or branch.

    Raises:
        ValueError: Git knows no such commit.
    """
    command = ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", f"{reference}^{{commit}}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ValueError(f"git knows no commit {reference!r} in {root}")
    return done.stdout.strip()


def extract(root: Path, commit: str, folder: Path) -> Path:
    """Writes the packages of a commit into a folder and returns it; the working tree is left alone."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "-C", str(root), "archive", "--format=tar", commit, "packages"], capture_output=True, check=True
    )
    subprocess.run(["tar", "-xf", "-", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def build(title: str, source: Path, folder: Path, progress: Progress) -> Version:
    """Builds the distributions under `source/packages` and installs them into a new environment.

    Args:
        title: What the report calls this version.
        source: A folder with `packages/`.
        folder: Where the environment goes; what is there is removed.
        progress: Called with each line of progress.

    Raises:
        subprocess.CalledProcessError: A wheel cannot be built or installed; pip has said why.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    progress(f"{title}: building wheels")
    # Copies, because a backend may leave files in the tree that it builds.
    sources = folder / "source"
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
    folders = [str(shutil.copytree(source / "packages" / name, sources / name, ignore=leave)) for name in NAMES]
    wheels = folder / "wheels"
    _run(*_PIP, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(wheels), *folders)
    progress(f"{title}: installing")
    environment = folder / "environment"
    _run(sys.executable, "-m", "venv", "--without-pip", str(environment))
    python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    pip = (*_PIP, "--python", str(python))
    _run(*pip, "install", "-q", *map(str, sorted(wheels.glob("*.whl"))))
    listed = subprocess.run([*pip, "list", "--format=freeze"], capture_output=True, text=True, check=True).stdout
    packages = dict(line.split("==") for line in listed.split() if "==" in line)
    workload = folder / _WORKLOAD.name
    shutil.copyfile(_WORKLOAD, workload)
    others = {name: version for name, version in packages.items() if name.replace("_", "-") not in NAMES}
    return Version(title, python, workload, others)


def differences(one: Version, other: Version) -> list[str]:
    """The packages that the two environments do not share in the same version."""
    names = sorted({*one.packages, *other.packages})
    return [
        f"{name} {one.packages.get(name, 'absent')} → {other.packages.get(name, 'absent')}"
        for name in names
        if one.packages.get(name) != other.packages.get(name)
    ]


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
