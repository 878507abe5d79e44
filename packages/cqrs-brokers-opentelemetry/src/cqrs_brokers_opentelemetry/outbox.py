"""The metrics of an outbox. Needs `cqrs-brokers-outbox`.

    Relay(engine, broker, outbox, observers=[OutboxObserver()])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from weakref import WeakSet

from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

from cqrs_brokers import DeliveryError, Message, Receipt
from cqrs_brokers_outbox import RelayObserver
from cqrs_brokers_outbox.status import Lag

from . import _names as names
from ._providers import PerProvider, largest, total

__all__ = ["OutboxObserver"]


class _Told:
    """The last numbers that one relay has reported.

    Attributes:
        lag: The lag of the outbox.
        partitions: How many partitions the relay has.
    """

    def __init__(self) -> None:
        self.lag: Sequence[Lag] = ()
        self.partitions = 0


class _Instruments:
    """The instruments of one meter provider: for all relays that are observed with it.

    Args:
        meter: Makes the instruments.
    """

    def __init__(self, meter: Meter) -> None:
        self._relays: WeakSet[_Told] = WeakSet()
        self._topics: set[str] = set()
        """The topics that have metrics of their own."""
        self._lock = Lock()
        self.sent = meter.create_counter(
            names.OUTBOX_SENT, unit="{message}", description="Rows that were sent, by outcome."
        )
        self.parked = meter.create_counter(
            names.OUTBOX_PARKED, unit="{message}", description="Rows that were parked: they wait for a person."
        )
        self.refused = meter.create_counter(
            names.OUTBOX_REFUSED, unit="{attempt}", description="Attempts at topics that are refused as a whole."
        )
        self.fenced = meter.create_counter(
            names.OUTBOX_FENCED, unit="{message}", description="Marks refused because another relay has the partition."
        )
        self.troubles = meter.create_counter(
            names.OUTBOX_TROUBLE, unit="{event}", description="What kept the relay from working."
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
            [lambda _: total((told.partitions, {}) for told in self._all())],
            unit="{partition}",
            description="Partitions that the relays of this process have.",
        )

    def observe(self, told: _Told) -> None:
        """Reads the numbers of a relay until its observer is garbage collected."""
        with self._lock:
            self._relays.add(told)

    def at(self, topic: str) -> dict[str, str]:
        """The attributes of a topic. Topics beyond the limit have the same attributes."""
        with self._lock:
            if topic not in self._topics:
                if len(self._topics) >= names.MOST_TOPICS:
                    topic = names.OTHER
                else:
                    self._topics.add(topic)
        return {names.DESTINATION: topic}

    def _all(self) -> list[_Told]:
        with self._lock:
            return list(self._relays)

    def _oldest(self, _: CallbackOptions) -> list[Observation]:
        return largest((lag.oldest, self.at(lag.topic)) for told in self._all() for lag in told.lag)

    def _unsent(self, _: CallbackOptions) -> list[Observation]:
        return self._rows(lambda lag: lag.rows)

    def _parked_rows(self, _: CallbackOptions) -> list[Observation]:
        return self._rows(lambda lag: lag.parked)

    def _refused_rows(self, _: CallbackOptions) -> list[Observation]:
        return self._rows(lambda lag: lag.refused)

    def _rows(self, number: Callable[[Lag], int]) -> list[Observation]:
        """Relays of one outbox report the same rows, at different times. So the largest number of each partition
        counts."""
        rows: dict[tuple[str, int], int] = {}
        for told in self._all():
            for lag in told.lag:
                if number(lag):
                    rows[lag.topic, lag.partition] = max(number(lag), rows.get((lag.topic, lag.partition), 0))
        return total((count, self.at(topic)) for (topic, _), count in rows.items())


_instruments = PerProvider("cqrs_brokers_outbox", _Instruments)


class OutboxObserver(RelayObserver):
    """Keeps the metrics of one relay, and of the outbox that it reads.

    The relays that use one meter provider share its instruments. Only their topics distinguish the rows of two
    outboxes.

    The broker's `OpenTelemetryObserver` makes the spans. The writer's context is stored in the row.

    Args:
        meter_provider: The meter provider. Default: the global one.
    """

    def __init__(self, *, meter_provider: MeterProvider | None = None) -> None:
        self._instruments = _instruments.of(meter_provider)
        self._told = _Told()
        self._instruments.observe(self._told)

    def sent(self, position: int, message: Message, outcome: Receipt | DeliveryError) -> None:
        attributes = self._instruments.at(message.topic)
        if isinstance(outcome, DeliveryError):
            attributes[names.ERROR_TYPE] = type(outcome).__name__
        self._instruments.sent.add(1, attributes)

    def parked(self, position: int, topic: str, error_class: str, error_text: str) -> None:
        self._instruments.parked.add(1, {**self._instruments.at(topic), names.ERROR_TYPE: error_class})

    def refused(self, topic: str, error_class: str, error_text: str) -> None:
        self._instruments.refused.add(1, {**self._instruments.at(topic), names.ERROR_TYPE: error_class})

    def fenced(self, count: int) -> None:
        self._instruments.fenced.add(count)

    def lag(self, lag: Sequence[Lag]) -> None:
        self._told.lag = lag

    def leases_changed(self, partitions: Sequence[int]) -> None:
        self._told.partitions = len(partitions)

    def ended(self) -> None:
        self._told.lag, self._told.partitions = (), 0

    def trouble(self, what: str, reason: str) -> None:
        self._instruments.troubles.add(1, {"what": what})
