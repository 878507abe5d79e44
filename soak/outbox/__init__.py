"""The outbox under faults: `python -m soak outbox --broker amqp|kafka`. See `docs/explanation/outbox-soak.md`.

Writers change an aggregate's row under its lock and add an event with the row's new version; some roll back. Relays in
processes of their own are killed, stopped and paused for longer than their lease; the database and the broker are
restarted, connections are cut, one topic is refused for a while. Then an independent client reads the broker.

An inversion is a falling version among the first occurrences of a key's events. A repeat is explained when its row's
`attempts_unknown` is at least the number of copies less one.

A long soak can be run in parts: each is a line in a file, and a run that is started again goes on with the next part.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

from cqrs_brokers_testkit.servers import ServerUnavailable

from .judge import Verdict, judge
from .report import Part, table
from .scenario import KINDS, run

__all__ = ["KINDS", "Part", "Verdict", "judge", "main", "run", "table"]

ROWS, FAULTS = 1_000_000, 100


def main(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m soak outbox", description=__doc__)
    parser.add_argument("--broker", choices=["amqp", "kafka"], default="amqp")
    parser.add_argument("--rows", type=int, default=ROWS, help="of all parts together")
    parser.add_argument("--faults", type=int, default=FAULTS, help="of all parts together")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--file", type=Path, help="where parts are written, and found when the soak is started again")
    given = parser.parse_args(arguments)
    done = _read(given.file, given.broker, given.parts, given.rows // given.parts)
    seed = random.SystemRandom().randrange(2**31) if given.seed is None else given.seed
    for number in range(1, given.parts + 1):
        if number in done:
            continue
        if given.parts > 1:
            print(f"part {number} of {given.parts}", flush=True)
        started = time.monotonic()
        faults = given.faults * number // given.parts - given.faults * (number - 1) // given.parts
        try:
            soak, verdict = run(given.broker, rows=given.rows // given.parts, faults=faults, seed=seed + number - 1)
        except ServerUnavailable as error:
            print(error, file=sys.stderr)
            return 2
        part = Part.of(
            soak,
            verdict,
            broker=given.broker,
            number=number,
            parts=given.parts,
            seed=seed + number - 1,
            seconds=time.monotonic() - started,
        )
        done[number] = part
        if given.file is not None:
            with given.file.open("a") as file:
                file.write(json.dumps(part.as_json()) + "\n")
    found = [part for _, part in sorted(done.items())]
    print(f"\n{table(found)}")
    print(*(text for part in found for text in part.examples), sep="\n")
    return 1 if any(part.violations for part in found) else 0


def _read(file: Path | None, broker: str, parts: int, rows: int) -> dict[int, Part]:
    """The parts of this soak that a file has."""
    if file is None or not file.exists():
        return {}
    found = [Part(**json.loads(line)) for line in file.read_text().splitlines()]
    return {p.number: p for p in found if (p.broker, p.parts, p.rows) == (broker, parts, rows)}
