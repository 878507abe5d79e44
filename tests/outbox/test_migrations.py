"""An application's own alembic versions, beside those of the outbox, as docs/how-to/outbox.md says."""

import sqlite3
import subprocess
import sys
from importlib import resources
from pathlib import Path


def alembic(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "alembic", *words], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_applications_versions_stand_beside_the_outboxs(tmp_path: Path) -> None:
    """A first and a second version go into the application's folder, and `upgrade heads` applies them all."""
    shipped = sorted(each.name for each in resources.files("cqrs_brokers_outbox.migrations").iterdir())
    alembic(tmp_path, "init", "migrations")
    ini = tmp_path / "alembic.ini"
    written = ini.read_text()
    assert "\npath_separator = os\n" in written
    written = written.replace(
        "\npath_separator = os\n",
        "\nversion_locations = %(here)s/migrations/versions cqrs_brokers_outbox:migrations\n"
        "path_separator = space\n"
        "cqrs_brokers_outbox.table = outbox\n",
    )
    ini.write_text(written.replace("driver://user:pass@localhost/dbname", f"sqlite:///{tmp_path}/shop.db"))
    alembic(tmp_path, "revision", "--head", "base", "--version-path", "migrations/versions", "-m", "first")
    versions = tmp_path / "migrations" / "versions"
    (first,) = versions.glob("*_first.py")
    alembic(tmp_path, "revision", "--head", first.name.partition("_")[0], "-m", "second")
    assert len(list(versions.glob("*.py"))) == 2
    assert sorted(each.name for each in resources.files("cqrs_brokers_outbox.migrations").iterdir()) == shipped
    alembic(tmp_path, "upgrade", "heads")
    connection = sqlite3.connect(tmp_path / "shop.db")
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert {"outbox", "outbox_lease", "outbox_relay", "outbox_version"} < tables
    assert len(connection.execute("SELECT version_num FROM alembic_version").fetchall()) == 2
    connection.close()
