"""The benchmark against RabbitMQ."""

from __future__ import annotations

import time
from typing import Any

import pika

from cqrs_brokers_testkit.servers import rabbitmq

from . import librabbitmq, memory
from .amqp_clients import EXCHANGE
from .goals import AMQP
from .report import Outcome, progress
from .rounds import WrongCount, play
from .workloads import BULK, GATHER_100, GATHER_1000, SEQUENTIAL, WORKERS, Job

__all__ = ["run"]

_COUNTS = {SEQUENTIAL: 1_500, GATHER_100: 6_000, GATHER_1000: 12_000, WORKERS: 12_000, BULK: 20_000}


class Queues:
    """The independent look at what RabbitMQ holds."""

    def __init__(self, url: str) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(f"{url}?heartbeat=0"))
        self._channel: Any = self._connection.channel()
        self._channel.exchange_declare(EXCHANGE, "topic", durable=True)
        self._known: set[str] = set()

    def topic(self, contender: str) -> str:
        """A durable queue of the contender's own; python-cqrs declares one that is not."""
        name = f"bench.{contender}"
        if name not in self._known and contender != "python-cqrs":
            self._channel.queue_declare(name, durable=True)
            self._channel.queue_bind(name, EXCHANGE, name)
        self._known.add(name)
        return name

    def check(self, topic: str, count: int) -> None:
        """Compares the queue's depth with what was confirmed, and empties it."""
        give_up = time.monotonic() + 5
        while (depth := self._channel.queue_declare(topic, passive=True).method.message_count) != count:
            if time.monotonic() > give_up:
                raise WrongCount(f"{count} messages were confirmed, and queue {topic} has {depth}")
            time.sleep(0.02)
        self._channel.queue_purge(topic)

    def close(self) -> None:
        """Disconnects."""
        self._connection.close()


def run(*, quick: bool, rounds: int, seed: int) -> Outcome:
    """Measures; raises `WrongCount` when a message is missing or there twice."""
    scale = 0.05 if quick else 1.0
    jobs = [Job(row, rich, max(20, int(count * scale))) for row, count in _COUNTS.items() for rich in (False, True)]
    profile = [Job(row, False, int(100_000 * scale)) for row in (GATHER_1000, WORKERS, BULK)]
    absent = librabbitmq.build()
    left_out = {"c": absent} if isinstance(absent, str) else {}
    with rabbitmq() as server:
        queues = Queues(server.url)
        try:
            figures = play(
                "amqp",
                server.url,
                jobs,
                rounds,
                left_out=left_out,
                profile=profile,
                topic=queues.topic,
                check=queues.check,
                progress=progress,
                seed=seed,
            )
        finally:
            queues.close()
        url = f"{server.url}?declare=queue&exchange={EXCHANGE}"
        held = memory.measure(url, "bench.memory", server.pause, server.resume, quick=quick)
    return Outcome("amqp", f"RabbitMQ {server.version}", figures, AMQP, rounds, left_out, held)
