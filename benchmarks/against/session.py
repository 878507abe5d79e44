"""The rounds: REF, REF again and the working tree do the same job one after the other, in an order that is shuffled.

Every round has processes of its own, because the CPU time per message of one and the same code differs from process to
process for as long as they run. The second REF is the A/A run: it shows how far two equal versions seem apart here.
"""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.rounds import Process

from .environments import Version
from .rows import LATENCY, MANY_TOPICS, Row
from .servers import PREFIX, Server
from .verdict import Compared

__all__ = ["SIDES", "Result", "measure"]

REF, AGAIN, TREE = SIDES = ("ref", "again", "tree")


@dataclass
class Result:
    """What was measured against one broker.

    Attributes:
        broker: Its name on the command line.
        server: Title of the server.
        rows: In the order of the table.
        rounds: For each row and side one entry per round.
        counts: Messages of a job, per row.
        verified: How many messages were counted on the server.
        load: Load averages of one minute before and after.
        failed: Rows that were given up because a version's process ended, and which one did.
    """

    broker: str
    server: str
    rows: list[Row]
    rounds: dict[tuple[str, str], list[dict[str, float]]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    verified: int = 0
    load: tuple[float, float] = (0.0, 0.0)
    failed: dict[str, str] = field(default_factory=dict)

    def values(self, row: Row, side: str, what: str) -> list[float]:
        """One figure per round: `rate`, `cpu` (microseconds per message), `p50` or `p99` (seconds)."""
        return [entry[what] for entry in self.rounds[row.title, side]]

    def median(self, row: Row, side: str, what: str) -> float:
        """The median over the rounds."""
        return statistics.median(self.values(row, side, what))

    def compared(self, row: Row, what: str) -> Compared:
        """The paired ratios; for everything but the rate a small figure is good, so these are turned round."""

        def ratios(side: str) -> list[float]:
            pairs = zip(self.values(row, side, what), self.values(row, REF, what), strict=True)
            if what == "rate":
                return [mine / theirs for mine, theirs in pairs]
            return [theirs / max(mine, 1e-9) for mine, theirs in pairs]

        return Compared(ratios(TREE), ratios(AGAIN))

    def measures(self, row: Row) -> list[str]:
        """What has a verdict in this row."""
        return ["p50", "cpu"] if row.name == LATENCY else ["rate", "cpu"]

    def worse(self) -> list[str]:
        """The rows and measures in which the working tree is slower or needs more CPU."""
        names = {"rate": "throughput", "cpu": "CPU", "p50": "p50"}
        return [
            f"{self.broker}: {row.title}: {names[what]}"
            for row in self.rows
            for what in self.measures(row)
            if self.compared(row, what).verdict == "worse"
        ]


def measure(
    broker: str,
    server: Server,
    rows: list[Row],
    versions: tuple[Version, Version],
    *,
    pairs: int,
    seconds: float,
    seed: int,
    progress: Callable[[str], None],
) -> Result:
    """Runs all rounds against one server.

    Args:
        broker: Its name.
        server: It, started.
        rows: What to measure.
        versions: REF and the working tree.
        pairs: How many rounds.
        seconds: How long a job takes REF, about.
        seed: Of the order within rounds.
        progress: Called with each line of progress.

    Raises:
        WrongCount: The server does not have what has receipts.
    """
    shuffle = random.Random(seed).shuffle
    result = Result(broker, server.title, list(rows))
    sides = {REF: versions[0], AGAIN: versions[0], TREE: versions[1]}
    for side in SIDES:
        server.prepare(f"bench.{side}")
    processes: dict[str, Process] = {}

    def run(side: str, row: Row, count: int) -> dict[str, float]:
        order = {"row": row.name, "plain": row.plain, "count": count, "wave": row.wave}
        answer = processes[side].ask(order | {"topics": PREFIX if row.name == MANY_TOPICS else ""})
        server.check(f"bench.{side}", row, count)
        result.verified += count
        return answer

    def start() -> None:
        _end(processes)
        for side in SIDES:
            command = [str(sides[side].python), "-P", str(sides[side].workload), server.url, f"bench.{side}"]
            processes[side] = Process(f"{broker}: {sides[side].title}", command)
            processes[side].answer()

    def play(row: Row) -> None:
        if row.title not in result.counts:
            # The best of four: the first is not warm, and a moment in which the machine does something else would make
            # every job of this row too short.
            rate = max(row.first / run(REF, row, row.first)["seconds"] for _ in range(4))
            result.counts[row.title] = row.count(rate, seconds)
        for side in SIDES:  # does not count
            run(side, row, max(row.wave, result.counts[row.title] // 10))
        order = list(SIDES)
        shuffle(order)
        for side in order:
            answer = run(side, row, result.counts[row.title])
            result.rounds.setdefault((row.title, side), []).append(_entry(answer, result.counts[row.title]))

    before = os.getloadavg()[0]
    try:
        for number in range(1, pairs + 1):
            start()
            for row in list(result.rows):
                try:
                    play(row)
                except RuntimeError as error:
                    result.failed[row.title] = str(error)
                    result.rows.remove(row)
                    start()
            progress(f"{broker}: round {number} of {pairs}; {_so_far(result)}")
    finally:
        _end(processes)
    result.load = (before, os.getloadavg()[0])
    return result


def _entry(answer: dict[str, Any], count: int) -> dict[str, float]:
    return {**answer, "rate": count / answer["seconds"], "cpu": answer["cpu"] / count * 1e6}


def _so_far(result: Result) -> str:
    parts = []
    for row in result.rows:
        what = result.measures(row)[0]
        compared = result.compared(row, what)
        parts.append(f"{row.title} {compared.median:.2f} (A/A {statistics.median(compared.control):.2f})")
    return ", ".join(parts)


def _end(processes: dict[str, Process]) -> None:
    while processes:
        processes.popitem()[1].end()
