"""One partition's records on their way: an explicit state machine, without I/O.

                       records                     written by the node
         ┌──────────┐ ─────────▶ ┌─────────┐ ─────────────────────────▶ ┌───────────┐
         │   IDLE   │            │  READY  │                            │ IN_FLIGHT │
         └──────────┘ ◀───────── └─────────┘ ◀───────────────────────── └───────────┘
                       nothing      ▲   ▲      receipt; refused, and not to   │
                       is left      │   │      be repeated; refused because   │
                                    │   │      of one record; given up        │
                         a new      │   │                                     │
                       producer id  │   │  pause is over,                     │ refused, and it can pass;
                         is there   │   │  or a leader is known               │ in doubt
                              ┌─────┴─┐ └────────────┬────────┐               │
                              │ NO_ID │              │ PAUSED │ ◀─────────────┘
                              └───────┘              └────────┘

READY becomes NO_ID when the next batch needs a new producer id.

The broker compares producer id, epoch and sequence numbers of a batch, never its content. So if a sequence number were
used again for other records, their receipt would be false. These rules make an outcome true:

1. One batch at most is in flight. Its sequence numbers are given when it is written, not before.
2. A batch is *in doubt* when one of its attempts may have been appended. While a batch is not in doubt, every attempt
   is proven not appended. If such a batch is refused, its sequence numbers are used again. Its records fail, or they
   wait again. A record whose deadline passes while it waits is proven not delivered.
3. A batch in doubt is repeated byte for byte, also when the deadlines of its records have passed.
4. When a batch in doubt is given up, the next batch has a new epoch, or a new producer id, and begins at sequence 0.
   When the broker has seen the new epoch, it refuses the older one. So it does not append the abandoned batch later.
5. Without idempotence a batch in doubt is never repeated: its outcome is unknown.

This file is longer than 400 lines because the state machine is in one place, with its figure and its rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, Protocol

from cqrs_brokers.driver import Delivery
from cqrs_brokers.exceptions import (
    ConnectionLostError,
    DeliveryError,
    DeliveryUnknownError,
    InvalidMessageError,
    MessageTooLargeError,
)

from ._codes import DUPLICATE_SEQUENCE_NUMBER, Row, Then, error_of, row_of
from ._produce import Answer
from ._records import HEAD_SIZE, Encode, Records

__all__ = ["Batch", "Partition", "Producer", "State"]

LAST_EPOCH = 2**15 - 1
LAST_SEQUENCE = 2**30
"""Sequence numbers begin anew before they can wrap (at 2**31)."""
_ID_IS_SPENT = frozenset({47, 59})
"""After these codes a higher epoch of the same producer id may not help."""


class State(Enum):
    """See the figure."""

    IDLE = "nothing to send"
    READY = "something to send; its leader's node writes it when it has room"
    IN_FLIGHT = "a batch waits for its answer"
    PAUSED = "waits for a leader, or for its next attempt"
    NO_ID = "waits for a new producer id"


class Producer(Protocol):
    """What a partition needs from its owner, the driver."""

    idempotent: bool
    producer_id: int
    """-1: there is no producer id."""
    epoch: int

    batch_size: int
    """The most bytes of a batch, before compression. A larger record is a batch by itself."""

    @property
    def encode(self) -> Encode:
        """Makes the bytes of a batch, from records, producer id, epoch and first sequence number."""

    def ready(self, partition: Partition) -> None:
        """The partition is READY."""

    def paused(self, partition: Partition, row: Row | None) -> None:
        """The partition is PAUSED because of this answer (None: because the answer was lost). Call `resume()` later."""

    def spend_id(self, producer_id: int) -> None:
        """A partition needs another producer id than this one. Call `resume()` when there is one."""

    def left(self, partition: Partition, records: Records) -> None:
        """The partition is gone and its last batch has ended. These records are proven not appended. They go to the
        partitions to which their keys belong now."""


class Batch:
    """Records with their sequence numbers, encoded.

    Attributes:
        partition: The partition of the records.
        records: The records in it.
        data: Its bytes.
        in_doubt: Whether an attempt may have been appended.
    """

    __slots__ = ("partition", "records", "data", "in_doubt")

    def __init__(self, partition: Partition, records: Records, data: bytes | bytearray) -> None:
        self.partition = partition
        self.records = records
        self.data = data
        self.in_doubt = False


class Partition:
    """The records of one partition, in order.

    Args:
        producer: Its owner.
        topic: The topic's name in UTF-8.
        number: The partition's number.

    Attributes:
        pending: Records that are in no batch.
        batch: The batch that is in flight, or that is in doubt and will be repeated.
        state: See the figure.
        leader: The node that leads it, as far as the driver knows. None: it is not known.
        last: The broker's last answer, unless that was a receipt.
        gone: Whether the topic has fewer partitions now, or is gone itself.
    """

    def __init__(self, producer: Producer, topic: bytes, number: int) -> None:
        self._producer = producer
        self.topic = topic
        self.number = number
        self.pending = Records()
        self.batch: Batch | None = None
        self.state = State.IDLE
        self.leader: Any = None
        self.last: Row | None = None
        self.gone = False
        self._limit: int | None = None
        """The topic refuses batches larger than this many bytes; None: no such limit is known."""
        self.failures = 0
        """How many attempts have failed since the last receipt."""
        self._producer_id = self._epoch = self._sequence = -1
        self._spent = -1
        """The producer id that no batch may use any more."""
        self._suspects = 0
        """How many records at the head of `pending` were refused together, perhaps because of one of them."""
        self._group = 0
        """These records are sent again in groups of this size. The size is halved until one record is alone."""

    @property
    def stuck(self) -> bool:
        """Whether the partition's last attempt failed, or it has no leader that can be reached."""
        return self.failures > 0 or self.leader is None or self.leader.failure is not None

    # -- from records to a batch in flight ----------------------------------------------------------------------------

    def filled(self) -> None:
        """There are new records in `pending`."""
        if self.state is State.IDLE:
            self._get_ready()

    def _get_ready(self) -> None:
        if self.gone and self.batch is None:
            self.state = State.IDLE
            left, self.pending = self.pending, Records()
            self._producer.left(self, left)
        elif self.batch is None and not self.pending.parts:
            self.state = State.IDLE
        else:
            self.state = State.READY
            self._producer.ready(self)

    def resume(self) -> None:
        """The pause is over, or there is another producer id."""
        if self.state is State.PAUSED or self.state is State.NO_ID:
            self._get_ready()

    def take(self) -> Batch | None:
        """The batch to write now: the batch in doubt once more, or else the next one. None: there is nothing to write.

        Called in READY. The returned batch is in flight then.
        """
        if self.batch is None and not self._number():
            self.state = State.NO_ID
            self._producer.spend_id(self._spent)
            return None
        if self.batch is None:
            self.batch = self._next_batch()
        self.state = State.IDLE if self.batch is None else State.IN_FLIGHT
        return self.batch

    def _number(self) -> bool:
        """Gives the next batch a producer id and an epoch under which nothing is in doubt.

        Returns:
            Whether there is such a producer id now.
        """
        producer = self._producer
        if not producer.idempotent:
            return True
        if self._sequence >= LAST_SEQUENCE:
            self._begin_epoch()
        if producer.producer_id == self._spent or producer.producer_id < 0:
            return False
        if producer.producer_id != self._producer_id:
            self._producer_id, self._epoch, self._sequence = producer.producer_id, producer.epoch, 0
        return True

    def _begin_epoch(self) -> None:
        """Raises the epoch, and begins at sequence 0. Kafka's Java client does the same with an idempotent producer."""
        self._epoch += 1
        self._sequence = 0
        if self._epoch > LAST_EPOCH:
            self._spent = self._producer_id

    def _next_batch(self) -> Batch | None:
        while self.pending.parts:
            records = self._take_records()
            if not records.parts:
                continue
            try:
                data = self._producer.encode(records, self._producer_id, self._epoch, self._sequence)
            except Exception as error:
                text = f"the client cannot write the message into a batch ({type(error).__name__})"
                refusal = InvalidMessageError(text)
                refusal.__cause__ = error
                self._suspects = max(0, self._suspects - len(records))
                self._fail(records.deliveries, refusal)
            else:
                return Batch(self, records, data)
        return None

    def _take_records(self) -> Records:
        """Takes records from the head, as many as fit into one batch, and marks their deliveries as handed over. A
        record is left out if its caller has the outcome already, for example because the deadline has passed."""
        most = min(self._group, self._suspects) if self._suspects else len(self.pending)
        room = self._producer.batch_size - HEAD_SIZE
        if self._limit is not None:
            room = min(room, self._limit)
        records = self.pending.take(self.pending.fitting(most, room))
        handed = [delivery.handed_over() for delivery in records.deliveries]
        if False in handed:
            records = records.only(handed)
            self._suspects = max(0, self._suspects - handed.count(False))
        return records

    def _take_back(self, records: Records) -> None:
        """Puts records back in their old places, where they wait again. They are proven not appended."""
        for delivery in records.deliveries:
            delivery.returned()
        self.pending.parts[:0] = records.parts

    # -- what became of it --------------------------------------------------------------------------------------------

    def answered(self, answer: Answer) -> Batch | None:
        """Handles the answer for the batch in flight.

        Returns:
            The batch, if its records have a receipt now; the caller confirms them.
        """
        batch = self.batch
        assert batch is not None
        if answer.code == 0 or answer.code == DUPLICATE_SEQUENCE_NUMBER:
            self._finish(batch)
            self.last = None
            self.failures = 0
            self._get_ready()
            return batch
        row = self.last = row_of(answer.code)
        self.failures += 1
        if answer.offset >= 0 or row.then is Then.REPEAT or row.then is Then.GIVE_UP:
            batch.in_doubt = True
        if batch.in_doubt:
            self._doubted(batch, row, answer.code)
        else:
            self._refused(batch, row, answer)
        return None

    def lost(self, text: str) -> None:
        """The batch in flight will have no answer. It is not known whether it was appended.

        Args:
            text: The reason, for the error of records that are given up.
        """
        batch = self.batch
        assert batch is not None
        batch.in_doubt = True
        self.failures += 1
        if self._producer.idempotent and not self.gone:
            self._pause(None)
        else:
            self.give_up(ConnectionLostError(text))

    def _finish(self, batch: Batch) -> None:
        """The batch is in the log."""
        count = len(batch.records)
        if self._producer.idempotent:
            self._sequence += count
        self.batch = None
        if self._suspects:
            self._acquit(count)

    def _doubted(self, batch: Batch, row: Row, code: int) -> None:
        repeat = row.then is Then.REPEAT or row.then is Then.WAIT
        if repeat and self._producer.idempotent and not self.gone:
            self._pause(row)
            return
        if code in _ID_IS_SPENT:
            self._spent = self._producer_id
        self.give_up(error_of(row, in_doubt=True))

    def _refused(self, batch: Batch, row: Row, answer: Answer) -> None:
        """Every attempt of the batch is proven not appended, so the batch's sequence numbers are free again."""
        self.batch = None
        records = batch.records
        if row.then is Then.WAIT or (self.gone and row.then is Then.SPLIT):
            self._take_back(records)
            if row.name == "UNKNOWN_TOPIC_OR_PARTITION" and self._producer.idempotent:
                self._begin_epoch()  # a topic that is created again has a leader that knows no sequence numbers
            self._pause(row)
            return
        if row.then is Then.SPLIT and len(records) > 1:
            self._blame(records, row, answer.culprits)
        else:
            if self._suspects:
                self._acquit(len(records))
            self._fail(records.deliveries, error_of(row, in_doubt=False))
        self._get_ready()

    def _blame(self, records: Records, row: Row, culprits: Sequence[int]) -> None:
        """Handles a batch that was refused because of single records. If the broker names them, they fail. If not, the
        batch is sent again in halves."""
        named = set(culprits).intersection(range(len(records)))
        if named:
            self._take_back(records.only([place not in named for place in range(len(records))]))
            self._suspects = max(0, self._suspects - len(named))
            self._fail([records.deliveries[place] for place in sorted(named)], error_of(row, in_doubt=False))
            return
        if row.error is MessageTooLargeError:
            self._learn_limit(records.sizes())
        self._take_back(records)
        self._suspects = max(self._suspects, len(records))
        self._group = len(records) // 2

    def _learn_limit(self, sizes: list[int]) -> None:
        """Halves the size of later batches, unless one record has more than half of the bytes."""
        half = sum(sizes) // 2
        if max(sizes) <= half:
            self._limit = half if self._limit is None else min(self._limit, half)

    def _acquit(self, count: int) -> None:
        """The first group has its outcome. The records behind it are tried in groups of twice the size."""
        self._suspects = max(0, self._suspects - count)
        self._group *= 2

    def _pause(self, row: Row | None) -> None:
        self.state = State.PAUSED
        if self.batch is None and (self.gone or not self.pending):
            self._get_ready()
        else:
            self._producer.paused(self, row)

    def give_up(self, error: DeliveryUnknownError | DeliveryError) -> None:
        """The batch will not be repeated. The outcome of its records is unknown. An idempotent producer begins a new
        epoch for the next batch."""
        batch, self.batch = self.batch, None
        if batch is None:
            return
        if self._producer.idempotent:
            self._begin_epoch()
        if self._suspects:
            self._acquit(len(batch.records))
        self._fail(batch.records.deliveries, error)
        self._get_ready()

    @staticmethod
    def _fail(deliveries: Iterable[Delivery], error: DeliveryError) -> None:
        for delivery in deliveries:
            delivery.fail(error)

    # -- when it cannot go on -----------------------------------------------------------------------------------------

    def purge(self) -> None:
        """Removes records whose callers have their outcome, so that a stuck partition does not fill the window."""
        stay = self.pending.purge()
        self._suspects -= stay[: self._suspects].count(False)

    def leave(self) -> Records:
        """The partition is gone and takes no records any more. Returns the records that were never in doubt: they go to
        other partitions."""
        self.gone = True
        left, self.pending = self.pending, Records()
        self._suspects = 0
        if self.batch is None:
            self.state = State.IDLE
        return left

    def clear(self) -> None:
        """Forgets all records, because `Broker` has ended every delivery."""
        self.pending = Records()
        self.batch = None
        self.state = State.IDLE
