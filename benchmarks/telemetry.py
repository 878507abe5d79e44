"""What OpenTelemetry costs: `python -m benchmarks.telemetry [rabbitmq] [kafka] [--rounds N] [--messages N]`.

A real server, a process for each measurement, interleaved; the CPU time of the publishing process per message, for 500
sends at a time and for batches of 1 000. Without an observer; with one and nothing sampled, without and with an SDK for
metrics; and with every span recorded, without an exporter. "api" is an observer that only calls OpenTelemetry for each
message, with nothing sampled: it starts a span, injects its context, records a duration.

Python's garbage collector looks at all objects about once in 12 000 messages, for about 15 ms. So a measurement must be
several times as long: of 10 000 messages one mode has such a collection and another has none.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time

from opentelemetry import metrics, propagate
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import SpanKind, set_span_in_context

from cqrs_brokers import DeliveryError, Message, Observer, Receipt, open_broker
from cqrs_brokers_opentelemetry import OpenTelemetryObserver
from cqrs_brokers_testkit import servers
from cqrs_brokers_testkit.readers import bind_queue

MODES = ("none", "off", "off+metrics", "api", "api+metrics", "on+metrics")
WORKLOADS = ("gather(500)", "bulk(1000)")
TOPIC = "telemetry"


class Bare(Observer):
    """One call of OpenTelemetry for each thing that it is wanted for, and nothing else."""

    def __init__(self, tracers: TracerProvider, meters: metrics.MeterProvider) -> None:
        self._tracer = tracers.get_tracer("bare")
        self._duration = meters.get_meter("bare").create_histogram("duration")
        self._attributes: dict[str, str | int] = {
            "messaging.system": "kafka",
            "messaging.operation.name": "send",
            "messaging.destination.name": TOPIC,
            "server.address": "127.0.0.1",
            "server.port": 9092,
        }

    def before_send(self, message: Message) -> dict[str, str]:
        headers: dict[str, str] = {}
        span = self._tracer.start_span("send", kind=SpanKind.PRODUCER, attributes=self._attributes)
        propagate.inject(headers, set_span_in_context(span))
        return headers

    def sent(self, message: Message, outcome: Receipt | DeliveryError, elapsed: float) -> None:
        self._duration.record(elapsed, self._attributes)


def observers(mode: str) -> list[Observer]:
    """What a mode observes with."""
    if mode == "none":
        return []
    sampler = ALWAYS_ON if mode.startswith("on") else ALWAYS_OFF
    meters = MeterProvider([InMemoryMetricReader()]) if mode.endswith("metrics") else NoOpMeterProvider()
    tracers = TracerProvider(sampler=sampler)
    if mode.startswith("api"):
        return [Bare(tracers, meters)]
    return [OpenTelemetryObserver(tracer_provider=tracers, meter_provider=meters)]


async def publish(url: str, mode: str, workload: str, count: int) -> float:
    """Microseconds of CPU per message."""

    async def send(number: int) -> None:
        if workload.startswith("bulk"):
            for _ in range(number // 1000):
                batch = [Message("OrderPlaced", TOPIC, {"order": 7, "total": 12.5}, key="7") for _ in range(1000)]
                assert all(receipt.confirmed for receipt in await broker.send_messages(batch))  # type: ignore[union-attr]
            return
        for _ in range(number // 500):
            sends = (
                broker.send_message(Message("OrderPlaced", TOPIC, {"order": 7, "total": 12.5}, key="7"))
                for _ in range(500)
            )
            await asyncio.gather(*sends)

    async with open_broker(url, observers=observers(mode)) as broker:
        await send(2000)
        started = time.process_time()
        await send(count)
        return (time.process_time() - started) / count * 1e6


def measure(name: str, url: str, rounds: int, count: int) -> None:
    """Prints a row for each workload and mode."""
    for workload in WORKLOADS:
        found: dict[str, list[float]] = {mode: [] for mode in MODES}
        for _ in range(rounds):
            for mode in MODES:
                command = [sys.executable, "-m", "benchmarks.telemetry", "--run", url, mode, workload, str(count)]
                found[mode].append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        base = statistics.median(found["none"]), min(found["none"])
        for mode in MODES:
            cost, least = statistics.median(found[mode]), min(found[mode])
            times = f"{cost / base[0]:.2f} times; least {least:6.1f} µs  {least / base[1]:.2f} times"
            print(f"{name:9} {workload:12} {mode:12} {cost:6.1f} µs  {times}", flush=True)


def main() -> None:
    """Starts servers, unless it is one of its own processes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.telemetry")
    parser.add_argument("servers", nargs="*", choices=("rabbitmq", "kafka", []), help="default: both")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--run", nargs=4, metavar=("URL", "MODE", "WORKLOAD", "COUNT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        url, mode, workload, count = arguments.run
        print(asyncio.run(publish(url, mode, workload, int(count))))
        return
    for name in arguments.servers or ("rabbitmq", "kafka"):
        if name == "rabbitmq":
            with servers.rabbitmq() as rabbitmq:
                bind_queue(rabbitmq.url, "telemetry", TOPIC)
                measure(name, f"{rabbitmq.url}?exchange=telemetry", arguments.rounds, arguments.messages)
        else:
            with servers.kafka() as kafka:
                kafka.create_topic(TOPIC)
                measure(name, kafka.url, arguments.rounds, arguments.messages)


if __name__ == "__main__":
    main()
