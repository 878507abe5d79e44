"""The command: `python -m soak amqp|kafka|outbox`. Exit code 0: all goals met; 1: not; 2: the servers cannot be had."""

import argparse
import asyncio
import logging
import random
import sys
import time
from collections.abc import Sequence

from cqrs_brokers_testkit.servers import ServerUnavailable

from . import kafka, outbox, rabbitmq
from .report import Report
from .run import Progress, soak
from .schedule import Plan, plan

RECEIPTS, FAULTS, RATE, LIMIT = 1_000_000, 200, 500.0, 10_800.0
SHORT_RECEIPTS, SHORT_RATE, SHORT_LIMIT = 6_000, 150.0, 270.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one soak and prints the report."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["outbox"]:
        return outbox.main(words[1:])
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("broker", choices=["amqp", "kafka"])
    parser.add_argument("--receipts", type=int, help=f"how many there must be (default {RECEIPTS})")
    parser.add_argument("--faults", type=int, help=f"how many there must be (default {FAULTS})")
    parser.add_argument("--seed", type=int, help="repeats a schedule (default: a new one, which is printed)")
    parser.add_argument("--short", action="store_true", help="about a minute: few faults, few receipts")
    given = parser.parse_args(arguments)
    # The clients and Broker warn of every lost connection: here that is the point. Errors fail the run, see `run`.
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # our own probe, which knows
    seed = random.SystemRandom().randrange(2**31) if given.seed is None else given.seed
    chosen = make_plan(given.broker, seed=seed, short=given.short, receipts=given.receipts, faults=given.faults)
    try:
        report = run(given.broker, chosen, lambda line: print(f"{time.strftime('%H:%M:%S')} {line}", flush=True))
    except ServerUnavailable as error:
        print(error, file=sys.stderr)
        return 2
    print(f"\n{report.markdown()}\n\nRepeat the schedule with --seed {seed}.")
    return 1 if report.missed() else 0


def make_plan(
    broker: str, *, seed: int, short: bool = False, receipts: int | None = None, faults: int | None = None
) -> Plan:
    """The schedule of a seed; None: the usual number for a full, or a short, run."""
    side = kafka if broker == "kafka" else rabbitmq
    kinds = side.SHORT_KINDS if short else side.KINDS
    return plan(
        kinds,
        seed=seed,
        nodes=kafka.NODES if broker == "kafka" else 1,
        receipts=receipts or (SHORT_RECEIPTS if short else RECEIPTS),
        faults=faults or (len(kinds) if short else FAULTS),
        rate=SHORT_RATE if short else RATE,
        limit=SHORT_LIMIT if short else LIMIT,
        short=short,
    )


def run(broker: str, chosen: Plan, progress: Progress) -> Report:
    """Starts the servers, soaks, and stops them.

    Raises:
        ServerUnavailable: They are not on this machine and could not be installed.
        ServerFailed: They failed by themselves.
    """
    if broker == "kafka":
        with kafka.running(progress) as cluster:
            return asyncio.run(soak(cluster, chosen, progress))
    with rabbitmq.running(progress) as node:
        return asyncio.run(soak(node, chosen, progress))


if __name__ == "__main__":
    sys.exit(main())
