"""Spans, headers and metrics, as OpenTelemetry's SDK, a Prometheus scrape and a collector see them."""

import asyncio
import gc
import importlib.metadata
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.semconv import schemas
from opentelemetry.semconv._incubating.attributes import messaging_attributes
from opentelemetry.semconv._incubating.metrics import messaging_metrics
from opentelemetry.semconv.attributes import error_attributes, server_attributes
from opentelemetry.trace import SpanKind, StatusCode, TraceFlags
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


async def test_each_message_of_a_batch_has_its_own_span() -> None:
    """All under the caller's; each message carries the context of its own."""
    recording, driver = Recording(), Scripted(automatic=True)
    with recording.tracers.get_tracer("test").start_as_current_span("job") as job:
        async with Broker(driver, observers=[recording.observer()]) as broker:
            await broker.send_messages([message(topic=f"t{n}") for n in range(3)])
    spans = [span for span in recording.spans if span.name != "job"]
    assert [span.name for span in spans] == ["send t0", "send t1", "send t2"]
    assert {span.parent and span.parent.span_id for span in spans} == {job.get_span_context().span_id}
    carried = [str(seen.headers["traceparent"]).split("-")[2] for seen in driver.seen]
    assert carried == [f"{span.context.span_id:016x}" for span in spans if span.context]


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
        states: list[str] = []
        for act in (
            lambda: driver.link.throttled("a quota"),
            lambda: driver.link.blocked("an alarm"),
            lambda: driver.link.lost(unreachable()),
        ):
            act()
            await settle()
            points = recording.metrics()["cqrs_brokers.connection.state"]
            assert len(points) == 8
            states += [str(attributes["state"]) for attributes, value in points if value == 1]
        assert states == ["throttled", "blocked", "connecting"]
        await broker.connect()
        driver.automatic = True
        driver.confirm_all()
        await asyncio.gather(*sendings)
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
