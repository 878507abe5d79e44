"""Connects to the nodes of a cluster, learns which node leads which partition, and gets producer ids."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cqrs_brokers.exceptions import (
    AuthorizationError,
    ConnectError,
    ConnectionLostError,
    DeliveryError,
    DestinationNotFoundError,
    InvalidMessageError,
    ProtocolError,
    PublishForbiddenError,
    UnreachableError,
)
from cqrs_brokers.tasks import retrieve_exception
from cqrs_brokers.url import Host

from ._client import Connection, TokenError, errors, why_unsupported
from ._metadata import Metadata
from ._node import Node
from ._partition import Partition, State
from ._probe import first_that_answers, judge_greeting
from ._settings import KafkaSettings
from ._topic import Topic

if TYPE_CHECKING:
    from ._driver import KafkaDriver

__all__ = ["Cluster"]

TOPIC_GRACE = 3.0
"""A topic with messages counts as missing when answers have named no partition of the topic for this many seconds.
Until then we ask again, because the topic may just have been created."""
TOPIC_GRACE_AGAIN = 0.3
"""The same as `TOPIC_GRACE`, but for a topic that counted as missing before and was not found since."""
TOPIC_MISSING_FOR = 3.0
"""A topic counts as missing for this many seconds. Afterwards the next message for the topic makes us ask again."""
ID_PAUSE = 0.1
"""After this many seconds we ask for a producer id again, or try again to connect to the nodes."""
_TOPIC_MISSING = "the topic does not exist, and the cluster has not created it: create it"

_TOPIC_FORBIDDEN = "the user may not use the topic: grant it WRITE and DESCRIBE on the topic"
_NO_PARTITIONS = frozenset({0, 3, 5, 38})
"""Codes of a topic without partitions in a metadata response: no error, unknown, being created, and not created because
there are too few nodes. After any other code messages wait, because the topic may exist."""
_ID_COMES_LATER = frozenset({7, 13, 14, 15, 16, 51})
"""Error codes of InitProducerId for states that pass by themselves: the coordinator is loading, moving or busy, or does
not answer."""


class Cluster:
    """The nodes of a cluster and our connections to them. Each call of `KafkaDriver.connect()` makes a new `Cluster`.

    Args:
        owner: The driver.
        settings: Where and how to connect.

    Attributes:
        nodes: The nodes, by their ids.
        leaderless: Partitions in the state READY whose leader is not known. A partition that has ceased to be READY
            stays here until the next answer about leaders.
        metadata: The object that asks the cluster for its nodes and leaders.
    """

    def __init__(self, owner: KafkaDriver, settings: KafkaSettings) -> None:
        self.nodes: dict[int, Node] = {}
        self.leaderless: dict[Partition, None] = {}
        self._owner = owner
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._tasks = owner.tasks
        self.metadata = Metadata(settings, owner.tasks, self._addresses, self._topics_in_use, self._learnt)
        self._renewing = False

    # -- connecting ---------------------------------------------------------------------------------------------------

    async def connect(self, *, trusted: bool) -> None:
        """Finds a bootstrap host that answers, and connects to a node. With idempotence this node must also give a
        producer id. Then the method starts the task that keeps the metadata up to date.

        Args:
            trusted: Whether the settings have worked before.

        Raises:
            ConnectError: One of these steps failed, or the plugin cannot use the installed version of aiokafka.
        """
        unsupported = why_unsupported()
        if unsupported is not None:
            raise ProtocolError(unsupported)
        timeout = self._settings.options.connect_timeout
        until = self._loop.time() + timeout
        greeting = await first_that_answers(self._settings, timeout=timeout, trusted=trusted)
        self._learn_nodes(greeting.answer.brokers)
        await self._reach(until)
        if self._topics_in_use():
            self.metadata.request()
        self.metadata.start()

    async def _reach(self, until: float) -> None:
        """Connects to a node that can take messages. With idempotence this node must also give a producer id."""
        reached: Node | None = None
        try:
            async with asyncio.timeout_at(until):
                while reached is None:
                    reached = await self._reach_a_node()
                while self._settings.options.enable_idempotence:
                    if reached.connection is None:
                        raise ConnectionResetError
                    if await self._ask_for_id(reached.connection):
                        return
                    await asyncio.sleep(ID_PAUSE)
        except TimeoutError as error:
            raise self._why_unreachable(reached, until) from error
        except (OSError, errors.KafkaError) as error:
            text = f"the cluster answered, but gave no producer id ({type(error).__name__}): see the logs of its nodes"
            raise UnreachableError(text) from error

    async def _reach_a_node(self) -> Node | None:
        """Tries to connect to all nodes at once. Returns the node that is reached first. None: all attempts failed.

        Raises:
            ProtocolError: A node is too old.
            ConnectError: All attempts failed, and at least one of the errors is certain (see `Finding.inferred`). This
                error is permanent, or it says that the token provider gave no token.
        """
        attempts = {self._tasks.spawn(node.open()): node for node in self.nodes.values()}
        for attempt in attempts:
            attempt.add_done_callback(retrieve_exception)
        waiting = set(attempts)
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for attempt in done:
                    error = attempt.exception()
                    if error is None:
                        return attempts[attempt]
                    if isinstance(error, ProtocolError):  # trying again would not help
                        raise error
        finally:
            for attempt in waiting:
                attempt.cancel()
        for attempt, node in attempts.items():
            error = attempt.exception()
            assert error is not None
            finding = judge_greeting(error, node.host, self._settings)
            if not finding.inferred and (finding.error.permanent or isinstance(error, TokenError)):
                raise finding.error
        await asyncio.sleep(ID_PAUSE)
        return None

    def _why_unreachable(self, reached: Node | None, until: float) -> UnreachableError:
        timeout = self._settings.options.connect_timeout
        timeout -= max(0.0, round(until - self._loop.time(), 1))  # `request_timeout_ms` may be shorter
        if reached is not None:
            return UnreachableError(
                f"node {reached.number} of the cluster was reached, but gave no producer id within "
                f"{timeout:g} s: see its log, and whether the cluster has an active controller"
            )
        nodes = ", ".join(map(str, self._addresses()))
        return UnreachableError(
            f"the bootstrap server answers, but none of the nodes it advertises can be reached within "
            f"{timeout:g} s ({nodes}): check advertised.listeners and the network"
        )

    async def look_again(self) -> ConnectError | None:
        """Asks the bootstrap servers whether the cluster is still there. Without this question the driver would try the
        nodes for ever.

        Returns:
            The reason why the cluster cannot be used any more. None: a bootstrap server answers, and names a known node
            or no node at all.

        Raises:
            UnreachableError: No bootstrap server answers at the moment.
        """
        try:
            greeting = await first_that_answers(self._settings, timeout=2.0, trusted=True)
        except UnreachableError:
            raise
        except ConnectError as error:
            return error
        if greeting.nodes and greeting.nodes.isdisjoint(self._addresses()):
            # Only known nodes are asked for metadata, so we would never learn of a new cluster.
            return UnreachableError(f"{greeting.host} belongs to another cluster than before: it names other nodes")
        return None

    # -- producer ids -------------------------------------------------------------------------------------------------

    def renew_id(self) -> None:
        """Starts a task that gets another producer id, and then resumes the partitions that wait for the id. If such a
        task runs already, nothing happens."""
        if not self._renewing:
            self._renewing = True
            self._tasks.spawn(self._renew_id())

    async def _renew_id(self) -> None:
        while True:
            if await self._renew_id_once():
                break
            await asyncio.sleep(ID_PAUSE)
        self._renewing = False
        self._owner.resume(State.NO_ID)

    async def _renew_id_once(self) -> bool:
        for host in self._addresses():
            with contextlib.suppress(Exception):  # aiokafka's code for a log-in may raise any error
                connection = await Connection.open(self._settings, host)
                try:
                    if await self._ask_for_id(connection):
                        return True
                finally:
                    connection.drop()
        return False

    async def _ask_for_id(self, connection: Connection) -> bool:
        code, producer_id, epoch = await connection.producer_id()
        if code == 0:
            self._owner.producer_id, self._owner.epoch = producer_id, epoch
            return True
        if code in (31, 53):
            raise AuthorizationError("the user may not use the cluster: grant it IDEMPOTENT_WRITE on the cluster")
        if code not in _ID_COMES_LATER:
            raise UnreachableError(f"the cluster gave no producer id (code {code}): see the logs of its nodes")
        return False

    # -- topics and leaders -------------------------------------------------------------------------------------------

    def _addresses(self) -> list[Host]:
        return [node.host for node in self.nodes.values()]

    def _topics_in_use(self) -> list[str]:
        return [name for name, topic in self._owner.topics.items() if topic.partitions or topic.waiting]

    def _learnt(self, answer: Any) -> bool:
        """Updates nodes, partitions and leaders from an answer, and writes requests. Returns whether a leader or topic
        is still missing."""
        self._learn_nodes(answer.brokers)
        for code, name, *_, partitions in answer.topics:
            topic = self._owner.topics.get(name)
            if topic is None:
                continue
            if code == 0 and partitions:
                self._learn_partitions(topic, partitions)
            elif code == 29:
                self._missing(topic, PublishForbiddenError(_TOPIC_FORBIDDEN))
            elif code == 17:
                self._missing(topic, InvalidMessageError("the broker refuses the topic's name: use another name"))
            elif topic.busy and code in _NO_PARTITIONS:
                self._look_for(topic)
        self._owner.flush()
        # Some partitions have nothing to send now: the topic is gone, or the deadlines of the records have passed.
        self.leaderless = {each: None for each in self.leaderless if each.state is State.READY}
        missing = bool(self.leaderless)
        for topic in self._owner.topics.values():
            if not topic.busy:  # no message for the topic waits or is in flight
                topic.unknown_since = None
            missing = missing or bool(topic.waiting) or topic.unknown_since is not None
        return missing

    def _learn_nodes(self, brokers: Sequence[Any]) -> None:
        known = {number: Host(name, port) for number, name, port, *_ in brokers}
        for number, host in known.items():
            node = self.nodes.get(number)
            if node is None:
                self.nodes[number] = Node(self._owner, self._settings, number, host)
            elif node.host != host:
                node.moved(host)
        for number in [number for number in self.nodes if number not in known]:
            if self.nodes[number].idle and not self.nodes[number].ready:
                self.nodes.pop(number).drop()

    def _learn_partitions(self, topic: Topic, partitions: Sequence[Any]) -> None:
        topic.found(len(partitions))
        for _, number, leader, *_ in partitions:
            if number < len(topic.partitions):
                self._lead(topic.partitions[number], self.nodes.get(leader))
        self._give_up_the_gone(topic, "the partition is gone, and the outcome of its last batch is not known")

    def _lead(self, partition: Partition, node: Node | None) -> None:
        before = partition.leader
        if node is before and partition not in self.leaderless:
            return
        partition.leader = node
        if partition.state is State.READY:
            self.leaderless.pop(partition, None)
            if before is not None:
                before.ready.pop(partition, None)
            self._owner.ready(partition)
        elif partition.state is State.PAUSED and node is not None:
            partition.resume()

    def _look_for(self, topic: Topic) -> None:
        """Handles an answer that names no partition of the topic. The topic may have been created a moment ago. So the
        topic counts as missing only if such answers come for `TOPIC_GRACE` or `TOPIC_GRACE_AGAIN`."""
        now = self._loop.time()
        if topic.unknown_since is None:
            topic.unknown_since = now
        elif now - topic.unknown_since >= (TOPIC_GRACE if topic.missing is None else TOPIC_GRACE_AGAIN):
            self._missing(topic, DestinationNotFoundError(_TOPIC_MISSING))

    def _missing(self, topic: Topic, error: DeliveryError) -> None:
        topic.not_found(error, self._loop.time() + TOPIC_MISSING_FOR)
        self._give_up_the_gone(topic, "the topic cannot be used, and the outcome of the batch is not known")

    def _give_up_the_gone(self, topic: Topic, text: str) -> None:
        for partition in topic.gone():
            self.leaderless.pop(partition, None)
            if partition.state is not State.IN_FLIGHT:
                partition.give_up(ConnectionLostError(f"{text}: the message may have been written"))

    # -- the end ------------------------------------------------------------------------------------------------------

    def drop(self) -> list[Connection]:
        """Drops the connections, and cancels the tasks that connect to nodes and ask for metadata. Calls
        `Partition.lost` for each batch in flight, because no answer can come any more. Records that wait stay in their
        partitions. Afterwards no partition has a leader.

        Returns:
            The connections that were dropped. Their sockets are closed when `ended()` returns.
        """
        nodes, self.nodes = self.nodes, {}
        closing = [self.metadata.drop(), *(node.connection for node in nodes.values())]
        for node in nodes.values():
            node.abandon()
        for topic in self._owner.topics.values():
            for partition in topic.all_partitions():
                partition.leader = None
        for node in nodes.values():
            node.drop()
        return [connection for connection in closing if connection is not None]
