"""The metrics of an outbox. Needs `cqrs-brokers-outbox`.

    Relay(engine, broker, outbox, observers=[OutboxObserver()])
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from cqrs_brokers import DeliveryError, Message, Receipt
from cqrs_brokers_outbox import RelayObserver
from cqrs_brokers_outbox.status import Lag

from . import _names as names

__all__ = ["OutboxObserver"]


class OutboxObserver(RelayObserver):
    """Keeps the metrics of one relay, and of the outbox that it reads.

    The spans are those of the broker's `OpenTelemetryObserver`: the writer's context travels in the row.

    Args:
        meter_provider: Default: the global one.
    """

    def __init__(self, *, meter_provider: MeterProvider | None = None) -> None:
        meter = metrics.get_meter("cqrs_brokers_outbox", meter_provider=meter_provider, schema_url=names.SCHEMA_URL)
        self._lag: Sequence[Lag] = ()
        self._partitions = 0
        self._sent = meter.create_counter(
            names.OUTBOX_SENT, unit="{message}", description="Rows that the broker answered for, or did not in time."
        )
        self._parked = meter.create_counter(
            names.OUTBOX_PARKED, unit="{message}", description="Rows that were parked: they wait for a person."
        )
        self._refused = meter.create_counter(
            names.OUTBOX_REFUSED, unit="{attempt}", description="Attempts at topics that are refused as a whole."
        )
        self._fenced = meter.create_counter(
            names.OUTBOX_FENCED, unit="{message}", description="Marks refused because another relay has the partition."
        )
        self._troubles = meter.create_counter(
            names.OUTBOX_TROUBLE,
            unit="{event}",
            description="What kept the relay from working.",
        )
        meter.create_observable_gauge(
            names.OUTBOX_LAG, [self._oldest], unit="s", description="Age of the oldest row that is not sent, by topic."
        )
        meter.create_observable_gauge(
            names.OUTBOX_UNSENT, [self._unsent], unit="{message}", description="Rows that are not sent, by topic."
        )
        meter.create_observable_gauge(
            names.OUTBOX_PARKED_ROWS,
            [self._parked_rows],
            unit="{message}",
            description="Rows that are parked, by topic.",
        )
        meter.create_observable_gauge(
            names.OUTBOX_REFUSED_ROWS,
            [self._refused_rows],
            unit="{message}",
            description="Rows that stand for a topic that is refused as a whole, by topic.",
        )
        meter.create_observable_gauge(
            names.OUTBOX_PARTITIONS,
            [lambda _: [Observation(self._partitions)]],
            unit="{partition}",
            description="Partitions that this relay has.",
        )

    def sent(self, position: int, message: Message, outcome: Receipt | DeliveryError) -> None:
        attributes = {names.DESTINATION: message.topic}
        if isinstance(outcome, DeliveryError):
            attributes[names.ERROR_TYPE] = type(outcome).__name__
        self._sent.add(1, attributes)

    def parked(self, position: int, topic: str, error_class: str, error_text: str) -> None:
        self._parked.add(1, {names.DESTINATION: topic, names.ERROR_TYPE: error_class})

    def refused(self, topic: str, error_class: str, error_text: str) -> None:
        self._refused.add(1, {names.DESTINATION: topic, names.ERROR_TYPE: error_class})

    def fenced(self, count: int) -> None:
        self._fenced.add(count)

    def lag(self, lag: Sequence[Lag]) -> None:
        self._lag = lag

    def leases_changed(self, partitions: Sequence[int]) -> None:
        self._partitions = len(partitions)

    def trouble(self, what: str, reason: str) -> None:
        self._troubles.add(1, {"what": what})

    def _oldest(self, _: CallbackOptions) -> Iterable[Observation]:
        oldest: dict[str, float] = {}
        for lag in self._lag:
            oldest[lag.topic] = max(lag.oldest, oldest.get(lag.topic, 0.0))
        return [Observation(age, {names.DESTINATION: topic}) for topic, age in oldest.items()]

    def _unsent(self, _: CallbackOptions) -> Iterable[Observation]:
        return _by_topic((lag.topic, lag.rows) for lag in self._lag)

    def _parked_rows(self, _: CallbackOptions) -> Iterable[Observation]:
        return _by_topic((lag.topic, lag.parked) for lag in self._lag if lag.parked)

    def _refused_rows(self, _: CallbackOptions) -> Iterable[Observation]:
        return _by_topic((lag.topic, lag.refused) for lag in self._lag if lag.refused)


def _by_topic(counts: Iterable[tuple[str, int]]) -> list[Observation]:
    rows: dict[str, int] = {}
    for topic, count in counts:
        rows[topic] = rows.get(topic, 0) + count
    return [Observation(count, {names.DESTINATION: topic}) for topic, count in rows.items()]
