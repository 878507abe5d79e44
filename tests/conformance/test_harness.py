"""What the suite makes of a harness: its faults, and what it finds out only when it runs."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from cqrs_brokers import Capabilities
from cqrs_brokers_testkit.conformance import (
    Harness,
    NotApplicable,
    Record,
    Target,
    Unsupported,
    run,
)
from cqrs_brokers_testkit.conformance._case import CaseFailed, Context
from cqrs_brokers_testkit.harnesses.in_process import MemoryHarness
from cqrs_brokers_testkit.proxy import FaultProxy
from tests.conformance.few import Few, quiet, status


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


def test_a_fault_in_the_harness_is_reported_as_one(three_cases: None) -> None:
    """With the method, the error and the line, so that nobody looks for it in the driver."""

    class Faulty(Few):
        def read_back(self, topic: str, count: int) -> list[Any]:
            nothing: dict[str, Any] = {}
            return [nothing["no such key"]]

    report = run(Faulty(), progress=quiet)
    reason = next(result.reason for result in report.cases if result.id == "messages.identity-arrives")
    assert reason.startswith("a fault in the harness, in read_back(): KeyError: 'no such key' (test_harness.py:")


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


async def ended_by_both(context: Context, *, hangs_up: bool) -> None:
    """A driver that ends its connection as soon as it reads a refusal, and a broker that does so, too, or does not."""

    ended = asyncio.Event()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"NO\n")
        if hangs_up:
            await writer.drain()
        else:
            await reader.read()
        writer.close()
        await writer.wait_closed()
        ended.set()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    context.proxy.target = server.sockets[0].getsockname()
    try:
        async with context.spared_by_the_broker():
            reader, writer = await asyncio.open_connection(context.proxy.host, context.proxy.port)
            writer.write(b"PUB\n")
            assert await reader.readline() == b"NO\n"
            writer.close()
            raise CaseFailed("20 ConnectionLostError")
    finally:
        server.close()
        await asyncio.wait_for(ended.wait(), 5)


@pytest.mark.parametrize("hangs_up", [True, False])
def test_a_broker_that_hangs_up_after_a_refusal_cannot_spare_the_neighbours(hangs_up: bool) -> None:
    """Where the server ends the connection the case does not apply; else the neighbours' failure is the driver's."""
    harness = Harness("memory://x")
    with FaultProxy() as proxy:
        harness.proxy = proxy
        context = Context(harness, harness.url, Capabilities())
        with pytest.raises(NotApplicable if hangs_up else CaseFailed, match="20 ConnectionLostError"):
            asyncio.run(ended_by_both(context, hangs_up=hangs_up))


def test_an_id_that_is_cut_short_is_not_found_but_guessed() -> None:
    """The text names the cases that may have been meant."""
    with pytest.raises(LookupError, match=r"delivery\.refused-is-not-delivered"):
        run(MemoryHarness(), only=["delivery.refused"], progress=quiet)
