"""The topics in use: how many partitions each topic has, and to which partition a message goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cqrs_brokers.exceptions import DeliveryError

from ._partition import Partition, State
from ._partitioning import partition_for
from ._records import Records, key_of

__all__ = ["Topic", "why_illegal"]

KEYS_REMEMBERED = 20_000
STICKY_RECORDS = 64
"""Messages without a key go to the same partition until its records are taken for a batch, this many records wait
there, or the partition is stuck."""

_LEGAL = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_LONGEST = 249


def why_illegal(topic: str) -> str | None:
    """The reason why Kafka does not accept the topic's name (Kafka's `Topic.validate`). None: Kafka accepts the name,
    or the name is empty. `Broker` itself refuses an empty name."""
    if len(topic) > _LONGEST:
        return f"a Kafka topic has at most {_LONGEST} characters"
    if topic in (".", ".."):
        return "a Kafka topic cannot be called '.' or '..'"
    if not _LEGAL.issuperset(topic):
        return "a Kafka topic has only letters, digits, '.', '_' and '-'"
    return None


class Topic:
    """One topic and its partitions.

    Args:
        name: The name of the topic.
        new_partition: Makes a partition, from the topic's name in UTF-8 and a number.

    Attributes:
        partitions: The partitions. Empty while the number of partitions is not known.
        is_open: Whether records go to partitions now. Records wait while the number of partitions is not known. Records
            also wait while a batch of a removed partition has no outcome. The records of that batch may still have to
            go to other partitions, and later records must not overtake them.
        waiting: Records that wait until the topic is open, in order.
        unknown_since: Since this time (event loop's) the answers name no partition of the topic, although records wait
            or are in flight. None: there is no such time.
        missing: The error for messages while the topic counts as missing. None: the topic was never missing, or was
            found again.
        missing_until: Until this time the topic counts as missing (event loop's time).
    """

    def __init__(self, name: str, new_partition: Callable[[bytes, int], Partition]) -> None:
        self.name = name
        self.partitions: list[Partition] = []
        self.is_open = False
        self.waiting = Records()
        self.unknown_since: float | None = None
        self.missing: DeliveryError | None = None
        self.missing_until = 0.0
        self._new_partition = new_partition
        self._partition_of: dict[str, Partition] = {}
        self._sticky = 0
        self._gone: dict[int, Partition] = {}
        """Partitions that do not exist any more, by number. If such a partition comes back, the same object is used
        again, because the broker may still know its sequence numbers."""

    def partition(self, key: str | None) -> Partition:
        """The partition to which a message with this key goes. The number of partitions must be known."""
        if key is None:
            return self._keyless()
        known = self._partition_of.get(key)
        if known is None:
            if len(self._partition_of) >= KEYS_REMEMBERED:
                self._partition_of.clear()
            number = partition_for(key.encode(), len(self.partitions))
            known = self._partition_of[key] = self.partitions[number]
        return known

    def _keyless(self) -> Partition:
        """The partition for a message without a key: the partition that was used last (see `STICKY_RECORDS`), else the
        next idle one that is not stuck, else the next one that is not stuck, else the next one."""
        partition = self.partitions[self._sticky]
        if partition.pending.parts and len(partition.pending) < STICKY_RECORDS and not partition.stuck:
            return partition
        turn = self.partitions[self._sticky + 1 :] + self.partitions[: self._sticky + 1]
        idle = (each for each in turn if each.state is State.IDLE and not each.stuck)
        moving = (each for each in turn if not each.stuck)
        partition = next(idle, None) or next(moving, None) or turn[0]
        self._sticky = partition.number
        return partition

    def holders(self, key: str | None, *, handed: bool) -> list[Partition]:
        """The partitions that may hold a message with this key. Without a key these are all partitions with a batch, if
        the message was handed over, else those with records that are in no batch, or all if there are none."""
        if key is not None:
            return [self.partition(key)] if self.partitions else []
        if handed:
            return [each for each in self.all_partitions() if each.batch is not None]
        return [each for each in self.partitions if each.pending.parts] or self.partitions

    def found(self, count: int) -> None:
        """Called when an answer says that the topic has this many partitions.

        If the number has changed, many keys map to other partitions from now on, as with every Kafka client that hashes
        keys. Records that wait in a partition that is gone go to the new partitions of their keys.
        """
        self.missing = self.unknown_since = None
        if count != len(self.partitions):
            self._partition_of.clear()
            self._sticky = 0
            self.waiting.parts[:0] = self._leave(self.partitions[count:]).parts
            del self.partitions[count:]
            for number in range(len(self.partitions), count):
                partition = self._gone.pop(number, None) or self._new_partition(self.name.encode(), number)
                partition.gone = False
                self.partitions.append(partition)
        self._open()

    def _open(self) -> None:
        """Opens the topic and gives the waiting records to their partitions. If no partition is known, or a batch of a
        partition that is gone has no outcome yet, the topic is closed instead."""
        self.is_open = bool(self.partitions) and not self.gone()
        if self.is_open:
            waiting, self.waiting = self.waiting, Records()
            for record in waiting.each():
                partition = self.partition(key_of(record))
                partition.pending.parts += record
                partition.filled()

    def not_found(self, error: DeliveryError, until: float) -> None:
        """Called when the topic does not exist, the client must not use the topic, or the broker refuses its name.
        Records that are in no batch fail with `error`. Messages that come before the time `until` fail too."""
        self.missing = error
        self.missing_until = until
        self.unknown_since = None
        left, self.partitions = self.partitions, []
        self.is_open = False
        records = self._leave(left)
        records.parts += self.waiting.parts
        self._partition_of.clear()
        self.waiting = Records()
        for delivery in records.deliveries:
            delivery.fail(error)

    def _leave(self, partitions: Sequence[Partition]) -> Records:
        records = Records()
        for partition in partitions:
            self._gone[partition.number] = partition
            records.parts += partition.leave().parts
        return records

    def left(self, records: Records) -> None:
        """Called when a partition is gone and has no batch any more.

        Args:
            records: Records that are proven not appended. These records go to the partitions to which their keys belong
                now, before later records. If the topic is missing, the records fail.
        """
        if self.missing is not None and not self.partitions:
            for delivery in records.deliveries:
                delivery.fail(self.missing)
        else:
            self.waiting.parts[:0] = records.parts
            self._open()

    def purge(self) -> None:
        """Removes records whose messages are over (`Delivery.done`) from the topic and from its partitions
        (`Partition.purge`)."""
        self.waiting.purge()
        for partition in self.all_partitions():
            partition.purge()

    def gone(self) -> list[Partition]:
        """The partitions that do not exist any more, but whose batch has no outcome yet."""
        return [each for each in self._gone.values() if each.state is not State.IDLE]

    def all_partitions(self) -> list[Partition]:
        """The partitions of the topic, and those of `gone()`."""
        return self.partitions + self.gone()

    @property
    def busy(self) -> bool:
        """Whether a record waits or is in flight."""
        return bool(self.waiting) or any(each.state is not State.IDLE for each in self.all_partitions())

    def clear(self) -> None:
        """Forgets all records. `Broker` ends their deliveries itself."""
        self.waiting = Records()
        for partition in self.all_partitions():
            partition.clear()
