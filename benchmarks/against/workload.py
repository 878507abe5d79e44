"""One version at work, in a process of its own. Run by that version's Python: `python workload.py BROKER URL TOPIC`.

This file imports the standard library and public names of cqrs-brokers, nothing else. It says that it is connected,
then it reads jobs (lines of JSON) and answers each with a line of JSON.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from cqrs_brokers import Broker, Message, Receipt, open_broker
from cqrs_brokers.driver import Capabilities, Delivery, PipelinedDriver, confirm_all

BODY = json.dumps({"order_id": 4711, "note": "x" * 470}).encode()  # 500 bytes
HEADERS = {"tenant": "tenant-17", "trace": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
RATE = 1000
"""Messages per second in the row with a fixed rate."""


class InstantDriver(PipelinedDriver):
    """Confirms everything at the next turn of the event loop: what is measured is core alone."""

    def __init__(self) -> None:
        self._pending: list[Delivery] = []

    @property
    def capabilities(self) -> Capabilities:
        """It confirms, and takes keys and headers."""
        return Capabilities(confirms=True, ordering_key=True, headers=True)

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        """Keeps them until the next turn."""
        if not self._pending:
            asyncio.get_running_loop().call_soon(self._confirm)
        self._pending += [delivery for delivery in deliveries if delivery.handed_over()]

    def _confirm(self) -> None:
        pending, self._pending = self._pending, []
        confirm_all(pending)


def open_url(url: str) -> Broker:
    """The broker of a config string; `instant` is the driver above."""
    return Broker(InstantDriver()) if url == "instant" else open_broker(url)


class Workload:
    """The rows of the benchmark.

    Args:
        broker: An open broker.
        topic: Where most rows publish to; the row with many topics appends a number.
    """

    def __init__(self, broker: Broker, topic: str) -> None:
        self._broker = broker
        self._topic = topic

    def _make(self, index: int, job: dict[str, Any]) -> Message:
        topic = f"{job['topics']}{index % 1000}" if job["topics"] else self._topic
        if job["plain"]:
            return Message("order.placed", topic, None, content_type="application/json", payload_bytes=BODY)
        key = "customer" if job["row"] == "one hot key" else f"customer-{index % 1000}"
        return Message(
            "order.placed",
            topic,
            None,
            key=key,
            headers=HEADERS,
            content_type="application/json",
            payload_bytes=BODY,
        )

    async def run(self, job: dict[str, Any]) -> dict[str, float]:
        """Does a job.

        Returns:
            Seconds, CPU seconds and, in the row with a fixed rate, percentiles of the latency in seconds.
        """
        gc.collect()
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        extra = await self._perform(job["row"], job["count"], job["wave"], job)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"seconds": seconds, "cpu": cpu, **extra}

    async def _perform(self, row: str, count: int, wave: int, job: dict[str, Any]) -> dict[str, float]:
        send, make = self._broker.send_message, self._make
        if row == "one by one":
            for index in range(count):
                await send(make(index, job))
        elif row == "1000 workers":
            indexes = iter(range(count))

            async def worker() -> None:
                for index in indexes:
                    await send(make(index, job))

            await asyncio.gather(*(worker() for _ in range(1000)))
        elif row == "1000 per second":
            return await _at_a_fixed_rate(count, lambda index: send(make(index, job)))
        else:
            for start in range(0, count, wave):
                indexes_of_wave = range(start, min(start + wave, count))
                if row == "bulk 10 000":
                    outcomes = await self._broker.send_messages(make(index, job) for index in indexes_of_wave)
                    wrong = [outcome for outcome in outcomes if not isinstance(outcome, Receipt)]
                    if wrong:
                        raise RuntimeError(f"{len(wrong)} of {len(outcomes)} messages have no receipt: {wrong[0]!r}")
                else:
                    await asyncio.gather(*(send(make(index, job)) for index in indexes_of_wave))
        return {}


async def _at_a_fixed_rate(count: int, send: Callable[[int], Awaitable[object]]) -> dict[str, float]:
    """Starts each send when it is due, whatever became of the earlier ones; its latency counts from its start."""
    took: list[float] = []

    async def one(index: int) -> None:
        start = time.perf_counter()
        await send(index)
        took.append(time.perf_counter() - start)

    begin = time.perf_counter()
    tasks = []
    for index in range(count):
        wait = begin + index / RATE - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(index)))
    await asyncio.gather(*tasks)
    took.sort()
    return {"p50": took[len(took) // 2], "p99": took[min(len(took) - 1, int(0.99 * len(took)))]}


async def main(url: str, topic: str) -> None:
    """Connects and serves jobs until the input ends."""
    logging.disable(logging.WARNING)  # devnull warns of every message
    async with open_url(url) as broker:
        workload = Workload(broker, topic)
        print(json.dumps({"pid": os.getpid()}), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await workload.run(json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
