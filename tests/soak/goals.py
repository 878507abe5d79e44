"""The goals of a soak, as assertions."""

from soak.report import Report


def assert_goals(report: Report) -> None:
    """Every goal, with the whole report when one is missed."""
    text = report.markdown()
    print(text)
    assert len(report.outages) == len(report.plan.faults), text
    assert report.ledger.receipts >= report.plan.receipts, text
    for name, found in report.zero_goals().items():
        assert not found, f"{len(found)} {name}\n{text}"
    assert not report.missed(), text
