"""What was promised, to be set beside what is measured."""

from __future__ import annotations

from dataclasses import dataclass

from .rounds import BASELINE, OURS, Figures
from .workloads import BULK, GATHER_100, GATHER_1000, HOT_KEY, LATENCY, SEQUENTIAL, WORKERS

__all__ = ["AMQP", "KAFKA", "Goal"]

RATIO, CPU, FASTEST, P50 = "throughput", "CPU", "fastest", "p50"


@dataclass(frozen=True)
class Goal:
    """One promise.

    Attributes:
        row: Of the benchmark.
        rich: With key and headers.
        what: `RATIO` or `CPU` to the baseline, `FASTEST` (throughput to that of the fastest client), `P50`.
        bound: At least so much; for `P50`: at most.
    """

    row: str
    rich: bool
    what: str
    bound: float

    @property
    def text(self) -> str:
        """What is compared."""
        return {
            RATIO: "throughput ÷ baseline's",
            CPU: "baseline's CPU per message ÷ ours",
            FASTEST: "throughput ÷ that of the fastest client",
            P50: "p50 ÷ baseline's",
        }[self.what]

    def measured(self, figures: Figures) -> float:
        """The figure to compare with the bound."""
        if self.what == FASTEST:
            # ours in uvloop is not another client
            names = {n for row, rich, n in figures.rounds if (row, rich) == (self.row, self.rich) and n[:4] != OURS}
            fastest = max(names, key=lambda name: figures.median(self.row, self.rich, name, "rate"))
            return figures.ratio(self.row, self.rich, OURS, "rate", to=fastest)
        what = {RATIO: "rate", CPU: "cpu", P50: "p50"}[self.what]
        return figures.ratio(self.row, self.rich, OURS, what, to=BASELINE)

    def met(self, figures: Figures) -> bool:
        """Whether it is kept."""
        measured = self.measured(figures)
        return measured <= self.bound if self.what == P50 else measured >= self.bound


_AMQP_RATIOS = {SEQUENTIAL: 1.0, GATHER_100: 1.6, GATHER_1000: 2.0, WORKERS: 2.2, BULK: 2.5}
AMQP = (
    *(Goal(row, rich, RATIO, bound) for rich in (False, True) for row, bound in _AMQP_RATIOS.items()),
    *(Goal(row, rich, FASTEST, 0.8) for rich in (False, True) for row in (GATHER_1000, WORKERS, BULK)),
    Goal(GATHER_100, False, CPU, 4),
    Goal(GATHER_1000, False, CPU, 6),
    Goal(WORKERS, False, CPU, 8),
    Goal(BULK, False, CPU, 13),
)
KAFKA = (
    Goal(SEQUENTIAL, True, RATIO, 1.5),
    Goal(GATHER_100, True, RATIO, 1.5),
    Goal(GATHER_1000, True, RATIO, 3.7),
    Goal(WORKERS, True, RATIO, 9),
    Goal(HOT_KEY, True, RATIO, 15),
    Goal(BULK, True, RATIO, 2.2),
    Goal(GATHER_1000, True, CPU, 3),
    Goal(WORKERS, True, CPU, 7),
    Goal(BULK, True, CPU, 1.9),
    Goal(LATENCY, True, P50, 0.9),
)
