"""The harness of `amqp://` on Apache Qpid Broker-J: `--harness cqrs_brokers_testkit.harnesses.qpid:QpidHarness`."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cqrs_brokers import Message
from cqrs_brokers_testkit.certificates import make_certificates
from cqrs_brokers_testkit.conformance import Harness, Record, Refusal, Target
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.readers import bind_queue, delete_queue, drain_queue
from cqrs_brokers_testkit.servers import QpidServer, qpid
from cqrs_brokers_testkit.servers._processes import LOOPBACK

__all__ = ["QpidHarness"]

_RULES = (
    {"identity": "reader", "objectType": "EXCHANGE", "operation": "PUBLISH", "outcome": "DENY"},
    {"identity": "stranger", "objectType": "VIRTUALHOST", "operation": "ACCESS", "outcome": "DENY"},
)


class QpidHarness(Harness):
    """`amqp://` on a private Apache Qpid Broker-J behind the fault proxy."""

    url = "amqp://guest:guest@localhost/%2F"
    options: Mapping[str, Any] = {"heartbeat": 2}  # a dead connection is noticed after three of them
    notices_within = 10.0
    not_applicable: Mapping[str, str] = {
        "delivery.nack-is-not-success": "Qpid gives a message to all queues or, with a full one among them, to none",
        "delivery.blocked-is-waited-out": "Qpid has no alarm; a queue that is full refuses its messages",
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
        users = {"reader": "secret", "stranger": "secret"}
        self._server: QpidServer = self._stack.enter_context(
            qpid(certificates=self._certificates, users=users, rules=_RULES)
        )
        self.proxy = self._stack.enter_context(FaultProxy((LOOPBACK, self._server.port)))
        self.url = self._url()

    def stop(self) -> None:
        self._stack.close()

    def server_version(self) -> str:
        return f"Apache Qpid Broker-J {self._server.version}"

    def create_topic(self, topic: str) -> None:
        if not topic.strip("."):
            raise ValueError("Qpid cannot bind a key that has only dots")
        queue = f"test-{uuid.uuid4()}"  # by name: Qpid knows no x-expires, which an unnamed one would get
        self._queues[topic] = bind_queue(self._server.reader_url, "events", topic, queue)

    def delete_topic(self, topic: str) -> None:
        if topic in self._queues:
            delete_queue(self._server.reader_url, self._queues.pop(topic))

    def read_back(self, topic: str, count: int) -> Sequence[Record]:
        with self._lock:
            have = self._records[topic]
            have += drain_queue(self._server.reader_url, self._queues[topic], max(0, count - len(have)) or None)
            return list(have)

    def make_unroutable(self) -> Target:
        return Target(self.url, self.new_topic_name())

    def missing_destination(self) -> Target:
        return Target(f"{self.url}?exchange=missing-{uuid.uuid4().hex}&declare=never", "orders")

    def forbidden_destination(self) -> Target:
        bind_queue(self._server.reader_url, "events", "forbidden", "forbidden")
        return Target(f"{self._url('reader', 'secret')}?declare=never", "forbidden")

    def refuse_next(self) -> Refusal:
        topic, queue = self.new_topic_name(), f"test-{uuid.uuid4()}"
        limits: dict[str, Any] = {"qpid.policy_type": "REJECT", "qpid.max_size": 4096}
        self._queues[topic] = bind_queue(self._server.reader_url, "events", topic, queue, **limits)
        return Refusal(self.url, topic, Message("E", topic, b"x" * 8192))

    def wrong_password_url(self) -> str:
        return self._url("guest", "wrong")

    def wrong_permission_url(self) -> str:
        return self._url("stranger", "secret")

    def tls_destination(self) -> Target:
        topic = self.new_topic_name()
        self.create_topic(topic)
        return Target(self._tls_url(f"?ssl_cafile={self._certificates.ca}"), topic)

    def tls_failures(self) -> Mapping[str, str]:
        ca = self._certificates.ca
        return {
            "an unknown authority": self._tls_url(f"?ssl_cafile={self._certificates.other_ca}"),
            "the system's authorities": self._tls_url(""),
            "plain text instead of TLS": f"amqps://guest:guest@{LOOPBACK}:{self._server.port}/%2F?ssl_cafile={ca}",
        }

    def kill(self) -> None:
        self._server.kill()

    def restart(self) -> None:
        self._server.start()

    def _url(self, user: str = "guest", password: str = "guest") -> str:  # noqa: S107 - of a private server
        return f"amqp://{user}:{password}@{LOOPBACK}:{self._through().port}/%2F"

    def _tls_url(self, query: str) -> str:
        return f"amqps://guest:guest@localhost:{self._server.tls_port}/%2F{query}"
