"""Private databases: they start, break as told, come back with what was committed, and leave nothing behind."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from cqrs_brokers_testkit.servers import ServerFailed, ServerUnavailable, mariadb, postgresql
from cqrs_brokers_testkit.servers import _databases as databases
from cqrs_brokers_testkit.servers import _install as install
from cqrs_brokers_testkit.servers._database import DatabaseNode

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]

START: dict[str, Callable[[], AbstractContextManager[DatabaseNode]]] = {"postgresql": postgresql, "mariadb": mariadb}


@pytest.fixture(scope="module", params=["postgresql", "mariadb"])
def node(request: pytest.FixtureRequest) -> DatabaseNode:
    node: DatabaseNode = request.getfixturevalue(f"{request.param}_node")
    return node


def test_what_was_committed_is_there_after_a_kill(node: DatabaseNode) -> None:
    """A killed server comes back at the same port with what was committed."""
    node.sql("CREATE TABLE kept (id integer)")
    node.sql("INSERT INTO kept VALUES (7)")
    port = node.port
    node.kill()
    with pytest.raises(ServerFailed):
        node.sql("SELECT 1")
    node.start()
    assert node.port == port
    assert node.sql("SELECT id FROM kept") == "7"


def test_a_kill_with_open_connections() -> None:
    """The server's other processes are gone with it, and it starts again at once."""
    with postgresql(progress=lambda _: None) as server:
        engine = create_engine(server.url_of("psycopg"), pool_size=10)
        connections = [engine.connect() for _ in range(10)]
        for connection in connections:
            connection.execute(text("SELECT 1"))
        server.kill()
        server.start()
        assert server.sql("SELECT 1") == "1"
        for connection in connections:
            connection.invalidate()
            connection.close()
        engine.dispose()


def test_a_restart_is_orderly(node: DatabaseNode) -> None:
    """A restarted server answers again."""
    node.restart()
    assert node.sql("SELECT 1") == "1"


def test_a_database_of_its_own(node: DatabaseNode) -> None:
    """A created database is empty and is reached by name."""
    node.create_database("other")
    node.sql("CREATE TABLE only_here (id integer)", "other")
    assert node.sql("SELECT count(*) FROM only_here", "other") == "0"
    with pytest.raises(ServerFailed, match="only_here"):
        node.sql("SELECT count(*) FROM only_here")


def test_connections_are_ended_from_the_servers_side() -> None:
    """A client finds its connection broken, and connects again."""
    with postgresql(progress=lambda _: None) as server:
        engine = create_engine(server.url_of("psycopg"))
        with engine.connect() as connection:
            assert connection.execute(text("SELECT 1")).scalar() == 1
            server.close_all_connections()
            with pytest.raises(OperationalError):
                connection.execute(text("SELECT 1"))
        with engine.connect() as connection:
            assert connection.execute(text("SELECT 1")).scalar() == 1
        engine.dispose()


def test_urls_name_driver_database_and_port(node: DatabaseNode) -> None:
    """url_of makes the URL that SQLAlchemy needs, also through a proxy's port."""
    driver = "asyncpg" if node.url.startswith("postgresql") else "asyncmy"
    assert f"+{driver}://" in node.url_of(driver)
    assert node.url_of(driver, "other", 1234).endswith(":1234/other")


@pytest.mark.parametrize("kind", sorted(START))
def test_nothing_is_left(kind: str) -> None:
    """The folder and the process are gone after the block."""
    with START[kind]() as server:
        folder, pid = server.folder, server._process.pid
        assert os.getpgid(pid) == pid
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("kind", "package", "find"),
    [("postgresql", "postgresql", "find_postgresql"), ("mariadb", "mariadb-server", "find_mariadb")],
)
def test_a_missing_database_names_the_command(
    kind: str, package: str, find: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without the programs, and with installing forbidden, the error tells apt's command."""
    apt = tmp_path / "apt-get"
    apt.write_text("#!/bin/sh\nexit 1\n")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CQRS_TEST_INSTALL", "0")
    monkeypatch.setattr(databases, find, lambda: None)
    with pytest.raises(ServerUnavailable, match="is not available") as caught:
        with START[kind]():
            pass
    assert caught.value.command == f"sudo apt-get install -y {package}"


def test_apt_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What apt said last is in the error."""

    def failing(package: str) -> None:
        raise OSError(f"cannot fetch {package}")

    monkeypatch.setattr(databases, "find_mariadb", lambda: None)
    monkeypatch.setattr(install, "_apt_install", failing)
    monkeypatch.setattr(install.os, "geteuid", lambda: 0)
    monkeypatch.setattr(install.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setenv("CQRS_TEST_INSTALL", "1")
    with pytest.raises(ServerUnavailable, match="cannot fetch mariadb-server"):
        databases.mariadb_installation(lambda _: None)
