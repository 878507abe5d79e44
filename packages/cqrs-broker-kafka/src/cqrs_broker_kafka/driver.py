"""The Kafka driver: messages into lanes, lanes onto a producer, and a new producer when the old one is spoiled.

The parts: `records` (message to record), `topics` and `lanes` (partition, order, one batch at a time), `producers`
(which producer takes batches, and its replacement), `internals` (one aiokafka producer), `batches` (what it sends),
`produce` (its requests), `connections` (metadata), `errors` (what a failed batch proves), `probe` (why there is no
connection).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

from cqrs_brokers.driver import Capabilities, Delivery, Link, PipelinedDriver
from cqrs_brokers.exceptions import (
    ConnectError,
    DeliveryError,
    DestinationNotFoundError,
    PublishForbiddenError,
    UnreachableError,
)

from .internals import Producer
from .lanes import Batch
from .logs import redact_client_logs
from .probe import first_that_answers
from .producers import Producers
from .records import RecordMaker
from .settings import KafkaSettings
from .topics import Topic, why_illegal

__all__ = ["KafkaDriver"]

logger = logging.getLogger("cqrs_broker_kafka.driver")

TOPIC_GRACE = 3.0
"""A topic that the cluster does not know may just have been created: so long it is asked for again, in seconds."""
TOPIC_GRACE_AGAIN = 0.3
"""The same for a topic that was missing before."""
TOPIC_MISSING_FOR = 3.0
"""How long a missing topic is remembered."""
TICK = 0.5
SILENCE = 3.0
"""While messages wait and nothing is answered for so long, the bootstrap servers are asked why."""
TURNS_TO_WRITE = 2
"""So many turns of the event loop aiokafka takes to write what is queued when an answer has come."""


class KafkaDriver(PipelinedDriver):
    """Publishes to Apache Kafka through aiokafka.

    Args:
        settings: Where and how.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._link: Link | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._producers = Producers(settings, self)
        self._tasks: set[asyncio.Task[None]] = set()
        self._topics: dict[str, Topic] = {}
        self._record = RecordMaker().record
        self._confirmed: list[tuple[Batch, int | None]] = []
        """Batches whose callers wake up in a moment."""
        self._timer: asyncio.TimerHandle | None = None
        self._last_answer = 0.0
        self._asking = False
        self._reconnecting = False
        """`Broker` was told that aiokafka reconnects by itself."""

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """Kafka keeps order by key and carries headers; it confirms and keeps messages unless acks says otherwise."""
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
        self._link = link

    def refuse_topic(self, topic: str) -> str | None:
        """See `Driver.refuse_topic`."""
        return why_illegal(topic)

    @property
    def producer(self) -> Producer | None:
        """See `lanes.Feeder`."""
        return self._producers.current

    # -- messages -----------------------------------------------------------------------------------------------------

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        """Puts each message into its partition's lane."""
        topics, make = self._topics, self._record
        for delivery in deliveries:
            name = delivery.topic
            topic = topics.get(name)
            if topic is None:
                topic = topics[name] = Topic(name, self)
            record = make(delivery)
            if topic.lanes:
                lane = topic.lane(record.key)
                lane.pending.append(record)
                if lane.batch is None:  # aiokafka takes what comes in this turn of the loop in the next one
                    lane.feed(idle=True)
            elif topic.missing is not None and self._now() < topic.missing_until:
                delivery.fail(topic.missing)
            else:
                topic.waiting.append(record)
                topic.lost()
        if self._timer is None:
            assert self._loop is not None
            self._last_answer = self._now()
            self._timer = self._loop.call_later(TICK, self._tick)

    def renewed(self) -> None:
        """See `producers.Owner`."""
        for topic in self._topics.values():
            for lane in topic.lanes:
                lane.feed()
            if topic.waiting:
                topic.lost()

    def answered(self, producer: Producer, failed: bool) -> None:
        """See `lanes.Feeder`."""
        self._producers.answered(producer, failed)

    def confirmed(self, batch: Batch, offset: int | None) -> None:
        """See `lanes.Feeder`."""
        if not batch.producer.has_queued:
            batch.confirm(offset)
            return
        if not self._confirmed:
            assert self._loop is not None
            self._loop.call_soon(self._confirm, TURNS_TO_WRITE)
        self._confirmed.append((batch, offset))

    def _confirm(self, turns: int) -> None:
        if turns:
            assert self._loop is not None
            self._loop.call_soon(self._confirm, turns - 1)
            return
        confirmed, self._confirmed = self._confirmed, []
        for batch, offset in confirmed:
            batch.confirm(offset)

    def refused(self, producer: Producer, topic: Topic, error: BaseException) -> None:
        """See `lanes.Feeder`."""
        if producer.alive:  # else it tells itself that it has ended
            logger.warning("aiokafka did not take a batch (%s): the producer is replaced", type(error).__name__)
            self._producers.replace(producer)

    # -- topics -------------------------------------------------------------------------------------------------------

    def resolve(self, topic: Topic) -> None:
        """See `topics.TopicOwner`."""
        self.spawn(self._resolve(topic))

    async def _resolve(self, topic: Topic) -> None:
        grace = TOPIC_GRACE if topic.missing is None else TOPIC_GRACE_AGAIN
        pause = 0.05
        answered_since: float | None = None
        while True:
            producer = self.producer
            if producer is None:
                topic.resolving = False  # asked again after the next connect
                return
            answered = await producer.refresh([topic.name])
            if producer is not self.producer:
                continue
            now = self._now()
            partitions = producer.partitions(topic.name)
            if partitions:
                topic.found(partitions)
                return
            if producer.forbidden(topic.name):
                text = "the user may not use the topic: grant it WRITE and DESCRIBE on the topic"
                self._missing(topic, producer, PublishForbiddenError(text))
                return
            if answered:
                answered_since = now if answered_since is None else answered_since
                if now - answered_since >= grace:
                    text = "the topic does not exist and the cluster does not create topics by itself: create it"
                    self._missing(topic, producer, DestinationNotFoundError(text))
                    return
            await asyncio.sleep(pause)
            pause = min(0.5, pause * 2)

    def _missing(self, topic: Topic, producer: Producer, error: DeliveryError) -> None:
        producer.forget(topic.name)
        topic.not_found(error, self._now() + TOPIC_MISSING_FOR)

    def metadata_changed(self, _: object) -> None:
        """See `producers.Owner`."""
        producer = self.producer
        if producer is None:
            return
        for topic in self._topics.values():
            partitions = producer.partitions(topic.name)
            if topic.lanes and partitions and partitions != len(topic.lanes) and not topic.resolving:
                topic.found(partitions)

    # -- connecting ---------------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Finds a host that answers, starts a producer there, and goes on with what the lanes hold.

        Raises:
            AuthenticationError: User, password or mechanism are not accepted.
            AuthorizationError: The user may not use the cluster.
            TLSError: Certificate, host name, or a listener without TLS.
            ProtocolError: A listener with TLS or SASL, or no Kafka.
            UnreachableError: No host, or none of the nodes they advertise, can be reached.
        """
        self._loop = asyncio.get_running_loop()
        redact_client_logs()
        await self._producers.connect()
        self._last_answer = self._now()
        self._reconnecting = False
        self.renewed()

    def topics_in_use(self) -> list[str]:
        """See `producers.Owner`."""
        return [name for name, topic in self._topics.items() if topic.lanes or topic.waiting]

    def died(self, producer: Producer) -> None:
        """See `producers.Owner`."""
        for topic in self._topics.values():
            for lane in topic.all_lanes():
                lane.give_up(producer)
            for lane in topic.lanes:  # another producer may be there
                lane.feed()

    def lost(self, error: ConnectError) -> None:
        """See `producers.Owner`."""
        if self._link is not None:
            self._link.lost(error)

    # -- watching -----------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """While something waits: lets go of what expired, and asks why when there is no answer for long."""
        assert self._loop is not None
        self._timer = None
        busy = False
        for topic in self._topics.values():
            topic.purge()
            busy = busy or topic.busy
        if not self._producers.reap() and not busy:
            return
        self._timer = self._loop.call_later(TICK, self._tick)
        if self._now() - self._last_answer > SILENCE and not self._asking:
            self._asking = True
            self.spawn(self._ask_why())

    def heard(self) -> None:
        """See `producers.Owner`."""
        self._last_answer = self._now()
        if self._reconnecting:
            self._reconnecting = False
            if self._link is not None:
                self._link.reconnecting(None)

    async def _ask_why(self) -> None:
        """aiokafka repeats for ever what cannot succeed, after rotated credentials for example, and only logs why."""
        producer = self.producer
        dead: ConnectError | None = None
        try:
            greeting = await first_that_answers(self._settings, timeout=2.0, trusted=True)
            if producer is not None and greeting.nodes and greeting.nodes.isdisjoint(producer.nodes()):
                # aiokafka asks only the nodes it knows: it would never hear of a new cluster.
                dead = UnreachableError(f"{greeting.host} names other nodes now than when the producer was started")
            else:
                self.heard()
        except UnreachableError as error:
            if producer is not None and producer is self.producer and self._link is not None:
                self._reconnecting = True
                self._link.reconnecting(error)
        except ConnectError as error:
            dead = error
        finally:
            self._asking = False
            self._last_answer = self._now()
        if dead is not None and producer is not None and producer is self.producer:
            await self._producers.bury_all(dead)

    async def ping(self) -> None:
        """Asks a node for metadata.

        Raises:
            UnreachableError: None answers.
        """
        producer = self.producer
        try:
            if producer is not None:
                await producer.ping()
                self.heard()
                return
        except Exception as error:
            raise UnreachableError(f"the cluster does not answer ({type(error).__name__})") from error
        raise UnreachableError("the producer is being replaced")

    # -- the end ------------------------------------------------------------------------------------------------------

    async def close(self, grace: float) -> None:
        """See `Driver.close`."""
        self._forget()
        producers = self._producers.take_all()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        stopping = [self.spawn(producer.stop(grace)) for producer in producers]
        waiting: list[asyncio.Future[Any]] = [*tasks, *stopping]
        if waiting:
            await asyncio.wait(waiting, timeout=grace + 0.75)
        for number, stop in enumerate(stopping):
            if not stop.done():
                producers[number].abort()
                stop.cancel()

    def abort(self) -> None:
        """See `Driver.abort`."""
        self._forget()
        producers = self._producers.take_all()
        for producer in producers:
            producer.abort()
        for task in list(self._tasks):
            if self._loop is not None and not self._loop.is_closed():
                task.cancel()
            else:
                task._log_destroy_pending = False  # type: ignore[attr-defined] # its loop is gone: it cannot finish
        self._tasks.clear()

    def _forget(self) -> None:
        """`Broker` has ended every delivery."""
        for topic in self._topics.values():
            topic.clear()
        self._topics.clear()
        self._confirmed = []
        self._asking = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """See `producers.Owner`."""
        assert self._loop is not None
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("unexpected error in the Kafka driver", exc_info=task.exception())

    def _now(self) -> float:
        assert self._loop is not None
        return self._loop.time()
