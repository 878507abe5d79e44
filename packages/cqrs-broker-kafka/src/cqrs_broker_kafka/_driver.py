"""The Kafka driver: it gives messages to partitions, and partitions to the nodes that lead them.

Read the modules in this order: `_records` (message to record), `_topic` (which partition), `_partition` and `_codes`
(the state machine that makes sure that outcomes are true), `_late` (the error at a deadline), `_node`, `_batch` and
`_produce` (requests in flight), `_cluster` and `_metadata` (which node leads which partition), `_probe` (why there is
no connection), `_client` (the use of aiokafka).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from cqrs_brokers.driver import Capabilities, Delivery, Link, Message, PipelinedDriver
from cqrs_brokers.exceptions import ConnectError, ConnectionLostError, DeliveryError, UnreachableError
from cqrs_brokers.tasks import Tasks

from . import _late as late
from ._codes import Row, Then
from ._logs import redact_client_logs
from ._partition import Partition, State
from ._records import Encode, RecordMaker, Records
from ._settings import KafkaSettings
from ._topic import Topic, why_illegal

if TYPE_CHECKING:
    from ._cluster import Cluster
    from ._node import Node

__all__ = ["KafkaDriver"]

WORTH_A_REQUEST = 500
"""When this many messages have come since the last `flush()`, requests are written at once, even before `linger_ms` has
passed. With a smaller number each partition would already be busy with a small batch when the next messages come."""
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""The pause between an error code and the next attempt, in seconds. After the first failure the pause is twice
`FIRST_PAUSE`. Each further failure doubles the pause, up to `LONGEST_PAUSE`. The pause ends early when the metadata
name another leader."""
TICK = 0.5
SILENCE = 3.0
"""If messages have no outcome and the cluster is silent for more than this many seconds, we ask the bootstrap servers
why."""


class KafkaDriver(PipelinedDriver):
    """Publishes to Apache Kafka over aiokafka's connections.

    Args:
        settings: Where and how to connect.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self.tasks = Tasks()
        self.topics: dict[str, Topic] = {}
        self.idempotent = settings.options.enable_idempotence
        self.producer_id = self.epoch = -1
        self.batch_size = settings.options.max_batch_size
        self.encode: Encode
        self.alone = True
        """Whether messages seem to come one by one: `flush()` was not called yet, or the last answers confirmed only
        one record, and their node has no further request in flight. Then the next message is written at once."""
        self._settings = settings
        self.link: Link
        self._loop: asyncio.AbstractEventLoop
        self._cluster: Cluster | None = None
        self._add_record = RecordMaker().add
        self._new_messages = 0
        """How many messages were submitted since the last `flush()`."""
        self._unwritten = False
        """Whether a partition was queued at a node since the last `flush()`."""
        self._linger = settings.options.linger_ms / 1000
        self._lingering: dict[Partition, None] = {}
        """Partitions that became READY and wait for more messages (`linger_ms`)."""
        self._flush_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._last_answer = 0.0
        self._asking = False
        self._reconnecting = False
        """Whether we have reported to `Broker` that we are reconnecting, and have not been connected again since."""
        self._throttled_until = 0.0
        """The time until which a node reads nothing from us (event loop's time). 0.0: no node throttles us."""
        self._throttling = -1
        """The number of the node that throttles us, or that did so last. -1: no node did."""
        self._trusted = False
        """Whether a connection with these settings was made before."""

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """Kafka keeps the order of messages with the same topic and key, and carries headers. Kafka confirms messages,
        except with acks=0. Confirmed messages are durable only with acks=all."""
        acks = self._settings.options.acks
        return Capabilities(
            confirms=acks != "0",
            ordering_key=True,
            headers=True,
            header_types=frozenset({str, bytes, type(None)}),
            tombstones=True,
            durable=acks == "all",
        )

    def bind(self, link: Link) -> None:
        """See `Driver.bind`."""
        self.link = link

    def refuse_topic(self, topic: str) -> str | None:
        """See `Driver.refuse_topic`."""
        return why_illegal(topic)

    def destination(self, message: Message) -> str:
        """The destination is a partition, because each partition has its own leader. If the message has no key, or the
        topic's partitions are not known, the destination is the topic."""
        topic = self.topics.get(message.topic)
        if topic is None or not topic.partitions or message.key is None:
            return message.topic
        return f"{message.topic}, partition {topic.partition(message.key).number}"

    # -- messages -----------------------------------------------------------------------------------------------------

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        """Queues each message for its partition, or in its topic if the topic is not open (`Topic.is_open`). A message
        for a topic that counts as missing fails at once. The request is written at once, in the next turn of the event
        loop, after `linger_ms`, or as soon as the partition's leader is known and can take a request."""
        topics, add_record = self.topics, self._add_record
        for delivery in deliveries:
            topic = topics.get(delivery.topic)
            if topic is None:
                topic = topics[delivery.topic] = Topic(delivery.topic, partial(Partition, self))
            if topic.is_open:
                partition = topic.partition(delivery.message.key)
                add_record(delivery, partition.pending)
                partition.filled()
            else:
                self._keep(topic, delivery)
        if self._timer is None:
            self._last_answer = self._loop.time()
            self._timer = self._loop.call_later(TICK, self._tick)
        self._new_messages += len(deliveries)
        if self._new_messages >= WORTH_A_REQUEST:
            self._end_linger()
        elif self._unwritten and not self._flush_due:
            if self.alone:
                self.flush()
            else:
                self._flush_due = True
                self._loop.call_soon(self.flush)

    def _keep(self, topic: Topic, delivery: Delivery) -> None:
        """Keeps the record of a message whose topic is not open (`Topic.is_open`). The first such message makes us ask
        for metadata. If the topic counts as missing, the message fails with the topic's error (`Topic.missing`)."""
        if topic.missing is not None and self._loop.time() < topic.missing_until:
            delivery.fail(topic.missing)
            return
        if not topic.waiting:
            self.request_metadata(at_once=True)
        self._add_record(delivery, topic.waiting)

    def flush(self) -> None:
        """Writes the records of the ready partitions whose leaders can take a request now."""
        self._new_messages = 0
        self._unwritten = self._flush_due = self.alone = False
        if self._cluster is not None:
            for node in self._cluster.nodes.values():
                node.write()

    def _end_linger(self) -> None:
        lingering, self._lingering = self._lingering, {}
        for partition in lingering:
            self._queue(partition)
        self.flush()

    # -- what a partition asks for ------------------------------------------------------------------------------------

    def ready(self, partition: Partition) -> None:
        """See `_partition.Producer`."""
        if self._linger and partition.batch is None:
            if not self._lingering:
                self._loop.call_later(self._linger, self._end_linger)
            self._lingering[partition] = None
            return
        self._queue(partition)

    def _queue(self, partition: Partition) -> None:
        """Queues the partition at its leader, for one of the next requests. Asks for metadata if no leader is known."""
        node = partition.leader
        if node is not None:
            node.ready[partition] = None
            self._unwritten = True
        elif self._cluster is not None:
            self._cluster.leaderless[partition] = None
            self._cluster.metadata.request()

    def paused(self, partition: Partition, row: Row | None) -> None:
        """See `_partition.Producer`."""
        if row is None:  # the connection was lost: the node connects again
            self.request_metadata()
            partition.resume()
            return
        if row.then is Then.WAIT:
            self.request_metadata()
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(partition.failures, 8))
        self._loop.call_later(pause, self._resume, partition)

    def _resume(self, partition: Partition) -> None:
        partition.resume()
        self.flush()

    def spend_id(self, producer_id: int) -> None:
        """See `_partition.Producer`."""
        if self._cluster is not None:
            self._cluster.renew_id()

    def left(self, partition: Partition, records: Records) -> None:
        """See `_partition.Producer`."""
        topic = self.topics.get(partition.topic.decode())
        if topic is not None:
            topic.left(records)

    def resume(self, state: State) -> None:
        """Resumes all partitions that are in this state, and writes requests."""
        for partition in self._partitions():
            if partition.state is state:
                partition.resume()
        self.flush()

    def _partitions(self) -> list[Partition]:
        return [partition for topic in self.topics.values() for partition in topic.all_partitions()]

    def request_metadata(self, *, at_once: bool = False) -> None:
        """Asks for metadata, because something is not known or has changed. See `Metadata.request`."""
        if self._cluster is not None:
            self._cluster.metadata.request(at_once=at_once)

    # -- connecting ---------------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Connects to the cluster, gets a producer id if `enable_idempotence` is set, and sends the records that wait.

        Raises:
            AuthenticationError: The broker does not accept the user, the password, the token or the mechanism.
            AuthorizationError: The user may not use the cluster.
            TLSError: The TLS handshake failed, for example because of a certificate, or the listener has no TLS.
            ProtocolError: The listener wants TLS or SASL, the listener does not use SASL, the broker is too old, the
                host is not Kafka, or the plugin cannot use the installed version of aiokafka.
            UnreachableError: No host or no advertised node can be reached, or there is no token or no producer id.
        """
        from ._batch import batch_encoder  # this import and the next one load aiokafka
        from ._cluster import Cluster

        self._loop = asyncio.get_running_loop()
        redact_client_logs()
        self.encode = batch_encoder(self._settings.options.compression_type)
        await self._disconnect()
        cluster = self._cluster = Cluster(self, self._settings)
        try:
            await cluster.connect(trusted=self._trusted)
        except BaseException:
            await self._disconnect()
            raise
        self._trusted = True
        self._last_answer = self._loop.time()
        self._reconnecting = False
        for partition in self._partitions():
            if partition.state is State.READY:
                self.ready(partition)
        self.resume(State.NO_ID)

    # -- what nodes tell ----------------------------------------------------------------------------------------------

    def heard(self) -> None:
        """Notes that the cluster works. If we have reported that we are reconnecting, reports the end of that."""
        self._last_answer = self._loop.time()
        if self._reconnecting:
            self._reconnecting = False
            self.link.reconnecting(None)

    def throttled(self, node: Node, seconds: float) -> None:
        """Notes that the node reads nothing from us for this many seconds, because of a quota. Reports this to
        `Broker`, unless another node throttles us for longer."""
        until = self._loop.time() + seconds
        if until <= self._throttled_until:
            return
        if self._throttled_until == 0.0:
            self._loop.call_at(until, self._end_of_throttle)
        self._throttled_until, self._throttling = until, node.number
        self._say_throttled()

    def _say_throttled(self) -> None:
        """Reports to `Broker` that a node throttles us, and for how many more seconds."""
        left = self._throttled_until - self._loop.time()
        if left > 0:
            text = f"node {self._throttling} reads nothing from this client for {left:.1f} s more (quota)"
            self.link.throttled(text)

    def _end_of_throttle(self) -> None:
        """Reports to `Broker` that the throttling has ended, unless a later answer has prolonged the throttling."""
        if self._loop.time() < self._throttled_until - 0.001:
            self._loop.call_at(self._throttled_until, self._end_of_throttle)
            return
        self._throttled_until = 0.0
        self.link.throttled(None)

    # -- watching -----------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Runs every `TICK` seconds while messages wait or are in flight. Purges the topics (`Topic.purge`). If the
        cluster has been silent for longer than `SILENCE`, asks the bootstrap servers for the reason."""
        self._timer = None
        for topic in self.topics.values():
            topic.purge()
        if not any(topic.busy for topic in self.topics.values()):
            return
        self._timer = self._loop.call_later(TICK, self._tick)
        if self._cluster is not None and self._loop.time() - self._last_answer > SILENCE and not self._asking:
            self._asking = True
            self.tasks.spawn(self._ask_why(self._cluster))

    async def _ask_why(self, cluster: Cluster) -> None:
        """Asks the bootstrap servers what is wrong. If none of them answers, reports that we are reconnecting. If the
        cluster cannot be used any more, for example because somebody has changed the credentials, gives the cluster
        up."""
        try:
            dead = await cluster.look_again()
        except UnreachableError as error:
            if cluster is self._cluster:
                self._reconnecting = True
                self.link.reconnecting(error)
        else:
            if dead is None:
                self.heard()
            elif cluster is self._cluster:
                self._lose(cluster, dead)
        finally:
            self._asking = False
            self._last_answer = self._loop.time()

    def _lose(self, cluster: Cluster, error: ConnectError) -> None:
        """Gives up a cluster that cannot be used any more. The records of a batch that may have been appended fail with
        an unknown outcome. The other records wait."""
        self._cluster = None
        cluster.drop()
        for partition in self._partitions():
            partition.give_up(ConnectionLostError("the cluster could not be reached again after the message was sent"))
        self.link.lost(error)

    def why_late(self, delivery: Delivery, /, *, handed: bool) -> DeliveryError | None:
        """See `PipelinedDriver.why_late`."""
        return late.why(self.topics.get(delivery.topic), delivery, handed=handed, now=self._loop.time())

    async def ping(self) -> None:
        """Asks the nodes for metadata, until one answers. Raises an `UnreachableError` if no node answers, or if there
        is no connection now."""
        if self._cluster is None:
            raise UnreachableError("the driver is connecting to the cluster again")
        try:
            await self._cluster.metadata.ask([])
        except Exception as error:
            raise UnreachableError(f"the cluster does not answer ({type(error).__name__})") from error
        self.heard()
        self._say_throttled()

    # -- the end ------------------------------------------------------------------------------------------------------

    async def _disconnect(self) -> None:
        """Drops the cluster (see `Cluster.drop`), and cancels the driver's tasks. Waits until the tasks have ended, at
        most 0.3 s, and until each socket is closed, at most 0.2 s for each."""
        cluster, self._cluster = self._cluster, None
        closing = [] if cluster is None else cluster.drop()
        await self.tasks.end(0.3)
        for connection in closing:
            await connection.ended()

    async def close(self, grace: float) -> None:
        """See `Driver.close`."""
        self._forget()
        await self._disconnect()

    def abort(self) -> None:
        """See `Driver.abort`."""
        self._forget()
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            cluster.drop()
        self.tasks.abort()

    def _forget(self) -> None:
        """Forgets every topic and record, and the producer id. `Broker` ends every delivery itself."""
        for topic in self.topics.values():
            topic.clear()
        self.topics.clear()
        self._lingering.clear()
        self._asking = self._flush_due = False
        self._throttled_until = 0.0
        self.producer_id = self.epoch = -1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
