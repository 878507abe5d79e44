"""What a stalled server costs in memory: `python -m benchmarks.memory URL TOPIC ours|control SENDS`.

2 000 workers send, one message after the other, to a broker whose server was frozen; every send ends after half a
second. The control is the same process with the same tasks and messages, where each waits for a plain future instead.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from cqrs_brokers import Message, open_broker
from cqrs_brokers.exceptions import DeliveryError

from .report import progress
from .rounds import Process
from .workloads import NAME

__all__ = ["ALLOWANCE", "Held", "measure"]

WORKERS = 2_000
TIMEOUT = 0.5
ALLOWANCE = 20 * 10**6
_BODY_BYTES = 500
_WINDOW = 1_000
"""Two fifths of `max_in_flight`, whose default the URL does not change: what is in flight while all goes on."""


@dataclass(frozen=True)
class Held:
    """The result.

    Attributes:
        sends: How many were tried.
        ours: Peak of the resident memory while sending above that before, in bytes.
        control: The same of the control.
        outcomes: How many sends ended how.
    """

    sends: int
    ours: int
    control: int
    outcomes: dict[str, int]

    @property
    def extra(self) -> int:
        """Bytes above the control."""
        return self.ours - self.control

    @property
    def allowed(self) -> int:
        """What is in flight at most, and 20 MB."""
        return _WINDOW * _BODY_BYTES + ALLOWANCE


def measure(url: str, topic: str, freeze: Callable[[], None], thaw: Callable[[], None], *, quick: bool) -> Held:
    """Freezes the server and measures both at the same time; thaws it afterwards."""
    sends = WORKERS * (4 if quick else 100)
    progress(f"memory: {sends} sends to a frozen server")
    roles = ("ours", "control")
    command = [sys.executable, "-m", "benchmarks.memory", url, topic]
    processes = [Process(role, [*command, role, str(sends)]) for role in roles]
    frozen = False
    try:
        for process in processes:
            process.answer()
        freeze()
        frozen = True
        for process in processes:
            process.tell("go")
        ours, control = (process.answer() for process in processes)
    finally:
        if frozen:
            thaw()
        for process in processes:
            process.end()
    return Held(sends, ours["bytes"], control["bytes"], ours["outcomes"])


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


async def _watch(peak: list[int]) -> None:
    while True:
        peak[0] = max(peak[0], _resident())
        await asyncio.sleep(0.01)


async def _main(url: str, topic: str, role: str, sends: int) -> None:
    loop = asyncio.get_running_loop()
    outcomes: Counter[str] = Counter()

    def message() -> Message:
        return Message(NAME, topic, None, payload_bytes=os.urandom(_BODY_BYTES))

    async with open_broker(url, delivery_timeout=TIMEOUT, close_timeout=1.0) as broker:
        warm = await broker.send_messages(message() for _ in range(100))
        print(json.dumps({"warm": len(warm)}), flush=True)
        await asyncio.to_thread(sys.stdin.readline)

        async def send() -> None:
            try:
                await broker.send_message(message())
            except DeliveryError as error:
                outcomes[type(error).__name__] += 1
            else:
                outcomes["Receipt"] += 1

        async def wait() -> None:
            held = message()
            waiter = loop.create_future()
            loop.call_later(TIMEOUT, waiter.set_result, held)
            await waiter
            outcomes["waited"] += 1

        one = send if role == "ours" else wait

        async def worker() -> None:
            for _ in range(sends // WORKERS):
                await one()

        before = _resident()
        peak = [before]
        watching = asyncio.create_task(_watch(peak))
        await asyncio.gather(*(worker() for _ in range(WORKERS)))
        watching.cancel()
        print(json.dumps({"bytes": peak[0] - before, "outcomes": outcomes}), flush=True)
        await asyncio.to_thread(sys.stdin.readline)  # the server may be thawed now


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
