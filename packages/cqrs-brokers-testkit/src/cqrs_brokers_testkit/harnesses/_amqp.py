"""The common base of the harnesses of `amqp://`: a private server behind the fault proxy, and queues for topics."""

from __future__ import annotations

import contextlib
import threading
import uuid
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar

from cqrs_brokers_testkit.certificates import Certificates, make_certificates
from cqrs_brokers_testkit.conformance import Forgery, Harness, Record, Target
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.readers import delete_queue, drain_queue
from cqrs_brokers_testkit.servers import QpidServer, RabbitMQNode
from cqrs_brokers_testkit.servers._processes import LOOPBACK

from ._amqp_answers import FORGED

__all__ = ["AMQPHarness"]

Server = TypeVar("Server", RabbitMQNode, QpidServer)


class AMQPHarness(Harness, Generic[Server]):
    """`amqp://` on a private server."""

    url = "amqp://guest:guest@localhost/%2F"
    options: Mapping[str, Any] = {"heartbeat": 2}  # a dead connection is noticed after three of them
    notices_within = 10.0

    def __init__(self) -> None:
        super().__init__()
        self._stack = contextlib.ExitStack()
        self._records: dict[str, list[Record]] = defaultdict(list)
        self._queues: dict[str, str] = {}
        self._lock = threading.Lock()

    @abstractmethod
    def _serve(self) -> contextlib.AbstractContextManager[Server]:
        """Returns a context manager that runs the server with `self._certificates`."""

    @abstractmethod
    def _url(self, user: str = "guest", password: str = "guest") -> str:  # noqa: S107 - of a private server
        """The server's URL through the proxy."""

    @property
    @abstractmethod
    def _reader_url(self) -> str:
        """The server's URL without the proxy, for reading back and for binding queues."""

    def start(self) -> None:
        folder = Path(self._stack.enter_context(TemporaryDirectory()))
        self._certificates: Certificates = make_certificates(folder)
        self._server: Server = self._stack.enter_context(self._serve())
        self.proxy = self._stack.enter_context(FaultProxy((LOOPBACK, self._server.port)))
        self.url = self._url()

    def stop(self) -> None:
        self._stack.close()

    def delete_topic(self, topic: str) -> None:
        if topic in self._queues:
            delete_queue(self._reader_url, self._queues.pop(topic))

    def read_back(self, topic: str, count: int) -> Sequence[Record]:
        with self._lock:
            have = self._records[topic]
            have += drain_queue(self._reader_url, self._queues[topic], max(0, count - len(have)) or None)
            return list(have)

    def make_unroutable(self) -> Target:
        return Target(self.url, self.new_topic_name())

    def missing_destination(self) -> Target:
        return Target(f"{self.url}?exchange=missing-{uuid.uuid4().hex}&declare=never", "orders")

    def wrong_password_url(self) -> str:
        return self._url("guest", "wrong")

    def forged_answers(self) -> Mapping[str, Forgery]:
        return FORGED

    def kill(self) -> None:
        self._server.kill()

    def restart(self) -> None:
        self._server.start()
