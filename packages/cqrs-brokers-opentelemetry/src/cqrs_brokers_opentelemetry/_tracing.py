"""Spans of messages and of batches, and their contexts as headers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from opentelemetry import propagate, trace
from opentelemetry.context import Context, get_current
from opentelemetry.propagators.textmap import Getter, TextMapPropagator
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TracerProvider,
)

from cqrs_brokers import DeliveryError, Message, Receipt
from cqrs_brokers.protocol import HeaderValue

from . import _names as names
from ._unsampled import TRACEPARENT, Unsampled

__all__ = ["Attributes", "Tracing", "end_message"]

Attributes = Mapping[str, str | int]
Unsampling = Callable[[Context], Mapping[str, HeaderValue] | None]
MOST_REMEMBERED = 1_000
"""How many topics' attributes are remembered."""


class Tracing:
    """Starts spans and writes their contexts.

    Args:
        tracer_provider: The tracer provider. None: the global one.
        propagator: Writes contexts into headers. None: the global one.

    Attributes:
        common: The attributes that every span has, besides its operation.
        unsampled: Returns the context of a new span as headers, if it is known that the SDK would drop the span. None:
            ask the SDK, with `start`.
    """

    def __init__(self, tracer_provider: TracerProvider | None, propagator: TextMapPropagator | None) -> None:
        self.common: Attributes = {}
        self._provider = tracer_provider
        self._tracer = self._get_tracer()
        self._propagator = propagator or propagate.get_global_textmap()
        self._fields = frozenset(name.lower() for name in self._propagator.fields)
        self._is_w3c = _writes_w3c(self._propagator)
        self.unsampled: Unsampling = self._settle if self._is_w3c else _unknown
        self._of_topic: dict[tuple[str, str], tuple[str, Attributes]] = {}
        """The name and the first attributes of a span, by operation and topic."""

    def carried(self, headers: Mapping[str, HeaderValue] | None) -> Context | None:
        """The context that a message carries already."""
        if not headers or self._fields.isdisjoint(map(str.lower, headers)):
            return None
        carried = self._propagator.extract(headers, Context(), _HEADERS)
        return carried if trace.get_current_span(carried).get_span_context().is_valid else None

    def start(
        self, message: Message, operation: str, context: Context, links: Sequence[Link] | None
    ) -> tuple[Span, dict[str, HeaderValue]]:
        """The span of a message, and its context as headers."""
        topic = message.topic
        name, attributes = self._of_topic.get((operation, topic)) or self._remembered(operation, topic)
        span = self._tracer.start_span(name, context, SpanKind.PRODUCER, attributes, links)
        if span.is_recording():
            span.set_attribute(names.MESSAGE_ID, str(message.message_id))
            span.set_attribute(names.MESSAGE_NAME, message.message_name)
            span.set_attribute(names.BODY_SIZE, len(message.body or b""))
        if self._is_w3c and _has_at_most_a_span(context):
            here = span.get_span_context()
            if not here.trace_state and here.is_valid:
                return span, {TRACEPARENT: _w3c(here)}
        return span, self.headers(trace.set_span_in_context(span, context))

    def start_batch(self, count: int) -> tuple[Span, Context]:
        """The span of a batch under the current one, and the context with it."""
        context = get_current()
        operation: Attributes = {names.OPERATION_NAME: names.SEND, names.OPERATION_TYPE: names.SEND}
        attributes = {**self.common, **operation, names.BATCH_COUNT: count}
        span = self._tracer.start_span(names.SEND, context, SpanKind.CLIENT, attributes)
        return span, trace.set_span_in_context(span, context)

    def headers(self, context: Context) -> dict[str, HeaderValue]:
        """A context as headers."""
        headers: dict[str, HeaderValue] = {}
        self._propagator.inject(headers, context)
        return headers

    def _settle(self, context: Context) -> Mapping[str, HeaderValue] | None:
        """Finds the tracer at the first message, because the application may set the global provider until then."""
        if self._provider is None and isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            return None
        self._tracer = self._get_tracer()
        known = Unsampled.of(self._tracer)
        self.unsampled = _unknown if known is None else known.headers
        return self.unsampled(context)

    def _get_tracer(self) -> trace.Tracer:
        return trace.get_tracer("cqrs_brokers", tracer_provider=self._provider, schema_url=names.SCHEMA_URL)

    def _remembered(self, operation: str, topic: str) -> tuple[str, Attributes]:
        if len(self._of_topic) >= MOST_REMEMBERED:
            self._of_topic.clear()
        attributes = {
            **self.common,
            names.OPERATION_NAME: operation,
            names.OPERATION_TYPE: operation,
            names.DESTINATION: topic,
        }
        if self.common.get(names.SYSTEM) == "rabbitmq":
            attributes[names.ROUTING_KEY] = topic
        found = self._of_topic[operation, topic] = f"{operation} {topic}", attributes
        return found


def _unknown(_: Context) -> None:
    """The SDK is to be asked for each span."""


def _has_at_most_a_span(context: Context) -> bool:
    """Whether the context has nothing else than a span: no baggage, nothing of an application."""
    return not context or (len(context) == 1 and trace.get_current_span(context) is not INVALID_SPAN)


def _w3c(here: SpanContext) -> str:
    return f"00-{here.trace_id:032x}-{here.span_id:016x}-{here.trace_flags:02x}"


def _writes_w3c(propagator: TextMapPropagator) -> bool:
    """Whether the propagator writes a context that has only a span as the one header of W3C. Then the header is written
    here, because a propagator takes longer than all the rest of a message that is not sampled."""
    if not propagator.fields <= {TRACEPARENT, "tracestate", "baggage"}:
        return False
    here = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    headers: dict[str, str] = {}
    propagator.inject(headers, trace.set_span_in_context(NonRecordingSpan(here), Context()))
    return headers == {TRACEPARENT: _w3c(here)}


def end_message(span: Span, outcome: Receipt | DeliveryError) -> None:
    """Ends the span of a message."""
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
    """Reads headers of text. Upper and lower case in names make no difference."""

    def get(self, carrier: Mapping[str, HeaderValue], key: str) -> list[str] | None:
        found = [value for name, value in carrier.items() if name.lower() == key.lower() and isinstance(value, str)]
        return found or None

    def keys(self, carrier: Mapping[str, HeaderValue]) -> list[str]:
        return list(carrier)


_HEADERS = _Headers()
