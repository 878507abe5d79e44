"""The harnesses of the four brokers that we ship."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from confluent_kafka import admin as kafka_admin

from cqrs_broker_memory import published
from cqrs_brokers import Message
from cqrs_brokers_testkit.certificates import make_certificates
from cqrs_brokers_testkit.conformance import Harness, Record, Refusal, Target
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.readers import bind_queue, drain_queue, drain_topic
from cqrs_brokers_testkit.servers import KafkaCluster, RabbitMQNode, kafka, rabbitmq
from cqrs_brokers_testkit.servers.processes import LOOPBACK

NO_CREDENTIALS = "it knows no users"
NO_TLS = "it has no connection that could be encrypted"
NO_NACK = "it has no queues of which one could refuse what another holds"


class MemoryHarness(Harness):
    """`memory://`, read back through its `published`."""

    url = "memory://conformance?capacity=1000000"
    wire = False
    not_applicable: Mapping[str, str] = {
        "delivery.nack-is-not-success": NO_NACK,
        "delivery.missing-destination": "every topic exists",
        "delivery.forbidden-destination": NO_CREDENTIALS,
        "delivery.blocked-is-waited-out": "it is never blocked",
        "delivery.wrong-password": NO_CREDENTIALS,
        "delivery.wrong-permission": NO_CREDENTIALS,
        "delivery.tls-failure": NO_TLS,
    }

    def read_back(self, topic: str, count: int) -> Sequence[Record]:
        """What `published` kept, of all names."""
        return [
            Record(
                topic=record.topic,
                key=record.key,
                name=record.name,
                message_id=str(record.message_id),
                headers=record.headers,
                body=record.body,
                content_type=record.content_type,
                timestamp=record.timestamp,
            )
            for record in published("conformance").find(topic=topic)
        ]

    def refuse_next(self) -> Refusal:
        """The script refuses the first message of a broker."""
        topic = self.new_topic_name()
        return Refusal(f"{self.url}&fail=1", topic, Message("Refused", topic, {}))


class DevnullHarness(Harness):
    """`devnull://` keeps nothing: what can be proven is what it does not promise."""

    url = "devnull://"
    wire = False
    discards = True
    not_applicable: Mapping[str, str] = {
        **MemoryHarness.not_applicable,
        "delivery.refused-is-not-delivered": "it refuses nothing",
        "delivery.refused-spares-its-neighbours": "it refuses nothing",
    }


class RabbitMQHarness(Harness):
    """`amqp://` on a private RabbitMQ behind the fault proxy."""

    url = "amqp://guest:guest@localhost/%2F"
    not_applicable: Mapping[str, str] = {
        "delivery.refused-is-not-delivered": "RabbitMQ refuses no single message but with a nack",
        "delivery.refused-spares-its-neighbours": "RabbitMQ refuses no single message but with a nack",
    }

    def __init__(self) -> None:
        super().__init__()
        self._stack = contextlib.ExitStack()
        self._records: dict[str, list[Record]] = defaultdict(list)
        self._queues: dict[str, str] = {}
        self._lock = threading.Lock()

    def start(self) -> None:
        folder = Path(self._stack.enter_context(TemporaryDirectory()))
        self._certificates = make_certificates(folder)
        self._node: RabbitMQNode = self._stack.enter_context(rabbitmq(certificates=self._certificates))
        self.proxy = self._stack.enter_context(FaultProxy((LOOPBACK, self._node.port)))
        self.url = self._node.url_for(port=self.proxy.port)

    def stop(self) -> None:
        self._stack.close()

    def create_topic(self, topic: str) -> None:
        self._queues[topic] = bind_queue(self._node.url, "events", topic)

    def read_back(self, topic: str, count: int) -> Sequence[Record]:
        with self._lock:
            have = self._records[topic]
            have += drain_queue(self._node.url, self._queues[topic], max(0, count - len(have)) or None)
            return list(have)

    def make_unroutable(self) -> Target:
        return Target(self.url, self.new_topic_name())

    def missing_destination(self) -> Target:
        return Target(f"{self.url}?exchange=missing-{uuid.uuid4().hex}&declare=never", "orders")

    def forbidden_destination(self) -> Target:
        self._node.add_user("reader", "secret", vhost=None)
        self._node.set_permissions("reader", write="^$")
        bind_queue(self._node.url, "events", "forbidden")
        url = self._node.url_for("reader", "secret", port=self._proxy_port, declare="never")
        return Target(url, "forbidden")

    def nacking_destination(self) -> Target:
        topic = self.new_topic_name()
        self.create_topic(topic)
        full: dict[str, Any] = {"x-max-length": 0, "x-overflow": "reject-publish", "x-expires": 600_000}
        bind_queue(self._node.url, "events", topic, f"full-{topic}", **full)
        return Target(self.url, topic)

    def wrong_password_url(self) -> str:
        return self._node.url_for("guest", "wrong", port=self._proxy_port)

    def wrong_permission_url(self) -> str:
        self._node.add_vhost("locked", user=None)
        return self._node.url_for(vhost="locked", port=self._proxy_port)

    def tls_failures(self) -> Mapping[str, str]:
        ca, other = self._certificates.ca, self._certificates.other_ca
        return {
            "an unknown authority": self._node.url_for(tls=True, ssl_cafile=other),
            "the system's authorities": self._node.url_for(tls=True),
            "plain text instead of TLS": self._node.url_for(port=self._node.port, ssl_cafile=ca).replace(
                "amqp:", "amqps:"
            ),
        }

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        self._node.set_memory_alarm(True)
        try:
            yield
        finally:
            self._node.set_memory_alarm(False)

    def kill(self) -> None:
        self._node.kill()

    def restart(self) -> None:
        self._node.start()

    @property
    def _proxy_port(self) -> int:
        return self._through().port


class KafkaHarness(Harness):
    """`kafka://` on a private Apache Kafka behind the fault proxy."""

    url = "kafka://localhost:9092"
    illegal_topics = ("a/b", "a b", "Grüße", "..", "x" * 250)
    not_applicable: Mapping[str, str] = {
        "delivery.nack-is-not-success": "Kafka has no nack: it answers with error codes",
        "delivery.blocked-is-waited-out": "Kafka has no state in which it takes no messages but keeps connections",
    }
    users: Mapping[str, str] = {"app": "app-secret", "writer": "writer-secret", "nobody": "nobody-secret"}

    def __init__(self) -> None:
        super().__init__()
        self._stack = contextlib.ExitStack()

    def start(self) -> None:
        folder = Path(self._stack.enter_context(TemporaryDirectory()))
        self._certificates = make_certificates(folder)
        self.proxy = self._stack.enter_context(FaultProxy())
        self._cluster: KafkaCluster = self._stack.enter_context(
            kafka(
                advertised=(self.proxy.host, self.proxy.port),
                sasl_users=self.users,
                certificates=self._certificates,
                properties={
                    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                    "super.users": "User:ANONYMOUS;User:app",
                    "allow.everyone.if.no.acl.found": "false",
                },
            )
        )
        self.proxy.target = (LOOPBACK, self._cluster.nodes[0].ports["PLAINTEXT"])
        self.url = f"kafka://{self.proxy.address}"

    def stop(self) -> None:
        self._stack.close()

    def create_topic(self, topic: str) -> None:
        self._cluster.create_topic(topic)

    def read_back(self, topic: str, count: int) -> Sequence[Record]:
        return drain_topic(self._cluster.reader_bootstrap_servers, topic, count or None)

    def url_with_credentials(self, user: str, password: str) -> str:
        listener = self._cluster.bootstrap("SASL_PLAINTEXT") if hasattr(self, "_cluster") else "localhost:9092"
        sasl = f"security_protocol=SASL_PLAINTEXT&sasl_plain_username={user}&sasl_plain_password={password}"
        return f"kafka://{listener}?{sasl}"

    def refuse_next(self) -> Refusal:
        topic = self.new_topic_name()
        self._cluster.create_topic(topic, config={"max.message.bytes": "20000"})
        return Refusal(self.url, topic, Message("Refused", topic, bytes(50_000)))

    def missing_destination(self) -> Target:
        return Target(self.url, self.new_topic_name())

    def forbidden_destination(self) -> Target:
        topic = self.new_topic_name()
        self.create_topic(topic)
        # A producer is let in when it may write to any topic at all.
        names: Any = kafka_admin
        rule = names.AclBinding(
            names.ResourceType.TOPIC,
            "elsewhere",
            names.ResourcePatternType.LITERAL,
            "User:writer",
            "*",
            names.AclOperation.WRITE,
            names.AclPermissionType.ALLOW,
        )
        admin = names.AdminClient({"bootstrap.servers": self._cluster.reader_bootstrap_servers, "log_level": 0})
        for future in admin.create_acls([rule]).values():
            future.result(10.0)
        return Target(self.url_with_credentials("writer", self.users["writer"]), topic)

    def wrong_password_url(self) -> str:
        return self.url_with_credentials("app", "wrong")

    def wrong_permission_url(self) -> str:
        return self.url_with_credentials("nobody", self.users["nobody"])

    def tls_failures(self) -> Mapping[str, str]:
        tls = f"kafka://{self._cluster.bootstrap('SSL')}?security_protocol=SSL"
        plain = f"kafka://{self._cluster.nodes[0].address}?security_protocol=SSL"
        return {
            "an unknown authority": f"{tls}&ssl_cafile={self._certificates.other_ca}",
            "the system's authorities": tls,
            "plain text instead of TLS": f"{plain}&ssl_cafile={self._certificates.ca}",
        }

    def kill(self) -> None:
        self._cluster.kill()

    def restart(self) -> None:
        self._cluster.start()


HARNESSES: dict[str, type[Harness]] = {
    "memory": MemoryHarness,
    "devnull": DevnullHarness,
    "amqp": RabbitMQHarness,
    "kafka": KafkaHarness,
}
