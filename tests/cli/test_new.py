"""`new` and `outbox`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import run


@pytest.mark.parametrize(("variant", "base"), [("networked", "PipelinedDriver"), ("in-process", "Driver")])
def test_new_writes_the_project_of_a_plugin(tmp_path: Path, variant: str, base: str) -> None:
    """Without a placeholder left, and what it prints is what is there."""
    folder = tmp_path / "cqrs-broker-acme-queue"
    said = run("new", "acme-queue", "--variant", variant, "--folder", folder, "--json")
    assert said.code == 0
    files = sorted(str(path) for path in folder.rglob("*") if path.is_file())
    assert sorted(said.json["files"]) == files
    assert not [file for file in files if "{{" in file or "{{" in Path(file).read_text()]
    assert f"({base})" in (folder / "src" / "cqrs_broker_acme_queue" / "driver.py").read_text()


def test_the_plugin_works_at_once(tmp_path: Path) -> None:
    """Its module is found through its metadata, and `describe` and `check` know its scheme."""
    assert run("new", "acme", "--variant", "in-process", "--folder", tmp_path / "acme").code == 0
    source = tmp_path / "acme" / "src"
    metadata = source / "cqrs_broker_acme-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: cqrs-broker-acme\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text("[cqrs_brokers]\nacme = cqrs_broker_acme\n")
    described = run("describe", "acme", "--json", PYTHONPATH=str(source))
    assert described.code == 0
    assert described.json["plugin"] == "cqrs-broker-acme 0.1.0"
    looked = run("check", "acme://x", "-t", "orders", "--json", PYTHONPATH=str(source))
    assert (looked.code, looked.only("topic", "unseen")) == (0, "not looked at -> send a message there with --send")


@pytest.mark.parametrize("name", ["Acme", "acme_queue", "2acme", "", "a/b", "../x"])
def test_a_name_that_cannot_be_a_scheme(tmp_path: Path, name: str) -> None:
    """Nothing is written."""
    said = run("new", name, "--folder", tmp_path / "x")
    assert said.code == 2
    assert "is not a name like acme" in said.err
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A folder with something in it is left alone."""
    (tmp_path / "mine").write_text("precious")
    said = run("new", "acme", "--folder", tmp_path)
    assert said.code == 2
    assert "is not empty" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_outbox_is_the_outboxs_own_command(tmp_path: Path) -> None:
    """Its options, its output, its exit code; under our name."""
    said = run("outbox", "--help")
    assert said.code == 0
    assert said.out.startswith("usage: cqrs-brokers outbox")
    database = f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}"
    made = """
import asyncio, sys
from sqlalchemy.ext.asyncio import create_async_engine
from cqrs_brokers_outbox import Outbox
async def main():
    engine = create_async_engine(sys.argv[1])
    await Outbox().create_table(engine)
    await engine.dispose()
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", made, database], check=True, timeout=60)
    said = run("outbox", "status", "--database", database)
    assert said.code == 0
    assert said.out.startswith("unsent 0: ready 0, waiting 0, parked 0")
    assert run("outbox", "status", CQRS_OUTBOX_DATABASE=database).code == 0
    assert run("outbox", "status").code == 1
    assert run("outbox", "no-such-command").code == 2


def test_outbox_without_its_package_says_what_to_install(tmp_path: Path) -> None:
    """Here a module in its place that cannot be imported."""
    package = tmp_path / "cqrs_brokers_outbox"
    package.mkdir()
    (package / "__init__.py").write_text("raise ModuleNotFoundError('x', name='sqlalchemy')")
    said = run("outbox", "status", PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert said.code == 4
    assert "pip install cqrs-brokers-outbox" in said.err
