"""The common base of a private PostgreSQL and a private MariaDB: a process, a port, a client program."""

import subprocess
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from cqrs_brokers_testkit.servers._node import START_TIMEOUT, PrivateServer
from cqrs_brokers_testkit.servers._processes import LOOPBACK, ServerFailed, ServerProcess

_CLIENT_TIMEOUT = 60.0


class DatabaseServer:
    """A database server that tests may use. The server may belong to others, so this class has no methods that stop or
    break the server.

    Args:
        url: URL with user, password and database, such as `postgresql://postgres@127.0.0.1:5432/postgres`.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._url = url
        self.host = parts.hostname or LOOPBACK
        self.port = parts.port

    @property
    def url(self) -> str:
        """URL of the server's first database."""
        return self._url

    def url_of(self, driver: str, database: str | None = None, port: int | None = None) -> str:
        """URL for SQLAlchemy.

        Args:
            driver: The driver's name, such as `asyncpg`, `psycopg` or `asyncmy`.
            database: Another database of the server.
            port: The port of a proxy on loopback. None: the server's own port.
        """
        parts = urlsplit(self._url)
        location = parts.netloc
        if port is not None:
            user, at, _ = location.rpartition("@")
            location = f"{user}{at}{LOOPBACK}:{port}"
        path = parts.path if database is None else f"/{database}"
        return parts._replace(scheme=f"{parts.scheme}+{driver}", netloc=location, path=path).geturl()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.host}:{self.port}>"

    def log_tail(self, lines: int = 30) -> str:
        """Return the last lines of the server's log, if it is a private server."""
        return "(not our server: its log is not here)"


class DatabaseNode(PrivateServer, DatabaseServer):
    """A private database server. All its methods block.

    Attributes:
        port: Port on 127.0.0.1, which is the same after every restart.
        version: Version of the server.
        folder: Folder with the server's data, configuration and log.
    """

    def __init__(
        self, name: str, url: str, command: Sequence[str], *, folder: Path, environment: Mapping[str, str], version: str
    ) -> None:
        super().__init__(url)
        self.version = version
        self.folder = folder
        self._environment = dict(environment)
        log = folder / "server.log"
        self._process = ServerProcess(
            f"{name} {version}", command, environment=self._environment, folder=folder, log=log
        )

    # --- what is different ---------------------------------------------------------------------------------------

    @abstractmethod
    def _prepare(self) -> None:
        """Make the data folder, if it does not exist."""

    @abstractmethod
    def _client(self, database: str | None) -> list[str]:
        """Return the client program with its arguments. The program reads statements from its standard input."""

    @abstractmethod
    def close_all_connections(self) -> None:
        """End every other connection from the server's side."""

    # --- controls ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server, or start it again with the data it had, and wait until it answers.

        Raises:
            ServerFailed: The server runs already, or did not start.
        """
        self._prepare()
        self._process.start()
        self._process.wait_until(self._answers, START_TIMEOUT)

    def sql(self, statements: str, database: str | None = None) -> str:
        """Run statements as the administrator, with the server's own client program.

        Returns:
            The output of the client: a line for each row, with tabs between the columns.

        Raises:
            ServerFailed: The client failed or took longer than 60 seconds.
        """
        done = self._run(self._client(database), statements)
        if done.returncode != 0:
            raise ServerFailed(f"{self._process.name}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout.strip()

    def create_database(self, name: str) -> None:
        """Create a database."""
        self.sql(f"CREATE DATABASE {name}")

    def _answers(self) -> bool:
        try:
            return self._run(self._client(None), "SELECT 1").returncode == 0
        except ServerFailed:
            return False

    def _run(self, command: list[str], text: str) -> "subprocess.CompletedProcess[str]":
        try:
            return subprocess.run(  # noqa: S603
                command,
                input=text,
                env=self._environment,
                cwd=self.folder,
                capture_output=True,
                text=True,
                timeout=_CLIENT_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ServerFailed(f"{Path(command[0]).name} took longer than {_CLIENT_TIMEOUT:g} s") from None


def make_data(command: list[str], folder: Path, environment: Mapping[str, str]) -> None:
    """Run the program that makes a data folder.

    Raises:
        ServerFailed: The program failed.
    """
    done = subprocess.run(  # noqa: S603
        command, cwd=folder, env=dict(environment), capture_output=True, text=True, timeout=START_TIMEOUT, check=False
    )
    if done.returncode != 0:
        raise ServerFailed(f"{Path(command[0]).name} failed ({done.returncode}): {done.stderr or done.stdout}")
