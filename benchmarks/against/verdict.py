"""When a row is slower: by its median and by what the same version shows against itself."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

__all__ = ["BOUND", "Compared", "quantile"]

BOUND = 0.97
"""A median ratio at or above it is never called slower."""


def quantile(values: list[float], share: float) -> float:
    """The value below which that share of the values lies, interpolated.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True)
class Compared:
    """The paired ratios of one row and one measure; above 1 is better.

    Attributes:
        ratios: Working tree to REF, one per round.
        control: REF to REF, one per round: the A/A run.
    """

    ratios: list[float]
    control: list[float]

    @property
    def median(self) -> float:
        """The median ratio."""
        return statistics.median(self.ratios)

    @property
    def floor(self) -> float:
        """The 5th percentile of the A/A ratios."""
        return quantile(self.control, 0.05)

    @property
    def ceiling(self) -> float:
        """The 95th percentile of the A/A ratios."""
        return quantile(self.control, 0.95)

    @property
    def verdict(self) -> str:
        """`worse`, `better` or `same`. Both conditions must hold, so that noise alone gives no verdict."""
        if self.median < BOUND and self.median < self.floor:
            return "worse"
        if self.median > 1 / BOUND and self.median > self.ceiling:
            return "better"
        return "same"
