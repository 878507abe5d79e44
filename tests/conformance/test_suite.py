"""The runner is honest: what was not proven is never a pass, and every case ends."""

import asyncio
import threading
import time
import traceback
from collections.abc import Mapping
from unittest import mock

import pytest

from cqrs_brokers import BackpressureError, Broker, ConnectionLostError
from cqrs_brokers.driver import ContractBreach
from cqrs_brokers_testkit.conformance import CASES, ConformanceFailed, Harness, run
from cqrs_brokers_testkit.conformance._case import CaseFailed, Context, case, tally
from cqrs_brokers_testkit.conformance._probes import probe
from cqrs_brokers_testkit.conformance._runner import session
from cqrs_brokers_testkit.harnesses.in_process import DevnullHarness, MemoryHarness
from tests.conformance.few import QUICK, Few, quiet, status


def test_complete_run_passes(three_cases: None) -> None:
    """A run in which every case passed or does not apply is a pass."""
    report = run(Few(), progress=quiet)
    report.raise_for_failures()
    assert report.passed
    assert [result.status for result in report.cases] == ["passed", "passed", "not applicable"]


def test_filtered_run_is_no_pass(three_cases: None) -> None:
    """A run of chosen cases is incomplete, also when it was asked for all of them by name."""
    for only in (QUICK[:1], QUICK):
        report = run(Few(), only=only, progress=quiet)
        assert (report.passed, report.verdict) == (False, "incomplete")
        with pytest.raises(ConformanceFailed, match="incomplete"):
            report.raise_for_failures()


def test_case_that_could_not_run_is_no_pass(three_cases: None) -> None:
    """A harness without a reader leaves cases out, and the report is incomplete."""
    report = run(Harness("memory://x"), progress=quiet)
    assert status(report, "messages.identity-arrives") == "not run"
    assert (report.passed, report.verdict) == (False, "incomplete")
    assert report.profiles["core"] == "incomplete"


def test_without_config_string_only_static_cases_run(three_cases: None) -> None:
    """A scheme alone is enough for the static cases."""
    report = run(Harness("memory"), progress=quiet)
    assert [result.status for result in report.cases] == ["passed", "not run", "not run"]


def test_mandatory_case_cannot_be_waived() -> None:
    """Only cases about what a broker may not have can be declared not applicable."""

    class Waiving(MemoryHarness):
        not_applicable: Mapping[str, str] = {"messages.identity-arrives": "I say so"}

    with pytest.raises(ValueError, match="mandatory"):
        run(Waiving(), progress=quiet)


def test_waiver_of_nothing_is_refused() -> None:
    """A reason for a case that does not exist is a mistake."""

    class Waiving(MemoryHarness):
        not_applicable: Mapping[str, str] = {"messages.nonsense": "I say so"}

    with pytest.raises(ValueError, match="no such case"):
        run(Waiving(), progress=quiet)


def test_unknown_case_is_refused() -> None:
    """A misspelt choice runs nothing."""
    with pytest.raises(LookupError, match="nonsense"):
        run(MemoryHarness(), only=["nonsense"], progress=quiet)


@pytest.mark.parametrize("blocking", [False, True])
def test_case_that_does_not_end_has_failed(blocking: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case is bounded in time, be it that it waits or that it blocks."""

    async def endless(_: Context) -> None:
        """It never ends."""
        if blocking:
            time.sleep(8)  # longer than the limit and what comes after it
        await asyncio.sleep(8)

    case(f"test.endless-{blocking}", "static", limit=0.2)(endless)
    only = {f"test.endless-{blocking}": CASES.pop(f"test.endless-{blocking}")}
    monkeypatch.setattr("cqrs_brokers_testkit.conformance._runner.CASES", only)
    began = time.monotonic()
    report = run(Harness("memory://x"), progress=quiet)
    assert time.monotonic() - began < 7.5
    assert report.verdict == "failed"


def test_capability_without_proof_is_incomplete(three_cases: None) -> None:
    """A declared capability of which no case passed is not proven."""
    assert run(Few(), progress=quiet).profiles["ordering_key"] == "incomplete"


def test_undeclared_capability_that_works_is_noted() -> None:
    """A capability that works although it is not declared is reported."""

    class Reading(DevnullHarness):
        discards = False

        def make_unroutable(self):  # type: ignore[no-untyped-def]
            raise AssertionError

    report = run(Reading(), only=["delivery.discards-only-without-confirms"], progress=quiet)
    assert any("does not declare confirms" in note for note in report.notes)


def test_discarding_broker_that_confirms_fails() -> None:
    """A harness cannot hide behind "it discards" when the driver confirms."""

    class Discarding(MemoryHarness):
        discards = True

    report = run(Discarding(), only=["delivery.discards-only-without-confirms"], progress=quiet)
    assert report.verdict == "failed"


def test_the_contract_is_judged_last() -> None:
    """Sections run in their order, and the case that looks back at all others comes last."""
    sections = list(dict.fromkeys(name.partition(".")[0] for name in CASES))
    order = ["static", "messages", "refusals", "delivery", "ordering", "lifecycle", "faults", "contract"]
    assert sections == order


def test_every_case_says_what_it_demands() -> None:
    """Ids are `section.words-with-hyphens`, and each case has a sentence."""
    for name, each in CASES.items():
        section, _, rest = name.partition(".")
        assert section
        assert rest == rest.lower().replace("_", "-")
        assert each.title.endswith(".")


def test_a_breach_of_the_contract_fails_the_case_in_which_it_happens(three_cases: None) -> None:
    """Whatever ran before, and whatever core logs."""
    case, breach = CASES["messages.identity-arrives"], ContractBreach("close", "raised ValueError", None)
    with session(Few(), progress=quiet) as running:
        with mock.patch.object(Broker, "contract_breaches", (breach,)):
            broken = running.run_case(case)
        assert (broken.status, running.run_case(case).status) == ("failed", "passed")
        assert "broke its contract 1 times: close() raised ValueError" in broken.reason


def test_a_scheme_that_needs_a_host_runs_its_static_cases() -> None:
    """The first command that the documentation shows."""
    report = run(Harness("amqp"), only=["static"], progress=quiet)
    assert {result.status for result in report.cases if result.kind == "static"} == {"passed"}


def test_a_tally_says_why_there_were_errors() -> None:
    """One text of each class, so that a failure explains itself."""
    outcomes = [ConnectionLostError("the link broke"), ConnectionLostError("another"), BackpressureError("full")]
    assert tally(outcomes) == "2 ConnectionLostError (the link broke), 1 BackpressureError (full)"


def test_cases_that_only_wait_run_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each still has its own result, and what asyncio complains of belongs to the case that caused it."""

    both = threading.Barrier(2)

    async def waiting(_: Context) -> None:
        """It waits for the other one."""
        await asyncio.to_thread(both.wait, 15.0)

    async def complaining(_: Context) -> None:
        """It leaves an error that nobody looks at."""
        await asyncio.sleep(0.2)
        asyncio.get_running_loop().create_future().set_exception(ValueError("left behind"))
        await asyncio.sleep(0.2)

    for name, function in {"waiting-a": waiting, "complaining": complaining, "waiting-b": waiting}.items():
        case(f"test.{name}", "static", waits=True)(function)
    few = {name: CASES.pop(name) for name in list(CASES) if name.startswith("test.")}
    monkeypatch.setattr("cqrs_brokers_testkit.conformance._runner.CASES", few)
    with session(Harness("memory://x"), progress=quiet) as running:
        results = [running.run_case(each) for each in few.values()]
    assert [result.status for result in results] == ["passed", "failed", "passed"]
    assert "left behind" in results[1].reason
    assert len(running.report.cases) == 3


def test_a_process_that_does_not_end_shows_no_config_string(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be a password in it."""
    monkeypatch.setattr("cqrs_brokers_testkit.conformance._probes._ENDS_WITHIN", 0.5)
    url = "x://user:{}@host".format("canary")  # the word itself would be in the traceback of this line
    with pytest.raises(CaseFailed, match=r"did not end within 0\.5 s") as failed:
        probe("import time; time.sleep(30)", url)
    assert "canary" not in "".join(traceback.format_exception(failed.value))
