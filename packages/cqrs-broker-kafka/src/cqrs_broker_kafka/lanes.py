"""One FIFO per partition: what keeps the order of calls per key.

A lane gives aiokafka one batch at a time, the next one after the answer, and fills it only when aiokafka takes it to
send it. So what is still in the lane is certainly not delivered, nothing can overtake what is being retried, and what
is proven not written can go again in its old place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from cqrs_brokers.driver import confirm_all
from cqrs_brokers.exceptions import ConnectionLostError, InvalidMessageError

from .batches import QueuedBatch
from .errors import judge
from .internals import Producer
from .records import Record

if TYPE_CHECKING:
    from .topics import Topic

__all__ = ["Batch", "Feeder", "Lane"]

STUCK = 0.05
"""A batch that aiokafka has not taken for so long, in seconds, waits for a node or a leader."""


class Feeder(Protocol):
    """What a lane needs of the driver."""

    @property
    def producer(self) -> Producer | None:
        """Who takes batches now; None: nobody."""

    def answered(self, producer: Producer, failed: bool) -> None:
        """A batch of the producer has its answer."""

    def confirmed(self, batch: Batch, offset: int | None) -> None:
        """Confirm its records when what is queued now has been written: callers wake up while the broker works."""

    def refused(self, producer: Producer, topic: Topic, error: BaseException) -> None:
        """The producer did not take a batch."""


class Batch(QueuedBatch):
    """A lane's batch.

    Args:
        lane: The lane.
        producer: Who is to take it.
        part: Of many messages only a part goes with it.

    Attributes:
        records: What is in it; nothing until it is taken.
    """

    def __init__(self, lane: Lane, producer: Producer, part: bool) -> None:
        super().__init__(producer, lane.topic.name, lane.partition)
        self.lane = lane
        self.records: list[Record] = []
        self.queued_at = monotonic()
        self._part = part

    def fill(self, append: Callable[..., Any]) -> bool:
        """See `QueuedBatch`."""
        if self.lane.batch is not self:  # given up
            return True
        return self.lane.fill(self, append, self._part)

    def expired(self) -> bool:
        """See `MessageBatch`. What may be written is not let go: only another attempt can tell."""
        if not super().expired():
            return False
        producer, lane = self.producer, self.lane
        in_doubt = producer.idempotent and producer.may_be_written(lane.topic.name, lane.partition)
        return not (in_doubt and any(not record.delivery.done for record in self.records))

    def answered(self, offset: int | None, error: BaseException | None) -> None:
        """See `QueuedBatch`."""
        if self.lane.batch is self:
            self.lane.answered(self, offset, error)

    def confirm(self, offset: int | None) -> None:
        """The callers get their receipts."""
        deliveries = [record.delivery for record in self.records]
        if offset is None:
            confirm_all(deliveries)
        else:
            confirm_all(deliveries, partition=self.lane.partition, offset=None if offset < 0 else offset)


class Lane:
    """The messages of one partition."""

    __slots__ = ("feeder", "topic", "partition", "pending", "batch", "gone", "_spoiled", "_suspects", "_group")

    def __init__(self, feeder: Feeder, topic: Topic, partition: int) -> None:
        self.feeder = feeder
        self.topic = topic
        self.partition = partition
        self.pending: deque[Record] = deque()
        self.batch: Batch | None = None
        self.gone = False
        """Its partition does not exist any more."""
        self._spoiled: Producer | None = None
        """Its sequence for this partition has a gap: the broker would refuse everything that follows."""
        self._suspects = 0
        """So many records at the head were refused together, perhaps because of one of them …"""
        self._group = 0
        """… and go again in groups of so many."""

    @property
    def stuck(self) -> bool:
        """Whether aiokafka does not take its batch: there is no leader, or its node does not answer."""
        batch = self.batch
        return batch is not None and not batch.taken and monotonic() - batch.queued_at > STUCK

    def feed(self, *, idle: bool = False) -> None:
        """Gives aiokafka a batch, if there is something to send, nothing on its way, and a producer to take it.

        Args:
            idle: Nothing was on its way before.
        """
        producer = self.feeder.producer
        if self.batch is not None or not self.pending or producer is None or producer is self._spoiled:
            return
        topic = self.topic
        if producer.partitions(topic.name) <= self.partition:
            topic.lost()
            return
        batch = Batch(self, producer, idle)
        try:
            producer.append(batch)
        except Exception as error:
            self.feeder.refused(producer, topic, error)
            return
        self.batch = batch
        producer.in_flight += 1

    def fill(self, batch: Batch, append: Callable[..., Any], part: bool) -> bool:
        """Moves records from the head into the batch; see `QueuedBatch.fill`."""
        pending, records, limit = self.pending, batch.records, self.topic.batch_limit
        size = 0
        if self._suspects:
            most = min(self._group, self._suspects)
        elif part:
            most = self.topic.first_part(len(pending))
        else:
            most = len(pending)
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
                records.clear()
                return False
            if fits is None:  # full
                delivery.returned()
                break
            pending.popleft()
            records.append(record)
        batch.producer.appended += len(records)
        self.topic.fed(self)
        return True

    def _drop_head(self) -> None:
        self.pending.popleft()
        if self._suspects:
            self._suspects -= 1

    def _take_back(self, records: list[Record]) -> None:
        """Proven not written: they wait again, in their old places."""
        for record in reversed(records):
            record.delivery.returned()
            self.pending.appendleft(record)

    def answered(self, batch: Batch, offset: int | None, error: BaseException | None) -> None:
        """The batch has its answer; see `QueuedBatch.answered`."""
        self.batch = None
        producer = batch.producer
        producer.in_flight -= 1
        if error is None:
            if self._suspects:
                self._acquit(len(batch.records))
            self.feeder.answered(producer, failed=False)
            self.feed()
            self.feeder.confirmed(batch, offset)
            return
        if batch.records:  # else aiokafka did not even take it
            self._failed(batch, error)
        self.feeder.answered(producer, failed=bool(batch.records))
        self.feed()

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

    def _acquit(self, count: int) -> None:
        """The head group has its outcome: those behind it are tried in larger groups again."""
        self._suspects = max(0, self._suspects - count)
        self._group *= 2

    # -- when the client cannot answer --------------------------------------------------------------------------------

    def give_up(self, producer: Producer) -> None:
        """The producer is dead: what it had taken is unknown, the rest waits for the next one."""
        batch = self.batch
        if batch is None or batch.producer is not producer:
            return
        self.batch = None
        producer.in_flight -= 1
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
        batch = self.batch
        if batch is not None and not batch.taken:
            batch.producer.withdraw(batch)
            self.batch = None
            batch.producer.in_flight -= 1
            self.feeder.answered(batch.producer, failed=False)
        left, self.pending = self.pending, deque()
        self._suspects = 0
        return left

    def clear(self) -> None:
        """Forgets everything: `Broker` has ended it."""
        self.pending.clear()
        self.batch = None
