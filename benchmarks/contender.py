"""One contender in a process of its own: `python -m benchmarks.contender amqp ours URL`.

It connects, says so, and then idles until it reads a job (a line of JSON); it answers with a line of JSON.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import sys
import time
from dataclasses import dataclass
from typing import Any

from .sampling import sampled
from .workloads import Job, perform

__all__ = ["Client", "Contender"]


class Client:
    """A way to publish. Made in the contender's process.

    Args:
        url: The server: an AMQP URL, or `host:port` of Kafka.
        topic: Where to publish to.
    """

    def __init__(self, url: str, topic: str) -> None:
        self.url = url
        self.topic = topic

    async def open(self) -> None:
        """Connects."""

    async def send(self, index: int, job: Job) -> Any:
        """Publishes one message; returns when the broker has confirmed it."""
        raise NotImplementedError

    async def bulk(self, count: int, job: Job) -> Any:
        """Publishes many at once, in the way that is best for this client."""
        await asyncio.gather(*(self.send(index, job) for index in range(count)))

    async def run(self, job: Job) -> dict[str, float]:
        """Does a job; overridden by clients that do not use asyncio."""
        return await perform(job, lambda index: self.send(index, job), lambda count: self.bulk(count, job))

    async def close(self) -> None:
        """Disconnects."""


@dataclass(frozen=True)
class Contender:
    """A client and what to know about it.

    Attributes:
        title: Its name in the tables.
        make: The client.
        note: In what its work differs from that of the others.
        rows: Those it can do; None: all.
        share: How much of a row's messages it gets: slow ones less, fast ones more.
        uvloop: Runs in uvloop's event loop.
        plain_only: Cannot send keys and headers.
    """

    title: str
    make: type[Client]
    note: str = ""
    rows: tuple[str, ...] | None = None
    share: float = 1.0
    uvloop: bool = False
    plain_only: bool = False


def contenders(broker: str) -> dict[str, Contender]:
    """The contenders of a broker by their short names; ours first, then the one that all are compared with."""
    if broker == "amqp":
        from .amqp_clients import CONTENDERS

        return CONTENDERS
    from .kafka_clients import CONTENDERS as KAFKA_CONTENDERS

    return KAFKA_CONTENDERS


async def _measure(client: Client, job: Job) -> dict[str, float]:
    gc.collect()
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    extra = await client.run(job)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu": cpu, **extra}


async def _serve(client: Client) -> None:
    await client.open()
    print(json.dumps({"pid": os.getpid()}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        job = Job(**order["job"])
        if order["profile"]:
            shares = await sampled(client.run(job))
            print(json.dumps({"shares": shares}), flush=True)
        else:
            print(json.dumps(await _measure(client, job)), flush=True)
    await client.close()


def main() -> None:
    """Runs the contender that the command line names."""
    broker, name, url, topic = sys.argv[1:]
    contender = contenders(broker)[name]
    client = contender.make(url, topic)
    if contender.uvloop:
        import uvloop

        uvloop.run(_serve(client))
    else:
        asyncio.run(_serve(client))


if __name__ == "__main__":
    main()
