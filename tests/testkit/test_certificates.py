"""Certificates for servers of one's own."""

from pathlib import Path

import pytest

from cqrs_brokers_testkit.certificates import make_certificates


def test_a_folder_beside_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paths are absolute: a server that is given them runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    made = make_certificates("certs")
    assert made.ca == tmp_path.resolve() / "certs" / "ca.pem"
    assert all(path.is_absolute() and path.is_file() for path in vars(made).values() if isinstance(path, Path))
