"""One aiokafka producer. With `batches`, `produce` and `connections` all that touches what aiokafka does not document.

Written for aiokafka 0.14; tests/kafka/test_internals.py has a test for each use, which turns red when aiokafka changes:

* `cluster._partitions` and `client._topics`: what is known of topics, and which are asked for.
* `_message_accumulator`: a batch is appended without awaiting (what the coroutine `send_batch` does after it has waited
  for metadata and for the previous batch).
* `client.send`: only the last error of a batch reaches its future; whether it may be written shows in all of them.
* `_sender.sender_task`: when it ends, the producer never sends again and says so to nobody (aiokafka#1039);
  `_sender._fail_all`, its callback, raises in idempotent producers.
* `_sender._send_produce_req`: its tasks must be cancelled too, and aiokafka keeps them in a local variable.
* teardown: `stop()` never returns while the cluster is away and idempotence is on (aiokafka#1101).
* `client._md_synchronizer`: the task that refreshes metadata, which `client.bootstrap()` starts, and
  `client._metadata_update`, with which it does so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Collection, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    NodeNotReadyError,
    ProducerClosed,
    UnknownTopicOrPartitionError,
)
from aiokafka.protocol.produce import ProduceRequest

from cqrs_brokers.exceptions import AuthorizationError, ConnectError, UnreachableError
from cqrs_brokers.url import Host

from .batches import QueuedBatch
from .connections import Greeting, Inquirer, looked_at
from .produce import encode_once
from .settings import KafkaSettings

__all__ = ["Producer", "why_not_started"]

logger = logging.getLogger("cqrs_broker_kafka.internals")

PAUSE = 0.05
"""Seconds before metadata is asked for again while a partition has no leader."""

_MAY_BE_WRITTEN = frozenset({-1, 7, 13, 20, 56})
"""Codes that aiokafka repeats a batch after, or does not know, and that do not say whether it was written: timed out,
network exception, too few replicas after appending, storage error."""


class Producer:
    """One producer id's life: started once, fed, stopped or aborted.

    Args:
        settings: Where and how.
        host: A bootstrap server that answers.
        ended: Called once when the sender task ends although nobody stopped the producer.
        heard: Called when the cluster has answered a produce request.
    """

    def __init__(
        self, settings: KafkaSettings, host: Host, ended: Callable[[Producer], None], heard: Callable[[], None]
    ) -> None:
        options = settings.options
        self._settings = settings
        self.idempotent = options.enable_idempotence
        self.in_flight = 0
        """Batches without an answer; kept by the lanes."""
        self.appended = 0
        """Records given to it so far."""
        self.reached: int | None = None
        """The first advertised node that could be reached."""
        self._ended = ended
        self._heard = heard
        self._stopping = False
        self._client: Any = AIOKafkaProducer(
            bootstrap_servers=[str(host)],
            acks=options.acks if options.acks == "all" else int(options.acks),
            enable_idempotence=options.enable_idempotence,
            compression_type=None if options.compression_type == "none" else options.compression_type,
            max_batch_size=options.max_batch_size,
            # No second limit: Broker has checked each message, and the broker judges batches.
            max_request_size=2**31 - 1,
            **settings.client_arguments(),
        )
        self._cluster = self._client.client.cluster
        self._doubtful: set[tuple[str, int]] = set()
        """Partitions whose batch had an attempt that may have been written."""
        self._requests: set[asyncio.Task[Any]] = set()
        self._unsettled = False
        """A partition had no leader when metadata was last asked for, or nobody answered."""
        self._inquirer = Inquirer(settings, self.nodes, self._client.client._conns, self._requests)
        self._client.client._metadata_update = self._update_metadata
        self._send, self._client.client.send = self._client.client.send, self._watched_send
        sender = self._client._sender
        self._produce, sender._send_produce_req = sender._send_produce_req, self._tracked_produce

    # -- start and metadata -------------------------------------------------------------------------------------------

    async def start(self, greeting: Greeting) -> None:
        """Connects and gets a producer id; goes on for ever while no advertised node can be reached.

        Args:
            greeting: Of the bootstrap server.

        aiokafka's own `start()` asks a random node for the producer id, be it frozen or not, and, without idempotence,
        reaches none of the advertised addresses.
        """
        producer, client = self._client, self._client.client
        # As `client.bootstrap()`, which asks that server once more.
        self._cluster.update_metadata(greeting.answer)
        client._sync_task = asyncio.create_task(client._md_synchronizer())
        node = self.reached = await self._reachable_node()
        client.get_random_node = lambda: node
        try:
            await producer._sender.start()
        finally:
            del client.get_random_node
        sender = producer._sender
        # It raises without transactions; `ended` does its work.
        sender.sender_task.remove_done_callback(sender._fail_all)
        sender.sender_task.add_done_callback(self._sender_done)

    async def _reachable_node(self) -> int:
        client = self._client.client
        patience = 0.5
        while True:
            for node in random.sample(list(self._cluster.brokers()), len(self._cluster.brokers())):
                with contextlib.suppress(TimeoutError):
                    if await asyncio.wait_for(client.ready(node.nodeId), patience):
                        return int(node.nodeId)
            await asyncio.sleep(patience / 5)
            patience = min(2 * patience, 4.0)

    def _sender_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            logger.error("aiokafka's sender task failed", exc_info=task.exception())
        if not self._stopping:
            self._ended(self)

    def nodes(self) -> list[Host]:
        """The advertised addresses."""
        return [Host(node.host, node.port) for node in self._cluster.brokers()]

    async def ping(self) -> None:
        """Waits for any node's answer.

        Raises:
            OSError, KafkaError, TimeoutError: None answers.
        """
        await self._inquirer.ask(())

    async def _update_metadata(self, cluster: Any, topics: Collection[str]) -> bool:
        """In place of the client's own, which asks again without a pause while a partition has no leader."""
        if self._unsettled:
            await asyncio.sleep(PAUSE)
        self._unsettled = True
        try:
            answer = await self._inquirer.ask(list(topics))
            if not answer.brokers:
                return False
            cluster.update_metadata(answer)
        except Exception as error:  # must not end the client's task
            logger.info("no metadata from any node (the last one: %s)", type(error).__name__)
            cluster.failed_update(None)
            return False
        self._unsettled = any(partition[2] < 0 for topic in answer.topics for partition in topic[-1])
        return True

    async def refresh(self, topics: Sequence[str] = (), *, timeout: float = 1.0) -> bool:
        """Asks for metadata of the topics used so far and of these.

        Args:
            topics: These are asked for from now on.
            timeout: Seconds; the client goes on asking after it. (Of a client that was closed nobody would answer.)

        Returns:
            Whether a node answered.
        """
        client = self._client.client
        client._topics.update(topics)
        try:
            async with asyncio.timeout(timeout):
                return bool(await client.force_metadata_update())
        except TimeoutError:
            return False

    def forget(self, topic: str) -> None:
        """Does not ask for the topic any more: aiokafka would log an error at each refresh."""
        self._client.client._topics.discard(topic)

    def partitions(self, topic: str) -> int:
        """How many partitions the topic has; 0: unknown."""
        # `partitions_for_topic` would copy them into a set, for each batch.
        return len(self._cluster._partitions.get(topic, ()))

    def forbidden(self, topic: str) -> bool:
        """Whether the user may not see the topic."""
        return topic in self._cluster.unauthorized_topics

    def watch_metadata(self, changed: Callable[[Any], None]) -> None:
        """Calls back after each refresh."""
        self._cluster.add_listener(changed)

    # -- batches ------------------------------------------------------------------------------------------------------

    def append(self, batch: QueuedBatch) -> None:
        """Queues a batch for its partition, behind what is queued for it.

        Raises:
            KafkaError: The producer cannot take it; it was not queued.
        """
        accumulator, where = self._client._message_accumulator, batch.tp
        if accumulator._closed or not self.alive:
            raise ProducerClosed
        if accumulator._exception is not None:
            raise accumulator._exception
        if self.partitions(where.topic) <= where.partition:
            raise UnknownTopicOrPartitionError
        # As `_append_batch`, with a batch of our own.
        accumulator._batches[where].append(batch)
        if not accumulator._waiter_future.done():
            accumulator._waiter_future.set_result(None)

    def withdraw(self, batch: QueuedBatch) -> None:
        """Takes back a batch that the sender has not taken: an empty one would hold up the one behind it."""
        batches = self._client._message_accumulator._batches
        queue = batches.get(batch.tp, ())
        if batch in queue:
            queue.remove(batch)
            if not queue:
                del batches[batch.tp]

    @property
    def alive(self) -> bool:
        """Whether its sender task runs."""
        return not self._client._sender.sender_task.done()

    @property
    def has_queued(self) -> bool:
        """Whether batches wait for the sender."""
        return bool(self._client._message_accumulator._batches)

    def may_be_written(self, topic: str, partition: int) -> bool:
        """Whether an attempt to send the partition's last batch may have been written although it failed."""
        return (topic, partition) in self._doubtful

    async def _watched_send(self, node_id: Any, request: Any, **how: Any) -> Any:
        if not isinstance(request, ProduceRequest):
            return await self._send(node_id, request, **how)
        encode_once(request)
        try:
            response = await self._send(node_id, request, **how)
        except NodeNotReadyError:  # there was no connection to send it on
            raise
        except BaseException:
            self._doubtful.update((topic, part[0]) for topic, parts in request._topics for part in parts)
            raise
        self._heard()
        if request.required_acks != 0:
            for topic, answers in response.topics:
                for partition, code, offset, *_ in answers:
                    # A refusal with an offset was appended first: a leader that stepped down while it waited for its
                    # followers answers "not leader" (6), and the new leader may have the batch.
                    if code and (offset >= 0 or code in _MAY_BE_WRITTEN):
                        self._doubtful.add((topic, partition))
        return response

    async def _tracked_produce(self, node_id: Any, batches: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._requests.add(task)
        try:
            await self._produce(node_id, batches)
        finally:
            self._requests.discard(task)

    # -- the end ------------------------------------------------------------------------------------------------------

    async def stop(self, grace: float) -> None:
        """Stops gracefully for `grace` seconds, then by force within 0.7 s more; leaves no task and no socket."""
        self._stopping = True
        sender = self._client._sender.sender_task
        if sender is None or sender.done():
            grace = max(grace, 0.1)  # nothing to flush: it only closes connections
            await self._end_requests()  # one that pauses before it repeats would miss its batch
            self._fail_batches()  # or a task of aiokafka would wait for their outcome
        stopping = asyncio.ensure_future(self._client.stop())
        stopping.add_done_callback(looked_at)
        try:
            await asyncio.wait((stopping,), timeout=grace)
            if not stopping.done():
                await self._tear_down(stopping)
            elif stopping.cancelled() or stopping.exception() is not None:
                self.abort()  # it failed half-way
        except asyncio.CancelledError:
            stopping.cancel()
            self.abort()
            raise

    async def _tear_down(self, stopping: asyncio.Future[None]) -> None:
        """The order matters: verified on frozen and on killed brokers (no task, no socket, no noise in the loop)."""
        producer = self._client
        stopping.cancel()
        closing = asyncio.ensure_future(producer.client.close())
        await asyncio.wait((closing, stopping), timeout=0.2)
        # The sender swallows its cancel to await its requests.
        tasks = {task for task in (producer._sender.sender_task, closing, *self._requests) if task is not None}
        for task in tasks:
            task.add_done_callback(looked_at)
            task.cancel()
        await asyncio.wait(tasks, timeout=0.3)
        self._fail_batches()
        self._drop_sockets()
        await asyncio.wait((stopping, *tasks), timeout=0.1)

    async def _end_requests(self) -> None:
        requests = set(self._requests)
        for task in requests:
            task.cancel()
        if requests:
            await asyncio.wait(requests, timeout=0.1)

    def _fail_batches(self) -> None:
        accumulator = self._client._message_accumulator
        for batches in list(accumulator._batches.values()):
            accumulator._pending_batches.update(batches)  # else its own callback raises KeyError for retried ones
        accumulator.fail_all(ProducerClosed())
        for batch in list(accumulator._pending_batches):
            if batch.future.done() and not batch.future.cancelled():
                batch.future.exception()
            if batch._drain_waiter.done() and not batch._drain_waiter.cancelled():
                batch._drain_waiter.exception()

    def abort(self) -> None:
        """Drops everything at once; also when the event loop is closed. No task of it complains afterwards."""
        self._stopping = True
        producer = self._client
        producer._closed = True  # else its __del__ warns
        client = producer.client
        alive = not producer._loop.is_closed()
        for task in (producer._sender.sender_task, client._sync_task, *self._requests):
            _drop_task(task, alive)
        self._drop_sockets()
        if alive:
            self._fail_batches()

    def _drop_sockets(self) -> None:
        client = self._client.client
        alive = not client._loop.is_closed()
        for connection in list(client._conns.values()):
            _drop_task(connection._read_task, alive)
            if connection._idle_handle is not None:
                connection._idle_handle.cancel()
            writer, connection._writer, connection._reader = connection._writer, None, None
            if writer is not None:
                _drop_transport(writer.transport, alive)
        client._conns.clear()


def _drop_task(task: Any, alive: bool) -> None:
    if task is None or task.done():
        return
    if alive:
        task.cancel()
    else:
        task._log_destroy_pending = False  # its loop is gone: it can never finish


def _drop_transport(transport: Any, alive: bool) -> None:
    with contextlib.suppress(Exception):
        if alive:
            transport.abort()
            return
        inner = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
        transport._closed = True  # an SSL transport warns by this one
        for layer in (transport, inner):
            raw = getattr(layer, "_sock", None)
            if layer is not None and raw is not None:
                raw.close()
                layer._sock = None
                layer._closing = True  # a stream writer warns by this one


def why_not_started(error: Exception) -> ConnectError:
    """The error for a producer that could not start although a bootstrap server answered."""
    if isinstance(error, ClusterAuthorizationFailedError):
        return AuthorizationError("the user may not use the cluster: grant it IDEMPOTENT_WRITE on the cluster")
    return UnreachableError(f"the cluster answered, but the producer could not start ({type(error).__name__})")
