"""The suite in pytest: one test per case.

    from cqrs_brokers_testkit.conformance.pytest_glue import BrokerConformance

    class TestMyBroker(BrokerConformance):
        harness = MyHarness

Cases that do not apply are skipped with their reason. A case that could not be run fails, because a harness that leaves
out a case proves nothing about it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

from cqrs_brokers_testkit.conformance._case import CASES, Case
from cqrs_brokers_testkit.conformance._harness import Harness
from cqrs_brokers_testkit.conformance._runner import Session, session

__all__ = ["BrokerConformance"]


class BrokerConformance:
    """The base class for a plugin's test class. The test class needs a name that pytest collects (`Test…`).

    Attributes:
        harness: The class of the plugin's harness.
    """

    harness: ClassVar[type[Harness]]

    @pytest.fixture(scope="class")
    @classmethod
    def conformance(cls, request: pytest.FixtureRequest) -> Iterator[Session]:
        """The session. It starts the harness when the first live case runs, and stops it after the last case."""
        items = [item for item in request.session.items if isinstance(item, pytest.Function) and item.cls is cls]
        with session(cls.harness(), progress=lambda _: None) as running:
            chosen = [item.callspec.params.get("case") for item in items if hasattr(item, "callspec")]
            running.chosen = [case.id for case in chosen if isinstance(case, Case)]
            yield running

    @pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.id)
    def test_conforms(self, conformance: Session, case: Case) -> None:
        """The broker does what the case says."""
        result = conformance.run_case(case)
        if result.status == "not applicable":
            pytest.skip(result.reason)
        if result.status != "passed":
            pytest.fail(f"{case.title}\n{result.status}: {result.reason}\n{result.detail}", pytrace=False)
