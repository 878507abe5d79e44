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
MOST_REMEMBERED = 1_000
"""How many series of receipts, and how many of errors, are remembered here. Further ones are looked up in `Instruments`
each time."""


class Outcomes:
    """Counts and measures outcomes.

    Args:
        instruments: The instruments of the meter provider.

    Attributes:
        common: The attributes that all outcomes have.
        failing: The destinations where a message failed and no receipt came since.
        measures: Whether `took` does anything.
    """

    def __init__(self, instruments: Instruments) -> None:
        self.common: Attributes = {}
        self.failing = Failing()
        self.measures = instruments.measures
        self._instruments = instruments
        self._lock = instruments.lock
        self._receipts: dict[str, Series] = {}
        """The series of receipts, by topic."""
        self._failures: dict[tuple[str, str], Series] = {}
        """Those of errors, by topic and class."""

    def count(self, message: Message, outcome: Receipt | DeliveryError, elapsed: float) -> Series:
        """Counts an outcome, in a number of our own. OpenTelemetry reads it only when metrics are collected, so that a
        message costs little."""
        topic = message.topic
        if isinstance(outcome, Receipt):
            series = self._receipts.get(topic) or self._found(topic, "")
            if self.failing.topics:
                self.failing.confirmed(topic)
        else:
            key = "" if isinstance(outcome, InvalidMessageError) else topic, type(outcome).__name__
            series = self._failures.get(key) or self._found(*key)
            self.failing.failed(topic, outcome, elapsed)
        with self._lock:  # a SyncBroker refuses in the caller's thread
            series.count += 1
        return series

    def _found(self, topic: str, error_type: str) -> Series:
        """Asks for a series, and remembers it."""
        series = self._instruments.series(self.common, topic, error_type)
        if error_type and len(self._failures) < MOST_REMEMBERED:
            self._failures[topic, error_type] = series
        elif not error_type and len(self._receipts) < MOST_REMEMBERED:
            self._receipts[topic] = series
        return series

    def took(self, series: Series, seconds: float, span: Span | None) -> None:
        """Measures a call. The span, if it records, becomes the measurement's exemplar."""
        if not self.measures:
            return
        context = _NO_SPAN if span is None else trace.set_span_in_context(span, Context())
        self._instruments.duration.record(seconds, series.attributes, context)
