"""`python -m versions WHEELS [TARGET ...]`; `nox -s versions` builds the wheels. Exit code 1: tests failed."""

from __future__ import annotations

import argparse
import subprocess
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from .environments import ROOT, NotHad, make
from .page import page
from .run import Result, load, run, save
from .targets import TARGETS


def main() -> int:
    """Runs what has not passed yet with this commit, and writes the page after each target."""
    names = [target.name for target in TARGETS]
    parser = argparse.ArgumentParser(prog="nox -s versions --", description=__doc__)
    parser.add_argument("wheels", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: all of {', '.join(names)}")
    parser.add_argument("--again", action="store_true", help="also what has passed with this commit")
    parser.add_argument("--failed", action="store_true", help="of complete runs, only the files with a failed test")
    parser.add_argument("--folder", type=Path, default=ROOT / ".nox" / "versions-runs", help="environments and results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "reference" / "versions.md", help="the page")
    given = parser.parse_args()
    if unknown := set(given.targets) - set(names):
        parser.error(f"no such target: {', '.join(sorted(unknown))}. The targets are: {', '.join(names)}")
    if not given.folder.resolve().is_relative_to(ROOT):  # a Python of another suite sees nothing else of the machine
        parser.error(f"--folder must lie in {ROOT}")
    kept = given.folder / "results.json"
    results = load(kept)
    commit = _commit()
    wanted = [target for target in TARGETS if not given.targets or target.name in given.targets]
    for number, target in enumerate(wanted, 1):
        known = results.get(target.name)
        if known and known.commit == commit and known.passed and not given.again:
            _say(f"{number} of {len(wanted)}: {target.name} has passed with {commit}")
            continue
        if given.failed and not (known and known.complete and known.failed):
            _say(f"{number} of {len(wanted)}: {target.name} has no complete run with a failed test")
            continue
        _say(f"{number} of {len(wanted)}: {target.name}")
        today = f"{datetime.now(UTC):%Y-%m-%d}"
        taken_up = known is not None and known.commit == commit and not known.complete and not given.again
        result = known if known and (taken_up or given.failed) else Result(target.name, commit, today)
        results[target.name] = result
        keep = partial(save, kept, results)
        try:
            place = given.folder.resolve() / "environments"
            environment = make(target, given.wheels.resolve(), place, _say, again=not taken_up)
            again = f"{commit}, {today}" if given.failed else ""
            run(target, environment, result, given.folder / "logs", _say, keep, again=again)
        except NotHad as error:
            result.not_tried = str(error)
        keep()
        given.page.parent.mkdir(parents=True, exist_ok=True)
        given.page.write_text(page(results))
        _say(f"{target.name}: {result.not_tried or result.counts}")
    _say(f"written: {given.page}")
    return 1 if any(target.name in results and results[target.name].failed for target in wanted) else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    changed = "+" if git("status", "--porcelain", "--", "packages", "tests") else ""
    return git("rev-parse", "--short=10", "HEAD") + changed


if __name__ == "__main__":
    sys.exit(main())
