"""A suite of three cases, for tests of the suite itself."""

from collections.abc import Mapping

from cqrs_brokers_testkit.conformance import Report
from cqrs_brokers_testkit.harnesses.in_process import MemoryHarness

QUICK = ["static.broker-is-true", "messages.identity-arrives", "delivery.nack-is-not-success"]


class Few(MemoryHarness):
    """For a suite of these three cases."""

    not_applicable: Mapping[str, str] = {QUICK[2]: "there is no nack"}


def quiet(_: str) -> None:
    """No progress."""


def status(report: Report, case_id: str) -> str:
    """How a case ended."""
    return next(result.status for result in report.cases if result.id == case_id)
