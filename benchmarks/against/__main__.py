"""`python -m benchmarks.against REF`; `nox -s bench -- --against REF` makes the environment for it.

The exit code is 1 when a row is slower or could not be measured, 2 when the command line is wrong, 3 when a server is
missing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.report import progress
from benchmarks.rounds import ROOT
from cqrs_brokers_testkit.servers import ServerUnavailable

from .environments import build, commit_of, differences, extract
from .page import Run, page
from .rows import BROKERS, rows_of
from .servers import serve
from .session import Result, measure


def main() -> int:
    """Runs what the command line names and writes the report."""
    parser = argparse.ArgumentParser(prog="nox -s bench -- --against REF", description=__doc__)
    parser.add_argument("reference", metavar="REF", help="commit, tag or branch to compare the working tree with")
    parser.add_argument("--broker", nargs="+", choices=BROKERS, default=list(BROKERS), help="default: all")
    parser.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="titles of rows; default: all")
    parser.add_argument("--pairs", type=int, default=15, help="rounds (default 15; fewer give no fair verdict)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a job (default 1)")
    parser.add_argument("--seed", type=int, default=1, help="of the order within rounds (default 1)")
    parser.add_argument("--note", default="", help="a sentence for the report, such as the reason for a second run")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks" / "against.md", help="the report")
    results_path = ROOT / "benchmarks" / "results" / "against.json"
    parser.add_argument("--results", type=Path, default=results_path, help="the raw results")
    parser.add_argument("--folder", type=Path, default=ROOT / ".nox" / "against", help="where the environments go")
    given = parser.parse_args()
    if given.pairs < 1 or given.seconds <= 0:
        parser.error("--pairs must be at least 1 and --seconds above 0")
    try:
        commit = commit_of(ROOT, given.reference)
        rows = {broker: rows_of(broker, given.rows) for broker in given.broker}
    except ValueError as error:
        parser.error(str(error))
    if not any(rows.values()):
        parser.error("none of the brokers has such a row")
    tree = build("working tree", ROOT, given.folder / "tree", progress)
    source = extract(ROOT, commit, given.folder / "source")
    versions = build(f"REF {commit[:10]}", source, given.folder / "ref", progress), tree
    results: list[Result] = []
    run = Run(given.reference, commit, _tree(), differences(*versions), given.pairs, given.seconds, given.note, results)
    for broker, wanted in rows.items():
        if not wanted:
            continue
        try:
            with serve(broker, wanted) as server:
                settings = {"pairs": given.pairs, "seconds": given.seconds, "seed": given.seed}
                results.append(measure(broker, server, wanted, versions, **settings, progress=progress))
        except ServerUnavailable as error:
            print(error, file=sys.stderr)
            return 3
        _write(run, given.page, given.results)  # also what an interrupted run has measured
    print(page(run))
    return 1 if run.worse() or any(result.failed for result in results) else 0


def _write(run: Run, path: Path, results: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(run))
    raw = []
    for result in run.results:
        rounds = [{"row": row, "side": side, "rounds": found} for (row, side), found in result.rounds.items()]
        raw.append(asdict(result) | {"rounds": rounds})
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps({"commit": run.commit, "tree": run.tree, "results": raw}, indent=1))


def _tree() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    changed = " with uncommitted changes" if git("status", "--porcelain", "--", "packages") else ""
    return f"commit `{git('rev-parse', 'HEAD')[:10]}`{changed}"


if __name__ == "__main__":
    sys.exit(main())
