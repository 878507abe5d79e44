"""The servers that both versions publish to, and the independent count of what arrived."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, Protocol

from benchmarks.rounds import WrongCount

from .rows import MANY_TOPICS, Row

__all__ = ["Server", "serve"]

PARTITIONS = 6
TOPICS = 1000
PREFIX = "bench.many."
"""The row with many topics publishes to this plus a number, from 0 on."""


class Server(Protocol):
    """What differs between brokers."""

    title: str
    url: str

    def prepare(self, topic: str) -> None:
        """Makes a topic ready; called once for each."""

    def check(self, topic: str, row: Row, count: int) -> None:
        """Compares what arrived since the last check with what has receipts.

        Raises:
            WrongCount: It differs.
        """


class NoServer:
    """Core alone: nothing arrives anywhere, the receipts are all there is to count."""

    def __init__(self, title: str, url: str) -> None:
        self.title, self.url = title, url

    def prepare(self, topic: str) -> None:
        """Nothing has to be made."""

    def check(self, topic: str, row: Row, count: int) -> None:
        """There is nothing to compare."""


class KafkaTopics:
    """Counts by the end offsets of the partitions."""

    def __init__(self, server: Any, many: bool) -> None:
        from confluent_kafka import admin

        self.title = f"Apache Kafka {server.version}, one node, {PARTITIONS} partitions"
        # 8ad34bb was seen to stand still for 18 s in the row with many topics, and to end in a DeliveryTimeoutError.
        # With a longer deadline that shows as a slow round.
        self.url = f"kafka://{server.bootstrap_servers}?delivery_timeout=120s"
        self._server = server
        self._module: Any = admin
        self._admin = self._module.AdminClient({"bootstrap.servers": server.bootstrap_servers, "log_level": 0})
        self._ends: dict[str, int] = {}
        if many:
            names = [f"{PREFIX}{number}" for number in range(TOPICS)]
            for start in range(0, TOPICS, 100):
                made = [self._module.NewTopic(name, 1, 1) for name in names[start : start + 100]]
                for future in self._admin.create_topics(made, operation_timeout=30).values():
                    future.result(60)
            self._wait_for_leaders(names)

    def prepare(self, topic: str) -> None:
        """Creates the topic."""
        self._server.create_topic(topic, PARTITIONS)

    def check(self, topic: str, row: Row, count: int) -> None:
        """Asks for the end offsets of every partition that the row publishes to."""
        many = row.name == MANY_TOPICS
        place = PREFIX if many else topic
        end = self._end([(f"{PREFIX}{number}", 0) for number in range(TOPICS)] if many else self._partitions(topic))
        grown, self._ends[place] = end - self._ends.get(place, 0), end
        if grown != count:
            raise WrongCount(f"{row.title}: {count} records have receipts, and {place} grew by {grown}")

    def _partitions(self, topic: str) -> list[tuple[str, int]]:
        return [(topic, number) for number in range(PARTITIONS)]

    def _end(self, partitions: list[tuple[str, int]]) -> int:
        """The sum of the end offsets."""
        from confluent_kafka import TopicPartition

        latest = self._module.OffsetSpec.latest()
        asked = self._admin.list_offsets({TopicPartition(*partition): latest for partition in partitions})
        return sum(future.result(30).offset for future in asked.values())

    def _wait_for_leaders(self, names: list[str]) -> None:
        """Returns when the node leads all the topics that were just created; until then it refuses records.

        Raises:
            TimeoutError: That took longer than two minutes.
        """
        from confluent_kafka import KafkaException

        give_up = time.monotonic() + 120
        while time.monotonic() < give_up:
            # An offset is asked for only when all are known: the client remembers unknown topics for a while.
            if set(names) <= self._admin.list_topics(timeout=30).topics.keys():
                try:
                    self._end([(name, 0) for name in names])
                    return
                except KafkaException:  # known, but not led yet
                    pass
            time.sleep(0.5)
        raise TimeoutError(f"Kafka does not lead all of {len(names)} new topics after two minutes")


class RabbitMQQueues:
    """Counts by the depth of the queues, which are emptied then."""

    def __init__(self, server: Any, many: bool) -> None:
        import pika

        self.title = f"RabbitMQ {server.version}, one node, durable queues"
        self.url = f"{server.url}?declare=passive&exchange=bench"
        self._connection = pika.BlockingConnection(pika.URLParameters(f"{server.url}?heartbeat=0"))
        self._channel: Any = self._connection.channel()
        self._channel.exchange_declare("bench", "topic", durable=True)
        if many:
            self._bind(PREFIX, f"{PREFIX}#")

    def _bind(self, queue: str, pattern: str) -> None:
        self._channel.queue_declare(queue, durable=True)
        self._channel.queue_bind(queue, "bench", pattern)

    def prepare(self, topic: str) -> None:
        """Declares and binds a queue of the topic's name."""
        self._bind(topic, topic)

    def check(self, topic: str, row: Row, count: int) -> None:
        """Waits up to 5 s for the depth, because a queue may count a message after its confirm."""
        queue = PREFIX if row.name == MANY_TOPICS else topic
        give_up = time.monotonic() + 5
        while (depth := self._channel.queue_declare(queue, passive=True).method.message_count) != count:
            if time.monotonic() > give_up:
                raise WrongCount(f"{row.title}: {count} messages have receipts, and {queue} has {depth}")
            time.sleep(0.02)
        self._channel.queue_purge(queue)


@contextlib.contextmanager
def serve(broker: str, rows: list[Row]) -> Iterator[Server]:
    """The server of a broker, started where it has one.

    Args:
        broker: `instant`, `devnull`, `kafka` or `amqp`.
        rows: What will be measured; the topics of the row with many topics are made for that row only.

    Raises:
        ServerUnavailable: It is not on this machine and could not be installed.
    """
    many = any(row.name == MANY_TOPICS for row in rows)
    if broker == "kafka":
        from cqrs_brokers_testkit.servers import kafka

        with kafka() as cluster:
            yield KafkaTopics(cluster, many)
    elif broker == "amqp":
        from cqrs_brokers_testkit.servers import rabbitmq

        with rabbitmq() as node:
            yield RabbitMQQueues(node, many)
    elif broker == "devnull":
        yield NoServer("core, devnull://", "devnull://")
    else:
        yield NoServer("core, a driver that confirms at the next turn of the loop", "instant")
