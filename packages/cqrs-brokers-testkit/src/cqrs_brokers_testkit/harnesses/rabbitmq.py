"""The harness of `amqp://`: a private RabbitMQ behind the fault proxy."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cqrs_brokers_testkit.certificates import make_certificates
from cqrs_brokers_testkit.conformance import Harness, Record, Target
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.readers import bind_queue, delete_queue, drain_queue
from cqrs_brokers_testkit.servers import RabbitMQNode, rabbitmq
from cqrs_brokers_testkit.servers._processes import LOOPBACK

__all__ = ["RabbitMQHarness"]


class RabbitMQHarness(Harness):
    """`amqp://` on a private RabbitMQ behind the fault proxy."""

    url = "amqp://guest:guest@localhost/%2F"
    options: Mapping[str, Any] = {"heartbeat": 2}  # a dead connection is noticed after three of them
    notices_within = 10.0
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

    def delete_topic(self, topic: str) -> None:
        if topic in self._queues:
            delete_queue(self._node.url, self._queues.pop(topic))

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

    def server_version(self) -> str:
        return f"RabbitMQ {self._node.version}"

    def tls_destination(self) -> Target:
        topic = self.new_topic_name()
        self.create_topic(topic)
        return Target(self._node.url_for(host="localhost", tls=True, ssl_cafile=self._certificates.ca), topic)

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
