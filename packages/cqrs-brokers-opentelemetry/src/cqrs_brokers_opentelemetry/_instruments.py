"""The instruments of one meter provider: they read all brokers that are observed with it.

Brokers with the same attributes (system and server) are reported together: a count is the sum, an age is the largest. A
closed broker disappears from the gauges. Its outcomes stay counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from threading import Lock
from typing import NamedTuple
from weakref import ref

from opentelemetry.metrics import CallbackOptions, Meter, NoOpHistogram, Observation

from cqrs_brokers.observers import ObservedBroker

from . import _names as names
from ._failing import Failing
from ._providers import PerProvider, largest, total
from ._tracing import Attributes

__all__ = ["Instruments", "Series", "instruments"]

BOUNDARIES = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30)
"""The boundaries of the histogram of durations, in seconds: those of the conventions, and the default
`delivery_timeout`."""


class Series:
    """The messages of a topic with the same outcome.

    Attributes:
        attributes: The attributes of its metrics.
        error_type: The class of the error; "" for receipts.
        count: How many there were.
    """

    __slots__ = ("attributes", "count", "error_type")

    def __init__(self, attributes: Attributes, error_type: str) -> None:
        self.attributes = attributes
        self.error_type = error_type
        self.count = 0


class _Observed(NamedTuple):
    """A broker (a weak reference), and the attributes that its metrics have in common."""

    broker: ref[ObservedBroker]
    where: Attributes
    failing: Failing


class Instruments:
    """All instruments.

    Args:
        meter: Makes the instruments.

    Attributes:
        lock: Held while a series is counted.
        changes: Counts changes of connections.
        duration: Measures calls.
        measures: Whether `duration` records anything.
    """

    def __init__(self, meter: Meter) -> None:
        self.lock = Lock()
        self._observed: list[_Observed] = []
        self._series: dict[frozenset[tuple[str, str | int]], Series] = {}
        self._topics = {""}
        """The topics that have metrics of their own."""
        self.changes = meter.create_counter(
            names.CHANGES, unit="{change}", description="Changes of the connection, by what it changed to."
        )
        self.duration = meter.create_histogram(
            names.DURATION,
            unit="s",
            description="Duration of messaging operation initiated by a producer or consumer client.",
            explicit_bucket_boundaries_advisory=BOUNDARIES,
        )
        self.measures = not isinstance(self.duration, NoOpHistogram)
        meter.create_observable_counter(
            names.SENT_MESSAGES,
            [self._counted],
            unit="{message}",
            description="Number of messages producer attempted to send to the broker.",
        )
        meter.create_observable_up_down_counter(
            names.IN_FLIGHT,
            [lambda _: total((broker.in_flight, one.where) for broker, one in self._open())],
            unit="{message}",
            description="Messages that the client holds.",
        )
        meter.create_observable_up_down_counter(
            names.WAITING,
            [lambda _: total((broker.waiting, one.where) for broker, one in self._open())],
            unit="{message}",
            description="Messages that wait for a place in flight, or for the connection.",
        )
        meter.create_observable_gauge(
            names.OLDEST,
            [lambda _: largest(self._oldest())],
            unit="s",
            description="Age of the message that has been without an outcome for longest, by its destination.",
        )
        meter.create_observable_gauge(
            names.FAILING,
            [lambda _: largest(self._failing())],
            unit="s",
            description="Time since the first message that failed, if no message was confirmed since, by destination.",
        )
        meter.create_observable_gauge(
            names.STATE,
            [lambda _: total(self._states())],
            unit="{broker}",
            description="How many brokers have their connection in this state: of one broker, 1 or 0.",
        )

    def observe(self, broker: ObservedBroker, where: Attributes, failing: Failing) -> None:
        """Reads a broker from now on, until it is closed or garbage collected."""
        with self.lock:
            self._observed = [one for one in self._observed if one.broker() is not None]
            self._observed.append(_Observed(ref(broker), where, failing))

    def series(self, where: Attributes, topic: str, error_type: str) -> Series:
        """The series of an outcome. All brokers with these attributes share it. Topics beyond `MOST_TOPICS` have one
        series together."""
        with self.lock:
            topic = self._told_apart(topic)
            attributes = {**where, names.OPERATION_NAME: names.SEND}
            if topic:
                attributes[names.DESTINATION] = topic
            if error_type:
                attributes[names.ERROR_TYPE] = error_type
            return self._series.setdefault(frozenset(attributes.items()), Series(attributes, error_type))

    def _told_apart(self, topic: str) -> str:
        """The topic, or `OTHER` for topics beyond the limit."""
        if topic not in self._topics:
            if len(self._topics) > names.MOST_TOPICS:
                return names.OTHER
            self._topics.add(topic)
        return topic

    # -- when metrics are collected -----------------------------------------------------------------------------------

    def _open(self) -> Iterator[tuple[ObservedBroker, _Observed]]:
        with self.lock:
            observed = list(self._observed)
        for one in observed:
            broker = one.broker()
            if broker is not None and broker.state != "closed":
                yield broker, one

    def _counted(self, _: CallbackOptions) -> Iterable[Observation]:
        with self.lock:
            return [Observation(series.count, series.attributes) for series in self._series.values()]

    def _oldest(self) -> Iterator[tuple[float, Attributes]]:
        for broker, one in self._open():
            oldest = broker.oldest
            if oldest is not None:
                yield oldest[1], self._at(one.where, oldest[0])

    def _failing(self) -> Iterator[tuple[float, Attributes]]:
        for _, one in self._open():
            for topic, seconds in one.failing.seconds():
                yield seconds, self._at(one.where, topic)

    def _states(self) -> Iterator[tuple[int, Attributes]]:
        for broker, one in self._open():
            now = broker.state
            for state in names.STATES:
                yield int(state == now), {**one.where, "state": state}

    def _at(self, where: Attributes, topic: str) -> Attributes:
        with self.lock:
            return {**where, names.DESTINATION: self._told_apart(topic)}


instruments = PerProvider("cqrs_brokers", Instruments)
"""The instruments of each provider."""
