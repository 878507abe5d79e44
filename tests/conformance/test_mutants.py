"""The suite catches every deliberately broken driver, by the case that names its defect, and no sound one."""

import pytest

from cqrs_brokers_testkit.conformance import CASES
from tests.conformance.documents import REFERENCE, UNCAUGHT, expected, jobs, mutants_page, written_matrix
from tests.conformance.mutant_runs import SOUND, Ran, run_many

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def runs() -> dict[str, Ran | Exception]:
    """What the run of every mutant, and of the sound drivers, came to."""
    return dict(run_many({**{name: [] for name in SOUND}, **jobs()}))


@pytest.mark.parametrize("name", expected())
def test_every_mutant_is_caught(name: str, runs: dict[str, Ran | Exception]) -> None:
    """The cases that name the defect fail."""
    found = runs[name]
    assert not isinstance(found, Exception), found
    assert {case: found.statuses[case] for case in expected()[name][1]} == dict.fromkeys(expected()[name][1], "failed")


@pytest.mark.parametrize("name", SOUND)
def test_the_sound_driver_passes(name: str, runs: dict[str, Ran | Exception]) -> None:
    """The driver that the mutants vary fails no case, so that it is the defect that is caught."""
    found = runs[name]
    assert not isinstance(found, Exception), found
    assert [case for case, status in found.statuses.items() if status == "failed"] == [], found.told
    assert sum(status == "passed" for status in found.statuses.values()) > 60


def test_there_are_enough() -> None:
    """There are at least 24 mutants."""
    assert len(expected()) >= 24


def test_every_case_catches_a_mutant_or_has_a_reason() -> None:
    """A case that catches no mutant has a reason; none has both."""
    caught = {case for _, cases in expected().values() for case in cases}
    assert caught | set(UNCAUGHT) == set(CASES)
    assert caught & set(UNCAUGHT) == set()


def test_the_matrix_in_the_documentation_is_current() -> None:
    """docs/reference/mutants.md has every mutant and every case, and each mutant is caught by what is about it."""
    page = (REFERENCE / "mutants.md").read_text(encoding="utf-8")
    matrix = written_matrix(page)
    assert {case for cases in matrix.values() for case in cases or ()} <= set(CASES)
    assert page == mutants_page(matrix)
    assert "not caught" not in page
