"""The records of one partition, from the queue to their outcomes: an explicit state machine, without I/O.

                    records                     written by the node
    ┌───────────┐ ───────────▶ ┌───────────┐ ─────────────────────────▶ ┌───────────┐
    │   IDLE    │              │   READY   │                            │ IN_FLIGHT │
    └───────────┘ ◀─────────── └───────────┘ ◀───────────────────────── └───────────┘
                   nothing to     │  ▲  ▲    confirmed; refused (SPLIT,        │
                   send           │  │  │    FAIL); given up                   │
    ┌───────────┐                 │  │  │                                      │
    │   NO_ID   │ ◀───────────────┘  │  │                                      │
    │           │  needs a new       │  │                                      │
    │           │  producer id       │  │                                      │
    │           │ ───────────────────┘  │                                      │
    └───────────┘  there is a new id    │                                      │
    ┌───────────┐                       │                                      │
    │  PAUSED   │ ──────────────────────┘                                      │
    │           │  pause is over; another leader is known; given up            │
    │           │ ◀────────────────────────────────────────────────────────────┘
    └───────────┘  refused (WAIT); in doubt, and to be repeated

`WAIT`, `SPLIT` and `FAIL` are values of `_codes.Then`. A partition with nothing to send becomes IDLE instead of READY
or PAUSED. A partition that is gone becomes IDLE as soon as it has no batch.

The broker recognises a repeated batch by its producer id, epoch and sequence numbers, and never by its content. So if
other records used the same sequence numbers, the broker could confirm them without writing them. These rules make
sure that every outcome is true:

1. At most one batch of the partition is in flight. A batch gets its sequence numbers when it is written, not before.
2. A batch may be sent several times; each time is an *attempt*. An attempt ends with an answer, or when no answer can
   come any more. A *refusal* is an answer that proves that the batch was not appended in this attempt (see `_codes`). A
   batch is *in doubt* when the broker may have appended the batch in an attempt that has ended. The refusal of a batch
   that is not in doubt proves that the batch was not appended at all. The next batch may use the sequence numbers of
   such a batch again. The records of such a batch fail, or they wait again. A record whose deadline passes while the
   record waits is proven not delivered.
3. With idempotence a batch in doubt is repeated byte for byte, even if the deadlines of its records have passed. The
   repeats end when the broker confirms the batch, or when the batch is given up. A batch in doubt is given up after an
   answer with `SPLIT`, `FAIL` or `GIVE_UP`, when the partition is gone, or when the driver gives up the cluster.
4. When an idempotent producer gives up a batch in doubt, the next batch has a new epoch, or a new producer id, and
   begins at sequence 0. When the broker has seen the new epoch of a producer id, the broker refuses the old epoch. Then
   the batch that was given up cannot be appended any more. After a change of the producer id, the broker may still
   append that batch.
5. Without idempotence a batch in doubt is never repeated. The outcome of its records is unknown.

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
"""When a batch would begin at this sequence number or above, a new epoch begins, with sequence number 0. So the numbers
never reach 2**31."""
_ID_IS_SPENT = frozenset({47, 59})
"""If a batch in doubt is given up because of one of these error codes, the partition needs a new producer id. A higher
epoch of the same id may not help."""


class State(Enum):
    """See the figure in the docstring of this module."""

    IDLE = "nothing to send"
    READY = "something to send; its leader's node writes it when it has room"
    IN_FLIGHT = "a batch waits for its answer"
    PAUSED = "waits for a leader, or for its next attempt"
    NO_ID = "waits for a new producer id"


class Producer(Protocol):
    """The attributes and methods that a partition needs from its owner, the driver."""

    idempotent: bool
    producer_id: int
    """-1: there is no producer id."""
    epoch: int

    batch_size: int
    """The most bytes of a batch, before compression. A larger record is a batch by itself."""

    @property
    def encode(self) -> Encode:
        """The function that makes the bytes of a batch from records, producer id, epoch and first sequence number."""

    def ready(self, partition: Partition) -> None:
        """Called when a partition becomes READY."""

    def paused(self, partition: Partition, row: Row | None) -> None:
        """Called when a partition becomes PAUSED because of the answer `row`. If no answer can come, `row` is None. The
        owner calls `Partition.resume()`, during this call or later."""

    def spend_id(self, producer_id: int) -> None:
        """Called when a partition needs a producer id that differs from this one. The owner calls `Partition.resume()`
        when there is a new producer id."""

    def left(self, partition: Partition, records: Records) -> None:
        """Called when a partition is gone and has no batch any more. The records are proven not appended. The owner
        gives the records to the partitions to which their keys belong now, or fails them if the topic is missing."""


class Batch:
    """Encoded records, with their sequence numbers.

    Attributes:
        partition: The partition of the records.
        records: The records in the batch.
        data: The bytes of the batch.
        in_doubt: Whether the batch is in doubt (rule 2 of this module). False while the first attempt has no answer.
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
        producer: The owner of the partition.
        topic: The topic's name in UTF-8.
        number: The partition's number.

    Attributes:
        pending: Records that are in no batch.
        batch: The batch that is in flight, or that is in doubt and will be repeated. None: there is no such batch.
        state: See the figure in the docstring of this module.
        leader: The node that leads the partition, as far as the driver knows. None: the leader is not known.
        last: The row of the broker's last answer, if the answer was an error code. None: there was no answer, or the
            last answer confirmed a batch.
        gone: Whether the partition gets no records any more: the topic has fewer partitions now, or counts as missing.
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
        """The most bytes of records in a batch, after the topic refused a batch as too large. None: there is no such
        limit."""
        self.failures = 0
        """How many attempts ended without a confirm since the last confirmed batch."""
        self._producer_id = self._epoch = self._sequence = -1
        self._spent = -1
        """The producer id that no new batch of this partition may use. -1: there is no such id."""
        self._suspects = 0
        """How many records were refused together, perhaps because of one of them, and have no outcome yet. These
        *suspect* records are in the batch and at the head of `pending`."""
        self._group = 0
        """The suspect records are sent again in groups of at most this size. When a group is refused and the broker
        names no record, the size is halved. When all records of a group have outcomes, the size is doubled."""

    @property
    def stuck(self) -> bool:
        """Whether the last attempt ended without a confirm, or no leader is known, or the leader cannot be reached."""
        return self.failures > 0 or self.leader is None or self.leader.failure is not None

    # -- from records to a batch in flight ----------------------------------------------------------------------------

    def filled(self) -> None:
        """Called when there are new records in `pending`."""
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
        """Called when the pause is over, another leader is known, or there is another producer id."""
        if self.state is State.PAUSED or self.state is State.NO_ID:
            self._get_ready()

    def take(self) -> Batch | None:
        """Returns the batch to write now: the batch in doubt, or the next batch. None: there is nothing to send, or the
        next batch needs another producer id.

        Called in the state READY. After the call the returned batch is in flight.
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
            Whether there is such a producer id now. True without idempotence.
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
        """Raises the epoch, and begins at sequence 0, as the idempotent producer of Kafka's Java client does. After the
        highest epoch, the partition needs a new producer id."""
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
        """Takes as many records from the head of `pending` as fit into one batch. Marks their deliveries as handed
        over. A record is left out if its message is over (`Delivery.done`), for example because its deadline has
        passed."""
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
        """Puts records that are proven not appended back at the head of `pending`. There the records wait again."""
        for delivery in records.deliveries:
            delivery.returned()
        self.pending.parts[:0] = records.parts

    # -- what became of it --------------------------------------------------------------------------------------------

    def answered(self, answer: Answer) -> Batch | None:
        """Handles the answer for the batch in flight. Returns the batch if the answer confirms it, else None. The
        caller must confirm the records of the returned batch."""
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
        """Called when the batch in flight can get no answer any more. The broker may have appended the batch.

        Args:
            text: The text of the error, if the batch is given up.
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
        """Removes a batch that the broker confirmed."""
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
        """Handles the refusal of a batch that is not in doubt. The next batch may use the same sequence numbers."""
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
        """Handles the refusal of a batch of several records, perhaps because of one record. If the broker names
        records, these records fail, and the others are sent again. If the broker names none, all records are sent again
        in smaller groups."""
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
        """Limits later batches to half the bytes of a batch that was too large. If one record has more than half of
        these bytes, there is no new limit."""
        half = sum(sizes) // 2
        if max(sizes) <= half:
            self._limit = half if self._limit is None else min(self._limit, half)

    def _acquit(self, count: int) -> None:
        """Called when all records of a group of suspect records have outcomes. The next group may have twice as many
        records."""
        self._suspects = max(0, self._suspects - count)
        self._group *= 2

    def _pause(self, row: Row | None) -> None:
        self.state = State.PAUSED
        if self.batch is None and (self.gone or not self.pending):
            self._get_ready()
        else:
            self._producer.paused(self, row)

    def give_up(self, error: DeliveryUnknownError | DeliveryError) -> None:
        """Gives up the batch: the batch is not repeated, and its records fail with this error. An idempotent producer
        begins a new epoch for the next batch. Without a batch nothing happens."""
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
        """Removes records whose messages are over (`Delivery.done`) from `pending`, and releases the deliveries of such
        records in the batch. So the records of a stuck partition do not use up the room for messages in flight
        (`Broker`'s window)."""
        if self.batch is not None:
            self.batch.records.let_go()
        stay = self.pending.purge()
        self._suspects -= stay[: self._suspects].count(False)
        if self.state is State.READY and self.batch is None and not self.pending.parts:
            self.state = State.IDLE

    def leave(self) -> Records:
        """Marks the partition as gone. Returns the records that are in no batch. The caller gives these records to
        other partitions, or fails them if the topic is missing."""
        self.gone = True
        left, self.pending = self.pending, Records()
        self._suspects = 0
        if self.batch is None:
            self.state = State.IDLE
        return left

    def clear(self) -> None:
        """Forgets all records. `Broker` ends their deliveries itself."""
        self.pending = Records()
        self.batch = None
        self.state = State.IDLE
