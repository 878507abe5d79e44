"""The suite with three cases."""

import pytest

from cqrs_brokers_testkit.conformance import CASES
from tests.conformance.few import QUICK


@pytest.fixture
def three_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite of three cases."""
    few = {name: CASES[name] for name in QUICK}
    monkeypatch.setattr("cqrs_brokers_testkit.conformance._runner.CASES", few)
