"""A private MariaDB on loopback, with the controls that fault tests need.

The server does not wait for the disk at each commit. Committed data survive the end of the server, but not a crash of
the machine.
"""

import contextlib
import getpass
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, overload

from cqrs_brokers_testkit.servers._database import DatabaseNode, DatabaseServer, make_data
from cqrs_brokers_testkit.servers._databases import MariaDBInstallation, mariadb_installation
from cqrs_brokers_testkit.servers._install import Progress
from cqrs_brokers_testkit.servers._node import run_private
from cqrs_brokers_testkit.servers._processes import LOOPBACK, free_port, report

__all__ = ["MariaDBNode", "MariaDBServer", "mariadb"]

_SETTINGS = {
    "bind-address": LOOPBACK,
    "innodb-flush-log-at-trx-commit": "2",
    "innodb-buffer-pool-size": "64M",
    "max-connections": "200",
    "skip-name-resolve": "1",
    "character-set-server": "utf8mb4",
}


class MariaDBServer(DatabaseServer):
    """A MariaDB that tests may use. It may belong to others, so no method stops or breaks it."""


class MariaDBNode(DatabaseNode, MariaDBServer):
    """A private MariaDB, started by `mariadb()`. All its methods block.

    The administrator is `root`, and the first database is `test`.
    """

    def __init__(self, installation: MariaDBInstallation, folder: Path, *, settings: Mapping[str, str]) -> None:
        port = free_port()
        self._installation = installation
        self._data = folder / "data"
        self._user = getpass.getuser()
        options = [f"--{name}={value}" for name, value in (_SETTINGS | {"port": str(port)} | dict(settings)).items()]
        super().__init__(
            "MariaDB",
            f"mysql://root@{LOOPBACK}:{port}/test",
            [
                *(str(installation.server), "--no-defaults", f"--datadir={self._data}", f"--user={self._user}"),
                *(f"--socket={folder}/s", f"--pid-file={folder}/pid", f"--tmpdir={folder}", *options),
            ],
            folder=folder,
            environment={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": str(folder)},
            version=installation.version,
        )

    def _prepare(self) -> None:
        if not self._data.exists():
            command = [str(self._installation.install), "--no-defaults", f"--datadir={self._data}"]
            options = [f"--user={self._user}", "--auth-root-authentication-method=normal", f"--tmpdir={self.folder}"]
            make_data([*command, *options], self.folder, self._environment)

    def _client(self, database: str | None) -> list[str]:
        address = ["-h", LOOPBACK, "-P", str(self.port), "-u", "root", database or "test"]
        return [str(self._installation.client), "--no-defaults", "--protocol=tcp", "-N", "-B", *address]

    def close_all_connections(self) -> None:
        """End every other connection from the server's side."""
        for line in self.sql("SELECT id FROM information_schema.processlist WHERE user <> 'system user'").split():
            with contextlib.suppress(Exception):  # it may have ended by itself: our own always has
                self.sql(f"KILL {int(line)}")


@overload
def mariadb(
    *, shared: Literal[False] = False, settings: Mapping[str, str] | None = None, progress: Progress = report
) -> contextlib.AbstractContextManager[MariaDBNode]: ...
@overload
def mariadb(*, shared: bool, progress: Progress = report) -> contextlib.AbstractContextManager[MariaDBServer]: ...
@contextlib.contextmanager
def mariadb(
    *, shared: bool = False, settings: Mapping[str, str] | None = None, progress: Progress = report
) -> Iterator[Any]:
    """Run a private MariaDB for the length of a `with` block.

    Args:
        shared: Use the server named by `CQRS_TEST_MARIADB_URL` (`mysql://user@host:port/database`), if that is set.
        settings: Options of mariadbd, which override the defaults, such as `{"innodb-lock-wait-timeout": "1"}`.
        progress: Called with each line of progress. By default the lines go to stderr.

    Yields:
        The running server (`MariaDBNode`). With `shared=True` and the variable set, a `MariaDBServer`.

    Raises:
        ServerUnavailable: MariaDB is not on this machine and could not be installed.
        ServerFailed: The server did not start.
    """
    url = os.environ.get("CQRS_TEST_MARIADB_URL")
    if shared and url:
        yield MariaDBServer(url)
        return
    installation = mariadb_installation(progress)

    def make(folder: Path) -> MariaDBNode:
        return MariaDBNode(installation, folder, settings=settings or {})

    with run_private("mariadb", make, progress) as node:
        yield node
