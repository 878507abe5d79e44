"""The harness of `amqp://`: a private RabbitMQ behind the fault proxy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from cqrs_brokers_testkit.conformance import NotApplicable, SizeLimit, Target
from cqrs_brokers_testkit.readers import bind_queue
from cqrs_brokers_testkit.servers import RabbitMQNode, rabbitmq

from ._amqp import AMQPHarness

__all__ = ["RabbitMQHarness"]


class RabbitMQHarness(AMQPHarness[RabbitMQNode]):
    """`amqp://` on a private RabbitMQ behind the fault proxy."""

    not_applicable: Mapping[str, str] = {
        "delivery.refused-is-not-delivered": "RabbitMQ refuses no single message but with a nack",
        "delivery.refused-spares-its-neighbours": "RabbitMQ refuses no single message but with a nack",
    }

    variants = ({"queue_type": "quorum", "declare": "queue"},)

    def __init__(self) -> None:
        super().__init__()
        self._suspended: list[str] = []

    def _serve(self) -> contextlib.AbstractContextManager[RabbitMQNode]:
        return rabbitmq(certificates=self._certificates)

    @property
    def _reader_url(self) -> str:
        return self._server.url

    def create_topic(self, topic: str) -> None:
        self._queues[topic] = bind_queue(self._reader_url, "events", topic)

    def forbidden_destination(self) -> Target:
        self._server.add_user("reader", "secret", vhost=None)
        self._server.set_permissions("reader", write="^$")
        bind_queue(self._reader_url, "events", "forbidden")
        url = self._server.url_for("reader", "secret", port=self._proxy_port, declare="never")
        return Target(url, "forbidden")

    def nacking_destination(self) -> Target:
        topic = self.new_topic_name()
        self.create_topic(topic)
        full: dict[str, Any] = {"x-max-length": 0, "x-overflow": "reject-publish", "x-expires": 600_000}
        bind_queue(self._reader_url, "events", topic, f"full-{topic}", **full)
        return Target(self.url, topic)

    def stuck_destination(self) -> Target:
        topic = f"stuck-{self.new_topic_name()}"
        bind_queue(self._reader_url, "events", topic, topic, **{"x-queue-type": "quorum"})
        self._quorum_queue("suspend", topic)
        self._suspended.append(topic)
        return Target(self.url, topic)

    def resume(self) -> None:
        super().resume()
        while self._suspended:
            self._quorum_queue("resume", self._suspended.pop())

    def _quorum_queue(self, what: str, topic: str) -> None:
        """Suspends or resumes the leader of the queue. While the leader is suspended, the queue answers nobody, like a
        queue without a majority."""
        self._server.ctl("eval", f"sys:{what}({{'%2F_{topic}', node()}}).")

    def limited_size(self) -> SizeLimit:
        raise NotApplicable("RabbitMQ closes the channel of a message above max_message_size, with all that is on it")

    def dismiss_clients(self) -> None:
        self._server.close_all_connections()

    def wrong_permission_url(self) -> str:
        self._server.add_vhost("locked", user=None)
        return self._server.url_for(vhost="locked", port=self._proxy_port)

    def server_version(self) -> str:
        return f"RabbitMQ {self._server.version}"

    def tls_destination(self) -> Target:
        topic = self.new_topic_name()
        self.create_topic(topic)
        return Target(self._server.url_for(host="localhost", tls=True, ssl_cafile=self._certificates.ca), topic)

    def tls_failures(self) -> Mapping[str, str]:
        ca, other = self._certificates.ca, self._certificates.other_ca
        return {
            "an unknown authority": self._server.url_for(tls=True, ssl_cafile=other),
            "the system's authorities": self._server.url_for(tls=True),
            "plain text instead of TLS": self._server.url_for(port=self._server.port, ssl_cafile=ca).replace(
                "amqp:", "amqps:"
            ),
        }

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        self._server.set_memory_alarm(True)
        try:
            yield
        finally:
            self._server.set_memory_alarm(False)

    def _url(self, user: str = "guest", password: str = "guest") -> str:  # noqa: S107 - of a private server
        return self._server.url_for(user, password, port=self._proxy_port)

    @property
    def _proxy_port(self) -> int:
        return self._through().port
