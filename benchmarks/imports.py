"""What importing and discovery cost, in interleaved fresh processes with bytecode caching on."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Imports", "measure"]

IMPORT_GOAL, DISCOVERY_GOAL = 1.15, 1.5

_OURS = """
import cqrs_brokers
cqrs_brokers.open_broker("devnull://")
"""
_THE_SAME_BY_HAND = """
import asyncio, logging, importlib_metadata, pydantic, pluggy
class Model(pydantic.BaseModel):
    timeout: float = 30.0
Model()
"""
_DISCOVER = "cqrs_brokers.available_brokers()"
_PLAIN_PASS = "importlib_metadata.entry_points(group='cqrs_brokers')"
_PREPARED = "import importlib_metadata, cqrs_brokers"
_AGAIN = f"{_PREPARED}\n{_DISCOVER}"


@dataclass(frozen=True)
class Imports:
    """Medians, in ms, and medians of paired ratios."""

    rounds: int
    distributions: int
    ours: float
    by_hand: float
    import_ratio: float
    discovery: float
    plain_pass: float
    discovery_ratio: float
    discovery_again: float

    def lines(self) -> list[str]:
        """The section for a page."""
        return [
            "# Speed: importing and discovery",
            "",
            f"Medians of {self.rounds} rounds of fresh, interleaved processes with cached bytecode, in CPU time; by "
            "`nox -s bench`.",
            "",
            "| what | ms | compared with | ms | ratio | goal | met |",
            "|---|---|---|---|---|---|---|",
            '| `import cqrs_brokers` and `open_broker("devnull://")` | '
            f"{self.ours:.0f} | asyncio, logging, importlib-metadata, pydantic, pluggy and one pydantic model | "
            f"{self.by_hand:.0f} | {self.import_ratio:.2f} | ≤ {IMPORT_GOAL} | "
            f"{_met(self.import_ratio, IMPORT_GOAL)} |",
            f"| `available_brokers()` among {self.distributions} distributions | {self.discovery:.1f} | "
            f"`importlib_metadata.entry_points(group=…)` | {self.plain_pass:.1f} | {self.discovery_ratio:.2f} | "
            f"≤ {DISCOVERY_GOAL} | "
            f"{_met(self.discovery_ratio, DISCOVERY_GOAL)} |",
            "",
            f"The second time `available_brokers()` takes {self.discovery_again:.2f} ms.",
        ]

    def raw(self) -> dict[str, float]:
        """For a JSON file."""
        return asdict(self)


def _met(ratio: float, goal: float) -> str:
    return "yes" if ratio <= goal else "**no**"


def _milliseconds(code: str, environment: Mapping[str, str], prepared: str = "") -> float:
    program = f"{prepared}\nimport time\nstart = time.process_time()\n{code}\nprint(time.process_time() - start)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return float(done.stdout.split()[-1]) * 1000


def _install_many(folder: Path, count: int) -> None:
    """Metadata of distributions as pip leaves it, a tenth of them with entry points."""
    for number in range(count):
        info = folder / f"filler_{number}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: filler-{number}\nVersion: 1.0\nSummary: Fills.\n\n{'Text. ' * 500}\n"
        )
        (info / "RECORD").write_text(f"filler_{number}/__init__.py,,\n")
        if number % 10 == 0:
            (info / "entry_points.txt").write_text(f"[console_scripts]\nfiller-{number} = filler_{number}:main\n")


def measure(*, quick: bool) -> Imports:
    """Runs the processes."""
    rounds = 3 if quick else 21
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as folder:
        _install_many(Path(folder), 200)
        crowded = {**environment, "PYTHONPATH": folder}
        for code in (_OURS, _THE_SAME_BY_HAND):
            _milliseconds(code, environment)  # writes the bytecode
        ours, by_hand, discovery, plain, again = (
            list(column)
            for column in zip(
                *(
                    (
                        _milliseconds(_OURS, environment),
                        _milliseconds(_THE_SAME_BY_HAND, environment),
                        _milliseconds(_DISCOVER, crowded, _PREPARED),
                        _milliseconds(_PLAIN_PASS, crowded, _PREPARED),
                        _milliseconds(_DISCOVER, crowded, _AGAIN),
                    )
                    for _ in range(rounds)
                ),
                strict=True,
            )
        )
        counting = "import importlib_metadata\nprint(sum(1 for _ in importlib_metadata.distributions()))"
        counted = subprocess.run(
            [sys.executable, "-c", counting], env=crowded, capture_output=True, text=True, timeout=60, check=True
        )
    median = statistics.median
    return Imports(
        rounds,
        int(counted.stdout),
        median(ours),
        median(by_hand),
        median(one / other for one, other in zip(ours, by_hand, strict=True)),
        median(discovery),
        median(plain),
        median(one / other for one, other in zip(discovery, plain, strict=True)),
        median(again),
    )
