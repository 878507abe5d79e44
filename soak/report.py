"""The report: counts, recovery, goals, as Markdown; and whether the goals are met."""

import functools
import itertools
import os
import platform
import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version

from .ledger import CANCELLED, NOT_DELIVERED, RECEIPT, UNKNOWN, Ledger, Stream
from .schedule import Fault, Plan
from .verdict import Verdict

__all__ = ["Demand", "Outage", "Report", "Silence", "recovery"]

SHOWN = 20
"""How many lines of each kind of violation are printed."""


@dataclass(frozen=True, kw_only=True)
class Outage:
    """What a fault did, seen from outside.

    Attributes:
        fault: The fault.
        began: When it was done, in seconds (monotonic).
        ended: When the servers were whole again.
        away: When the broker took no messages, by partition; None: all of them.
    """

    fault: Fault
    began: float
    ended: float
    away: Mapping[int | None, Sequence[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class Silence:
    """A time without receipts although a send waited for one and the broker took messages."""

    stream: Stream
    start: float
    end: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.start


class Demand:
    """For each stream: when receipts came, and since when something waited for one.

    Calls that were cancelled do not count: none waited for longer than half a second, and on a stream with few messages
    the next call may be seconds away.
    """

    def __init__(self, ledger: Ledger) -> None:
        partitions = {
            (entry.broker, entry.topic, entry.key): entry.partition
            for entry in ledger.entries.values()
            if entry.outcome == RECEIPT and entry.topic not in ledger.apart
        }
        ended: dict[Stream, list[tuple[float, float]]] = {}
        for entry in ledger.entries.values():
            place = (entry.broker, entry.topic, entry.key)
            if place in partitions and entry.outcome != CANCELLED:
                end = entry.ended or float("inf")
                ended.setdefault((entry.broker, partitions[place]), []).append((end, entry.began))
        self.receipts = ledger.receipt_times
        self._ends: dict[Stream, list[float]] = {}
        self._waiting_since: dict[Stream, list[float]] = {}
        for stream, pairs in ended.items():
            pairs.sort()
            self._ends[stream] = [end for end, _ in pairs]
            earliest = list(itertools.accumulate((began for _, began in reversed(pairs)), min))
            self._waiting_since[stream] = earliest[::-1]

    def since(self, stream: Stream, moment: float) -> float:
        """When the earliest of those calls began that had no outcome yet at a moment, or that came later."""
        index = bisect_right(self._ends[stream], moment)
        waiting = self._waiting_since[stream]
        return waiting[index] if index < len(waiting) else float("inf")


def recovery(outage: Outage, demand: Demand) -> Silence:
    """The longest silence of any stream that touches the outage.

    A silence counts from the last receipt, or from the first send that waits if that is later, or from the moment at
    which the broker took messages again, if that is later still.
    """
    longest = Silence(("", None), outage.began, outage.began)
    for stream, receipts in demand.receipts.items():
        partition = stream[1]
        away = [*outage.away.get(None, ()), *(outage.away.get(partition, ()) if partition is not None else ())]
        index = max(0, bisect_right(receipts, outage.began) - 1)
        while index < len(receipts) and receipts[index] <= outage.ended:
            last = receipts[index]
            index += 1
            following = receipts[index] if index < len(receipts) else float("inf")
            back = max((end for start, end in away if start < following and end > last), default=last)
            start = max(last, back, demand.since(stream, last))
            if following - start > longest.seconds:
                longest = Silence(stream, start, following)
    return longest


@dataclass(kw_only=True)
class Report:
    """The result of one run.

    Attributes:
        broker: What was soaked, with its version.
        plan: The schedule.
        ledger: What was promised.
        verdict: What is wrong.
        outages: What the faults did.
        seconds: How long publishing took.
        lag: The longest that the publishers' event loop was held up, in seconds.
        percentile: At which percentile recovery is held against its goal.
        troubles: Why the run itself failed, if it did.
    """

    broker: str
    plan: Plan
    ledger: Ledger
    verdict: Verdict
    outages: Sequence[Outage]
    seconds: float
    lag: float
    percentile: float
    troubles: list[str] = field(default_factory=list)

    def zero_goals(self) -> dict[str, list[str]]:
        """What must not happen, and each time it did."""
        verdict = self.verdict
        return {
            "lost": verdict.lost,
            "duplicated": verdict.duplicated,
            'wrongly "not delivered"': verdict.wrong,
            "out of order per topic and key, among receipts": verdict.out_of_order,
            "altered, or never sent": verdict.altered,
            "receipt's partition or offset is not the log's": verdict.misplaced,
            "late (1 s after its deadline) or no BrokerError": self.ledger.problems,
            "run failed": self.troubles,
        }

    @functools.cached_property
    def silences(self) -> list[tuple[Outage, Silence]]:
        """The longest silence after each fault."""
        demand = Demand(self.ledger)
        return [(outage, recovery(outage, demand)) for outage in self.outages]

    def recoveries(self) -> dict[float, list[tuple[Fault, float]]]:
        """Seconds of recovery of each fault, by goal."""
        found: dict[float, list[tuple[Fault, float]]] = {}
        for outage, silence in self.silences:
            found.setdefault(outage.fault.kind.goal, []).append((outage.fault, silence.seconds))
        return dict(sorted(found.items()))

    def missed(self) -> list[str]:
        """The goals that were missed; empty: passed."""
        missed = [f"{len(found)} {name}" for name, found in self.zero_goals().items() if found]
        if self.ledger.receipts < self.plan.receipts:
            missed.append(f"{self.ledger.receipts} of {self.plan.receipts} receipts")
        if len(self.outages) < len(self.plan.faults):
            missed.append(f"{len(self.outages)} of {len(self.plan.faults)} faults")
        for goal, found in self.recoveries().items():
            seconds = quantile([seconds for _, seconds in found], self.percentile)
            if seconds > goal:
                missed.append(f"recovery p{self.percentile * 100:.0f} {seconds:.2f} s, goal {goal:g} s")
        return missed

    def markdown(self) -> str:
        """All of it, as Markdown."""
        ledger, counts, in_log = self.ledger, self.ledger.counts, self.verdict.in_log
        load = os.getloadavg()[0]
        ours = [f"{name} {version(name)}" for name in ("aio-pika", "aiokafka", "pika", "confluent-kafka")]
        lines = [
            f"{self.broker}, Python {platform.python_version()}, {', '.join(ours)}; {os.cpu_count()} cores, load "
            f"{load:.1f} at the end; {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; seed {self.plan.seed}, "
            f"{len(self.outages)} faults, {self.seconds:.0f} s; event loop held up at most {self.lag:.2f} s.",
            "",
            "| outcome | messages | of these in a log |",
            "|---|---|---|",
            f"| attempted | {len(ledger.entries)} | |",
        ]
        lines += [
            f"| {name} | {counts[name]} | {in_log[name]} |" for name in (RECEIPT, NOT_DELIVERED, UNKNOWN, CANCELLED)
        ]
        for topic in sorted(ledger.apart):
            apart = Counter(entry.outcome for entry in ledger.entries.values() if entry.topic == topic)
            lines += ["", f"To `{topic}`: " + ", ".join(f"{apart[n]} {n}" for n in sorted(apart)) + "."]
        lines += ["", "| violation | found | goal |", "|---|---|---|"]
        lines += [f"| {name} | {len(found)} | 0 |" for name, found in self.zero_goals().items()]
        lines += ["", "| recovery | faults | p50 | p95 | max | goal |", "|---|---|---|---|---|---|"]
        for goal, found in self.recoveries().items():
            lines.append(_recovery_row("all with this goal", found, f"p{self.percentile * 100:.0f} <= {goal:g} s"))
            for name in sorted({fault.kind.name for fault, _ in found}):
                lines.append(_recovery_row(name, [pair for pair in found if pair[0].kind.name == name], ""))
        lines += ["", "Errors: " + (", ".join(f"{n} {c}" for n, c in ledger.errors.most_common()) or "none") + "."]
        for name, found_lines in self.zero_goals().items():
            if found_lines:
                lines += ["", f"{name}:", *(f"* {line}" for line in found_lines[:SHOWN])]
        missed = self.missed()
        lines += ["", f"MISSED: {'; '.join(missed)}" if missed else "All goals met."]
        return "\n".join(lines)

    def slowest(self, count: int = 10) -> list[str]:
        """The faults with the longest recovery: what, where, and when after the fault began."""
        lines = []
        for outage, silence in sorted(self.silences, key=lambda pair: -pair[1].seconds)[:count]:
            when = (
                f"from {silence.start - outage.began:.2f} s to {silence.end - outage.began:.2f} s after its beginning"
            )
            lines.append(f"{silence.seconds:6.2f} s  {outage.fault}: {silence.stream}, {when}")
        return lines


def quantile(values: Sequence[float], share: float) -> float:
    """The value that a share of the values does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def _recovery_row(name: str, found: Sequence[tuple[Fault, float]], goal: str) -> str:
    seconds = [seconds for _, seconds in found]
    p50, p95 = statistics.median(seconds), quantile(seconds, 0.95)
    return f"| {name} | {len(seconds)} | {p50:.2f} s | {p95:.2f} s | {max(seconds):.2f} s | {goal} |"
