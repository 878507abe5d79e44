"""Interleaved rounds: every contender does the same job, one after the other, in an order that is shuffled each time.

A ratio is the median over the rounds of (contender in this round / baseline in this round), so that what slows the
machine for a while slows both. Every round has processes of its own: the CPU time per message of one and the same code
was seen to differ by several percent from process to process, for as long as they ran.
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .contender import contenders
from .workloads import Job

__all__ = ["BASELINE", "OURS", "Figures", "Process", "WrongCount", "play"]

OURS, BASELINE = "ours", "raw"
ROOT = Path(__file__).parent.parent


class WrongCount(Exception):  # noqa: N818 - says what it is
    """The server does not have as many messages as a contender says it published."""


class Process:
    """A process of ours that answers lines with lines, and idles in between.

    Args:
        name: Its name in errors.
        command: What to run, in this workspace's root.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        unwanted = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONHOME")
        environment = {key: value for key, value in os.environ.items() if key not in unwanted}
        self.name = name
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def answer(self) -> dict[str, Any]:
        """Waits for its next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def tell(self, order: object) -> None:
        """Gives it a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def ask(self, order: object) -> dict[str, Any]:
        """Gives it a line and waits for the answer."""
        self.tell(order)
        return self.answer()

    def end(self) -> None:
        """Lets it disconnect; kills it if it does not end by itself."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(15)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._process.kill()
            self._process.wait()


class Figures:
    """What was measured: for each (row, rich, contender) one entry per round."""

    def __init__(self) -> None:
        self.rounds: dict[tuple[str, bool, str], list[dict[str, float]]] = {}
        self.profiles: dict[str, dict[str, float]] = {}
        self.verified = 0

    def add(self, job: Job, contender: str, result: dict[str, float]) -> None:
        """Keeps the result of one job."""
        entry = {**result, "rate": job.count / result["seconds"], "cpu": result["cpu"] / job.count * 1e6}
        self.rounds.setdefault((job.row, job.rich, contender), []).append(entry)
        self.verified += job.count

    def median(self, row: str, rich: bool, contender: str, what: str) -> float:
        """Median over the rounds."""
        return statistics.median(entry[what] for entry in self.rounds[row, rich, contender])

    def ratio(self, row: str, rich: bool, contender: str, what: str, to: str = BASELINE) -> float:
        """Median of the ratios of paired rounds; of `cpu`: how many times less than the other."""
        pairs = list(zip(self.rounds[row, rich, contender], self.rounds[row, rich, to], strict=True))
        if what == "cpu":
            return statistics.median(other["cpu"] / max(one["cpu"], 0.01) for one, other in pairs)
        return statistics.median(one[what] / other[what] for one, other in pairs)

    def has(self, row: str, rich: bool, contender: str) -> bool:
        """Whether it took part."""
        return (row, rich, contender) in self.rounds

    def raw(self) -> dict[str, Any]:
        """All of it, for a JSON file."""
        rounds = [
            {"row": row, "rich": rich, "contender": name, "rounds": entries}
            for (row, rich, name), entries in self.rounds.items()
        ]
        return {"figures": rounds, "profiles": self.profiles, "verified": self.verified}


def play(
    broker: str,
    url: str,
    jobs: Iterable[Job],
    rounds: int,
    *,
    left_out: Iterable[str] = (),
    profile: Iterable[Job] = (),
    topic: Callable[[str], str],
    check: Callable[[str, int], None],
    progress: Callable[[str], None],
    seed: int,
) -> Figures:
    """Runs all the rounds.

    Args:
        broker: "amqp" or "kafka".
        url: The server.
        jobs: The rows.
        rounds: How often each is done by each contender, after a tenth of it that does not count.
        left_out: Contenders that cannot run here.
        profile: Jobs of ours to look into afterwards.
        topic: The topic of a contender, made ready.
        check: Raises `WrongCount` unless the server has so many more messages of that topic than at the last check.
        progress: Told what is going on.
        seed: Of the order.
    """
    shuffle = random.Random(seed).shuffle
    known = {name: one for name, one in contenders(broker).items() if name not in set(left_out)}
    figures = Figures()
    processes: dict[str, Process] = {}

    def run(name: str, job: Job, profiled: bool = False) -> dict[str, Any]:
        order = {"row": job.row, "rich": job.rich, "count": job.count}
        answer = processes[name].ask({"job": order, "profile": profiled})
        check(topic(name), job.count)
        return answer

    def take_turns(title: str, share: float, counts: bool) -> None:
        progress(f"{broker}: {title}")
        for job in jobs:
            order = [n for n, one in known.items() if one.rows is None or job.row in one.rows]
            shuffle(order)
            for name in order:
                mine = Job(job.row, job.rich, max(20, int(job.count * min(share, known[name].share))))
                result = run(name, mine)
                if counts:
                    figures.add(mine, name, result)

    jobs = list(jobs)
    try:
        for number in range(1, rounds + 1):
            _end(processes)
            for name in known:
                command = [sys.executable, "-m", "benchmarks.contender", broker, name, url, topic(name)]
                processes[name] = Process(name, command)
                processes[name].answer()
            take_turns(f"warming up for round {number}", 0.1, counts=False)
            take_turns(f"round {number} of {rounds}", math.inf, counts=True)
        for job in profile:
            figures.profiles[job.row] = run(OURS, job, profiled=True)["shares"]
    finally:
        _end(processes)
    return figures


def _end(processes: dict[str, Process]) -> None:
    while processes:
        processes.popitem()[1].end()
