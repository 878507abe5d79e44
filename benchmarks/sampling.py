"""Where the CPU time goes: the running line is looked at every millisecond of CPU time.

A signal handler, not a tracer, so that it changes little: time in C code counts for the Python function that called it.
"""

from __future__ import annotations

import collections
import signal
import sys
from collections.abc import Awaitable
from pathlib import Path
from types import CodeType, FrameType

__all__ = ["sampled"]

_PARTS = (
    ("/cqrs_brokers/", "core"),
    ("/cqrs_broker_amqp/", "AMQP driver"),
    ("/cqrs_broker_kafka/", "Kafka driver"),
    ("/aiormq/", "aiormq"),
    ("/aio_pika/", "aio-pika"),
    ("/pamqp/", "pamqp"),
    ("/aiokafka/", "aiokafka"),
    ("/asyncio/", "asyncio"),
    ("/benchmarks/", "benchmark"),
)


def _part(code: CodeType) -> str:
    name = code.co_filename
    for folder, part in _PARTS:
        if folder in name:
            return f"{part}: {Path(name).stem}.{code.co_name}"
    return f"other: {Path(name).stem}.{code.co_name}"


async def sampled(work: Awaitable[object]) -> dict[str, float]:
    """The share of the work's CPU time per function, largest first."""
    counts: collections.Counter[CodeType] = collections.Counter()

    def look(signum: int, frame: FrameType | None) -> None:
        if frame is not None:
            counts[frame.f_code] += 1

    before = signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)
    try:
        await work
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    total = sum(counts.values()) or 1
    if total < 20:
        print("too few samples for a profile", file=sys.stderr)
    shares: collections.Counter[str] = collections.Counter()
    for code, count in counts.items():
        shares[_part(code)] += count
    return {name: count / total for name, count in shares.most_common()}
