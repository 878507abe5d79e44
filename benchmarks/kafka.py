"""The benchmark against Apache Kafka."""

from __future__ import annotations

from typing import Any

from confluent_kafka import Consumer, TopicPartition

from cqrs_brokers_testkit.servers import KafkaCluster, kafka

from . import memory
from .goals import KAFKA
from .report import Outcome, progress
from .rounds import WrongCount, play
from .workloads import BULK, GATHER_100, GATHER_1000, HOT_KEY, LATENCY, SEQUENTIAL, WORKERS, Job

__all__ = ["run"]

PARTITIONS = 6
_COUNTS = {
    SEQUENTIAL: 1_500,
    GATHER_100: 20_000,
    GATHER_1000: 20_000,
    WORKERS: 20_000,
    HOT_KEY: 8_000,
    BULK: 30_000,
    LATENCY: 3_000,
}


class Topics:
    """The independent look at what Kafka holds."""

    def __init__(self, server: KafkaCluster) -> None:
        self._server = server
        settings = {"bootstrap.servers": server.bootstrap_servers, "group.id": "bench", "log_level": 0}
        self._consumer: Any = Consumer(settings)
        self._ends: dict[str, int] = {}

    def topic(self, contender: str) -> str:
        """A topic of the contender's own."""
        name = f"bench-{contender}"
        if name not in self._ends:
            self._server.create_topic(name, PARTITIONS)
            self._ends[name] = 0
        return name

    def check(self, topic: str, count: int) -> None:
        """Compares how far the log's ends moved with what was confirmed."""
        marks = [
            self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
            for partition in range(PARTITIONS)
        ]
        end = sum(high for _, high in marks)
        if end - self._ends[topic] != count:
            raise WrongCount(f"{count} records were confirmed, and {topic} grew by {end - self._ends[topic]}")
        self._ends[topic] = end

    def close(self) -> None:
        """Disconnects."""
        self._consumer.close()


def run(*, quick: bool, rounds: int, seed: int) -> Outcome:
    """Measures; raises `WrongCount` when a record is missing or there twice."""
    scale = 0.1 if quick else 1.0
    jobs = [Job(row, True, max(20, int(count * scale))) for row, count in _COUNTS.items()]
    profile = [Job(row, True, int(150_000 * scale)) for row in (GATHER_1000, WORKERS, BULK)]
    with kafka() as server:
        topics = Topics(server)
        try:
            figures = play(
                "kafka",
                server.bootstrap_servers,
                jobs,
                rounds,
                profile=profile,
                topic=topics.topic,
                check=topics.check,
                progress=progress,
                seed=seed,
            )
        finally:
            topics.close()
        server.create_topic("bench-memory", PARTITIONS)
        url = f"kafka://{server.bootstrap_servers}"
        held = memory.measure(url, "bench-memory", server.pause, server.resume, quick=quick)
    return Outcome("kafka", f"Apache Kafka {server.version}", figures, KAFKA, rounds, {}, held)
