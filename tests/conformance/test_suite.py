"""The runner is honest: what was not proven is never a pass, and every case ends."""

import asyncio
import json
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from cqrs_brokers import BackpressureError, Broker, Capabilities, ConnectionLostError
from cqrs_brokers.driver import ContractBreach
from cqrs_brokers_testkit.conformance import (
    CASES,
    ConformanceFailed,
    Harness,
    NotApplicable,
    Record,
    Report,
    Target,
    Unsupported,
    run,
)
from cqrs_brokers_testkit.conformance._case import CaseFailed, Context, case, tally
from cqrs_brokers_testkit.conformance._command import main
from cqrs_brokers_testkit.conformance._probes import probe
from cqrs_brokers_testkit.conformance._runner import session
from cqrs_brokers_testkit.harnesses.in_process import DevnullHarness, MemoryHarness
from cqrs_brokers_testkit.proxy import FaultProxy

QUICK = ["static.broker-is-true", "messages.identity-arrives", "delivery.nack-is-not-success"]


class Few(MemoryHarness):
    """For a suite of these three cases."""

    not_applicable: Mapping[str, str] = {QUICK[2]: "there is no nack"}


def quiet(_: str) -> None:
    """No progress."""


@pytest.fixture
def three_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite of three cases."""
    few = {name: CASES[name] for name in QUICK}
    monkeypatch.setattr("cqrs_brokers_testkit.conformance._runner.CASES", few)


def status(report: Report, case_id: str) -> str:
    """How a case ended."""
    return next(result.status for result in report.cases if result.id == case_id)


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


def test_harness_that_does_not_start_is_reported(three_cases: None) -> None:
    """When the harness does not start its live cases are not run, and it is stopped all the same."""
    stopped = []

    class Broken(Few):
        def start(self) -> None:
            raise OSError("no server")

        def stop(self) -> None:
            stopped.append(True)

    report = run(Broken(), progress=quiet)
    assert status(report, "messages.identity-arrives") == "not run"
    assert not report.passed
    assert stopped


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


def test_report_as_data(three_cases: None, tmp_path: Path) -> None:
    """conformance.json says what was tested, and of each case how it ended and why."""
    path = tmp_path / "conformance.json"
    run(Few(), progress=quiet).write_json(path)
    data = json.loads(path.read_text())
    assert (data["schema"], data["passed"], data["scheme"]) == (1, True, "memory")
    assert data["plugin"].startswith("cqrs-broker-memory ")
    assert set(data["cases"][0]) == {"id", "kind", "profile", "status", "reason", "seconds"}
    assert data["cases"][2]["reason"]


def test_progress_has_a_line_per_case(three_cases: None) -> None:
    """Each case is named before it runs."""
    pieces: list[str] = []
    run(Few(), progress=pieces.append)
    lines = "".join(pieces).splitlines()
    assert lines[0].startswith("[  1/3] static.broker-is-true passed")
    assert lines[3].startswith("slowest: ")
    assert len(lines) == 5


def test_command_without_harness(
    three_cases: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a scheme without a harness the command runs what it can, says so, and does not end with 0."""
    monkeypatch.setattr("cqrs_brokers_testkit.conformance._command.HARNESSES", "nobody_registers_here")
    assert main(["memory"]) == 3
    assert "no harness is registered for memory://" in capsys.readouterr().out


def test_command_with_harness(three_cases: None, tmp_path: Path) -> None:
    """With a harness the command ends with 0 when all is proven, and writes the report."""
    name = "tests.conformance.test_suite:Few"
    assert main(["memory", "--harness", name, "--json", str(tmp_path / "c.json")]) == 0
    assert json.loads((tmp_path / "c.json").read_text())["verdict"] == "passed"
    assert main(["--harness", name, "--only", "static"]) == 3


def test_command_with_a_wrong_harness(three_cases: None) -> None:
    """What is no harness is a wrong usage."""
    with pytest.raises(SystemExit) as ended:
        main(["memory", "--harness", "json:JSONDecoder"])
    assert ended.value.code == 2


def test_command_lists_the_cases(capsys: pytest.CaptureFixture[str]) -> None:
    """`--list` names every case with what it demands."""
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in CASES)


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


def test_a_fault_in_the_harness_is_reported_as_one(three_cases: None) -> None:
    """With the method, the error and the line, so that nobody looks for it in the driver."""

    class Faulty(Few):
        def read_back(self, topic: str, count: int) -> list[Any]:
            nothing: dict[str, Any] = {}
            return [nothing["no such key"]]

    report = run(Faulty(), progress=quiet)
    reason = next(result.reason for result in report.cases if result.id == "messages.identity-arrives")
    assert reason.startswith("a fault in the harness, in read_back(): KeyError: 'no such key' (test_suite.py:")


def test_a_harness_may_use_asyncio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its methods are never called in a thread with an event loop, also where a case holds the loop."""

    class Asynchronous(MemoryHarness):
        def read_back(self, topic: str, count: int) -> Sequence[Record]:
            async def read() -> Sequence[Record]:
                return MemoryHarness.read_back(self, topic, count)

            return asyncio.run(read())

    report = run(Asynchronous(), only=["delivery.receipt-means-it-is-there", "ordering"], progress=quiet)
    ordering = {result.status for result in report.cases if result.id.startswith("ordering")}
    assert ordering <= {"passed", "not applicable"}
    assert status(report, "delivery.receipt-means-it-is-there") == "passed"


def test_a_harness_may_find_out_that_the_broker_has_no_such_thing() -> None:
    """`NotApplicable` gives the reason; `Unsupported` leaves the case out, and the report is no pass."""

    class Finding(MemoryHarness):
        not_applicable: Mapping[str, str] = {}

        def missing_destination(self) -> Target:
            raise NotApplicable("every topic exists")

        def nacking_destination(self) -> Target:
            raise Unsupported("not today")

    cases = ["delivery.missing-destination", "delivery.nack-is-not-success"]
    report = run(Finding(), only=cases, progress=quiet)
    assert [status(report, case_id) for case_id in cases] == ["not applicable", "not run"]


def test_a_breach_of_the_contract_fails_the_case_in_which_it_happens(three_cases: None) -> None:
    """Whatever ran before, and whatever core logs."""
    case, breach = CASES["messages.identity-arrives"], ContractBreach("close", "raised ValueError", None)
    with session(Few(), progress=quiet) as running:
        with mock.patch.object(Broker, "contract_breaches", (breach,)):
            broken = running.run_case(case)
        assert (broken.status, running.run_case(case).status) == ("failed", "passed")
        assert "broke its contract 1 times: close() raised ValueError" in broken.reason


def test_only_prints_what_ran(three_cases: None, capsys: pytest.CaptureFixture[str]) -> None:
    """The table has no rows for what was not chosen."""
    main(["--harness", "tests.conformance.test_suite:Few", "--only", "static"])
    out = capsys.readouterr().out
    assert "static.broker-is-true" in out
    assert "messages.identity-arrives" not in out


def test_a_harness_is_found_by_file_and_may_import_its_neighbours(
    three_cases: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the tutorial lays them out."""
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "neighbour_of_mine.py").write_text("from tests.conformance.test_suite import Few\n")
    (tests / "harness_of_mine.py").write_text("from neighbour_of_mine import Few\n\nclass Mine(Few): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("tests/harness_of_mine.py:Mine", "tests.harness_of_mine:Mine"):
        assert main(["--harness", name]) == 0


def test_a_scheme_that_needs_a_host_runs_its_static_cases() -> None:
    """The first command that the documentation shows."""
    report = run(Harness("amqp"), only=["static"], progress=quiet)
    assert {result.status for result in report.cases if result.kind == "static"} == {"passed"}


def test_the_badge_says_the_verdict(three_cases: None, tmp_path: Path) -> None:
    """In the form of shields.io's endpoint badge."""
    main(["--harness", "tests.conformance.test_suite:Few", "--badge", str(tmp_path / "badge.json")])
    badge = json.loads((tmp_path / "badge.json").read_text())
    assert (badge["schemaVersion"], badge["color"]) == (1, "brightgreen")
    assert badge["message"].startswith("passed: 2 cases")


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


def test_a_harness_that_fails_again_and_again_ends_the_run() -> None:
    """The same method, six cases in a row: the rest is not run, and says why; the static cases are."""
    calls = []

    class Faulty(MemoryHarness):
        def create_topic(self, topic: str) -> None:
            calls.append(topic)
            raise TimeoutError("the server does not answer")

    report = run(Faulty(), only=["messages", "delivery", "static"], progress=quiet)
    assert len(calls) == 6
    left = [result for result in report.with_status("not run") if result.reason.startswith("the harness failed")]
    assert len(left) > 20
    assert "6 times in a row: a fault in the harness, in create_topic(): TimeoutError" in left[0].reason
    assert status(report, "static.broker-is-true") == "passed"


@pytest.mark.parametrize(("error", "expected"), [(ValueError, "passed"), (AttributeError, "failed")])
def test_only_a_refusal_says_that_the_broker_cannot_have_a_topic(error: type[Exception], expected: str) -> None:
    """An error by which no broker refuses a name is a fault of the harness."""

    class Refusing(MemoryHarness):
        def create_topic(self, topic: str) -> None:
            if topic == "*":
                raise error("no such topic")

    case_id = "refusals.odd-topics-arrive-or-are-refused"
    report = run(Refusing(), only=[case_id], progress=quiet)
    reason = next(result.reason for result in report.cases if result.id == case_id)
    assert ("a fault in the harness, in create_topic()" in reason) is (expected == "failed")


def test_a_broker_that_hangs_up_after_a_refusal_cannot_spare_the_neighbours() -> None:
    """Where the server ended the connection the case does not apply; else the neighbours' failure is the driver's."""
    proxy = FaultProxy()
    harness = Harness("memory://x")
    harness.proxy = proxy
    context = Context(harness, harness.url, Capabilities())
    with pytest.raises(CaseFailed), context.spared_by_the_broker():
        raise CaseFailed("20 ConnectionLostError")

    def hung_up() -> None:
        proxy.hung_up += 1
        raise CaseFailed("20 ConnectionLostError")

    with pytest.raises(NotApplicable, match="hangs up"), context.spared_by_the_broker():
        hung_up()
