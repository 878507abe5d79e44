"""`python -m benchmarks [amqp] [kafka] [imports]`: measures, and writes docs/benchmarks; without names, all three."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from . import imports
from .report import progress, write
from .rounds import ROOT

_WHAT = ("amqp", "kafka", "imports")


def main() -> int:
    """Runs what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures cqrs-brokers against others.")
    parser.add_argument("what", nargs="*", choices=(*_WHAT, []), help="default: all")
    parser.add_argument("--rounds", type=int, help="rounds per row (default 5; with --quick 1)")
    parser.add_argument("--quick", action="store_true", help="small rounds: shows that it runs, not how fast")
    parser.add_argument("--nodes", type=int, default=1, help="how many nodes Kafka has (default 1)")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "benchmarks", help="where pages and plots go")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="where raw results go")
    parser.add_argument("--seed", type=int, default=1, help="of the order within rounds")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    for what in arguments.what or _WHAT:
        before = os.getloadavg()[0]
        if what == "imports":
            found = imports.measure(quick=arguments.quick)
            arguments.docs.mkdir(parents=True, exist_ok=True)
            arguments.results.mkdir(parents=True, exist_ok=True)
            page = arguments.docs / "imports.md"
            page.write_text("\n".join(found.lines()) + "\n")
            (arguments.results / "imports.json").write_text(json.dumps(found.raw(), indent=1))
        else:
            if what == "amqp":
                from .amqp import run

                outcome = run(quick=arguments.quick, rounds=rounds, seed=arguments.seed)
            else:
                from . import kafka

                outcome = kafka.run(quick=arguments.quick, rounds=rounds, seed=arguments.seed, nodes=arguments.nodes)
            page = write(outcome, arguments.docs, arguments.results, f"{before:.1f}, {os.getloadavg()[0]:.1f}")
        progress(f"written: {page}")
        print(page.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
