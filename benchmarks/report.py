"""The pages and plots in docs/benchmarks: everything in them is computed from the figures."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from .contender import contenders
from .rounds import BASELINE, OURS, Figures
from .workloads import LATENCY

if TYPE_CHECKING:
    from .goals import Goal
    from .memory import Held

__all__ = ["Outcome", "machine", "progress", "versions", "write"]

_TITLES = {"amqp": "RabbitMQ", "kafka": "Apache Kafka"}
_DISTRIBUTIONS = {
    "amqp": (
        "cqrs-brokers-core",
        "cqrs-broker-amqp",
        "aio-pika",
        "aiormq",
        "python-cqrs",
        "faststream",
        "kombu",
        "pika",
    ),
    "kafka": (
        "cqrs-brokers-core",
        "cqrs-broker-kafka",
        "aiokafka",
        "python-cqrs",
        "faststream",
        "confluent-kafka",
        "kafka-python",
    ),
}
_SETUP = {
    "amqp": "a durable topic exchange and a durable queue for each contender, publisher confirms, persistent "
    "messages, `mandatory`, 500-byte bodies. *Rich*: with a key and two headers. After every round the depth of the "
    "queue is compared, with pika, to what was confirmed; a difference ends the benchmark. RabbitMQ handles a queue in "
    "one Erlang process: when that is busy no client gets more messages into the queue, and the fastest one shows how "
    "many that are.",
    "kafka": "a topic of 6 partitions for each contender, 1 000 keys, three headers, `acks=all`, idempotent, "
    "500-byte bodies. After every round the log's end offsets are compared, with confluent-kafka, to what was "
    "confirmed; a difference ends the benchmark.",
}


@dataclass(frozen=True)
class Outcome:
    """All that a run against one broker gave.

    Attributes:
        broker: "amqp" or "kafka".
        server: Name and version of the server.
        figures: The measurements.
        goals: What was promised.
        rounds: How many.
        absent: Why contenders are missing.
        held: The memory. None: it was not measured.
        nodes: How many nodes the server has.
    """

    broker: str
    server: str
    figures: Figures
    goals: tuple[Goal, ...]
    rounds: int
    absent: dict[str, str]
    held: Held | None
    nodes: int = 1

    @property
    def name(self) -> str:
        """The name of its files."""
        return self.broker if self.nodes == 1 else f"{self.broker}-{self.nodes}-nodes"


def progress(line: str) -> None:
    """Says what is going on."""
    print(line, file=sys.stderr, flush=True)


def machine() -> str:
    """Processor, cores, system."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
        model = next((value.strip() for name, _, value in lines if name.strip() == "model name"), model)
    system = f"{platform.system()}, Python {platform.python_version()}"
    return f"{model}, {os.cpu_count()} cores shared with the server, {system}"


def versions(broker: str) -> str:
    """The distributions that took part."""
    return ", ".join(f"{name} {version(name)}" for name in _DISTRIBUTIONS[broker])


def write(outcome: Outcome, docs: Path, results: Path, load: str) -> Path:
    """Writes the page, the plot and the raw results; returns the page."""
    docs.mkdir(parents=True, exist_ok=True)
    results.mkdir(parents=True, exist_ok=True)
    raw = outcome.figures.raw() | {"machine": machine(), "server": outcome.server}
    if outcome.held is not None:
        raw["memory"] = asdict(outcome.held)
    (results / f"{outcome.name}.json").write_text(json.dumps(raw, indent=1))
    _plot(outcome, docs / f"{outcome.name}.png")
    page = docs / f"{outcome.name}.md"
    page.write_text("\n".join(_page(outcome, load)) + "\n")
    return page


def _page(outcome: Outcome, load: str) -> list[str]:
    figures, broker = outcome.figures, outcome.broker
    known = contenders(broker)
    baseline = known[BASELINE].title
    lines = [
        f"# Speed: {_TITLES[broker]}" + (f" with {outcome.nodes} nodes" if outcome.nodes > 1 else ""),
        "",
        f"Written by `nox -s bench` on {datetime.now(UTC):%Y-%m-%d}; figures of your machine: run it again. Ratios say "
        "more than absolute figures: client and server share the machine.",
        "",
        f"* Machine: {machine()}. Load average before and after: {load}.",
        f"* Server: {outcome.server}. Clients: {versions(broker)}.",
        f"* {_nodes(outcome)} {_SETUP[broker]} Here: {figures.verified} messages, none lost, none twice.",
        f"* {outcome.rounds} rounds, interleaved, in shuffled order; in each every contender has a new process, which "
        "warms up with a tenth of the work. msg/s and CPU (user and system, of the client's process) are medians; a "
        f"ratio is the median of those to {baseline} in the same round. Ours is the whole public API: `open_broker`, a "
        "fresh `Message` each, receipts. "
        "Slow clients do a part of each row.",
        "",
        f"![Throughput and CPU compared with {baseline}]({outcome.name}.png)",
        "",
    ]
    if outcome.held is not None:
        lines += [
            "## Goals",
            "",
            f"The baseline is {baseline}.",
            "",
            "| row | compared | goal | measured | met |",
            "|---|---|---|---|---|",
            *(_goal_line(goal, figures, broker) for goal in outcome.goals),
            _memory_line(outcome.held),
            "",
        ]
    lines += [
        "## All figures",
        "",
        f"| row | client | msg/s | times {baseline} | CPU µs per message | times less CPU |",
        "|---|---|---|---|---|---|",
    ]
    rows = dict.fromkeys((row, rich) for row, rich, _ in figures.rounds if row != LATENCY)
    for row, rich in rows:
        for name, contender in known.items():
            if figures.has(row, rich, name):
                rate, cpu = (figures.median(row, rich, name, what) for what in ("rate", "cpu"))
                times, less = (figures.ratio(row, rich, name, what) for what in ("rate", "cpu"))
                title = f"| {_row(row, rich, broker)} | {contender.title}"
                lines.append(f"{title} | {rate:,.0f} | {times:.2f} | {cpu:.1f} | {less:.1f} |")
    lines += _latency(outcome)
    lines += ["", "What the others do differently:", ""]
    lines += [f"* {contender.title}: {contender.note}." for contender in known.values() if contender.note]
    lines += [f"* {known[name].title}: not measured, {reason}." for name, reason in outcome.absent.items()]
    if outcome.held is not None:
        lines += _memory(outcome.held)
        lines += _profiles(outcome)
    return lines


def _nodes(outcome: Outcome) -> str:
    return "One node," if outcome.nodes == 1 else f"{outcome.nodes} nodes, each with a copy of every partition:"


def _row(row: str, rich: bool, broker: str) -> str:
    return f"{row}, rich" if rich and broker == "amqp" else row


def _goal_line(goal: Goal, figures: Figures, broker: str) -> str:
    sign = "≤" if goal.what == "p50" else "≥"
    met = "yes" if goal.met(figures) else "**no**"
    return (
        f"| {_row(goal.row, goal.rich, broker)} | {goal.text} | {sign} {goal.bound:g} | {goal.measured(figures):.2f} | "
        f"{met} |"
    )


def _memory_line(held: Held) -> str:
    met = "yes" if held.extra <= held.allowed else "**no**"
    return (
        f"| {held.sends:,} sends to a frozen server | memory above the control | ≤ {held.allowed / 1e6:.1f} MB | "
        f"{held.extra / 1e6:.1f} MB | {met} |"
    )


def _latency(outcome: Outcome) -> list[str]:
    figures = outcome.figures
    known = contenders(outcome.broker)
    names = [name for name in known if figures.has(LATENCY, True, name)]
    if not names:
        return []
    lines = ["", "Latency at 1 000 messages per second, in ms:", "", "| client | p50 | p99 | p50 ÷ baseline's |"]
    lines.append("|---|---|---|---|")
    for name in names:
        p50, p99 = (figures.median(LATENCY, True, name, what) * 1000 for what in ("p50", "p99"))
        lines.append(
            f"| {known[name].title} | {p50:.2f} | {p99:.2f} | {figures.ratio(LATENCY, True, name, 'p50'):.2f} |"
        )
    return lines


def _memory(held: Held) -> list[str]:
    outcomes = ", ".join(f"{count:,} {name}" for name, count in sorted(held.outcomes.items()))
    return [
        "",
        "## Memory",
        "",
        f"2 000 workers make {held.sends:,} sends with `delivery_timeout=0.5s` to a server that was frozen: peak "
        f"resident memory grew by {held.ours / 1e6:.1f} MB, and by {held.control / 1e6:.1f} MB in a control whose same "
        f"tasks await a plain future. Outcomes: {outcomes}.",
    ]


def _profiles(outcome: Outcome) -> list[str]:
    lines = [
        "",
        "## Where our CPU time goes",
        "",
        "Sampled by CPU time, plain asyncio. C code counts for ",
    ]
    lines[-1] += "the Python function that calls it: sending for asyncio, freeing memory for whoever made an object."
    for row, shares in outcome.figures.profiles.items():
        parts: Counter[str] = Counter()
        for name, share in shares.items():
            parts[name.partition(":")[0]] += share  # type: ignore[assignment]
        total = ", ".join(f"{part} {share:.0%}" for part, share in parts.most_common() if share >= 0.01)
        top = [f"`{name.partition(': ')[2]}` {share:.0%}" for name, share in list(shares.items())[:12]]
        lines += [f"* **{row}**: {total}. Functions: {', '.join(top)}."]
    return lines


def _plot(outcome: Outcome, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figures, known = outcome.figures, contenders(outcome.broker)
    rich = outcome.broker == "kafka"
    rows = [row for row, kind, _ in figures.rounds if kind is rich and row != LATENCY]
    rows = list(dict.fromkeys(rows))
    names = [name for name in known if any(figures.has(row, rich, name) for row in rows)]
    picture, axes = pyplot.subplots(1, 2, figsize=(13, 5.6), layout="constrained")
    width = 0.85 / len(names)
    for axis, what, title in ((axes[0], "rate", "messages per second"), (axes[1], "cpu", "client CPU, µs per message")):
        for number, name in enumerate(names):
            places = [(index, row) for index, row in enumerate(rows) if figures.has(row, rich, name)]
            axis.bar(
                [index + number * width for index, _ in places],
                [figures.median(row, rich, name, what) for _, row in places],
                width,
                label=known[name].title,
                color="black" if name == OURS else f"C{number}",
            )
        axis.set_yscale("log")
        axis.set_title(title)
        axis.set_xticks([index + 0.4 for index in range(len(rows))], rows, rotation=20)
        axis.grid(axis="y", alpha=0.3)
    picture.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")
    picture.suptitle(f"{outcome.server}: {known[OURS].title} and the others")
    picture.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(picture)
