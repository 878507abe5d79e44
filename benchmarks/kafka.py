"""The benchmark against Apache Kafka."""

from __future__ import annotations

import time
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from cqrs_brokers_testkit.servers import KafkaCluster, kafka_cluster

from . import memory
from .goals import KAFKA
from .report import Outcome, progress
from .rounds import WrongCount, play
from .workloads import BULK, GATHER_100, GATHER_1000, HOT_KEY, LATENCY, SEQUENTIAL, WORKERS, Job

__all__ = ["run"]

PARTITIONS = 6
_ENDS_TIMEOUT = 5.0
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
            self._server.create_topic(name, PARTITIONS, len(self._server.nodes))
            self._ends[name] = 0
        return name

    def check(self, topic: str, count: int) -> None:
        """Compares how far the log's ends moved with what was confirmed. The ends that consumers see come a little
        later when other nodes have copies and a client asks for one confirm (`acks=1`)."""
        deadline = time.monotonic() + _ENDS_TIMEOUT
        while (grown := self._end(topic) - self._ends[topic]) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        if grown != count:
            raise WrongCount(f"{count} records were confirmed, and {topic} grew by {grown}")
        self._ends[topic] += grown

    def _end(self, topic: str) -> int:
        marks = [
            self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
            for partition in range(PARTITIONS)
        ]
        return sum(high for _, high in marks)

    def close(self) -> None:
        """Disconnects."""
        self._consumer.close()


def run(*, quick: bool, rounds: int, seed: int, nodes: int = 1) -> Outcome:
    """Measures; raises `WrongCount` when a record is missing or there twice.

    Every node has a copy of each partition. The goals, the memory and the profiles are those of one node.
    """
    scale = 0.1 if quick else 1.0
    jobs = [Job(row, True, max(20, int(count * scale))) for row, count in _COUNTS.items()]
    profile = [Job(row, True, int(150_000 * scale)) for row in (GATHER_1000, WORKERS, BULK)]
    with kafka_cluster(nodes) as server:
        topics = Topics(server)
        first = server.bootstrap_servers.partition(",")[0]  # FastStream takes a list in one text for one host
        try:
            figures = play(
                "kafka",
                first,
                jobs,
                rounds,
                profile=profile if nodes == 1 else [],
                topic=topics.topic,
                check=topics.check,
                progress=progress,
                seed=seed,
            )
        finally:
            topics.close()
        name = f"Apache Kafka {server.version}"
        if nodes > 1:
            return Outcome("kafka", f"{name}, {nodes} nodes", figures, (), rounds, {}, None, nodes)
        server.create_topic("bench-memory", PARTITIONS)
        url = f"kafka://{server.bootstrap_servers}"
        held = memory.measure(url, "bench-memory", server.pause, server.resume, quick=quick)
    return Outcome("kafka", name, figures, KAFKA, rounds, {}, held)
