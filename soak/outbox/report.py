"""The table of a soak, which may have been run in parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from .judge import Verdict
from .scenario import Soak

__all__ = ["Part", "table"]


@dataclass(frozen=True)
class Part:
    """What one part found, as it stands in the file of a soak.

    Attributes:
        broker: "amqp" or "kafka".
        number: Which part, from 1.
        parts: Of how many.
        rows: So many rows were asked for.
        seed: What decided its faults.
        servers: Their versions.
        committed, copies, lost, rolled_back, inversions, repeats, unexplained, stale: See `Verdict`.
        faults: Kind → how often.
        seconds: How long it took.
        examples: Some of what is wrong.
    """

    broker: str
    number: int
    parts: int
    rows: int
    seed: int
    servers: str
    committed: int
    copies: int
    lost: int
    rolled_back: int
    inversions: int
    repeats: int
    unexplained: int
    stale: int
    faults: dict[str, int]
    seconds: float
    examples: list[str]

    @classmethod
    def of(
        cls, soak: Soak, verdict: Verdict, *, broker: str, number: int, parts: int, seed: int, seconds: float
    ) -> Self:
        """What a run found."""
        wrong = (verdict.lost, verdict.rolled_back, verdict.inversions, verdict.unexplained)
        return cls(
            broker=broker,
            number=number,
            parts=parts,
            rows=soak.rows,
            seed=seed,
            servers=soak.servers,
            committed=verdict.rows,
            copies=verdict.copies,
            lost=len(verdict.lost),
            rolled_back=len(verdict.rolled_back),
            inversions=len(verdict.inversions),
            repeats=verdict.repeats,
            unexplained=len(verdict.unexplained),
            stale=verdict.stale,
            faults=dict(soak.done),
            seconds=round(seconds),
            examples=[text for each in wrong for text in each[:10]],
        )

    @property
    def violations(self) -> int:
        """What must be nothing."""
        return self.lost + self.rolled_back + self.inversions + self.unexplained

    def as_json(self) -> dict[str, Any]:
        """Its line in the file."""
        return asdict(self)


def table(parts: Sequence[Part]) -> str:
    """The sum of the parts."""
    faults: Counter[str] = Counter()
    for part in parts:
        faults.update(part.faults)
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(faults.items()))
    whole = f"{len(parts)} of {parts[0].parts}, each with empty tables and servers of its own"

    def total(name: str) -> int:
        return int(sum(getattr(part, name) for part in parts))

    lines = [
        f"| {parts[0].servers} | |",
        "|---|---|",
        *([f"| parts | {whole} |"] if parts[0].parts > 1 else []),
        f"| seed | {', '.join(str(part.seed) for part in parts)} |",
        f"| committed rows | {total('committed')} |",
        f"| faults | {sum(faults.values())}: {kinds} |",
        f"| messages in the broker | {total('copies')} |",
        f"| lost | {total('lost')} |",
        f"| of rolled-back transactions | {total('rolled_back')} |",
        f"| inversions | {total('inversions')} |",
        f"| repeats | {total('repeats')} |",
        f"| of these not explained by their row | {total('unexplained')} |",
        f"| of these behind a newer version (stale) | {total('stale')} |",
        f"| seconds | {total('seconds')} |",
    ]
    return "\n".join(lines)
