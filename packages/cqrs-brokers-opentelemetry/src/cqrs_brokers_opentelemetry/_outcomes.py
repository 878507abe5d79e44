"""Counts the outcomes of one broker's messages, and measures how long they took."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Span

from cqrs_brokers import DeliveryError, InvalidMessageError, Message, Receipt

from ._failing import Failing
from ._instruments import Instruments, Series
from ._tracing import Attributes

__all__ = ["Outcomes"]

_NO_SPAN = trace.set_span_in_context(INVALID_SPAN, Context())
"""The context for measurements without a span. Without it the SDK would take the context in which the driver's task
began, and another message's span would become the exemplar."""
MOST_REMEMBERED = 2_000
"""How many series are remembered here. Further ones are looked up in `Instruments` each time."""


class Outcomes:
    """Counts and measures outcomes.

    Args:
        instruments: The instruments of the meter provider.

    Attributes:
        common: The attributes that all outcomes have.
        failing: The destinations that confirm nothing.
    """

    def __init__(self, instruments: Instruments) -> None:
        self.common: Attributes = {}
        self.failing = Failing()
        self._instruments = instruments
        self._lock = instruments.lock
        self._series: dict[tuple[str, str], Series] = {}

    def count(self, message: Message, outcome: Receipt | DeliveryError, elapsed: float) -> Series:
        """Counts an outcome, in a number of our own. OpenTelemetry reads it only when metrics are collected, so that a
        message costs little."""
        topic = message.topic
        if isinstance(outcome, Receipt):
            key = topic, ""
            self.failing.confirmed(topic)
        else:
            key = "" if isinstance(outcome, InvalidMessageError) else topic, type(outcome).__name__
            self.failing.failed(topic, outcome, elapsed)
        series = self._series.get(key)
        if series is None:
            series = self._instruments.series(self.common, *key)
            if len(self._series) < MOST_REMEMBERED:
                self._series[key] = series
        with self._lock:  # a SyncBroker refuses in the caller's thread
            series.count += 1
        return series

    def took(self, series: Series, seconds: float, span: Span | None) -> None:
        """Measures a call. The span, if it records, becomes the measurement's exemplar."""
        context = _NO_SPAN if span is None else trace.set_span_in_context(span, Context())
        self._instruments.duration.record(seconds, series.attributes, context)
