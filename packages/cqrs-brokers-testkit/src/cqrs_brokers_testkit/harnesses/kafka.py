"""The harness of `kafka://`: a private Apache Kafka behind the fault proxy."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from cqrs_brokers import Message
from cqrs_brokers_testkit._optional import require
from cqrs_brokers_testkit.certificates import make_certificates
from cqrs_brokers_testkit.conformance import Forgery, Harness, NotApplicable, Record, Refusal, SizeLimit, Target
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.readers import drain_topic
from cqrs_brokers_testkit.servers import KafkaCluster, kafka
from cqrs_brokers_testkit.servers._processes import LOOPBACK

from ._kafka_answers import FORGED, without_replicas

__all__ = ["KafkaHarness"]


class KafkaHarness(Harness):
    """`kafka://` on a private Apache Kafka behind the fault proxy."""

    url = "kafka://localhost:9092"
    illegal_topics = ("a/b", "a b", "Grüße", "..", "x" * 250)
    not_applicable: Mapping[str, str] = {
        "delivery.nack-is-not-success": "Kafka has no nack: it answers with error codes",
        "delivery.blocked-is-waited-out": "Kafka has no state in which it takes no messages but keeps connections",
    }
    # A third of the default, because several cases wait until a connection without answers is given up.
    options: Mapping[str, Any] = {"request_timeout_ms": 5_000}
    notices_within = 15.0
    variants = ({"compression_type": "gzip", "linger_ms": 5},)
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
        login = f"sasl_plain_username={quote(user, safe='')}&sasl_plain_password={quote(password, safe='')}"
        return f"kafka://{listener}?security_protocol=SASL_PLAINTEXT&{login}"

    def refuse_next(self) -> Refusal:
        topic = self.limited_size().topic
        return Refusal(self.url, topic, Message("Refused", topic, bytes(50_000)))

    def limited_size(self) -> SizeLimit:
        topic = self.new_topic_name()
        self._cluster.create_topic(topic, config={"max.message.bytes": "20000"})
        return SizeLimit(self.url, topic, 20_000)

    def stuck_destination(self) -> Target:
        topic = self.new_topic_name()
        self._cluster.create_topic(topic)
        self._through().on_connection = without_replicas(topic)
        self.reset()
        return Target(self.url, topic)

    def resume(self) -> None:
        super().resume()
        self._through().on_connection = None

    def forged_answers(self) -> Mapping[str, Forgery]:
        return FORGED

    def dismiss_clients(self) -> None:
        raise NotApplicable("Kafka has no farewell: a node that is shut down closes its sockets")

    def missing_destination(self) -> Target:
        return Target(self.url, self.new_topic_name())

    def forbidden_destination(self) -> Target:
        topic = f"forbidden-{self.new_topic_name()}"
        self.create_topic(topic)
        names = require("confluent_kafka.admin", extra="kafka")
        rule = names.AclBinding(
            names.ResourceType.TOPIC,
            "conformance-",  # all others of the suite
            names.ResourcePatternType.PREFIXED,
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

    def server_version(self) -> str:
        return f"Apache Kafka {self._cluster.version}"

    def tls_destination(self) -> Target:
        topic = self.new_topic_name()
        self.create_topic(topic)
        ssl = f"security_protocol=SSL&ssl_cafile={self._certificates.ca}"
        return Target(f"kafka://{self._cluster.bootstrap('SSL')}?{ssl}", topic)

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
