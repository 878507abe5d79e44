"""One node of the cluster, its connection for produce requests, and the requests in flight on this connection.

A request is written when a partition that the node leads has records to send, fewer than five requests are in flight,
and no quota throttles us. A request contains one batch of each ready partition. When the batches have `REQUEST_SIZE`
bytes or more, the other partitions wait for the next request. Records that come while a batch of their partition is in
flight make the next batch larger. At most one batch of each partition is in flight, for this reason: a broker that does
not know a producer on a partition accepts any sequence number. So a second batch could be appended although the first
batch was refused.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from cqrs_brokers.driver import confirm_all
from cqrs_brokers.tasks import drop_task
from cqrs_brokers.url import Host

from ._client import Connection
from ._partition import Batch, Partition, State
from ._produce import Answer, correlation_id_of, read_answers, request_head, request_of
from ._settings import KafkaSettings

if TYPE_CHECKING:
    from ._driver import KafkaDriver

__all__ = ["Node"]

logger = logging.getLogger("cqrs_broker_kafka.node")

MOST_IN_FLIGHT = 5
"""The largest number of requests in flight. Kafka's Java client has the same default."""
REQUEST_SIZE = 2**20
"""When the batches of a request have this many bytes, no further batch is added."""
SHARE_FOR_REPLICAS = 0.9
"""The broker may wait for replicas for this share of `request_timeout_ms`. The share is below 1, so that the broker's
answer comes before we give up the request."""
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""The pause before a node that could not be reached is tried again, in seconds. The pause doubles each time, up to
`LONGEST_PAUSE`."""
IDLE_LIMIT = 540.0
"""If we wrote nothing for more than this many seconds, the next request gets a new connection. By default a broker
closes an idle connection after ten minutes."""
LOOK_AFTER = 1.0
"""If we wrote nothing for more than this many seconds, the event loop gets 1 ms to read the socket before the next
request is written. The read shows whether the broker has closed the connection."""


class _Request(NamedTuple):
    """A produce request in flight."""

    correlation_id: int
    batches: list[Batch]
    written_at: float


class Node:
    """One node of the cluster.

    Args:
        owner: The driver.
        settings: How to connect.
        number: The node's id.
        host: The address that the node advertises.

    Attributes:
        ready: The READY partitions that this node leads, in the order in which the driver queued them. Some may have
            nothing to send now.
        failure: The error of the last attempt that `connect` made. None: that attempt or a later one succeeded, or
            there was none.
        connection: The connection for produce requests. None: there is no connection now.
        throttled_until: The time until which the node does not read from us because of a quota (event loop's time).
    """

    def __init__(self, owner: KafkaDriver, settings: KafkaSettings, number: int, host: Host) -> None:
        self.number = number
        self.host = host
        self.ready: dict[Partition, None] = {}
        self.failure: Exception | None = None
        self.throttled_until = 0.0
        self._owner = owner
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        options = settings.options
        self._acks = {"all": -1, "1": 1, "0": 0}[options.acks]
        self._timeout = options.request_timeout_ms / 1000
        client_id = (options.client_id or "aiokafka").encode()
        self._head = request_head(client_id, self._acks, int(options.request_timeout_ms * SHARE_FOR_REPLICAS))
        self.connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._in_flight: deque[_Request] = deque()
        self._correlation_id = 0
        self._timer: asyncio.TimerHandle | None = None
        self._later: asyncio.TimerHandle | None = None
        self._written_at = 0.0
        self._draining: asyncio.Task[None] | None = None
        self._dropped = False
        self._responses = partial(owner.link.wake_after, self._answered)
        """Handles responses (`_answered`), and then wakes the callers whose messages got outcomes; see
        `Link.wake_after`."""

    def __repr__(self) -> str:
        return f"<Node {self.number} {self.host}>"

    @property
    def idle(self) -> bool:
        """Whether no request is in flight."""
        return not self._in_flight

    # -- requests -----------------------------------------------------------------------------------------------------

    def write(self) -> None:
        """Writes requests while partitions are ready and fewer than `MOST_IN_FLIGHT` requests are in flight. If the
        connection cannot be used now, starts to connect, or writes later."""
        if not self.ready or len(self._in_flight) >= MOST_IN_FLIGHT:
            return
        connection = self._usable_connection()
        while connection is not None and self.ready and len(self._in_flight) < MOST_IN_FLIGHT:
            batches = self._take_batches()
            if not batches:
                return
            self._write_request(connection, batches)
            connection = self.connection  # writing may have shown that it is broken

    def _usable_connection(self) -> Connection | None:
        connection = self.connection
        if connection is None:
            self.connect()
            return None
        now = self._loop.time()
        if self.throttled_until > now:
            self._write_later(self.throttled_until - now)
            return None
        if self._in_flight:
            return None if connection.login_ends() else connection
        silent = now - self._written_at
        if not connection.connected() or silent > IDLE_LIMIT or connection.login_ends():
            connection.drop()
            self.connect()
            return None
        if silent > LOOK_AFTER:
            self._written_at = now - LOOK_AFTER / 2
            self._write_later(0.001)
            return None
        return connection

    def _write_later(self, seconds: float) -> None:
        if self._later is None:
            self._later = self._loop.call_later(seconds, self._write_again)

    def _write_again(self) -> None:
        self._later = None
        self.write()

    def _take_batches(self) -> list[Batch]:
        batches: list[Batch] = []
        size = 0
        while self.ready and size < REQUEST_SIZE:
            partition = next(iter(self.ready))
            del self.ready[partition]
            if partition.state is not State.READY:
                continue
            batch = partition.take()
            if batch is not None:
                size += len(batch.data)
                batches.append(batch)
        return batches

    def _write_request(self, connection: Connection, batches: list[Batch]) -> None:
        self._correlation_id = number = (self._correlation_id + 1) % 2**31
        self._written_at = now = self._loop.time()
        self._in_flight.append(_Request(number, batches, now))
        parts = [(batch.partition.topic, batch.partition.number, batch.data) for batch in batches]
        try:
            connection.write(request_of(number, self._head, parts), self._responses)
        except Exception:
            connection.drop()
            return
        if not self._acks:
            self._confirm_when_written()
        elif self._timer is None:
            self._timer = self._loop.call_later(self._timeout, self._check_time)

    def _answered(self, frames: list[bytes]) -> None:
        """Reads responses, and writes the next requests. A broker answers in the order of the requests."""
        owner, confirmed = self._owner, []
        for frame in frames:
            if not self._in_flight or correlation_id_of(frame) != self._in_flight[0].correlation_id:
                logger.error("node %d at %s gave an answer to another request than the oldest", self.number, self.host)
                self._drop_connection()
                break
            confirmed += self._read(self._in_flight.popleft(), frame)
        owner.heard()
        owner.flush()  # before the callers wake up, so that the broker already works on the next request
        owner.alone = not self._in_flight and len(confirmed) == 1 and len(confirmed[0][0].records) == 1
        for batch, offset in confirmed:
            confirm_all(
                batch.records.deliveries,
                partition=batch.partition.number,
                offset=None if offset < 0 else offset,
            )

    def _read(self, request: _Request, frame: bytes) -> list[tuple[Batch, int]]:
        waiting = {(batch.partition.topic, batch.partition.number): batch.partition for batch in request.batches}
        confirmed: list[tuple[Batch, int]] = []
        throttle = 0
        try:
            answers, throttle = read_answers(frame)
        except Exception:  # the node's fault, or ours: records in flight must not wait for ever
            logger.exception("node %d at %s gave an answer that cannot be read", self.number, self.host)
            answers = []
            self._drop_connection()
        for answer in answers:
            partition = waiting.pop((answer.topic, answer.partition), None)
            if partition is None:
                continue
            batch = partition.answered(answer)
            if batch is not None:
                confirmed.append((batch, answer.offset))
        for partition in waiting.values():
            partition.lost("the broker's answer says nothing about the message")
        if throttle > 0:
            self.throttled_until = self._loop.time() + throttle / 1000
            self._owner.throttled(self, throttle / 1000)
        return confirmed

    def _lost(self, requests: Iterable[_Request]) -> None:
        for batch in [batch for request in requests for batch in request.batches]:
            if batch.partition.batch is batch and batch.partition.state is State.IN_FLIGHT:
                batch.partition.lost("the connection was lost before the broker confirmed the message")
        self._owner.flush()

    # -- time ---------------------------------------------------------------------------------------------------------

    def _check_time(self) -> None:
        """Drops the connection if the node has not answered the oldest request within `request_timeout_ms`. This time
        is counted from the writing of the request, or from the end of the last throttling if that is later."""
        self._timer = None
        if not self._in_flight:
            return
        now = self._loop.time()
        due = max(self._in_flight[0].written_at, self.throttled_until) + self._timeout
        if now < due - 0.001:
            self._timer = self._loop.call_later(due - now, self._check_time)
            return
        logger.warning("node %d at %s did not answer within %g s", self.number, self.host, self._timeout)
        self._drop_connection()

    def _confirm_when_written(self) -> None:
        """Starts a task that confirms records when the operating system has taken their bytes. With acks=0 no answer
        comes."""
        if self._draining is None or self._draining.done():
            self._draining = self._owner.tasks.spawn(self._drain())

    async def _drain(self) -> None:
        while self._in_flight and (connection := self.connection) is not None:
            requests = list(self._in_flight)
            try:
                await connection.written()
            except OSError:
                connection.drop()
                continue  # there may be a new connection, with requests of its own
            for request in requests:
                if request in self._in_flight:
                    self._in_flight.remove(request)
                    self._sent(request)
            self._owner.heard()
            self._owner.flush()

    def _sent(self, request: _Request) -> None:
        for batch in request.batches:
            partition = batch.partition
            if partition.batch is batch and partition.answered(Answer(partition.topic, partition.number, 0, -1)):
                confirm_all(batch.records.deliveries, partition=partition.number)

    # -- the connection -----------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Starts a task that connects, unless such a task runs. The task tries until a connection exists, or until no
        partition is ready."""
        if self._connecting is None or self._connecting.done():
            self._connecting = self._owner.tasks.spawn(self._keep_connecting())

    async def _keep_connecting(self) -> None:
        pause = FIRST_PAUSE
        while self.connection is None and self.ready:
            try:
                await self.open()
            except Exception as error:
                if self.failure is None:
                    logger.warning("node %d at %s cannot be reached: %s", self.number, self.host, type(error).__name__)
                self.failure = error
                self._owner.request_metadata()
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        self.write()

    async def open(self) -> Connection:
        """Connects, and replaces `connection`.

        Raises:
            OSError, ssl.SSLError, KafkaError, TimeoutError, TokenError, ProtocolError: The node cannot be used.
        """
        connection = await Connection.open(self._settings, self.host, self._closed)
        try:
            if self._dropped:
                raise ConnectionAbortedError
            connection.check_version()
        except Exception:
            connection.drop()
            raise
        if self.failure is not None:
            logger.warning("node %d at %s is reached again", self.number, self.host)
            self.failure = None
        self.connection = connection
        self._written_at = self._loop.time()
        self._owner.heard()
        return connection

    def _closed(self, connection: Connection) -> None:
        """aiokafka calls this method when the connection is closed. The method asks for a call of `Partition.lost` for
        each batch in flight, in a later turn of the event loop."""
        if self.connection is connection:
            self.connection = None
            lost, self._in_flight = self._in_flight, deque()
            if lost and not self._loop.is_closed():
                self._loop.call_soon(self._lost, lost)

    def _drop_connection(self) -> None:
        if self.connection is not None:
            self.connection.drop()

    def moved(self, host: Host) -> None:
        """Notes that the node has another address now. Drops the connection to the old address, and ends an attempt to
        connect to it."""
        self.host = host
        self._drop_connection()
        drop_task(self._connecting)
        self._connecting = None
        self.write()

    def abandon(self) -> None:
        """Drops the connection, and then calls `Partition.lost` for each batch in flight."""
        in_flight, self._in_flight = self._in_flight, deque()
        self._drop_connection()
        self._lost(in_flight)

    def drop(self) -> None:
        """Ends the use of this node: drops the connection, cancels the task that connects and the timers, and forgets
        the requests in flight. `Partition.lost` is not called for their batches."""
        self._dropped = True
        drop_task(self._connecting)
        self._in_flight.clear()
        self.ready.clear()
        for timer in (self._timer, self._later):
            if timer is not None:
                timer.cancel()
        self._timer = self._later = None
        self._drop_connection()
        self.connection = None
