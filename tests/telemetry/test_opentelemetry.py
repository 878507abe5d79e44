"""Spans, headers and metrics, as OpenTelemetry's SDK, a Prometheus scrape and a collector see them."""

import asyncio
import gc
import importlib.metadata
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.baggage import set_baggage
from opentelemetry.context import Context, attach, detach, get_value, set_value
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.propagate import get_global_textmap
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import Setter, TextMapPropagator, default_setter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler
from opentelemetry.semconv import schemas
from opentelemetry.semconv._incubating.attributes import messaging_attributes
from opentelemetry.semconv._incubating.metrics import messaging_metrics
from opentelemetry.semconv.attributes import error_attributes, server_attributes
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import REGISTRY, generate_latest

from cqrs_brokers import Broker, ConfigError, InvalidMessageError, Message, UnroutableError, open_broker
from cqrs_brokers_opentelemetry import OpenTelemetryObserver, _names
from tests.core.drivers import Scripted, message, settle, unreachable

from .recording import Recording, collector


def test_the_names_are_those_of_the_conventions() -> None:
    """Of the pinned version: when they change there, the table here has to be looked at."""
    assert importlib.metadata.version("opentelemetry-semantic-conventions") == _names.CONVENTIONS
    known = {
        value
        for module in (messaging_attributes, messaging_metrics, error_attributes, server_attributes)
        for value in vars(module).values()
        if isinstance(value, str)
    }
    names = {value for name, value in vars(_names).items() if name.isupper() and isinstance(value, str)}
    theirs = {name for name in names if name.startswith(("messaging.", "server.", "error."))}
    assert len(theirs) > 10
    assert theirs <= known
    assert max(schema.value for schema in schemas.Schemas) == _names.SCHEMA_URL


async def test_a_span_for_a_message() -> None:
    """A PRODUCER span under the caller's, with the conventions' attributes; its context is in the message's headers."""
    recording, driver = Recording(), Scripted()
    broker = Broker(driver, name="kafka", observers=[recording.observer()])
    tracer = recording.tracers.get_tracer("test")
    with tracer.start_as_current_span("request") as request:
        sending = asyncio.create_task(
            broker.send_message(Message("OrderPlaced", "orders", {"a": 1}, headers={"own": "1"}))
        )
        await settle()
    driver.hand_over_all()
    driver.held[0].confirm(partition=3, offset=7)
    receipt = await sending
    await broker.close()
    span = recording.spans[-1]
    assert (span.name, span.kind, span.status.status_code) == ("send orders", SpanKind.PRODUCER, StatusCode.UNSET)
    assert span.parent is not None
    assert span.parent.span_id == request.get_span_context().span_id
    assert span.attributes == {
        "messaging.system": "kafka",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "orders",
        "messaging.destination.partition.id": "3",
        "messaging.kafka.offset": 7,
        "messaging.message.id": str(receipt.message_id),
        "messaging.message.body.size": 7,
        "cqrs_brokers.message.name": "OrderPlaced",
    }
    context = span.get_span_context()
    assert context is not None
    assert driver.seen[0].headers == {
        "own": "1",
        "traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}",
    }


async def test_a_batch_has_a_span_that_links_to_those_of_its_messages() -> None:
    """A CLIENT span under the caller's; under it a PRODUCER span for each message, which carries that one's context."""
    recording, driver = Recording(), Scripted(automatic=True)
    with recording.tracers.get_tracer("test").start_as_current_span("job") as job:
        async with Broker(driver, observers=[recording.observer()]) as broker:
            await broker.send_messages([message(topic=f"t{n}") for n in range(3)])
    *created, batch, _ = recording.spans
    assert (batch.name, batch.kind, batch.status.status_code) == ("send", SpanKind.CLIENT, StatusCode.UNSET)
    assert batch.attributes == {
        "messaging.system": "Scripted",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.batch.message_count": 3,
    }
    assert batch.parent is not None
    assert batch.parent.span_id == job.get_span_context().span_id
    assert [(span.name, span.kind) for span in created] == [(f"create t{n}", SpanKind.PRODUCER) for n in range(3)]
    assert {span.attributes and span.attributes["messaging.operation.type"] for span in created} == {"create"}
    assert {span.parent and span.parent.span_id for span in created} == {batch.context and batch.context.span_id}
    ids = [span.context.span_id for span in created if span.context]
    assert [link.context.span_id for link in batch.links] == ids
    assert [str(seen.headers["traceparent"]).split("-")[2] for seen in driver.seen] == [f"{each:016x}" for each in ids]


@pytest.mark.parametrize("sampler", [ALWAYS_ON, ALWAYS_OFF], ids=["sampled", "not-sampled"])
async def test_the_outcomes_of_a_batch(sampler: Sampler) -> None:
    """The span ends with the last outcome and says what failed; each message counts, and the call is measured once for
    each destination and outcome. What is refused, and what is cancelled, does not keep it open."""
    recording, driver = Recording(sampler), Scripted()
    async with Broker(driver, observers=[recording.observer()]) as broker:
        sending = asyncio.create_task(broker.send_messages([message(topic=t) for t in ("a", "", "a", "a")]))
        await settle()
        driver.hand_over_all()
        driver.held[0].confirm()
        driver.held[1].fail(UnroutableError("no queue"))
        sending.cancel()
        await settle()
        assert [span.name for span in recording.spans if span.name.startswith("send")] == []
        driver.held[2].confirm()
        await settle()
        batches = [span for span in recording.spans if span.name.startswith("send")]
        driver.held.clear()
    if sampler is ALWAYS_ON:
        (batch,) = batches
        assert batch.name == "send a"
        assert batch.status.description == "of 3 messages: 1 UnroutableError"
        assert batch.attributes is not None
        assert batch.attributes["error.type"] == "UnroutableError"
        assert batch.attributes["messaging.destination.name"] == "a"
        assert batch.attributes["messaging.batch.message_count"] == 4
    else:
        assert recording.spans == []
    common = {"messaging.system": "Scripted", "messaging.operation.name": "send"}
    a = {"messaging.destination.name": "a"}
    expected = [
        (common | a | {"error.type": "UnroutableError"}, 1),
        (common | {"error.type": "InvalidMessageError"}, 1),
        (common | a, 2),
    ]
    found = recording.metrics()
    assert sorted(found["messaging.client.sent.messages"], key=str) == sorted(expected, key=str)
    once = [(attributes, 1) for attributes, _ in expected]
    assert sorted(found["messaging.client.operation.duration"], key=str) == sorted(once, key=str)


async def test_a_batch_that_is_refused_whole_has_a_span() -> None:
    """It ends, although no message of it is asked for."""
    recording = Recording()
    async with Broker(Scripted(), observers=[recording.observer()]) as broker:
        await broker.send_messages([message(topic=""), message(topic="")])
        assert [span.name for span in recording.spans] == ["send"]
        await broker.send_messages([])
        assert [span.name for span in recording.spans] == ["send"]


async def test_a_batch_that_is_not_sampled_shares_its_context() -> None:
    """The sampler is asked once for the batch, and again for a message that carries the context of another trace."""
    recording, driver = Recording(ParentBased(ALWAYS_OFF)), Scripted(automatic=True)
    carried = f"00-{0xABC:032x}-{0xDEF:016x}-01"
    async with Broker(driver, observers=[recording.observer()]) as broker:
        given = [Message("n", "t", b"{}", headers={"traceparent": carried}), message(topic="a"), message(topic="b")]
        await broker.send_messages(given)
    (span,) = recording.spans
    assert span.parent is not None
    assert (span.name, span.parent.span_id) == ("create t", 0xDEF)
    own, *shared = [str(seen.headers["traceparent"]) for seen in driver.seen]
    assert own.startswith(f"00-{0xABC:032x}-{span.context and span.context.span_id:016x}")
    assert len(set(shared)) == 1
    assert not int(shared[0][-2:], 16) & TraceFlags.SAMPLED
    assert [f"{link.context.trace_id:032x}" for link in span.links] == [shared[0].split("-")[1]]


@pytest.mark.parametrize("case", ["alone", "baggage", "state", "other text", "own propagator"])
async def test_the_context_is_written_as_the_propagator_writes_it(case: str) -> None:
    """Whatever the context holds, and whichever propagator the application chose."""
    recording, driver = Recording(), Scripted(automatic=True)
    propagator: TextMapPropagator = get_global_textmap()
    context = Context()
    if case == "baggage":
        context = set_baggage("tenant", "acme", context)
    if case == "state":
        state = TraceState([("vendor", "1")])
        here = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(1), trace_state=state)
        context = set_span_in_context(NonRecordingSpan(here), context)
    if case == "other text":
        propagator = Upper()
    if case == "own propagator":
        propagator, context = CompositePropagator([propagator, Tenant()]), set_value("tenant", "acme", context)
    observer = OpenTelemetryObserver(tracer_provider=recording.tracers, propagator=propagator)
    token = attach(context)
    try:
        async with Broker(driver, observers=[observer]) as broker:
            await broker.send_message(message())
    finally:
        detach(token)
    (span,) = recording.spans
    assert span.context is not None
    expected: dict[str, str] = {}
    propagator.inject(expected, set_span_in_context(NonRecordingSpan(span.context), context))
    assert driver.seen[0].headers == expected
    assert len(expected) == (2 if case in ("baggage", "state", "own propagator") else 1)


class Upper(TraceContextTextMapPropagator):
    """W3C's field, and not its text."""

    def inject(self, carrier: Any, context: Context | None = None, setter: Setter[Any] = default_setter) -> None:
        super().inject(carrier, context, setter)
        carrier["traceparent"] = carrier["traceparent"].upper()


class Tenant(TraceContextTextMapPropagator):
    """Adds what it finds in the context, and does not say so in its fields."""

    def inject(self, carrier: Any, context: Context | None = None, setter: Setter[Any] = default_setter) -> None:
        tenant = get_value("tenant", context)
        if tenant is not None:
            setter.set(carrier, "x-tenant", str(tenant))


async def test_measurements_have_the_span_of_their_message_as_exemplar() -> None:
    """And none of another message: the driver's task began in the context of whoever sent first."""
    recording, driver = Recording(ParentBased(ALWAYS_OFF)), Scripted(automatic=True)
    sampled = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(1))
    async with Broker(driver, observers=[recording.observer()]) as broker:
        token = attach(set_span_in_context(NonRecordingSpan(sampled), Context()))
        await broker.send_message(message(topic="a"))
        detach(token)
        await broker.send_message(message(topic="b"))
    data = recording.reader.get_metrics_data()
    assert data is not None
    exemplars = {
        point.attributes["messaging.destination.name"]: [each.span_id for each in point.exemplars]
        for scope in data.resource_metrics[0].scope_metrics
        for metric in scope.metrics
        if metric.name == "messaging.client.operation.duration"
        for point in metric.data.data_points
        if isinstance(point, HistogramDataPoint) and point.attributes is not None
    }
    (span,) = recording.spans
    assert span.context is not None
    assert exemplars == {"a": [span.context.span_id], "b": []}


async def test_a_message_that_carries_a_context_goes_on_with_that_trace() -> None:
    """Its span is a child of the carried one, and links to the current one."""
    recording, driver = Recording(), Scripted(automatic=True)
    carried = f"00-{0xABC:032x}-{0xDEF:016x}-01"
    with recording.tracers.get_tracer("test").start_as_current_span("relay") as current:
        async with Broker(driver, observers=[recording.observer()]) as broker:
            await broker.send_message(Message("n", "t", b"{}", headers={"Traceparent": "no context"}))
            await broker.send_message(Message("n", "t", b"{}", headers={"traceparent": carried}))
    plain, child = recording.spans[:2]
    assert plain.parent is not None
    assert plain.parent.span_id == current.get_span_context().span_id
    assert child.parent is not None
    assert (child.parent.trace_id, child.parent.span_id) == (0xABC, 0xDEF)
    assert [link.context.span_id for link in child.links] == [current.get_span_context().span_id]
    assert str(driver.seen[1].headers["traceparent"]).startswith(
        f"00-{0xABC:032x}-{child.context and child.context.span_id:016x}"
    )


async def test_outcomes_and_cancellations() -> None:
    """`error.type` is the class of the outcome; a cancelled send's span ends when its outcome is known."""
    recording, driver = Recording(), Scripted()
    async with Broker(driver, observers=[recording.observer()]) as broker:
        sendings = [asyncio.create_task(broker.send_message(message(topic=t))) for t in ("a", "b", "c")]
        await settle()
        driver.hand_over_all()
        driver.held[0].fail(UnroutableError("no queue"))
        sendings[1].cancel()
        sendings[2].cancel()
        await settle()
        assert [span.name for span in recording.spans] == ["send a"]
        driver.held[1].confirm()
        with pytest.raises(InvalidMessageError):
            await broker.send_message(message(topic=""))
        driver.held.clear()
        await asyncio.gather(*sendings, return_exceptions=True)
    found = {
        span.name: (span.status.status_code, (span.attributes or {}).get("error.type")) for span in recording.spans
    }
    assert found == {
        "send a": (StatusCode.ERROR, "UnroutableError"),
        "send b": (StatusCode.UNSET, None),
        "send c": (StatusCode.ERROR, "ClosedWhilePendingError"),
    }
    sent = recording.metrics()["messaging.client.sent.messages"]
    common = {"messaging.system": "Scripted", "messaging.operation.name": "send"}
    assert sorted(sent, key=str) == sorted(
        [
            (common | {"messaging.destination.name": "a", "error.type": "UnroutableError"}, 1),
            (common | {"messaging.destination.name": "b"}, 1),
            (common | {"messaging.destination.name": "c", "error.type": "ClosedWhilePendingError"}, 1),
            (common | {"error.type": "InvalidMessageError"}, 1),
        ],
        key=str,
    )
    durations = recording.metrics()["messaging.client.operation.duration"]
    assert sorted(durations, key=str) == sorted(sent, key=str)


async def test_gauges_of_a_broker_that_is_stuck() -> None:
    """What is in flight, what waits for a place, and the state of the connection, when metrics are read."""
    recording, driver = Recording(), Scripted()
    async with Broker(driver, observers=[recording.observer()], max_in_flight=5) as broker:
        sendings = [asyncio.create_task(broker.send_message(message())) for _ in range(5)]
        await settle()
        found = recording.metrics()
        assert [value for _, value in found["cqrs_brokers.messages.in_flight"]] == [2]
        assert [value for _, value in found["cqrs_brokers.messages.waiting"]] == [3]
        ((attributes, age),) = found["cqrs_brokers.messages.oldest"]
        assert attributes["messaging.destination.name"] == message().topic
        assert 0 <= age < 30
        states: list[str] = []
        for act in (
            lambda: driver.link.throttled("a quota"),
            lambda: driver.link.blocked("an alarm"),
            lambda: driver.link.lost(unreachable()),
        ):
            act()
            await settle()
            points = recording.metrics()["cqrs_brokers.connection.state"]
            assert len(points) == 7
            states += [str(attributes["state"]) for attributes, value in points if value == 1]
        assert states == ["throttled", "blocked", "connecting"]
        await broker.connect()
        driver.automatic = True
        driver.confirm_all()
        await asyncio.gather(*sendings)
        assert not recording.metrics().get("cqrs_brokers.messages.oldest")
    assert not recording.metrics().get("cqrs_brokers.connection.state")  # a closed broker has none
    changes = {
        attributes["state"]: value for attributes, value in recording.metrics()["cqrs_brokers.connection.changes"]
    }
    assert changes["lost"] == changes["blocked"] == changes["throttled"] == changes["closed"] == 1
    assert changes["connected"] == 2


async def test_topics_without_end() -> None:
    """Metrics tell 1 000 topics apart; the rest is counted together, so that routing keys with ids cost no memory."""
    recording = Recording(ALWAYS_OFF)
    async with Broker(Scripted(automatic=True), observers=[recording.observer()]) as broker:
        await broker.send_messages([message(topic=f"t{n}") for n in range(1_010)])
    sent = {
        attributes["messaging.destination.name"]: count
        for attributes, count in recording.metrics()["messaging.client.sent.messages"]
    }
    assert len(sent) == 1_001
    assert sent["_OTHER"] == 10


async def test_nothing_sampled_still_carries_the_context() -> None:
    """Consumers see that the trace is not sampled; no span is kept for the outcome."""
    recording, driver = Recording(ALWAYS_OFF), Scripted(automatic=True)
    observer = recording.observer()
    async with Broker(driver, observers=[observer]) as broker:
        await broker.send_message(message())
    assert recording.spans == []
    flags = int(str(driver.seen[0].headers["traceparent"]).rpartition("-")[2], 16)
    assert not flags & TraceFlags.SAMPLED


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("kafka://h1:9092", {"messaging.system": "kafka", "server.address": "h1", "server.port": 9092}),
        ("kafka://h1:9092,h2", {"messaging.system": "kafka", "server.address": "h1:9092,h2"}),
        ("amqp://u:p@[::1]/v", {"messaging.system": "rabbitmq", "server.address": "::1"}),
        ("devnull://", {"messaging.system": "devnull"}),
    ],
)
def test_where_it_sends(url: str, expected: dict[str, Any]) -> None:
    """System and server, without anything secret."""
    recording = Recording()
    broker = open_broker(url, observers=[recording.observer()])
    ((attributes, waiting),) = recording.metrics()["cqrs_brokers.messages.waiting"]
    assert attributes == expected
    assert waiting == 0
    del broker
    gc.collect()
    assert not recording.metrics().get("cqrs_brokers.messages.waiting")  # the observer does not keep a broker alive


def test_an_observer_serves_one_broker() -> None:
    """A second one would have the first one's server in its metrics."""
    observer = Recording().observer()
    broker = Broker(Scripted(), observers=[observer])
    with pytest.raises(ConfigError, match="serves one broker"):
        Broker(Scripted(), observers=[observer])
    assert broker.state == "idle"


async def test_without_an_sdk() -> None:
    """With the API alone nothing is recorded and nothing is added; a current span of another SDK is handed on."""
    driver = Scripted(automatic=True)
    async with Broker(driver, observers=[OpenTelemetryObserver()]) as broker:
        assert (await broker.send_message(message())).confirmed
    assert dict(driver.seen[0].headers) == {}


async def test_prometheus_sees_the_same() -> None:
    """Through OpenTelemetry's own exporter: names with underscores, units and `_total`."""
    reader = PrometheusMetricReader()
    meters = MeterProvider([reader])
    try:
        async with open_broker(
            "memory://prometheus", observers=[OpenTelemetryObserver(meter_provider=meters)]
        ) as broker:
            await broker.send_messages([Message("n", "orders", {}), Message("n", "", {})])
            lines = generate_latest(REGISTRY).decode().splitlines()
    finally:
        meters.shutdown()
    text = "\n".join(lines)
    assert 'messaging_destination_name="orders"' in text
    assert 'error_type="InvalidMessageError"' in text
    assert "messaging_client_sent_messages_total{" in text
    assert "messaging_client_operation_duration_seconds_bucket{" in text
    assert "cqrs_brokers_messages_in_flight{" in text
    connected = [line for line in lines if "cqrs_brokers_connection_state" in line and 'state="connected"' in line]
    assert [line[-3:] for line in connected] == ["1.0"]


async def test_a_collector_receives_it() -> None:
    """OTLP over HTTP: the bytes that leave the process decode to the span and the metrics."""
    with collector() as received:
        tracers = TracerProvider()
        tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{received.url}/v1/traces")))
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{received.url}/v1/metrics"), 60_000)
        meters = MeterProvider([reader])
        observer = OpenTelemetryObserver(tracer_provider=tracers, meter_provider=meters)
        async with open_broker("memory://collector", observers=[observer]) as broker:
            receipt = await broker.send_message(Message("OrderPlaced", "orders", {"a": 1}))
            await asyncio.to_thread(tracers.shutdown)
            await asyncio.to_thread(meters.shutdown)
    (span,) = received.spans
    attributes = {item.key: item.value for item in span.attributes}
    assert (span.name, span.kind) == ("send orders", 4)
    assert attributes["messaging.message.id"].string_value == str(receipt.message_id)
    (point,) = received.metrics["messaging.client.sent.messages"].sum.data_points
    assert point.as_int == 1
    (duration,) = received.metrics["messaging.client.operation.duration"].histogram.data_points
    assert duration.count == 1
    assert "cqrs_brokers.connection.state" in received.metrics


def test_the_global_providers_are_not_touched() -> None:
    """What these tests set up is theirs."""
    assert type(trace.get_tracer_provider()).__name__ == "ProxyTracerProvider"
