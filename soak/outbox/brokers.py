"""The brokers of a soak: how a topic is refused, how they are restarted, how an independent client reads them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pika

from cqrs_brokers_testkit.readers import Record, drain_topic
from cqrs_brokers_testkit.servers import kafka, rabbitmq

__all__ = ["TOPICS", "Kafka", "Rabbit", "started"]

TOPICS = ("orders", "parcels")
REFUSED = "parcels"


class Rabbit:
    """RabbitMQ: one queue for each topic, in one exchange."""

    def __init__(self, node: Any) -> None:
        self.node = node
        self.name = f"RabbitMQ {node.version}"
        self.url = f"{node.url}?exchange=soak&delivery_timeout=2s"
        self._bind(TOPICS)

    def _bind(self, topics: tuple[str, ...]) -> None:
        with pika.BlockingConnection(pika.URLParameters(self.node.url)) as connection:
            channel = connection.channel()
            channel.exchange_declare("soak", "topic", durable=True)
            for topic in topics:
                channel.queue_declare(topic, durable=True)
                channel.queue_bind(topic, "soak", topic)

    def refuse(self) -> None:
        with pika.BlockingConnection(pika.URLParameters(self.node.url)) as connection:
            connection.channel().queue_unbind(REFUSED, "soak", REFUSED)

    def accept(self) -> None:
        self._bind((REFUSED,))

    def restart(self) -> None:
        self.node.kill()
        self.node.start()

    def read(self) -> list[tuple[str, str]]:
        found = []
        with pika.BlockingConnection(pika.URLParameters(self.node.url)) as connection:
            channel = connection.channel()
            channel.basic_qos(prefetch_count=5000)
            for topic in TOPICS:
                for method, properties, _ in channel.consume(topic, auto_ack=True, inactivity_timeout=3):
                    if method is None:
                        break
                    found.append((topic, properties.message_id))
                channel.cancel()
        return found


class Kafka:
    """Kafka: four partitions for each topic; a topic is refused by its own limit of a record's size."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.name = f"Kafka {cluster.version}"
        for topic in TOPICS:
            cluster.create_topic(topic, partitions=4)
        self.url = f"{cluster.url}?delivery_timeout=2s"

    def refuse(self) -> None:
        self._limit("10")

    def accept(self) -> None:
        self._limit("1000000")

    def _limit(self, size: str) -> None:
        from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

        admin = AdminClient({"bootstrap.servers": self.cluster.bootstrap_servers})
        entry = ConfigEntry("max.message.bytes", size, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ConfigResource.Type.TOPIC, REFUSED, incremental_configs=[entry])
        for future in admin.incremental_alter_configs([resource]).values():
            future.result(30)

    def restart(self) -> None:
        self.cluster.nodes[0].kill()
        self.cluster.nodes[0].start()

    def read(self) -> list[tuple[str, str]]:
        found = []
        for topic in TOPICS:
            records: list[Record] = drain_topic(self.cluster.bootstrap_servers, topic, 0)
            found += [(f"{topic}/{record.partition}", record.message_id or "") for record in records]
        return found


@contextlib.contextmanager
def started(name: str) -> Iterator[Any]:
    """A broker, for as long as the block runs."""
    if name == "kafka":
        with kafka() as cluster:
            yield Kafka(cluster)
    else:
        with rabbitmq() as node:
            yield Rabbit(node)
