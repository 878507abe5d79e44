"""Each mutant of the outbox is caught by the test that is named for it, by its assertion and by nothing else."""

import asyncio
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import cqrs_brokers_outbox

from .mutants import MUTANTS, Mutant

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(900)]

PACKAGE = Path(cqrs_brokers_outbox.__file__).parent
TESTS = Path(__file__).parent
ASSERTION = re.compile(r"AssertionError\b|assert |Failed: DID NOT RAISE")
"""How the message of a failed assertion begins. Another error, or a test that did not end, shows nothing."""


def caught(report: Path, test: str) -> str:
    """What is wrong with a run of one test on a mutant; nothing, if its assertion failed."""
    if not report.exists():
        return "no report: pytest did not run"
    cases = list(ElementTree.parse(report).iter("testcase"))
    name = test.partition("::")[2]
    if [case.get("name") for case in cases] != [name]:
        return f"ran {[case.get('name') for case in cases]}, not {name}"
    (case,) = cases
    failures = [child.get("message", "") for child in case if child.tag == "failure"]
    others = [child.tag for child in case if child.tag in ("error", "skipped")]
    if others or len(failures) != 1:
        return f"did not fail by itself: {others}, {failures}"
    return "" if ASSERTION.match(failures[0]) else f"failed, but not by its assertion: {failures[0][:300]}"


async def run(tests: Sequence[str], source: Path, report: Path, environment: dict[str, str]) -> str:
    """Runs tests with the package that stands in a folder; returns what pytest said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "40", f"--junitxml={report}"),
        *(str(TESTS / test) for test in tests),
        env={**os.environ, **environment, "PYTHONPATH": str(source), "OUTBOX_PATIENCE": "8"},
        cwd=TESTS.parent.parent,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    return (await process.communicate())[0].decode()


def copied(folder: Path) -> Path:
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


async def survives(mutant: Mutant, folder: Path, environment: dict[str, str]) -> str:
    """Runs the mutant's test on the mutant; returns what is wrong, or nothing."""
    source = copied(folder / re.sub(r"\W", "-", mutant.name))
    file = source / PACKAGE.name / mutant.module
    text = file.read_text()
    if text.count(mutant.old) != 1:
        return f"{mutant.name}: its text is {text.count(mutant.old)} times in {mutant.module}"
    file.write_text(text.replace(mutant.old, mutant.new))
    report = source / "report.xml"
    output = await run([mutant.test], source, report, environment)
    wrong = caught(report, mutant.test)
    return f"{mutant.name}: {wrong}\n{output[-1500:]}" if wrong else ""


async def test_every_mutant_is_caught(postgresql: Any, tmp_path: Path) -> None:
    """The named test's assertion fails on the mutant; on an unchanged copy, run in the same way, all of them pass."""
    environment = {"CQRS_TEST_POSTGRESQL_URL": postgresql.url}
    places = asyncio.Semaphore(3)

    async def one(mutant: Mutant) -> str:
        async with places:
            return await survives(mutant, tmp_path, environment)

    async def unchanged() -> str:
        async with places:
            source, tests = copied(tmp_path / "unchanged"), sorted({mutant.test for mutant in MUTANTS})
            output = await run(tests, source, source / "report.xml", environment)
            return "" if f"{len(tests)} passed" in output else f"without a change:\n{output[-1500:]}"

    wrong = [text for text in await asyncio.gather(unchanged(), *(one(mutant) for mutant in MUTANTS)) if text]
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ("assert 1 == 2", ""),
        ("assert 1 == 2, 'told'", ""),
        ("import pytest\n    with pytest.raises(ValueError): pass", ""),
        ("raise TimeoutError('late')", "not by its assertion"),
        ("import nothing_of_this_name", "not by its assertion"),
        ("import pytest\n    pytest.fail('Timeout')", "not by its assertion"),
        ("import pytest\n    pytest.skip('no server')", "did not fail"),
        ("pass", "did not fail"),
    ],
)
async def test_only_a_failed_assertion_is_a_catch(body: str, wrong: str, tmp_path: Path) -> None:
    """An error, a missing module, a timeout, a skip or a pass is none."""
    file = tmp_path / "test_it.py"
    file.write_text(f"def test_it():\n    {body}\n")
    report = tmp_path / "report.xml"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", str(file)),
        cwd=tmp_path,
        stdout=asyncio.subprocess.DEVNULL,
    )
    await process.wait()
    found = caught(report, "test_it.py::test_it")
    assert wrong in found
    assert bool(found) == bool(wrong)
