"""Asks the cluster for its nodes, for the partitions of topics, and for the leaders of the partitions.

The questions have a connection of their own, because a broker answers the requests of one connection one after the
other. On a shared connection the answer about new leaders would come only after the answer to an earlier produce
request. A produce request may take long, because the broker waits for the replicas. If a node does not answer soon, we
also ask another node. So a node that hangs does not delay the answer for long.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from cqrs_brokers.tasks import Tasks, drop_task, retrieve_exception
from cqrs_brokers.url import Host

from ._client import Connection
from ._settings import KafkaSettings

__all__ = ["Metadata"]

logger = logging.getLogger("cqrs_broker_kafka.metadata")

PATIENCE = 0.3
"""If a node has not answered after this many seconds, we also ask another node."""
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 0.5
"""The pause after a question, in seconds. While no node answers, or a leader or a topic is missing, the pause doubles
with each question, up to `LONGEST_PAUSE`. `request(at_once=True)` ends the pause early. `ask` does not wait for it."""


class Metadata:
    """Keeps the metadata of the cluster up to date.

    Args:
        settings: How to connect, and how old metadata may become.
        tasks: Owns the tasks that this class starts.
        nodes: Returns the addresses of the known nodes.
        topics: Returns the names of the topics to ask for.
        learnt: A function that is called with each answer, except answers to a direct call of `ask`. The function
            returns whether a leader or a topic is still missing. If so, we ask again soon.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        tasks: Tasks,
        nodes: Callable[[], Sequence[Host]],
        topics: Callable[[], list[str]],
        learnt: Callable[[Any], bool],
    ) -> None:
        self._settings = settings
        self._age = settings.options.metadata_max_age
        self._tasks = tasks
        self._nodes = nodes
        self._topics = topics
        self._learnt = learnt
        self._kept: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self._hurry = asyncio.Event()

    def start(self) -> None:
        """Starts the task that keeps the metadata up to date."""
        self._task = self._tasks.spawn(self._keep_fresh())

    def request(self, *, at_once: bool = False) -> None:
        """Asks for metadata soon, because something is not known or has changed.

        Args:
            at_once: Whether to skip the pause after the last question. The first message of a topic needs such a
                question.
        """
        self._wanted.set()
        if at_once:
            self._hurry.set()

    async def _keep_fresh(self) -> None:
        pause = FIRST_PAUSE
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._age):
                    await self._wanted.wait()
            self._wanted.clear()
            self._hurry.clear()
            missing, answer = True, None
            try:
                answer = await self.ask(self._topics())
                missing = self._learnt(answer)
            except Exception as error:
                if answer is None:
                    logger.info("no metadata from any node (the last one: %s)", type(error).__name__)
                else:  # a fault of ours must not end this task
                    logger.exception("an answer with metadata cannot be used")
            if missing:
                self._wanted.set()
            else:
                pause = FIRST_PAUSE
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._hurry.wait()
            if missing:
                pause = min(2 * pause, LONGEST_PAUSE)

    async def ask(self, topics: list[str]) -> Any:
        """Asks one node after the other, and returns the first answer. The next node is asked when a node has failed,
        or has not answered within `PATIENCE`.

        Args:
            topics: The topics to ask about. The answer also names the nodes.

        Raises:
            OSError, KafkaError, TimeoutError, TokenError: No node answered, or no node is known. The error is the last
                failure.
        """
        nodes = list(self._nodes())
        random.shuffle(nodes)
        ways = [self._ask_node(node, topics) for node in nodes]
        if self._kept is not None and self._kept.connected() and not self._kept.login_ends():
            ways.append(self._ask_again(self._kept, topics))
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
        task = self._tasks.spawn(way)
        task.add_done_callback(retrieve_exception)
        return task

    async def _ask_again(self, connection: Connection, topics: list[str]) -> Any:
        try:
            answer = await connection.metadata(topics)
            if not answer.brokers:
                raise ConnectionError("the node knows no nodes")
            return answer
        except BaseException:  # a cancellation too: another node was faster
            connection.drop()
            raise

    async def _ask_node(self, node: Host, topics: list[str]) -> Any:
        connection = await Connection.open(self._settings, node)
        answer = await self._ask_again(connection, topics)
        old, self._kept = self._kept, connection
        if old is not None:
            old.drop()
        return answer

    def drop(self) -> Connection | None:
        """Cancels the task and drops the connection. Returns the connection. None: there was no connection."""
        drop_task(self._task)
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.drop()
        return kept
