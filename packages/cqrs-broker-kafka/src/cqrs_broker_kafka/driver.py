"""The Kafka driver: messages into lanes, lanes onto a producer, and a new producer when the old one is spoiled.

The parts: `records` (message to record), `topics` and `lanes` (partition, order, one batch at a time), `internals` (one
aiokafka producer), `produce` (its requests), `errors` (what a failed batch proves), `probe` (why there is no
connection).

A producer is replaced, not repaired: after any failed batch its sequence numbers for that partition have a gap, and the
broker refuses all that follows (aiokafka#1017). Lanes with a batch on the old producer wait for its answer, all others
go on with the new one, so that nothing is lost and nothing overtakes.
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

from .internals import Producer, why_not_started
from .lanes import Lane
from .logs import redact_client_logs
from .probe import first_that_answers
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
MOST_RECORDS = 2**30
"""A producer is replaced before a sequence number can wrap: aiokafka wraps to -2**31, Kafka expects 0."""


class KafkaDriver(PipelinedDriver):
    """Publishes to Apache Kafka through aiokafka.

    Args:
        settings: Where and how.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._timeout = settings.options.connect_timeout
        self._link: Link | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.producer: Producer | None = None
        self._retired: list[Producer] = []
        """Not fed any more; stopped when their last batch has its answer."""
        self._replacing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._topics: dict[str, Topic] = {}
        self._record = RecordMaker().record
        self._dirty: list[Lane] = []
        self._timer: asyncio.TimerHandle | None = None
        self._last_answer = 0.0
        self._asking = False
        self._reconnecting = False
        """`Broker` was told that aiokafka reconnects by itself."""
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
        """Puts each message into its partition's lane; the lanes are fed once per turn of the loop."""
        topics, make, dirty = self._topics, self._record, self._dirty
        was_clean = not dirty
        for delivery in deliveries:
            name = delivery.message.topic
            topic = topics.get(name)
            if topic is None:
                topic = topics[name] = Topic(name, self)
            record = make(delivery)
            if topic.lanes:
                lane = topic.lane(record.key)
                lane.pending.append(record)
                if not lane.dirty and lane.batch is None:
                    lane.dirty = True
                    dirty.append(lane)
            elif topic.missing is not None and self._now() < topic.missing_until:
                delivery.fail(topic.missing)
            else:
                topic.waiting.append(record)
                topic.lost()
        assert self._loop is not None
        if was_clean and dirty:
            self._loop.call_soon(self._feed_dirty)
        if self._timer is None:
            self._last_answer = self._now()
            self._timer = self._loop.call_later(TICK, self._tick)

    def _feed_dirty(self) -> None:
        dirty, self._dirty = self._dirty, []
        for lane in dirty:
            lane.dirty = False
            lane.feed()

    def _feed_all(self) -> None:
        for topic in self._topics.values():
            for lane in topic.lanes:
                lane.feed()
            if topic.waiting:
                topic.lost()

    def answered(self, producer: Producer, failed: bool) -> None:
        """See `lanes.Feeder`."""
        self._reached()
        if producer is self.producer:
            if (failed and producer.idempotent) or producer.appended >= MOST_RECORDS:
                self._replace(producer)
        elif not producer.in_flight and producer in self._retired:
            self._spawn(self._stop_retired(producer))

    def refused(self, producer: Producer, topic: Topic, error: BaseException) -> None:
        """See `lanes.Feeder`."""
        logger.warning("aiokafka did not take a batch (%s): the producer is replaced", type(error).__name__)
        if producer is self.producer:
            self._replace(producer)

    # -- topics -------------------------------------------------------------------------------------------------------

    def resolve(self, topic: Topic) -> None:
        """See `topics.TopicOwner`."""
        self._spawn(self._resolve(topic))

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

    def _metadata_changed(self, _: object) -> None:
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
        await self._drop_producer()
        self.producer = await self._open()
        self._last_answer = self._now()
        self._reconnecting = False
        self._feed_all()

    async def _open(self) -> Producer:
        """A producer that can take messages."""
        until = self._now() + self._timeout
        host = await first_that_answers(self._settings, timeout=self._timeout, trusted=self._trusted)
        producer = Producer(self._settings, host, self._ended)
        try:
            async with asyncio.timeout_at(until):
                await producer.start()
                in_use = [name for name, topic in self._topics.items() if topic.lanes or topic.waiting]
                if in_use:
                    await producer.refresh(in_use)
        except asyncio.CancelledError:
            producer.abort()
            raise
        except Exception as error:
            failure = self._why(producer, error)
            await producer.stop(0.0)
            raise failure from error
        self._trusted = True
        producer.watch_metadata(self._metadata_changed)
        return producer

    def _why(self, producer: Producer, error: Exception) -> ConnectError:
        if not isinstance(error, TimeoutError):
            return why_not_started(error)
        if producer.bootstrapped:
            return UnreachableError(
                f"the bootstrap server answers, but none of the nodes it advertises can be reached within "
                f"{self._timeout:g} s ({', '.join(producer.nodes())}): check advertised.listeners and the network"
            )
        return UnreachableError(f"the cluster did not answer within {self._timeout:g} s")

    def _replace(self, producer: Producer) -> None:
        if self._replacing is None:
            self._replacing = self._spawn(self._swap(producer))

    async def _swap(self, old: Producer) -> None:
        try:
            new = await self._open()
        except ConnectError as error:
            # Batches that the old one still has stay with it: it reconnects by itself, and their answers count.
            if self.producer is old:
                self._retire(old)
                self._lost(error)
            return
        finally:
            self._replacing = None
        if self.producer is not old:  # connected anew, or dropped, meanwhile
            await new.stop(0.0)
            return
        self.producer = new
        self._retire(old)
        self._feed_all()

    def _retire(self, producer: Producer) -> None:
        if self.producer is producer:
            self.producer = None
        self._retired.append(producer)
        if not producer.in_flight:
            self._spawn(self._stop_retired(producer))

    async def _stop_retired(self, producer: Producer) -> None:
        if producer in self._retired:
            self._retired.remove(producer)
            await producer.stop(0.2)

    def _ended(self, producer: Producer) -> None:
        """Its sender task ended: it will never send again. No task is made here: the loop may be ending."""
        logger.warning("aiokafka's sender task ended by itself: the producer is replaced")
        self._bury(producer, UnreachableError("the Kafka client stopped working and is replaced"))

    def _bury(self, producer: Producer, error: ConnectError) -> None:
        current = producer is self.producer
        if current:
            self.producer = None
        if producer not in self._retired:
            self._retired.append(producer)
        for topic in self._topics.values():
            for lane in topic.all_lanes():
                lane.give_up(producer)
        if current:
            self._lost(error)

    def _lost(self, error: ConnectError) -> None:
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
        if not busy:
            return
        self._timer = self._loop.call_later(TICK, self._tick)
        if self._now() - self._last_answer > SILENCE and not self._asking:
            self._asking = True
            self._spawn(self._ask_why())

    def _reached(self) -> None:
        """The cluster answered."""
        self._last_answer = self._now()
        if self._reconnecting:
            self._reconnecting = False
            if self._link is not None:
                self._link.reconnecting(None)

    async def _ask_why(self) -> None:
        """aiokafka repeats for ever what cannot succeed, after rotated credentials for example, and only logs why."""
        producer = self.producer
        try:
            await first_that_answers(self._settings, timeout=2.0, trusted=True)
            self._reached()
        except UnreachableError as error:
            if producer is not None and producer is self.producer and self._link is not None:
                self._reconnecting = True
                self._link.reconnecting(error)
        except ConnectError as error:
            if producer is not None and producer is self.producer:
                self._bury(producer, error)
                await self._stop_retired(producer)
        finally:
            self._asking = False
            self._last_answer = self._now()

    async def ping(self) -> None:
        """Asks a node for metadata.

        Raises:
            UnreachableError: None answers.
        """
        producer = self.producer
        try:
            if producer is not None:
                await producer.ping()
                self._reached()
                return
        except Exception as error:
            raise UnreachableError(f"the cluster does not answer ({type(error).__name__})") from error
        raise UnreachableError("the producer is being replaced")

    # -- the end ------------------------------------------------------------------------------------------------------

    async def close(self, grace: float) -> None:
        """See `Driver.close`."""
        self._forget()
        producers, self._retired = self._retired, []
        if self.producer is not None:
            producers.append(self.producer)
            self.producer = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        stopping = [asyncio.ensure_future(producer.stop(grace)) for producer in producers]
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
        producers, self._retired = self._retired, []
        if self.producer is not None:
            producers.append(self.producer)
            self.producer = None
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
        self._dirty.clear()
        self._replacing = None
        self._asking = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _drop_producer(self) -> None:
        """Before connecting anew: dead producers go; those that still wait for answers stay until they have them."""
        if self.producer is not None:
            self._retire(self.producer)
        self._replacing = None
        dead = [producer for producer in self._retired if not producer.in_flight]
        for producer in dead:
            self._retired.remove(producer)
            await producer.stop(0.0)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
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
