"""Connections beside those that produce requests use: to greet a host, and to ask for metadata.

`create_conn` is what aiokafka's client makes its connections with; tests/kafka/test_connections.py has a test for each
use of it, which turns red when aiokafka changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine, MutableMapping, Sequence
from typing import Any, NamedTuple

from aiokafka.conn import create_conn
from aiokafka.errors import KafkaError
from aiokafka.protocol.metadata import MetadataRequest

from cqrs_brokers.url import Host

from .settings import KafkaSettings

__all__ = ["Greeting", "HungUpError", "Inquirer", "greet", "looked_at"]

PATIENCE = 0.3
"""A node that has not answered for so long, in seconds, need not: the next one is asked too."""


class Greeting(NamedTuple):
    """A host that answered.

    Attributes:
        host: The host.
        answer: Its metadata response.
    """

    host: Host
    answer: Any

    @property
    def nodes(self) -> set[Host]:
        """The nodes that it names."""
        return {Host(name, port) for _, name, port, *_ in self.answer.brokers}


async def greet(settings: KafkaSettings, host: Host) -> Greeting:
    """Connects to one host as the producer will, and asks for the nodes: what `bootstrap()` does, but with its reasons.

    Raises:
        OSError, KafkaError, ssl.SSLError, TimeoutError: Whatever went wrong; `judge_greeting` in `probe` knows.
    """
    connection = await create_conn(host.host, host.port, **settings.client_arguments())
    try:
        try:
            return Greeting(host, await connection.send(MetadataRequest([])))
        except KafkaError as error:
            raise HungUpError from error
    finally:
        closed = connection.close()
        with contextlib.suppress(Exception):
            await asyncio.wait((closed,), timeout=0.2)


class HungUpError(Exception):
    """The peer let us in and closed the connection at the first request."""


def looked_at(task: asyncio.Task[Any]) -> None:
    """For tasks whose errors nobody asks for, since another one has answered or all is over: asyncio would complain."""
    if not task.cancelled():
        task.exception()


class Inquirer:
    """Asks the cluster for metadata, on a connection of its own.

    A broker answers the requests of one connection one after the other. aiokafka asks on a connection that it produces
    on too: behind a request that waits for its replicas, and so just when leaders move. And it asks one node after the
    other: a frozen one holds it up for `request_timeout_ms`.

    Args:
        settings: How to connect.
        nodes: The cluster's nodes, as far as they are known.
        kept: Where the connection is kept, for whoever closes those of the client.
        tasks: Where the tasks are that ask, for whoever ends those of the client.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        nodes: Callable[[], Sequence[Host]],
        kept: MutableMapping[Any, Any],
        tasks: set[asyncio.Task[Any]],
    ) -> None:
        self._settings = settings
        self._nodes = nodes
        self._kept = kept
        self._tasks = tasks

    async def ask(self, topics: Sequence[str]) -> Any:
        """The first answer of any node.

        Args:
            topics: About these; the nodes are told in any case.

        Raises:
            OSError, KafkaError, TimeoutError: The last node's failure; none answered.
        """
        request = MetadataRequest(list(topics))
        nodes = list(self._nodes())
        random.shuffle(nodes)
        ways = [self._ask_node(node, request) for node in nodes]
        kept = self._kept.get(self)
        if kept is not None and kept.connected():
            ways.append(self._ask_again(kept, request))
        asking: set[asyncio.Task[Any]] = set()
        failure: BaseException = ConnectionError("no node is known")
        try:
            while ways or asking:
                if ways:
                    asking.add(self._start(ways.pop()))
                done, asking = await asyncio.wait(
                    asking, timeout=PATIENCE if ways else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    error = ConnectionError("cancelled") if task.cancelled() else task.exception()
                    if error is None:
                        return task.result()
                    failure = error
        finally:
            for way in ways:
                way.close()
            for task in asking:
                task.cancel()
            if asking:
                await asyncio.wait(asking, timeout=0.2)
        raise failure

    def _start(self, way: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(way)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(looked_at)
        return task

    async def _ask_again(self, connection: Any, request: MetadataRequest) -> Any:
        try:
            return await connection.send(request)
        except BaseException:  # a cancellation too: another node was faster
            connection.close()
            raise

    async def _ask_node(self, node: Host, request: MetadataRequest) -> Any:
        connection = await create_conn(node.host, node.port, **self._settings.client_arguments())
        answer = await self._ask_again(connection, request)
        old, self._kept[self] = self._kept.get(self), connection
        if old is not None:
            old.close()
        return answer
