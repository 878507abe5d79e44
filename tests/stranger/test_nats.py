"""A third kind of broker: examples/cqrs-broker-nats, which answers in any order, sometimes never, and deduplicates."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.live, pytest.mark.fault, pytest.mark.timeout(900)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "cqrs-broker-nats"
REDIS = EXAMPLE.parent / "cqrs-broker-redis-streams"
COMMAND = "go install github.com/nats-io/nats-server/v2@v2.15.3"


def lines_of_code(folder: Path) -> int:
    """Lines without blanks, comments and docstrings."""
    import ast
    import io
    import tokenize

    total = 0
    for file in [folder] if folder.is_file() else folder.rglob("*.py"):
        source = file.read_text(encoding="utf-8")
        documented: set[int] = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                documented.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
        used = {
            line
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type not in silent
            for line in range(token.start[0], token.end[0] + 1)
        }
        total += len(used - documented)
    return total


@pytest.mark.parametrize(
    ("example", "harness", "most"), [(EXAMPLE, "nats_harness.py", 350), (REDIS, "redis_harness.py", 180)]
)
def test_the_kit_keeps_a_networked_plugin_small(example: Path, harness: str, most: int) -> None:
    """A stranger needed 561 lines without it, and 151 for the harness."""
    assert lines_of_code(example / "src") <= most
    assert lines_of_code(example / "tests" / harness) <= 60


def test_it_conforms(tmp_path: Path) -> None:
    """Its tests, and the whole suite on a real nats-server, with JetStream's deduplication and with next to none."""
    path = os.pathsep.join([os.environ.get("PATH", ""), str(Path.home() / "go" / "bin")])
    if shutil.which("nats-server", path=path) is None:
        reason = f"nats-server is not available. To make it available, run: {COMMAND}"
        if os.environ.get("CI", "").lower() in ("true", "1"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", str(environment)], check=True)
    python = environment / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "-q", "install"]
    here = os.pathsep.join(entry for entry in sys.path if entry)
    variables = {**os.environ, "PYTHONPATH": here}
    subprocess.run([*pip, "nats-py[nkeys]>=2.16,<2.17"], check=True)
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", str(EXAMPLE)], check=True, env=variables)
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]
    with ThreadPoolExecutor() as at_once:  # they mostly wait
        runs = at_once.map(
            lambda name: subprocess.run(
                [*command, f"tests/{name}"],
                cwd=EXAMPLE,
                env=variables,
                capture_output=True,
                text=True,
                timeout=800,
                check=False,
            ),
            (
                "test_a_reset_is_told.py",
                "test_conformance.py::TestNats",
                "test_conformance.py::TestNatsWithoutDeduplication",
            ),
        )
        for done in runs:
            assert done.returncode == 0, done.stdout[-6000:]
            assert " passed" in done.stdout
