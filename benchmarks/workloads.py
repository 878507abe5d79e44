"""The rows of the benchmark: how an application may call its publisher."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

__all__ = [
    "BODY",
    "BULK",
    "GATHER_100",
    "GATHER_1000",
    "HEADERS",
    "HOT_KEY",
    "LATENCY",
    "NAME",
    "SEQUENTIAL",
    "WORKERS",
    "Job",
    "key_of",
    "percentile",
    "perform",
]

NAME = "order.placed"
HEADERS = {"tenant": "tenant-17", "trace": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
BODY = json.dumps({"order_id": 4711, "note": "x" * 470}).encode()  # 500 bytes

SEQUENTIAL, GATHER_100, GATHER_1000 = "sequential", "gather(100)", "gather(1000)"
WORKERS, BULK, HOT_KEY, LATENCY = "1000 workers", "bulk 10 000", "one hot key", "1000 msg/s"
_LATENCY_RATE = 1000


@dataclass(frozen=True)
class Job:
    """One round's work of one contender.

    Attributes:
        row: How the publisher is called.
        rich: With key and two headers.
        count: How many messages.
    """

    row: str
    rich: bool
    count: int

    @property
    def wave(self) -> int:
        """How many messages are under way at a time."""
        return {SEQUENTIAL: 1, GATHER_100: 100, BULK: 10_000}.get(self.row, 1000)


def key_of(index: int) -> str:
    """One of 1 000 keys."""
    return f"customer-{index % 1000}"


def percentile(values: list[float], share: float) -> float:
    """The value below which that share lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def perform(
    job: Job, send: Callable[[int], Awaitable[object]], bulk: Callable[[int], Awaitable[object]]
) -> dict[str, float]:
    """Does the job; returns what there is to say about it besides time and CPU."""
    if job.row == LATENCY:
        return await _at_a_fixed_rate(job.count, send)
    if job.row == SEQUENTIAL:
        for index in range(job.count):
            await send(index)
    elif job.row == WORKERS:
        indexes = iter(range(job.count))

        async def worker() -> None:
            for index in indexes:
                await send(index)

        await asyncio.gather(*(worker() for _ in range(1000)))
    else:
        for start in range(0, job.count, job.wave):
            size = min(job.wave, job.count - start)
            if job.row == BULK:
                await bulk(size)
            else:
                await asyncio.gather(*(send(index) for index in range(start, start + size)))
    return {}


async def _at_a_fixed_rate(count: int, send: Callable[[int], Awaitable[object]]) -> dict[str, float]:
    """Starts sends when they are due, whatever became of the earlier ones; a send that starts late counts from then."""
    took: list[float] = []

    async def one(index: int) -> None:
        start = time.perf_counter()
        await send(index)
        took.append(time.perf_counter() - start)

    begin = time.perf_counter()
    tasks = []
    for index in range(count):
        wait = begin + index / _LATENCY_RATE - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(index)))
    await asyncio.gather(*tasks)
    return {"p50": percentile(took, 0.5), "p99": percentile(took, 0.99)}
