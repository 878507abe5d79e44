"""The template for plugins: what it makes passes every check at once."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TEMPLATE = Path(__file__).parents[2] / "examples" / "plugin-template"


@pytest.fixture(scope="module")
def template() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render", TEMPLATE / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(folder: Path, *command: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-5000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module", params=[("networked", "acme"), ("in-process", "acme-queue-2")], ids="-".join)
def project(request: pytest.FixtureRequest, template: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    variant, name = request.param
    target = tmp_path_factory.mktemp("rendered") / f"cqrs-broker-{name}"
    template.render(variant, name, target)
    return target


def test_it_leaves_no_placeholder(project: Path) -> None:
    """Neither in a file nor in a name."""
    files = [path for path in project.rglob("*") if path.is_file()]
    assert len(files) == 8
    assert not [path for path in files if "{{" in str(path) or path.suffix == ".in" or "{{" in path.read_text()]


def test_it_passes_lint_and_format(project: Path) -> None:
    """By the settings in its own pyproject.toml."""
    check(project, "ruff", "check", "--no-cache", ".")
    check(project, "ruff", "format", "--no-cache", "--check", ".")


def test_it_passes_strict_typing(project: Path, tmp_path: Path) -> None:
    """mypy --strict, from its own settings."""
    check(project, "mypy", "--cache-dir", str(tmp_path), "--strict", "src")


def test_it_passes_the_static_cases_of_the_conformance_suite(project: Path, tmp_path: Path) -> None:
    """Built, installed, and tested by its own test file."""
    pip = ("pip", "--disable-pip-version-check", "-q", "install", "--no-deps", "--no-build-isolation")
    check(project, *pip, "--target", str(tmp_path), ".")
    said = check(project, "pytest", "-q", "-p", "no:cacheprovider", "tests", PYTHONPATH=str(tmp_path))
    assert "1 passed" in said


@pytest.mark.parametrize("name", ["Acme", "acme_queue", "acme-", "-acme", "2acme", "acme--queue", "", "a/b", "a\n"])
def test_a_name_that_cannot_be_a_scheme_and_a_module_is_refused(
    template: ModuleType, tmp_path: Path, name: str
) -> None:
    """Before anything is written."""
    with pytest.raises(ValueError, match="is not a name like"):
        template.render("networked", name, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_nothing_is_overwritten(template: ModuleType, tmp_path: Path) -> None:
    """A folder with something in it is left alone."""
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(FileExistsError, match="is not empty"):
        template.render("networked", "acme", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
