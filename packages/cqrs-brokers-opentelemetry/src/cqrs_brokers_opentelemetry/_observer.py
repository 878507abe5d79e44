"""`OpenTelemetryObserver`: one broker's spans and metrics.

    before_send   starts the span and returns its context as headers
    sent          counts, measures, and ends the span
    attached      lets gauges read the broker's state when metrics are collected

The context is that of the call: `before_send` runs in it. A message that carries a context already, for example from an
outbox row, goes on with that trace; its span then links to the current one.
"""

from __future__ import annotations

import re
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import Lock

from opentelemetry import metrics, propagate, trace
from opentelemetry.context import Context, get_current
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
from opentelemetry.propagators.textmap import Getter, TextMapPropagator
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, TracerProvider

from cqrs_brokers import ConfigError, DeliveryError, InvalidMessageError, Message, Observer, Receipt
from cqrs_brokers.observers import ObservedBroker
from cqrs_brokers.protocol import HeaderValue
from cqrs_brokers.url import BrokerURL

from . import _names as names

__all__ = ["OpenTelemetryObserver"]

Attributes = Mapping[str, str | int]
BOUNDARIES = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30)
"""Of the histogram of durations, in seconds: those of the conventions, and the usual `delivery_timeout`."""
MOST_TOPICS = 1_000
"""How many topics metrics tell apart: routing keys may hold ids, and every series stays for ever."""


class OpenTelemetryObserver(Observer):
    """Makes a PRODUCER span for each message, puts its context into the message's headers, and keeps metrics.

    One for each broker. Names follow OpenTelemetry's messaging conventions.

    Args:
        tracer_provider: Default: the global one.
        meter_provider: Default: the global one.
        propagator: Writes the context into headers. Default: the global one (W3C `traceparent` and `baggage`, unless
            the application, or `OTEL_PROPAGATORS`, says otherwise).
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        propagator: TextMapPropagator | None = None,
    ) -> None:
        self._tracer = trace.get_tracer("cqrs_brokers", tracer_provider=tracer_provider, schema_url=names.SCHEMA_URL)
        self._meter = metrics.get_meter("cqrs_brokers", meter_provider=meter_provider, schema_url=names.SCHEMA_URL)
        self._propagator = propagator or propagate.get_global_textmap()
        self._fields = frozenset(name.lower() for name in self._propagator.fields)
        self._broker: weakref.ref[ObservedBroker] | None = None
        self._common: dict[str, str | int] = {}
        self._of_topic: dict[str, tuple[str, Attributes]] = {}
        """Name and first attributes of the spans of a topic."""
        self._spans: dict[int, Span] = {}
        """The spans that record, by the identity of their messages, until these have their outcomes."""
        self._counts = defaultdict[tuple[str, str], int](int)
        """Messages by topic and error type, for the counter: reading it costs nothing for each message."""
        self._metrics_of: dict[tuple[str, str], Attributes] = {}
        """Attributes of the metrics by topic and error type."""
        self._topics = {""}
        """The topics that metrics tell apart."""
        self._lock = Lock()
        self._duration = self._meter.create_histogram(
            names.DURATION,
            unit="s",
            description="Duration of messaging operation initiated by a producer or consumer client.",
            explicit_bucket_boundaries_advisory=BOUNDARIES,
        )
        self._changes = self._meter.create_counter(
            names.CHANGES, unit="{change}", description="Changes of the connection, by what it changed to."
        )

    # -- what the broker tells ----------------------------------------------------------------------------------------

    def attached(self, broker: ObservedBroker) -> None:
        """See `Observer`.

        Raises:
            ConfigError: It has a broker already.
        """
        if self._broker is not None:
            raise ConfigError("an OpenTelemetryObserver serves one broker, and this one already has it: make another")
        self._broker = weakref.ref(broker)
        scheme = broker.name.partition("+")[0]
        self._common = {names.SYSTEM: names.SYSTEMS.get(scheme, scheme), names.OPERATION_NAME: names.SEND}
        self._common.update(_server(broker.url))
        meter = self._meter
        meter.create_observable_counter(
            names.SENT_MESSAGES,
            [self._sent_messages],
            unit="{message}",
            description="Number of messages producer attempted to send to the broker.",
        )
        meter.create_observable_up_down_counter(
            names.IN_FLIGHT,
            [lambda _: self._read(lambda broker: broker.in_flight)],
            unit="{message}",
            description="Messages that the client holds.",
        )
        meter.create_observable_up_down_counter(
            names.WAITING,
            [lambda _: self._read(lambda broker: broker.waiting)],
            unit="{message}",
            description="Messages that wait for a place in flight, or for the connection.",
        )
        meter.create_observable_gauge(
            names.STATE, [self._states], description="1 for the state of the connection, 0 for every other state."
        )

    def before_send(self, message: Message) -> Mapping[str, HeaderValue] | None:
        """See `Observer`."""
        name, attributes = self._of_topic.get(message.topic) or self._remembered(message.topic)
        context, links = self._parent(message.headers)
        span = self._tracer.start_span(name, context, SpanKind.PRODUCER, attributes, links)
        if span.is_recording():
            span.set_attribute(names.MESSAGE_ID, str(message.message_id))
            span.set_attribute(names.MESSAGE_NAME, message.message_name)
            span.set_attribute(names.BODY_SIZE, len(message.body or b""))
            self._spans[id(message)] = span
        headers: dict[str, HeaderValue] = {}
        self._propagator.inject(headers, trace.set_span_in_context(span, context))
        return headers

    def sent(self, message: Message, outcome: Receipt | DeliveryError, elapsed: float) -> None:
        """See `Observer`."""
        failed = type(outcome).__name__ if isinstance(outcome, DeliveryError) else ""
        topic = "" if isinstance(outcome, InvalidMessageError) else message.topic
        if topic not in self._topics:
            topic = self._new_topic(topic)
        with self._lock:  # a SyncBroker refuses in the caller's thread
            self._counts[topic, failed] += 1
        attributes = self._metrics_of.get((topic, failed)) or self._metric(topic, failed)
        self._duration.record(elapsed, attributes)
        span = self._spans.pop(id(message), None)
        if span is not None:
            _end(span, outcome)

    def connection_changed(self, state: str, reason: str) -> None:
        """See `Observer`."""
        self._changes.add(1, {**self._where, "state": state})

    # -- parts --------------------------------------------------------------------------------------------------------

    def _parent(self, headers: Mapping[str, HeaderValue]) -> tuple[Context, Sequence[Link] | None]:
        """The context that a message's span belongs to, and what it is linked to."""
        current = get_current()
        if not headers or not any(name.lower() in self._fields for name in headers):
            return current, None
        carried = self._propagator.extract(headers, Context(), _HEADERS)
        if not trace.get_current_span(carried).get_span_context().is_valid:
            return current, None
        here = trace.get_current_span(current).get_span_context()
        return carried, [Link(here)] if here.is_valid else None

    def _remembered(self, topic: str) -> tuple[str, Attributes]:
        if len(self._of_topic) >= MOST_TOPICS:
            self._of_topic.clear()
        attributes = {**self._common, names.OPERATION_TYPE: names.SEND, names.DESTINATION: topic}
        if self._common.get(names.SYSTEM) == "rabbitmq":
            attributes[names.ROUTING_KEY] = topic
        found = self._of_topic[topic] = f"{names.SEND} {topic}", attributes
        return found

    def _new_topic(self, topic: str) -> str:
        """The topic, or what stands for those that are too many."""
        if len(self._topics) > MOST_TOPICS:
            return names.OTHER
        self._topics.add(topic)
        return topic

    @property
    def _where(self) -> dict[str, str | int]:
        return {name: value for name, value in self._common.items() if name != names.OPERATION_NAME}

    def _metric(self, topic: str, failed: str) -> Attributes:
        attributes = dict(self._common)
        if topic:
            attributes[names.DESTINATION] = topic
        if failed:
            attributes[names.ERROR_TYPE] = failed
        self._metrics_of[topic, failed] = attributes
        return attributes

    # -- when metrics are collected -----------------------------------------------------------------------------------

    def _sent_messages(self, _: CallbackOptions) -> Iterable[Observation]:
        with self._lock:
            counts = dict(self._counts)
        return [Observation(count, self._metrics_of.get(each) or self._metric(*each)) for each, count in counts.items()]

    def _read(self, value: Callable[[ObservedBroker], int]) -> Iterable[Observation]:
        broker = self._broker() if self._broker is not None else None
        return [] if broker is None else [Observation(value(broker), self._where)]

    def _states(self, _: CallbackOptions) -> Iterable[Observation]:
        broker = self._broker() if self._broker is not None else None
        if broker is None:
            return []
        now, where = broker.state, self._where
        return [Observation(int(state == now), {**where, "state": state}) for state in names.STATES]


def _server(url: str | None) -> dict[str, str | int]:
    """Host and port, or all hosts; nothing for a broker in the process."""
    if url is None:
        return {}
    scheme, _, rest = url.partition("://")
    hosts = BrokerURL.parse(f"{scheme}://{re.split('[/?]', rest)[0].rpartition('@')[2]}").hosts
    if not hosts:
        return {}
    if len(hosts) > 1:
        return {names.SERVER_ADDRESS: ",".join(str(host) for host in hosts)}
    (host,) = hosts
    return {names.SERVER_ADDRESS: host.host} | ({} if host.port is None else {names.SERVER_PORT: host.port})


def _end(span: Span, outcome: Receipt | DeliveryError) -> None:
    if isinstance(outcome, Receipt):
        if outcome.partition is not None:
            span.set_attribute(names.PARTITION, str(outcome.partition))
        if outcome.offset is not None:
            span.set_attribute(names.KAFKA_OFFSET, outcome.offset)
    else:
        span.set_attribute(names.ERROR_TYPE, type(outcome).__name__)
        span.set_status(Status(StatusCode.ERROR, outcome.text))
    span.end()


class _Headers(Getter[Mapping[str, HeaderValue]]):
    """Reads headers of text; names without regard to case."""

    def get(self, carrier: Mapping[str, HeaderValue], key: str) -> list[str] | None:
        found = [value for name, value in carrier.items() if name.lower() == key.lower() and isinstance(value, str)]
        return found or None

    def keys(self, carrier: Mapping[str, HeaderValue]) -> list[str]:
        return list(carrier)


_HEADERS = _Headers()
