"""The Kafka driver: messages to partitions, partitions to the nodes that lead them.

Read in this order: `_records` (message to record), `_topic` (which partition), `_partition` (the state machine that
makes outcomes true, with `_codes`), `_node` (requests in flight, with `_produce`), `_metadata` (who leads what),
`_probe` (why there is no connection), `_client` (all that touches aiokafka).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from cqrs_brokers.driver import Capabilities, Delivery, Link, PipelinedDriver
from cqrs_brokers.exceptions import (
    AuthorizationError,
    BackpressureError,
    ConnectError,
    ConnectionLostError,
    DeliveryError,
    DeliveryTimeoutError,
    DestinationNotFoundError,
    InvalidMessageError,
    ProtocolError,
    PublishForbiddenError,
    RejectedError,
    UnreachableError,
)
from cqrs_brokers.tasks import Tasks, retrieve_exception
from cqrs_brokers.url import Host

from ._client import Connection, KafkaError, OldBrokerError, TokenError, batch_builder, why_unsupported
from ._codes import Row, Then, error_of
from ._logs import redact_client_logs
from ._metadata import Metadata
from ._node import Node
from ._partition import Partition, State
from ._probe import first_that_answers
from ._records import Record, RecordMaker
from ._topic import Topic, why_illegal
from .settings import KafkaSettings

__all__ = ["KafkaDriver"]

logger = logging.getLogger("cqrs_broker_kafka.driver")

WORTH_A_REQUEST = 48
"""So many new messages leave at once, while others are still on their way to `submit`, when nothing is in flight …"""
WORTH_ANOTHER = 256
"""… and so many when something is."""
TOPIC_GRACE = 3.0
"""A topic that the cluster does not know may just have been created: so long it is asked for again, in seconds."""
TOPIC_GRACE_AGAIN = 0.3
"""The same for a topic that was missing before."""
TOPIC_MISSING_FOR = 3.0
"""How long a missing topic is remembered."""
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds before a batch is tried again; doubled with each failure."""
ID_PAUSE = 0.1
"""Seconds before a producer id is asked for again."""
TICK = 0.5
SILENCE = 3.0
"""While messages wait and nothing is answered for so long, the bootstrap servers are asked why."""

_TOPIC_FORBIDDEN = "the user may not use the topic: grant it WRITE and DESCRIBE on the topic"
_TOPIC_MISSING = "the topic does not exist and the cluster does not create topics by itself: create it"
_ID_COMES_LATER = frozenset({7, 13, 14, 15, 16, 51})
"""Codes of InitProducerId that pass: the coordinator is loading, moving or busy."""


class KafkaDriver(PipelinedDriver):
    """Publishes to Apache Kafka over aiokafka's connections.

    Args:
        settings: Where and how.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self.tasks = Tasks()
        self.idempotent = settings.options.enable_idempotence
        self.producer_id = self.epoch = -1
        self._settings = settings
        self._link: Link | None = None
        self._loop: asyncio.AbstractEventLoop
        self._record = RecordMaker().record
        self._topics: dict[str, Topic] = {}
        self._nodes: dict[int, Node] = {}
        self._leaderless: dict[Partition, None] = {}
        """READY partitions whose leader is not known."""
        self._metadata: Metadata | None = None
        self._new_messages = 0
        """Submitted since requests were last written."""
        self._worth_a_request = WORTH_A_REQUEST
        self._flush_due = False
        self._linger = settings.options.linger_ms / 1000
        self._lingering: dict[Partition, None] = {}
        """READY partitions that wait for more messages (`linger_ms`)."""
        self._renewing = False
        self._timer: asyncio.TimerHandle | None = None
        self._last_answer = 0.0
        self._asking = False
        self._reconnecting = False
        """`Broker` was told that we are reconnecting."""
        self._throttled_until = 0.0
        """A node reads nothing from us until then; 0.0: none does that."""
        self._trusted = False
        """These settings have worked."""

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """Kafka keeps order by key and carries headers; it confirms and keeps messages unless acks says otherwise."""
        acks = self._settings.options.acks
        return Capabilities(confirms=acks != "0", ordering_key=True, headers=True, durable=acks == "all")

    def bind(self, link: Link) -> None:
        """See `Driver.bind`."""
        self._link = link

    def refuse_topic(self, topic: str) -> str | None:
        """See `Driver.refuse_topic`."""
        return why_illegal(topic)

    # -- messages -----------------------------------------------------------------------------------------------------

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        """Queues each message for its partition, and writes a request when there is enough for one."""
        topics, make = self._topics, self._record
        for delivery in deliveries:
            topic = topics.get(delivery.topic)
            if topic is None:
                topic = topics[delivery.topic] = Topic(delivery.topic, self._new_partition)
            record = make(delivery)
            if topic.partitions:
                topic.partition(record[2]).add(record)
            elif topic.missing is not None and self._loop.time() < topic.missing_until:
                delivery.fail(topic.missing)
            else:
                if not topic.waiting:
                    self._request_metadata(at_once=True)
                topic.waiting.append(record)
        if self._timer is None:
            self._last_answer = self._loop.time()
            self._timer = self._loop.call_later(TICK, self._tick)
        self._new_messages += len(deliveries)
        if self._new_messages >= self._worth_a_request:
            if self._lingering:
                self._end_linger()
            self.flush()

    def flush(self) -> None:
        """Writes what is ready, to every node that has room."""
        self._new_messages = 0
        self._worth_a_request = WORTH_ANOTHER if self._linger else WORTH_A_REQUEST
        for node in self._nodes.values():
            node.write()
            if not node.idle:
                self._worth_a_request = WORTH_ANOTHER

    def _flush_in_this_turn(self) -> None:
        self._flush_due = False
        self._end_linger()
        self.flush()

    def _end_linger(self) -> None:
        lingering, self._lingering = self._lingering, {}
        for partition in lingering:
            if partition.leader is None:
                self._leaderless[partition] = None
            else:
                partition.leader.ready[partition] = None

    def _new_partition(self, topic: bytes, number: int) -> Partition:
        return Partition(self, topic, number)

    # -- what a partition asks for ------------------------------------------------------------------------------------

    def batch_builder(self, producer_id: int, epoch: int, sequence: int) -> Any:
        """See `_partition.Producer`."""
        options = self._settings.options
        return batch_builder(options.compression_type, producer_id, epoch, sequence, options.max_batch_size)

    def ready(self, partition: Partition) -> None:
        """See `_partition.Producer`."""
        node = partition.leader
        if node is None:
            self._leaderless[partition] = None
            self._request_metadata()
            return
        if self._linger and partition.batch is None:
            self._lingering[partition] = None
        else:
            node.ready[partition] = None
        if not self._flush_due:
            self._flush_due = True
            if self._lingering:
                self._loop.call_later(self._linger, self._flush_in_this_turn)
            else:
                self._loop.call_soon(self._flush_in_this_turn)

    def paused(self, partition: Partition, row: Row | None) -> None:
        """See `_partition.Producer`."""
        if row is None:  # its connection was lost: its leader is connected to again
            self._request_metadata()
            partition.resume()
            return
        if row.then is Then.WAIT:
            self._request_metadata()
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(partition.failures, 8))
        self._loop.call_later(pause, partition.resume)

    def spend_id(self, producer_id: int) -> None:
        """See `_partition.Producer`."""
        if not self._renewing and self._metadata is not None:
            self._renewing = True
            self.tasks.spawn(self._renew_id())

    def reroute(self, partition: Partition, records: Sequence[Record]) -> None:
        """See `_partition.Producer`."""
        self._topics[partition.topic.decode()].reroute(records)

    async def _renew_id(self) -> None:
        try:
            while True:
                for node in list(self._nodes.values()):
                    try:
                        connection = await Connection.open(self._settings, node.host)
                    except (OSError, KafkaError, TokenError):
                        continue
                    try:
                        if await self._ask_for_id(connection):
                            return
                    except (OSError, KafkaError):
                        continue
                    finally:
                        connection.drop()
                await asyncio.sleep(ID_PAUSE)
        finally:
            self._renewing = False
            self._resume(State.NO_ID)

    async def _ask_for_id(self, connection: Connection) -> bool:
        code, producer_id, epoch = await connection.producer_id()
        if code == 0:
            self.producer_id, self.epoch = producer_id, epoch
            return True
        if code in (31, 53):
            raise AuthorizationError("the user may not use the cluster: grant it IDEMPOTENT_WRITE on the cluster")
        if code not in _ID_COMES_LATER:
            raise UnreachableError(f"the cluster answered, but gave no producer id (code {code})")
        return False

    def _resume(self, state: State) -> None:
        for topic in self._topics.values():
            for partition in topic.all_partitions():
                if partition.state is state:
                    partition.resume()

    # -- topics and leaders -------------------------------------------------------------------------------------------

    def _request_metadata(self, *, at_once: bool = False) -> None:
        if self._metadata is not None:
            self._metadata.request(at_once=at_once)

    def _addresses(self) -> list[Host]:
        return [node.host for node in self._nodes.values()]

    def _topics_in_use(self) -> list[str]:
        return [name for name, topic in self._topics.items() if topic.partitions or topic.waiting]

    def _learnt(self, answer: Any) -> bool:
        """See `Metadata`: takes over nodes, partitions and leaders."""
        self._learn_nodes(answer.brokers)
        for code, name, *_, partitions in answer.topics:
            topic = self._topics.get(name)
            if topic is None:
                continue
            if code == 0 and partitions:
                self._learn_partitions(topic, partitions)
            elif code == 29:
                self._missing(topic, PublishForbiddenError(_TOPIC_FORBIDDEN))
            elif code == 17:
                self._missing(topic, InvalidMessageError("the broker refuses the topic's name"))
            elif topic.waiting or topic.busy:
                self._look_for(topic)
        self.flush()
        return bool(self._leaderless) or any(
            topic.waiting or topic.unknown_since is not None for topic in self._topics.values()
        )

    def _learn_nodes(self, brokers: Sequence[Any]) -> None:
        known = {number: Host(name, port) for number, name, port, *_ in brokers}
        for number, host in known.items():
            node = self._nodes.get(number)
            if node is None:
                self._nodes[number] = Node(self, self._settings, number, host)
            elif node.host != host:
                node.moved(host)
        for number in [number for number in self._nodes if number not in known]:
            if self._nodes[number].idle and not self._nodes[number].ready:
                self._nodes.pop(number).drop()

    def _learn_partitions(self, topic: Topic, partitions: Sequence[Any]) -> None:
        topic.found(len(partitions))
        for _, number, leader, *_ in partitions:
            if number < len(topic.partitions):
                self._lead(topic.partitions[number], self._nodes.get(leader))
        for partition in topic.all_partitions()[len(topic.partitions) :]:
            self._leaderless.pop(partition, None)
            if partition.state is not State.IN_FLIGHT:
                partition.give_up(ConnectionLostError("the partition is gone, and the last answer for it was lost"))

    def _lead(self, partition: Partition, node: Node | None) -> None:
        before = partition.leader
        if node is before and partition not in self._leaderless:
            return
        partition.leader = node
        if partition.state is State.READY:
            self._leaderless.pop(partition, None)
            if before is not None:
                before.ready.pop(partition, None)
            self._lingering.pop(partition, None)
            self.ready(partition)
        elif partition.state is State.PAUSED and node is not None:
            partition.resume()

    def _look_for(self, topic: Topic) -> None:
        """A node says that there is no such topic; it may have been created a moment ago."""
        now = self._loop.time()
        if topic.unknown_since is None:
            topic.unknown_since = now
        elif now - topic.unknown_since >= (TOPIC_GRACE if topic.missing is None else TOPIC_GRACE_AGAIN):
            self._missing(topic, DestinationNotFoundError(_TOPIC_MISSING))

    def _missing(self, topic: Topic, error: DeliveryError) -> None:
        topic.not_found(error, self._loop.time() + TOPIC_MISSING_FOR)
        for partition in topic.all_partitions():
            self._leaderless.pop(partition, None)
            if partition.state is not State.IN_FLIGHT:
                partition.give_up(ConnectionLostError("the topic is gone, and the last answer for it was lost"))

    # -- connecting ---------------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Finds a host that answers, gets a producer id, and goes on with what waits.

        Raises:
            AuthenticationError: User, password, token or mechanism are not accepted.
            AuthorizationError: The user may not use the cluster.
            TLSError: Certificate, host name, or a listener without TLS.
            ProtocolError: A listener with TLS or SASL, a broker that is too old, no Kafka, or another aiokafka than
                the plugin knows.
            UnreachableError: No host, or none of the nodes they advertise, can be reached.
        """
        unsupported = why_unsupported()
        if unsupported is not None:
            raise ProtocolError(unsupported)
        self._loop = asyncio.get_running_loop()
        redact_client_logs()
        await self._disconnect()
        timeout = self._settings.options.connect_timeout
        until = self._loop.time() + timeout
        try:
            greeting = await first_that_answers(self._settings, timeout=timeout, trusted=self._trusted)
            self._learn_nodes(greeting.answer.brokers)
            await self._reach_the_cluster(until)
            topics = self._topics_in_use()
            metadata = Metadata(self._settings, self.tasks, self._addresses, self._topics_in_use, self._learnt)
            if topics:
                metadata.request()
        except BaseException:
            await self._disconnect()
            raise
        self._metadata = metadata
        metadata.start()
        self._trusted = True
        self._last_answer = self._loop.time()
        self._reconnecting = False
        self._resume(State.NO_ID)

    async def _reach_the_cluster(self, until: float) -> None:
        """Connects to a node that can take messages, and gets a producer id from it."""
        reached: Node | None = None
        try:
            async with asyncio.timeout_at(until):
                while reached is None:
                    reached = await self._reach_a_node()
                while self.idempotent:
                    connection = await reached.open() if reached.connection is None else reached.connection
                    if await self._ask_for_id(connection):
                        return
                    await asyncio.sleep(ID_PAUSE)
        except TimeoutError as error:
            raise self._why_unreachable(reached) from error
        except (OSError, KafkaError) as error:
            name = type(error).__name__
            text = f"the cluster answered, but the producer could not start ({name})"
            raise UnreachableError(text) from error

    async def _reach_a_node(self) -> Node | None:
        """Tries all nodes at once, and takes the first that can be connected to."""
        attempts = {self.tasks.spawn(node.open()): node for node in self._nodes.values()}
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
                    if isinstance(error, OldBrokerError):
                        raise ProtocolError("the broker is older than Kafka 2.4: a newer one is needed")
        finally:
            for attempt in waiting:
                attempt.cancel()
        await asyncio.sleep(ID_PAUSE)
        return None

    def _why_unreachable(self, reached: Node | None) -> UnreachableError:
        timeout = self._settings.options.connect_timeout
        if reached is not None:
            return UnreachableError(
                f"node {reached.number} of the cluster was reached, but gave no producer id within "
                f"{timeout:g} s: see its log, and whether the cluster has an active controller"
            )
        nodes = ", ".join(str(node.host) for node in self._nodes.values())
        return UnreachableError(
            f"the bootstrap server answers, but none of the nodes it advertises can be reached within "
            f"{timeout:g} s ({nodes}): check advertised.listeners and the network"
        )

    # -- what nodes tell ----------------------------------------------------------------------------------------------

    def heard(self) -> None:
        """See `NodeOwner`."""
        self._last_answer = self._loop.time()
        if self._reconnecting:
            self._reconnecting = False
            if self._link is not None:
                self._link.reconnecting(None)

    def unreachable(self, node: Node, error: Exception) -> None:
        """See `NodeOwner`."""
        self._request_metadata()

    def throttled(self, node: Node, seconds: float) -> None:
        """See `NodeOwner`."""
        until = self._loop.time() + seconds
        if until <= self._throttled_until:
            return
        if self._throttled_until == 0.0:
            self._loop.call_at(until, self._end_of_throttle)
        self._throttled_until = until
        if self._link is not None:
            self._link.throttled(f"node {node.number} reads nothing from this client for {seconds:g} s (quota)")

    def _end_of_throttle(self) -> None:
        """A new answer may have prolonged it meanwhile."""
        if self._loop.time() < self._throttled_until - 0.001:
            self._loop.call_at(self._throttled_until, self._end_of_throttle)
            return
        self._throttled_until = 0.0
        if self._link is not None:
            self._link.throttled(None)

    # -- watching -----------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """While something waits: lets go of what expired, and asks why when there is no answer for long."""
        self._timer = None
        busy = False
        for topic in self._topics.values():
            topic.purge()
            busy = busy or topic.busy
        if not busy:
            return
        self._timer = self._loop.call_later(TICK, self._tick)
        if self._metadata is not None and self._loop.time() - self._last_answer > SILENCE and not self._asking:
            self._asking = True
            self.tasks.spawn(self._ask_why())

    async def _ask_why(self) -> None:
        """Nodes are tried for ever, also after credentials were changed: the bootstrap servers say what is wrong."""
        metadata = self._metadata
        dead: ConnectError | None = None
        try:
            greeting = await first_that_answers(self._settings, timeout=2.0, trusted=True)
            if greeting.nodes and greeting.nodes.isdisjoint(self._addresses()):
                # Only nodes that are known are asked for metadata: nobody would hear of a new cluster.
                dead = UnreachableError(f"{greeting.host} names other nodes now than when we connected")
            else:
                self.heard()
        except UnreachableError as error:
            if metadata is self._metadata and self._link is not None:
                self._reconnecting = True
                self._link.reconnecting(error)
        except ConnectError as error:
            dead = error
        finally:
            self._asking = False
            self._last_answer = self._loop.time()
        if dead is not None and metadata is not None and metadata is self._metadata:
            self._lose(dead)

    def _lose(self, error: ConnectError) -> None:
        """The cluster cannot be used any more, for that reason: what is in doubt is unknown, the rest waits."""
        self._drop_connections()
        for topic in self._topics.values():
            for partition in topic.all_partitions():
                partition.give_up(ConnectionLostError("the cluster could not be reached again after it was sent"))
        if self._link is not None:
            self._link.lost(error)

    def why_late(self, delivery: Delivery, /, *, handed: bool) -> DeliveryError | None:
        """See `PipelinedDriver.why_late`."""
        topic = self._topics.get(delivery.topic)
        if topic is None:
            return None
        key = delivery.message.key
        partition = topic.find(None if key is None else key.encode())
        if handed:
            return None if partition is None or partition.last is None else _unconfirmed(partition.last)
        if topic.unknown_since is not None:
            return DestinationNotFoundError(_TOPIC_MISSING)
        return None if partition is None else self._why_it_waits(partition)

    def _why_it_waits(self, partition: Partition) -> DeliveryError | None:
        node, last = partition.leader, partition.last
        if node is not None and node.throttled_until > self._loop.time():
            text = "the cluster throttles this client (quota): send fewer messages at a time, or raise the quota"
            return BackpressureError(text)
        if last is not None and last.error is RejectedError:
            return error_of(last, in_doubt=False)
        if last is not None:
            return BackpressureError(
                f"the partition took nothing until the deadline, the last answer was {last.name}: {last.text}"
            )
        if node is None:
            return BackpressureError("the partition has no leader: see the state of the cluster, and send again later")
        if node.failure is not None:
            return BackpressureError(f"node {node.number} at {node.host}, the partition's leader, cannot be reached")
        return None

    async def ping(self) -> None:
        """Asks a node for metadata.

        Raises:
            UnreachableError: None answers.
        """
        if self._metadata is None:
            raise UnreachableError("the cluster is being connected to anew")
        try:
            await self._metadata.ask([])
        except Exception as error:
            raise UnreachableError(f"the cluster does not answer ({type(error).__name__})") from error
        self.heard()

    # -- the end ------------------------------------------------------------------------------------------------------

    async def _disconnect(self) -> None:
        """Ends every connection and task; what is in flight is lost, and what waits goes on waiting."""
        closing = self._drop_connections()
        await self.tasks.end(0.3)
        for connection in closing:
            await connection.ended()

    def _drop_connections(self) -> list[Connection]:
        metadata, self._metadata = self._metadata, None
        nodes, self._nodes = self._nodes, {}
        for node in nodes.values():
            node.abandon()
        for topic in self._topics.values():
            for partition in topic.all_partitions():
                partition.leader = None
                if partition.state is State.READY:
                    self._leaderless[partition] = None
        closing = [node.drop() for node in nodes.values()]
        if metadata is not None:
            closing.append(metadata.drop())
        return [connection for connection in closing if connection is not None]

    async def close(self, grace: float) -> None:
        """See `Driver.close`."""
        self._forget()
        await self._disconnect()

    def abort(self) -> None:
        """See `Driver.abort`."""
        self._forget()
        self._drop_connections()
        self.tasks.abort()

    def _forget(self) -> None:
        """`Broker` has ended every delivery."""
        for topic in self._topics.values():
            topic.clear()
        self._topics.clear()
        self._leaderless.clear()
        self._lingering.clear()
        self._asking = self._flush_due = self._renewing = False
        self.producer_id = self.epoch = -1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _unconfirmed(last: Row) -> DeliveryTimeoutError:
    return DeliveryTimeoutError(
        f"the broker did not confirm it before the deadline, its last answer was {last.name}: {last.text}"
    )
