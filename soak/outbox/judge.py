"""What a soak of the outbox found: the table against the broker."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

__all__ = ["Verdict", "judge"]


@dataclass
class Verdict:
    """What was found.

    Attributes:
        rows: Committed rows.
        copies: Messages in the broker.
        lost: Committed and not there.
        rolled_back: Rolled back and there.
        inversions: Falling versions among first occurrences.
        repeats: Copies beyond the first.
        unexplained: Repeats that the row does not count.
        stale: Repeats that came behind a newer version of their key.
    """

    rows: int = 0
    copies: int = 0
    lost: list[str] = field(default_factory=list)
    rolled_back: list[str] = field(default_factory=list)
    inversions: list[str] = field(default_factory=list)
    repeats: int = 0
    unexplained: list[str] = field(default_factory=list)
    stale: int = 0

    @property
    def violations(self) -> int:
        return len(self.lost) + len(self.rolled_back) + len(self.inversions) + len(self.unexplained)


def judge(committed: dict[str, tuple[str, str, int, int]], arrived: list[tuple[str, str]]) -> Verdict:
    """Compares the table with the broker.

    Args:
        committed: Message id → (topic, key, version, attempts_unknown), of every committed row.
        arrived: (place, message id) in the broker's order within each place: a partition, or a queue.
    """
    verdict = Verdict(rows=len(committed), copies=len(arrived))
    copies = Counter(identity for _, identity in arrived)
    verdict.lost = [identity for identity in committed if identity not in copies]
    verdict.rolled_back = [identity for identity in copies if identity not in committed]
    highest: dict[tuple[str, str], int] = defaultdict(int)
    seen: set[str] = set()
    for _, identity in arrived:
        if identity not in committed:
            continue
        topic, key, version, _ = committed[identity]
        before = highest[topic, key]
        if identity in seen:
            verdict.repeats += 1
            verdict.stale += version < before
            continue
        seen.add(identity)
        if version < before:
            verdict.inversions.append(f"{topic}/{key}: {version} after {before}")
        highest[topic, key] = max(before, version)
    for identity, count in copies.items():
        if identity in committed and count - 1 > committed[identity][3]:
            verdict.unexplained.append(f"{identity}: {count} copies, counts {committed[identity][3]}")
    return verdict
