"""Files that docstrings and READMEs name exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = sorted(path.name for path in ROOT.glob("packages/*") if (path / "src").is_dir())


def docstrings(path: Path) -> list[str]:
    return [
        node.value.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]


def texts(distribution: str) -> list[str]:
    """The docstrings of a distribution, its README and its CHANGELOG."""
    folder = ROOT / "packages" / distribution
    found = [text for path in sorted(folder.rglob("*.py")) for text in docstrings(path)]
    return found + [(folder / name).read_text() for name in ("README.md", "CHANGELOG.md")]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_named_tests_exist(distribution: str) -> None:
    """A file of tests/ or docs/ that a text names is there."""
    named = {
        name for text in texts(distribution) for name in re.findall(r"\b(?:tests|docs)/[\w/-]+\.(?:py|md)\b", text)
    }
    outside = {name for name in named if name.startswith("tests/test_")}  # a file of the reader's own project
    assert {name for name in named - outside if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_named_modules_exist(distribution: str) -> None:
    """A private module that the README, or the docstring of the package or its driver, names is there."""
    (package,) = (ROOT / "packages" / distribution / "src").iterdir()
    modules = {path.stem for path in package.rglob("*.py")} | {path.name for path in package.iterdir()}
    read = [(ROOT / "packages" / distribution / "README.md").read_text()]
    for name in ("__init__.py", "_driver.py"):
        path = package / name
        read += [ast.get_docstring(ast.parse(path.read_text())) or ""] if path.exists() else []
    named = {name for text in read for name in re.findall(r"`(_[a-z]+)`", text)}
    assert named - modules == set()


def test_the_lists_are_read() -> None:
    """Both tests above have something to look at."""
    assert any("tests/" in text for text in texts("cqrs-broker-amqp"))
    assert "`_partition`" in (ROOT / "packages" / "cqrs-broker-kafka" / "README.md").read_text()
