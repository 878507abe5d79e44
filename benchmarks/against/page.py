"""The report: docs/benchmarks/against.md. Everything in it is computed from the rounds."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from datetime import UTC, datetime

from benchmarks.report import machine

from .rows import LATENCY, Row
from .session import REF, TREE, Result
from .verdict import BOUND, quantile

__all__ = ["Run", "page"]

FAIR = 15
"""Rounds that a verdict needs."""

_WORDS = {"worse": "**slower**", "better": "faster", "same": "same"}
_CPU_WORDS = {"worse": "**more CPU**", "better": "less CPU", "same": "same"}


@dataclass(frozen=True)
class Run:
    """One run of the command.

    Attributes:
        reference: What the command line called REF.
        commit: Its hash.
        tree: The working tree's commit, and whether files differ from it.
        differences: Packages that the environments do not share.
        pairs: How many rounds.
        seconds: Length of a job.
        note: Why this run was made, if somebody said so.
        results: One per broker.
    """

    reference: str
    commit: str
    tree: str
    differences: list[str]
    pairs: int
    seconds: float
    note: str
    results: list[Result]

    def worse(self) -> list[str]:
        """Every row and measure that has the verdict "slower" or "more CPU"."""
        return [line for result in self.results for line in result.worse()]


def page(run: Run) -> str:
    """The page in Markdown."""
    other = f"these differ: {', '.join(run.differences)}" if run.differences else "all but our own are equal"
    lines = [
        "# Speed against an earlier version",
        "",
        f"Written by `nox -s bench -- --against {run.reference}` on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
        "",
        f"* REF: commit `{run.commit[:10]}`. Working tree: {run.tree}. Each has an environment of its own; of the "
        f"packages there {other}.",
        f"* Machine: {machine()}.",
        f"* {run.pairs} rounds with jobs of about {run.seconds:g} s. In each round REF, REF again and the working tree "
        "do the same job, one after the other, in shuffled order, in new processes that have warmed up.",
        "* Ratios are medians of the paired rounds, working tree ÷ REF. A/A is REF ÷ REF in the same rounds: the "
        "interval from its 5th to its 95th percentile is what two equal versions seem to differ by here.",
        f"* A row is *slower* when its median ratio is below {BOUND} and below the 5th percentile of A/A. CPU and "
        "latency count alike, turned round: smaller is better. *Faster* is the mirror image.",
    ]
    if run.pairs < FAIR:
        lines.append(f"* **Fewer than {FAIR} rounds: the verdicts here mean little.**")
    if run.note:
        lines.append(f"* Note: {run.note}")
    worse = run.worse()
    lines += ["", f"**Slower: {'; '.join(worse)}.**" if worse else "**No row is slower.**"]
    for result in run.results:
        for row, why in result.failed.items():
            lines += ["", f"**Not measured: {row}, because a process ended: {why}.**"]
        lines += _section(result)
    return "\n".join(lines) + "\n"


def _section(result: Result) -> list[str]:
    lines = ["", f"## {result.server}", ""]
    counted = "receipts" if result.broker in ("instant", "devnull") else "messages, none lost, none twice"
    before, after = result.load
    columns = ["messages", "REF msg/s", "tree msg/s", "throughput", "A/A", "verdict"]
    columns += ["REF CPU µs", "tree CPU µs", "CPU", "A/A", "verdict"]
    lines += [
        f"Counted after each job: {result.verified:,} {counted}. Load average: {before:.1f}, then {after:.1f}.",
        "",
        f"| row | {' | '.join(columns)} |",
        f"|---{'|---' * len(columns)}|",
    ]
    lines += [_line(result, row) for row in result.rows if row.name != LATENCY]
    for row in result.rows:
        if row.name == LATENCY:
            lines += _latency(result, row)
    return lines


def _line(result: Result, row: Row) -> str:
    rate = result.compared(row, "rate")
    rates = " | ".join(f"{result.median(row, side, 'rate'):,.0f}" for side in (REF, TREE))
    throughput = f"{rate.median:.2f} | {rate.floor:.2f}-{rate.ceiling:.2f} | {_WORDS[rate.verdict]}"
    return f"| {row.title} | {result.counts[row.title]:,} | {rates} | {throughput} | {_small(result, row, 'cpu', 1)} |"


def _small(result: Result, row: Row, what: str, scale: float, decimals: int = 1) -> str:
    """The columns of a figure of which less is better: both medians, working tree ÷ REF, A/A, verdict."""
    compared = result.compared(row, what)
    ratio = statistics.median(1 / value for value in compared.ratios)
    control = [1 / value for value in compared.control]
    medians = " | ".join(f"{result.median(row, side, what) * scale:.{decimals}f}" for side in (REF, TREE))
    words = _CPU_WORDS if what == "cpu" else _WORDS
    return (
        f"{medians} | {ratio:.2f} | {quantile(control, 0.05):.2f}-{quantile(control, 0.95):.2f} | "
        f"{words[compared.verdict]}"
    )


def _latency(result: Result, row: Row) -> list[str]:
    """p50 has a verdict; p99 is shown with its spread only."""
    spread = ", ".join(
        f"{name} {min(values):.2f} to {max(values):.2f}"
        for name, values in (
            ("REF", [value * 1000 for value in result.values(row, REF, "p99")]),
            ("working tree", [value * 1000 for value in result.values(row, TREE, "p99")]),
        )
    )
    p99 = _small(result, row, "p99", 1000, 2).rpartition(" | ")[0]
    return [
        "",
        f"Latency at {row.title}, in ms, and CPU per message in µs:",
        "",
        "| figure | REF | tree | tree ÷ REF | A/A | verdict |",
        "|---|---|---|---|---|---|",
        f"| p50 | {_small(result, row, 'p50', 1000, 2)} |",
        f"| p99 | {p99} | none: spread of the rounds: {spread} |",
        f"| CPU | {_small(result, row, 'cpu', 1)} |",
    ]
