"""The harness of `amqp://` on Apache Qpid Broker-J: `--harness cqrs_brokers_testkit.harnesses.qpid:QpidHarness`."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Mapping
from typing import Any

from cqrs_brokers import Message
from cqrs_brokers_testkit.conformance import NotApplicable, Refusal, Target
from cqrs_brokers_testkit.readers import bind_queue
from cqrs_brokers_testkit.servers import QpidServer, qpid
from cqrs_brokers_testkit.servers._processes import LOOPBACK

from ._amqp import AMQPHarness

__all__ = ["QpidHarness"]

_RULES = (
    {"identity": "reader", "objectType": "EXCHANGE", "operation": "PUBLISH", "outcome": "DENY"},
    {"identity": "stranger", "objectType": "VIRTUALHOST", "operation": "ACCESS", "outcome": "DENY"},
)


class QpidHarness(AMQPHarness[QpidServer]):
    """`amqp://` on a private Apache Qpid Broker-J behind the fault proxy."""

    not_applicable: Mapping[str, str] = {
        "delivery.nack-is-not-success": "Qpid gives a message to all queues or, with a full one among them, to none",
        "delivery.blocked-is-waited-out": "Qpid has no alarm; a queue that is full refuses its messages",
    }

    def _serve(self) -> contextlib.AbstractContextManager[QpidServer]:
        users = {"reader": "secret", "stranger": "secret"}
        return qpid(certificates=self._certificates, users=users, rules=_RULES)

    @property
    def _reader_url(self) -> str:
        return self._server.reader_url

    def server_version(self) -> str:
        return f"Apache Qpid Broker-J {self._server.version}"

    def create_topic(self, topic: str) -> None:
        if not topic.strip("."):
            raise ValueError("Qpid cannot bind a key that has only dots")
        queue = f"test-{uuid.uuid4()}"  # by name: Qpid knows no x-expires, which an unnamed one would get
        self._queues[topic] = bind_queue(self._reader_url, "events", topic, queue)

    def forbidden_destination(self) -> Target:
        bind_queue(self._reader_url, "events", "forbidden", "forbidden")
        return Target(f"{self._url('reader', 'secret')}?declare=never", "forbidden")

    def refuse_next(self) -> Refusal:
        topic, queue = self.new_topic_name(), f"test-{uuid.uuid4()}"
        limits: dict[str, Any] = {"qpid.policy_type": "REJECT", "qpid.max_size": 4096}
        self._queues[topic] = bind_queue(self._reader_url, "events", topic, queue, **limits)
        return Refusal(self.url, topic, Message("E", topic, b"x" * 8192))

    def stuck_destination(self) -> Target:
        raise NotApplicable("a queue of Qpid's that cannot take a message refuses it")

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

    def _url(self, user: str = "guest", password: str = "guest") -> str:  # noqa: S107 - of a private server
        return f"amqp://{user}:{password}@{LOOPBACK}:{self._through().port}/%2F"

    def _tls_url(self, query: str) -> str:
        return f"amqps://guest:guest@localhost:{self._server.tls_port}/%2F{query}"
