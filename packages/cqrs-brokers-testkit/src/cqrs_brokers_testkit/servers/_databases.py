"""Find PostgreSQL and MariaDB on this machine, or install Debian's packages if that needs no further permission.

apt is used only if this process is root already. `CQRS_TEST_INSTALL=0` forbids apt. If nothing works,
`ServerUnavailable` says which command to run. This module starts no server: see `postgresql` and `mariadb`.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cqrs_brokers_testkit.servers._install import Progress, ServerUnavailable, apt_installed

_T = TypeVar("_T")


@dataclass(frozen=True)
class PostgreSQLInstallation:
    """The places of PostgreSQL's programs.

    Attributes:
        server: `postgres`.
        initdb: `initdb`.
        client: `psql`.
        version: PostgreSQL's version, or "unknown".
    """

    server: Path
    initdb: Path
    client: Path
    version: str


@dataclass(frozen=True)
class MariaDBInstallation:
    """The places of MariaDB's programs.

    Attributes:
        server: `mariadbd`.
        install: `mariadb-install-db`.
        client: `mariadb`.
        version: MariaDB's version, or "unknown".
    """

    server: Path
    install: Path
    client: Path
    version: str


def postgresql_installation(progress: Progress) -> PostgreSQLInstallation:
    """Return PostgreSQL's programs, installing them if that is possible and allowed.

    Raises:
        ServerUnavailable: There is no PostgreSQL, and none can be installed.
    """
    return _installation("PostgreSQL", "postgresql", find_postgresql, progress)


def mariadb_installation(progress: Progress) -> MariaDBInstallation:
    """Return MariaDB's programs, installing them if that is possible and allowed.

    Raises:
        ServerUnavailable: There is no MariaDB, and none can be installed.
    """
    return _installation("MariaDB", "mariadb-server", find_mariadb, progress)


def _installation(server: str, package: str, find: Callable[[], _T | None], progress: Progress) -> _T:
    found = find()
    reason = f"no {package} on this machine"
    if found is None:
        found, failure = apt_installed(package, find, progress)
        reason = failure or reason
    if found is None:
        tool = "sudo apt-get" if shutil.which("apt-get") else "brew"
        name = package if tool != "brew" else package.removesuffix("-server")
        raise ServerUnavailable(server, reason, f"{tool} install {'-y ' if tool != 'brew' else ''}{name}")
    return found


def find_postgresql() -> PostgreSQLInstallation | None:
    """Return the newest PostgreSQL of this machine. Debian installs its programs outside the PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_major, reverse=True)
    on_path = shutil.which("postgres")
    if on_path:
        folders.append(Path(on_path).resolve().parent)
    for folder in [*folders, Path("/opt/homebrew/bin"), Path("/usr/local/bin")]:
        server, initdb, client = (folder / name for name in ("postgres", "initdb", "psql"))
        if all(os.access(program, os.X_OK) for program in (server, initdb, client)):
            return PostgreSQLInstallation(server, initdb, client, _version(server, r"PostgreSQL\) (\S+)"))
    return None


def find_mariadb() -> MariaDBInstallation | None:
    """Return the MariaDB of this machine."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    programs = [shutil.which(name, path=path) for name in ("mariadbd", "mariadb-install-db", "mariadb")]
    server, install, client = (Path(program) if program else None for program in programs)
    if server is None or install is None or client is None:
        return None
    return MariaDBInstallation(server, install, client, _version(server, r"Ver (\d[\d.]*)"))


def _major(folder: Path) -> int:
    return int(folder.parent.name) if folder.parent.name.isdigit() else 0


def _version(server: Path, pattern: str) -> str:
    try:
        done = subprocess.run([server, "--version"], capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    match = re.search(pattern, done.stdout)
    return match[1] if match else "unknown"
