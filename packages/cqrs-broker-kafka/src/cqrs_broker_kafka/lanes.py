"""One FIFO per partition: what keeps the order of calls per key.

A lane gives aiokafka one batch at a time and the next one after the answer. So what is still in the lane is certainly
not delivered, nothing can overtake what is being retried, and a batch that is proven not written can go again in its
old place.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from cqrs_brokers.exceptions import ConnectionLostError, InvalidMessageError

from .errors import judge
from .records import Record

if TYPE_CHECKING:
    from .internals import Producer
    from .topics import Topic

__all__ = ["Batch", "Feeder", "Lane"]


class Feeder(Protocol):
    """What a lane needs of the driver."""

    @property
    def producer(self) -> Producer | None:
        """Who takes batches now; None: nobody."""

    def answered(self, producer: Producer, failed: bool) -> None:
        """A batch of the producer has its answer."""

    def refused(self, producer: Producer, topic: Topic, error: BaseException) -> None:
        """The producer did not take a batch."""


class Batch:
    """Records that aiokafka has now."""

    __slots__ = ("producer", "handle", "records")

    def __init__(self, producer: Producer, handle: Any, records: list[Record]) -> None:
        self.producer = producer
        self.handle = handle
        self.records = records


class Lane:
    """The messages of one partition."""

    __slots__ = ("feeder", "topic", "partition", "pending", "batch", "dirty", "gone", "_spoiled", "_suspects", "_group")

    def __init__(self, feeder: Feeder, topic: Topic, partition: int) -> None:
        self.feeder = feeder
        self.topic = topic
        self.partition = partition
        self.pending: deque[Record] = deque()
        self.batch: Batch | None = None
        self.dirty = False
        """The driver will feed it in this turn of the loop."""
        self.gone = False
        """Its partition does not exist any more."""
        self._spoiled: Producer | None = None
        """Its sequence for this partition has a gap: the broker would refuse everything that follows."""
        self._suspects = 0
        """So many records at the head were refused together, perhaps because of one of them …"""
        self._group = 0
        """… and go again in groups of so many."""

    def feed(self) -> None:
        """Hands one batch over, if there is something to send, nothing on its way, and a producer to take it."""
        producer = self.feeder.producer
        if self.batch is not None or not self.pending or producer is None or producer is self._spoiled:
            return
        topic = self.topic
        if producer.partitions(topic.name) <= self.partition:
            topic.lost()
            return
        filled = None
        while filled is None:
            builder = producer.create_batch()
            filled = self._fill(builder)
        if not filled:
            return
        try:
            handle = producer.append(builder, topic.name, self.partition)
        except Exception as error:
            self._take_back(filled)
            self.feeder.refused(producer, topic, error)
            return
        producer.in_flight += 1
        producer.appended += len(filled)
        self.batch = Batch(producer, handle, filled)
        topic.fed(self)
        handle.future.add_done_callback(self._answered)

    def _fill(self, builder: Any) -> list[Record] | None:
        """Moves records from the head into the builder; None: it is spoiled, begin again with another one."""
        pending, append, limit = self.pending, builder.append, self.topic.batch_limit
        records: list[Record] = []
        size = 0
        most = min(self._group, self._suspects) if self._suspects else len(pending)
        while pending and len(records) < most:
            record = pending[0]
            delivery = record.delivery
            if not delivery.handed_over():  # expired, cancelled or closed
                self._drop_head()
                continue
            if limit is not None:
                size += record.size()
                if records and size > limit:
                    delivery.returned()
                    break
            try:
                fits = append(
                    timestamp=record.timestamp, key=record.key, value=record.value, headers=record.headers()
                )
            except Exception as error:
                refusal = InvalidMessageError(f"the client cannot write it as a record ({type(error).__name__})")
                refusal.__cause__ = error
                delivery.fail(refusal)
                self._drop_head()
                self._take_back(records)
                return None
            if fits is None:  # full
                delivery.returned()
                break
            pending.popleft()
            records.append(record)
        return records

    def _drop_head(self) -> None:
        self.pending.popleft()
        if self._suspects:
            self._suspects -= 1

    def _take_back(self, records: list[Record]) -> None:
        """Proven not written: they wait again, in their old places."""
        for record in reversed(records):
            record.delivery.returned()
            self.pending.appendleft(record)

    def _answered(self, future: asyncio.Future[Any]) -> None:
        batch = self.batch
        if batch is None or batch.handle.future is not future:
            if not future.cancelled():
                future.exception()  # given up before the answer came; asyncio would complain
            return
        self.batch = None
        batch.producer.in_flight -= 1
        error: BaseException | None = asyncio.CancelledError() if future.cancelled() else future.exception()
        if error is None:
            if self._suspects:
                self._acquit(len(batch.records))
            self.feeder.answered(batch.producer, failed=False)
            self.feed()  # first, so that the next batch is on its way while callers wake up
            self._confirm(batch, future.result())
        else:
            self._failed(batch, error)

    def _confirm(self, batch: Batch, answer: Any) -> None:
        partition = self.partition
        if answer is None:  # acks=0
            for record in batch.records:
                record.delivery.confirm()
            return
        offset = answer.offset
        if offset < 0:  # the broker knew the batch already and has forgotten where it is (code 46)
            for record in batch.records:
                record.delivery.confirm(partition=partition)
            return
        for record in batch.records:
            record.delivery.confirm(partition=partition, offset=offset)
            offset += 1

    def _failed(self, batch: Batch, error: BaseException) -> None:
        records, producer = batch.records, batch.producer
        maybe_written = producer.may_be_written(self.topic.name, self.partition)
        verdict = judge(error, maybe_written=maybe_written)
        if producer.idempotent:
            self._spoiled = producer
        if verdict.passes and not self.gone:
            self._take_back(records)
        elif verdict.blame_one and len(records) > 1 and not self.gone:
            if verdict.too_large:
                self.topic.too_large([record.size() for record in records])
            self._take_back(records)
            self._suspects = max(self._suspects, len(records))
            self._group = len(records) // 2
        else:
            if self._suspects:
                self._acquit(len(records))
            for record in records:
                record.delivery.fail(verdict.error)
        self.feeder.answered(producer, failed=True)
        self.feed()

    def _acquit(self, count: int) -> None:
        """The head group has its outcome: those behind it are tried in larger groups again."""
        self._suspects = max(0, self._suspects - count)
        self._group *= 2

    # -- when the client cannot answer --------------------------------------------------------------------------------

    def give_up(self, producer: Producer) -> None:
        """The producer is dead: what it never sent waits again, the rest is unknown."""
        batch = self.batch
        if batch is None or batch.producer is not producer:
            return
        self.batch = None
        producer.in_flight -= 1
        future = batch.handle.future
        if future.done() and not future.cancelled() and future.exception() is None:
            self._confirm(batch, future.result())
        elif batch.handle.retry_count == 0 and not self.gone:
            self._take_back(batch.records)
        else:
            for record in batch.records:
                record.delivery.fail(ConnectionLostError("the client stopped before the broker confirmed the message"))

    def purge(self) -> None:
        """Lets go of messages whose callers have their answer, so that a stuck partition does not fill the window."""
        if any(record.delivery.done for record in self.pending):
            kept: deque[Record] = deque()
            suspects = self._suspects
            for index, record in enumerate(self.pending):
                if not record.delivery.done or record.delivery.handed_over():
                    kept.append(record)
                elif index < suspects:
                    self._suspects -= 1
            self.pending = kept

    def leave(self) -> deque[Record]:
        """The partition is gone: what waited for it must go elsewhere."""
        self.gone = True
        left, self.pending = self.pending, deque()
        self._suspects = 0
        return left

    def clear(self) -> None:
        """Forgets everything: `Broker` has ended it."""
        self.pending.clear()
        self.batch = None
