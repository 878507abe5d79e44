"""Which fault, when relative to progress, for how long: a function of the seed and nothing else."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Fault", "Kind", "Plan", "plan"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of fault.

    Attributes:
        name: What is done.
        shortest, longest: For how long, in seconds; in a short run at most 3 s more than the shortest.
        goal: Seconds within which receipts come again once the broker takes messages.
    """

    name: str
    shortest: float = 0.0
    longest: float = 0.0
    goal: float = 2.0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault of a schedule.

    Attributes:
        number: From 1.
        kind: What is done.
        at: After how many receipts.
        seconds: For how long.
        node: To which node, from 0.
    """

    number: int
    kind: Kind
    at: int
    seconds: float
    node: int

    def __str__(self) -> str:
        what = f"{self.number:2} {self.kind.name:10} node {self.node + 1}"
        return f"{what} at {self.at:6} receipts for {self.seconds:4.1f} s"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole run.

    Attributes:
        seed: What it was made from.
        receipts: How many there must be in the end.
        rate: Messages per second that all publishers together try to send.
        limit: Seconds after which the run is given up.
        faults: In the order in which they happen, one after the other.
    """

    seed: int
    receipts: int
    rate: float
    limit: float
    faults: Sequence[Fault]


def plan(
    kinds: Sequence[Kind], *, seed: int, nodes: int, receipts: int, faults: int, rate: float, limit: float, short: bool
) -> Plan:
    """Makes a schedule: every kind comes once before any comes again; they are spread evenly over the receipts."""
    dice = random.Random(seed)
    deck: list[Kind] = []
    while len(deck) < faults:
        deck += dice.sample(kinds, len(kinds))
    made = []
    for index, kind in enumerate(deck[:faults]):
        longest = min(kind.longest, kind.shortest + 3.0) if short else kind.longest
        made.append(
            Fault(
                number=index + 1,
                kind=kind,
                at=int(receipts * (index + dice.uniform(0.1, 0.6)) / faults),
                seconds=round(dice.uniform(kind.shortest, longest), 1),
                node=dice.randrange(nodes),
            )
        )
    return Plan(seed=seed, receipts=receipts, rate=rate, limit=limit, faults=made)
