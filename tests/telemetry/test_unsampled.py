"""Messages that no sampler keeps: their contexts are those that the SDK would have given them."""

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.baggage import set_baggage
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, Tracer, TracerProvider, _disable_tracer_configurator
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    StaticSampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState, set_span_in_context

from cqrs_brokers import Broker, Message
from cqrs_brokers_opentelemetry import OpenTelemetryObserver
from cqrs_brokers_opentelemetry._names import SCHEMA_URL
from tests.core.drivers import Scripted, message

OFF = {
    "off": ALWAYS_OFF,
    "another off": StaticSampler(Decision.DROP),
    "off by default": DEFAULT_OFF,
    "parent based": ParentBased(ALWAYS_OFF),
}
STATE = TraceState([("vendor", "1")])


def under(flags: int, state: TraceState | None = None) -> Context:
    """A context with a span that has these flags."""
    here = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(flags), trace_state=state)
    return set_span_in_context(NonRecordingSpan(here), Context())


SAMPLED = under(1)


class Recorded(TracerProvider):
    """Keeps the spans that are sampled."""

    def __init__(self, sampler: Sampler, **more: Any) -> None:
        super().__init__(sampler=sampler, **more)
        self._exporter = InMemorySpanExporter()
        self.add_span_processor(SimpleSpanProcessor(self._exporter))

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()


async def send(
    tracers: TracerProvider, context: Context | None = None, headers: dict[str, str] | None = None, count: int = 3
) -> list[dict[str, Any]]:
    """Sends messages in that context; returns the headers that the driver got."""
    driver = Scripted(automatic=True)
    token = attach(Context() if context is None else context)
    try:
        async with Broker(driver, observers=[OpenTelemetryObserver(tracer_provider=tracers)]) as broker:
            for _ in range(count):
                await broker.send_message(Message("n", "t", b"{}", headers=headers))
    finally:
        detach(token)
    return [dict(seen.headers) for seen in driver.seen]


def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the spans that the SDK is asked for from now on."""
    names: list[str] = []
    start_span = Tracer.start_span

    def counted(self: Tracer, name: str, *arguments: Any, **more: Any) -> Any:
        names.append(name)
        return start_span(self, name, *arguments, **more)

    monkeypatch.setattr(Tracer, "start_span", counted)
    return names


@pytest.mark.parametrize("flags", [None, 0, 2, 0x80], ids=["root", "child", "random", "unknown flag"])
@pytest.mark.parametrize("sampler", OFF.values(), ids=OFF)
async def test_contexts_are_those_of_the_sdk(
    sampler: Sampler, flags: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New ids, the parent's trace and the flags that the SDK gives; it is asked for no message."""
    tracers = Recorded(sampler)
    context = Context() if flags is None else under(flags)
    theirs = tracers.get_tracer("test").start_span("test", context).get_span_context()
    names = asked(monkeypatch)
    found = [str(headers["traceparent"]) for headers in await send(tracers, context)]
    assert [name for name in names if name] == []
    assert len({text.split("-")[2] for text in found}) == 3
    assert len({text.split("-")[1] for text in found}) == (3 if flags is None else 1)
    for text in found:
        version, trace_id, span_id, given = text.split("-")
        assert (version, len(trace_id), len(span_id)) == ("00", 32, 16)
        assert given == f"{theirs.trace_flags:02x}"
        assert int(trace_id, 16) != 0 != int(span_id, 16)
        if flags is not None:
            assert (int(trace_id, 16), theirs.trace_id) == (0xABC, 0xABC)
            assert int(span_id, 16) != 0xDEF


@pytest.mark.parametrize(
    ("context", "more"),
    [
        (SAMPLED, set()),
        (under(0, STATE), {"tracestate"}),
        (set_baggage("tenant", "acme", Context()), {"baggage"}),
        (set_baggage("tenant", "acme", under(0)), {"baggage"}),
    ],
    ids=["sampled", "state", "baggage", "baggage and span"],
)
@pytest.mark.parametrize("sampler", OFF.values(), ids=OFF)
async def test_the_sdk_is_asked_for_everything_else(
    sampler: Sampler, context: Context, more: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sampled parent, which some of these samplers follow; state of the trace; baggage."""
    tracers = Recorded(sampler)
    names = asked(monkeypatch)
    found = await send(tracers, context)
    assert [name for name in names if name] == ["send t"] * 3
    assert [set(headers) - {"traceparent"} for headers in found] == [more] * 3
    follows = isinstance(sampler, ParentBased) and context is SAMPLED
    assert len(tracers.spans) == (3 if follows else 0)
    assert {str(headers["traceparent"])[-1] in "13" for headers in found} == {follows}


@pytest.mark.parametrize("name", ["traceparent", "TraceParent"])
@pytest.mark.parametrize(("flags", "expected"), [("00", []), ("01", ["send t"] * 3)])
async def test_a_message_that_carries_a_context(
    flags: str, expected: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its context counts, not the current one, in whatever case its header is."""
    names = asked(monkeypatch)
    carried = f"00-{0x123:032x}-{0x456:016x}-{flags}"
    found = await send(Recorded(DEFAULT_OFF), under(1), {name: carried, "own": "1"})
    assert [name for name in names if name] == expected
    assert {str(headers["traceparent"])[:35] for headers in found} == {carried[:35]}
    assert len({str(headers["traceparent"]) for headers in found}) == 3
    assert {headers["own"] for headers in found} == {"1"}


class Own(StaticSampler):
    """Says that it never samples, and does."""

    def should_sample(self, *_: Any, **__: Any) -> SamplingResult:
        return SamplingResult(Decision.RECORD_AND_SAMPLE)


@pytest.mark.parametrize(
    "sampler", [ALWAYS_ON, TraceIdRatioBased(0), Own(Decision.DROP), ParentBased(Own(Decision.DROP))]
)
async def test_other_samplers_are_asked_for_each_message(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that derives from a known one, or is inside it."""
    tracers = Recorded(sampler)
    names = asked(monkeypatch)
    await send(tracers)
    assert names == ["send t"] * 3
    assert len(tracers.spans) == (0 if isinstance(sampler, TraceIdRatioBased) else 3)


async def test_a_sampler_that_is_exchanged_is_asked() -> None:
    """From the next message on."""
    tracers = Recorded(ALWAYS_OFF)
    observer = OpenTelemetryObserver(tracer_provider=tracers)
    async with Broker(Scripted(automatic=True), observers=[observer]) as broker:
        await broker.send_message(message())
        assert len(tracers.spans) == 0
        tracer: Any = tracers.get_tracer("cqrs_brokers", schema_url=SCHEMA_URL)
        tracer.sampler = ALWAYS_ON
        await broker.send_message(message())
    assert len(tracers.spans) == 1


class Numbers(IdGenerator):
    """Ids of an application."""

    def generate_span_id(self) -> int:
        return 0xFEED

    def generate_trace_id(self) -> int:
        return 0xBEEF


async def test_ids_come_from_the_applications_generator() -> None:
    """And the flags say what it says about them."""
    (headers,) = await send(Recorded(ALWAYS_OFF, id_generator=Numbers()), count=1)
    assert headers == {"traceparent": f"00-{0xBEEF:032x}-{0xFEED:016x}-00"}


async def test_a_tracer_that_is_switched_off() -> None:
    """It makes no contexts, and none are made in its place."""
    tracers = Recorded(ALWAYS_OFF, _tracer_configurator=_disable_tracer_configurator)
    assert await send(tracers, count=1) == [{}]
    (headers,) = await send(tracers, under(1), count=1)
    assert headers["traceparent"] == f"00-{0xABC:032x}-{0xDEF:016x}-01"


async def test_spans_that_the_sdk_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """If its own metrics are switched on, it counts each span that it drops."""
    monkeypatch.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
    reader = InMemoryMetricReader()
    await send(Recorded(ALWAYS_OFF, meter_provider=MeterProvider([reader])))
    data = reader.get_metrics_data()
    assert data is not None
    points: list[Any] = [
        point
        for scope in data.resource_metrics[0].scope_metrics
        for metric in scope.metrics
        if metric.name == "otel.sdk.span.started"
        for point in metric.data.data_points
    ]
    assert sum(point.value for point in points) == 3


def test_a_provider_that_is_set_later() -> None:
    """Until the first message the application may set the global one; before it is set nothing is added."""
    program = """
import asyncio
from opentelemetry import trace
from opentelemetry.sdk.trace import Tracer, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from cqrs_broker_memory import published
from cqrs_brokers import Message, open_broker
from cqrs_brokers_opentelemetry import OpenTelemetryObserver

async def main():
    async with open_broker("memory://later", observers=[OpenTelemetryObserver()]) as broker:
        await broker.send_message(Message("n", "t", b"{}"))
        trace.set_tracer_provider(TracerProvider(sampler=ALWAYS_OFF))
        await broker.send_message(Message("n", "t", b"{}"))
        Tracer.start_span = None
        await broker.send_message(Message("n", "t", b"{}"))
    print([sorted(message.headers) for message in published("later")])

asyncio.run(main())
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (run.stderr, run.returncode) == ("", 0)
    assert run.stdout.strip() == "[[], ['traceparent'], ['traceparent']]"
