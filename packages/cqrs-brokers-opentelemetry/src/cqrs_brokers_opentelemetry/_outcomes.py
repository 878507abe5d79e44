"""How many messages had which outcome, and how long it took."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.trace import INVALID_SPAN, Span

from cqrs_brokers import DeliveryError, InvalidMessageError, Message, Receipt

from . import _names as names
from ._tracing import Attributes

__all__ = ["Outcomes", "Series"]

BOUNDARIES = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30)
"""Of the histogram of durations, in seconds: those of the conventions, and the usual `delivery_timeout`."""
MOST_TOPICS = 1_000
"""How many topics metrics tell apart: routing keys may hold ids, and every series stays for ever."""
_NO_SPAN = trace.set_span_in_context(INVALID_SPAN, Context())
"""Else the SDK takes the context that the driver's task began in, and with it some other message's span as exemplar."""


class Series:
    """The messages of a topic with the same outcome.

    Attributes:
        attributes: Of its metrics.
        error_type: The class of the error; "" for receipts.
        count: How many there were.
    """

    __slots__ = ("attributes", "count", "error_type")

    def __init__(self, attributes: Attributes, error_type: str) -> None:
        self.attributes = attributes
        self.error_type = error_type
        self.count = 0


class Outcomes:
    """The counter and the histogram of outcomes.

    Args:
        meter: Makes them.

    Attributes:
        common: The attributes that all have.
    """

    def __init__(self, meter: Meter) -> None:
        self.common: Attributes = {}
        self._series: dict[tuple[str, str], Series] = {}
        self._topics = {""}
        """The topics that metrics tell apart."""
        self._lock = Lock()
        self._duration = meter.create_histogram(
            names.DURATION,
            unit="s",
            description="Duration of messaging operation initiated by a producer or consumer client.",
            explicit_bucket_boundaries_advisory=BOUNDARIES,
        )
        meter.create_observable_counter(
            names.SENT_MESSAGES,
            [self._counted],
            unit="{message}",
            description="Number of messages producer attempted to send to the broker.",
        )

    def count(self, message: Message, outcome: Receipt | DeliveryError) -> Series:
        """Counts an outcome; reading the counter costs nothing for each message."""
        if isinstance(outcome, Receipt):
            key = message.topic, ""
        else:
            key = "" if isinstance(outcome, InvalidMessageError) else message.topic, type(outcome).__name__
        series = self._series.get(key)
        if series is None:
            series = self._new(*key)
        with self._lock:  # a SyncBroker refuses in the caller's thread
            series.count += 1
        return series

    def took(self, series: Series, seconds: float, span: Span | None) -> None:
        """Measures a call. The span, if it records, becomes the measurement's exemplar."""
        context = _NO_SPAN if span is None else trace.set_span_in_context(span, Context())
        self._duration.record(seconds, series.attributes, context)

    def told_apart(self, topic: str) -> str:
        """The topic, or what stands for those that are too many."""
        if topic not in self._topics:
            if len(self._topics) > MOST_TOPICS:
                return names.OTHER
            self._topics.add(topic)
        return topic

    def _new(self, topic: str, error_type: str) -> Series:
        with self._lock:
            topic = self.told_apart(topic)
            attributes = {**self.common, names.OPERATION_NAME: names.SEND}
            if topic:
                attributes[names.DESTINATION] = topic
            if error_type:
                attributes[names.ERROR_TYPE] = error_type
            return self._series.setdefault((topic, error_type), Series(attributes, error_type))

    def _counted(self, _: CallbackOptions) -> Iterable[Observation]:
        with self._lock:
            return [Observation(series.count, series.attributes) for series in self._series.values()]
