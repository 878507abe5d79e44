"""What is measured: brokers, rows, and how many messages a job has at first."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BROKERS", "LATENCY", "MANY_TOPICS", "Row", "rows_of"]

SEQUENTIAL, GATHER_100, GATHER_1000 = "one by one", "gather(100)", "gather(1000)"
WORKERS, HOT_KEY, BULK = "1000 workers", "one hot key", "bulk 10 000"
LATENCY, MANY_TOPICS = "1000 per second", "gather to 1000 topics"

_WAVES = {SEQUENTIAL: 1, GATHER_100: 100, BULK: 10_000}
_FIRST = {SEQUENTIAL: 500, LATENCY: 1000, BULK: 10_000}

BROKERS = ("instant", "devnull", "kafka", "amqp")


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: How the publisher is called.
        plain: Without key and headers.
    """

    name: str
    plain: bool = False

    @property
    def title(self) -> str:
        """Its name in the report and on the command line."""
        return f"{self.name}, plain" if self.plain else self.name

    @property
    def wave(self) -> int:
        """How many messages are sent at a time; a job has a multiple of it."""
        return _WAVES.get(self.name, 1000)

    @property
    def first(self) -> int:
        """Messages of the job that finds out how many fit into the time."""
        return _FIRST.get(self.name, 4000)

    def count(self, rate: float, seconds: float) -> int:
        """How many messages a job of that many seconds has, at `rate` messages per second."""
        if self.name == LATENCY:
            return max(1000, int(1000 * seconds))
        waves = max(1, round(rate * seconds / self.wave))
        return max(waves * self.wave, 200)


def rows_of(broker: str, wanted: list[str]) -> list[Row]:
    """The rows of a broker in the order of the table.

    Args:
        broker: One of `BROKERS`.
        wanted: Titles; empty: all of them.

    Raises:
        ValueError: A title is none of the table's.
    """
    names = [SEQUENTIAL, GATHER_100, GATHER_1000, WORKERS, HOT_KEY, BULK]
    if broker in ("kafka", "amqp"):
        names += [LATENCY]
    names += [MANY_TOPICS]
    rows = [Row(name) for name in names]
    if broker == "amqp":  # keys are what its driver has to keep in order
        rows += [Row(name, plain=True) for name in (SEQUENTIAL, GATHER_100, GATHER_1000, WORKERS, BULK)]
    known = {row.title for row in [*rows, *(Row(name) for name in (LATENCY,))]}
    known |= {Row(name, plain=True).title for name in names}
    if unknown := sorted(set(wanted) - known):
        raise ValueError(f"no such row: {', '.join(unknown)}. The rows are: {', '.join(row.title for row in rows)}")
    return [row for row in rows if not wanted or row.title in wanted]
