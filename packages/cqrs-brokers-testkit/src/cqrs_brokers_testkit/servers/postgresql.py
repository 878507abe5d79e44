"""A private PostgreSQL on loopback, with the controls that fault tests need.

The server runs as the user of this process. PostgreSQL refuses to run as root. So if this process is root, the server
runs as the user `postgres` or, without such a user, `nobody`. The server does not wait for the disk (`fsync=off`).
Committed data survive the end of the server, but not a crash of the machine.
"""

import contextlib
import os
import pwd
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, overload

from cqrs_brokers_testkit.servers._database import DatabaseNode, DatabaseServer, make_data
from cqrs_brokers_testkit.servers._databases import PostgreSQLInstallation, postgresql_installation
from cqrs_brokers_testkit.servers._install import Progress, ServerUnavailable
from cqrs_brokers_testkit.servers._node import run_private
from cqrs_brokers_testkit.servers._processes import LOOPBACK, free_port, report

__all__ = ["PostgreSQLNode", "PostgreSQLServer", "postgresql"]

_SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "fsync": "off",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "logging_collector": "off",
    "jit": "off",
}


class PostgreSQLServer(DatabaseServer):
    """A PostgreSQL that tests may use. It may belong to others, so no method stops or breaks it."""


class PostgreSQLNode(DatabaseNode, PostgreSQLServer):
    """A private PostgreSQL, started by `postgresql()`. All its methods block. The administrator is `postgres`."""

    def __init__(self, installation: PostgreSQLInstallation, folder: Path, *, settings: Mapping[str, str]) -> None:
        port = free_port()
        self._installation = installation
        self._data = folder / "data"
        self._as_user = _as_ordinary_user(folder)
        options = [f"--{name}={value}" for name, value in (_SETTINGS | {"port": str(port)} | dict(settings)).items()]
        super().__init__(
            "PostgreSQL",
            f"postgresql://postgres@{LOOPBACK}:{port}/postgres",
            [*self._as_user, str(installation.server), "-D", str(self._data), *options],
            folder=folder,
            environment={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": str(folder)},
            version=installation.version,
        )

    def _prepare(self) -> None:
        if not self._data.exists():
            options = ["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
            command = [*self._as_user, str(self._installation.initdb), "-D", str(self._data), *options]
            make_data(command, self.folder, self._environment)
        # After SIGKILL its lock file is there; the number in it may by now be that of another process.
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def _client(self, database: str | None) -> list[str]:
        name = "postgres" if database is None else database
        address = ["-h", LOOPBACK, "-p", str(self.port), "-U", "postgres", "-d", name]
        return [str(self._installation.client), "-X", "-q", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1", *address]

    def kill(self) -> None:
        """End the server and its processes at once (SIGKILL). Committed data are there after `start()`."""
        super().kill()
        # Each of its processes has a session of its own. They end by themselves when their parent is gone, but not at
        # once, and until then no server starts on their data.
        for _ in range(100):
            left = _processes_in(self._data)
            if not left:
                return
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)

    def close_all_connections(self) -> None:
        """End every other connection from the server's side."""
        self.sql(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )


def _processes_in(folder: Path) -> list[int]:
    """Return the processes whose working directory is this folder. Only Linux shows them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(entry / "cwd") == str(folder):
                found.append(int(entry.name))
    return found


def _as_ordinary_user(folder: Path) -> list[str]:
    """Return the words before a command that make the command run as a user other than root. Give the folder to that
    user."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise ServerUnavailable(
            "PostgreSQL", "it refuses to run as root, and there is no setpriv", "sudo apt-get install -y util-linux"
        )
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        user = pwd.getpwnam("nobody")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return [setpriv, f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--"]


@overload
def postgresql(
    *, shared: Literal[False] = False, settings: Mapping[str, str] | None = None, progress: Progress = report
) -> contextlib.AbstractContextManager[PostgreSQLNode]: ...
@overload
def postgresql(*, shared: bool, progress: Progress = report) -> contextlib.AbstractContextManager[PostgreSQLServer]: ...
@contextlib.contextmanager
def postgresql(
    *, shared: bool = False, settings: Mapping[str, str] | None = None, progress: Progress = report
) -> Iterator[Any]:
    """Run a private PostgreSQL for the length of a `with` block.

    Args:
        shared: Use the server named by `CQRS_TEST_POSTGRESQL_URL`, if that is set.
        settings: Settings of postgresql.conf, which override the defaults, such as `{"fsync": "on"}`.
        progress: Called with each line of progress. By default the lines go to stderr.

    Yields:
        The running server (`PostgreSQLNode`). With `shared=True` and the variable set, a `PostgreSQLServer`.

    Raises:
        ServerUnavailable: PostgreSQL is not on this machine and could not be installed.
        ServerFailed: The server did not start.
    """
    url = os.environ.get("CQRS_TEST_POSTGRESQL_URL")
    if shared and url:
        yield PostgreSQLServer(url)
        return
    installation = postgresql_installation(progress)

    def make(folder: Path) -> PostgreSQLNode:
        return PostgreSQLNode(installation, folder, settings=settings or {})

    with run_private("postgresql", make, progress) as node:
        yield node
