"""A model of one Kafka partition's log, as brokers up to 4.4 keep it, and a producer around a `Partition`.

Independent of the plugin: it reads record batches as bytes, and knows what a broker does with their numbers
(`ProducerAppendInfo`): a producer that it does not know may begin with any sequence number; of a known one it accepts
the next number, or 0 under a higher epoch; a batch that equals one of the last five is a duplicate, whatever is in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cqrs_broker_kafka._partition import Batch, Partition, State
from cqrs_broker_kafka._produce import Answer
from cqrs_broker_kafka._records import HEAD_SIZE, PLACE_SIZE, Records
from cqrs_brokers import DeliveryError, NotDeliveredError

OUT_OF_ORDER, INVALID_EPOCH = 45, 47


@dataclass
class Written:
    """A batch as the broker sees it."""

    producer_id: int
    epoch: int
    sequence: int
    values: tuple[bytes, ...]

    @property
    def last(self) -> int:
        return self.sequence + len(self.values) - 1

    @property
    def numbers(self) -> tuple[int, int, int, int]:
        return self.producer_id, self.epoch, self.sequence, self.last


@dataclass
class Log:
    """What is in the log, and what the broker remembers of producers."""

    values: list[bytes] = field(default_factory=list)
    known: dict[int, list[tuple[Written, int]]] = field(default_factory=dict)

    def append(self, batch: Written) -> tuple[int, int]:
        """The code and the offset of the answer. Without a producer id nothing is checked."""
        if batch.producer_id >= 0:
            last = self.known.setdefault(batch.producer_id, [])
            for written, offset in last:
                if written.numbers == batch.numbers:
                    return 0, offset  # a duplicate: its content is not compared
            if last:
                newest = last[-1][0]
                if batch.epoch < newest.epoch:
                    return INVALID_EPOCH, -1
                expected = newest.last + 1 if batch.epoch == newest.epoch else 0
                if batch.sequence != expected:
                    return OUT_OF_ORDER, -1
            last.append((batch, len(self.values)))
            del last[:-5]
        offset = len(self.values)
        self.values += batch.values
        return 0, offset

    def forget_producers(self) -> None:
        """As after the expiry of producer ids, or when a topic is made anew."""
        self.known.clear()


class Delivery:
    """Stands for core's: the same states, and it keeps its outcome."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.handed = False
        self.released = False
        self.outcome: object | None = None
        """What the caller was told."""
        self.attempts = 0

    @property
    def done(self) -> bool:
        return self.outcome is not None

    def handed_over(self) -> bool:
        assert not self.released
        assert not self.handed
        if self.done:
            self.released = True
            return False
        self.handed = True
        return True

    def returned(self) -> None:
        assert self.handed
        assert not self.released
        self.handed = False

    def release(self) -> None:
        assert self.done
        assert not self.released
        self.released = True

    def confirm(self, offset: int) -> None:
        assert self.handed
        assert not self.released
        self.released = True
        if self.outcome is None:
            self.outcome = offset

    def fail(self, error: DeliveryError) -> None:
        assert not self.released
        self.released = True
        if self.outcome is None:
            self.outcome = error

    def expire(self) -> None:
        """The deadline: what core tells the caller."""
        if self.outcome is None:
            self.outcome = "unknown" if self.handed else NotDeliveredError("expired")


class Around:
    """The producer around one partition."""

    def __init__(self, idempotent: bool, most: int) -> None:
        self.idempotent = idempotent
        self.producer_id = 100 if idempotent else -1
        self.epoch = 0 if idempotent else -1
        self.batch_size = HEAD_SIZE + most * (PLACE_SIZE + len(new_delivery(0).name))
        self.ready_now = False
        self.paused_now = False
        self.wants_id = False
        self.rerouted = Records()

    def encode(self, records: Records, producer_id: int, epoch: int, sequence: int) -> Any:
        """A `Written` in place of bytes."""
        return Written(producer_id, epoch, sequence, tuple(records.contents))

    def ready(self, partition: Partition) -> None:
        self.ready_now = True

    def paused(self, partition: Partition, row: Any) -> None:
        self.paused_now = True

    def spend_id(self, producer_id: int) -> None:
        self.wants_id = True

    def left(self, partition: Partition, records: Records) -> None:
        self.rerouted.parts += records.parts

    def new_id(self) -> None:
        self.producer_id += 1


def new_delivery(number: int) -> Any:
    """A delivery whose name is its number."""
    return Delivery(b"%06d" % number)


def add(partition: Partition, delivery: Any) -> None:
    """As `KafkaDriver.submit`: queues a record, whose content is the delivery's name."""
    partition.pending.parts += (delivery, 0, delivery.name)
    partition.filled()


def answer(batch: Batch, code: int, offset: int = -1, culprits: tuple[int, ...] = ()) -> Answer:
    return Answer(batch.partition.topic, batch.partition.number, code, offset, culprits)


__all__ = ["Around", "Delivery", "Log", "State", "Written", "add", "answer", "new_delivery"]
