"""Each mutant of the outbox is caught by the test that is named for it."""

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import cqrs_brokers_outbox

from .mutants import MUTANTS, Mutant

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(280)]

PACKAGE = Path(cqrs_brokers_outbox.__file__).parent
TESTS = Path(__file__).parent


async def survives(mutant: Mutant, folder: Path, environment: dict[str, str]) -> str:
    """Runs the mutant's test on the mutant; returns what is wrong, or nothing."""
    copy = folder / mutant.name.replace(" ", "-").replace("'", "") / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    file = copy / mutant.module
    source = file.read_text()
    if source.count(mutant.old) != 1:
        return f"{mutant.name}: its text is {source.count(mutant.old)} times in {mutant.module}"
    file.write_text(source.replace(mutant.old, mutant.new))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout", "40"),
        str(TESTS / mutant.test),
        env={**os.environ, **environment, "PYTHONPATH": str(copy.parent), "OUTBOX_PATIENCE": "8"},
        cwd=TESTS.parent.parent,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = (await process.communicate())[0].decode()
    if process.returncode != 1 or "1 failed" not in output:
        return f"{mutant.name}: exit {process.returncode}\n{output[-1500:]}"
    return ""


async def test_every_mutant_is_caught(postgresql: Any, tmp_path: Path) -> None:
    """The named test fails on the mutant, and on nothing else: without the change it passes in this run."""
    environment = {"CQRS_TEST_POSTGRESQL_URL": postgresql.url}
    places = asyncio.Semaphore(3)

    async def one(mutant: Mutant) -> str:
        async with places:
            return await survives(mutant, tmp_path, environment)

    wrong = [text for text in await asyncio.gather(*(one(mutant) for mutant in MUTANTS)) if text]
    assert not wrong, "\n\n".join(wrong)
