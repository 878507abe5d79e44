"""The conformance suite: cases that every broker plugin must pass. They run against a `Harness`.

    report = run(MyHarness())
    report.raise_for_failures()

`python -m cqrs_brokers_testkit my-scheme` also runs the suite. In pytest a subclass of `pytest_glue.BrokerConformance`
runs it.
"""

from cqrs_brokers_testkit.conformance._case import CASES, Case
from cqrs_brokers_testkit.conformance._harness import (
    Forgery,
    Harness,
    NotApplicable,
    Refusal,
    SizeLimit,
    Target,
    Unsupported,
)
from cqrs_brokers_testkit.conformance._report import CaseResult, ConformanceFailed, Report
from cqrs_brokers_testkit.conformance._runner import run
from cqrs_brokers_testkit.readers import Record

__all__ = [
    "CASES",
    "Case",
    "CaseResult",
    "ConformanceFailed",
    "Forgery",
    "Harness",
    "NotApplicable",
    "Record",
    "Refusal",
    "Report",
    "SizeLimit",
    "Target",
    "Unsupported",
    "run",
]
