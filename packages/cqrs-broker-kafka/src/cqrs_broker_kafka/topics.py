"""The topics in use: how many partitions each has, and which lane a message takes."""

from __future__ import annotations

from typing import Protocol

from cqrs_brokers.exceptions import DeliveryError

from .lanes import Feeder, Lane
from .partitioning import partition_for
from .records import Record

__all__ = ["Topic", "TopicOwner", "why_illegal"]

KEYS_REMEMBERED = 20_000
STICKY_RECORDS = 64
"""Keyless messages stay on a partition for one batch, or for so many messages while it is busy."""

CROWD = 400
"""So many messages are worth two requests, one under way while the other is made …"""
WORTH_DIVIDING = 32
"""… but fewer than this for one partition go together."""

_LEGAL = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_LONGEST = 249


def why_illegal(topic: str) -> str | None:
    """Why Kafka can have no topic of that name, or None (Kafka's `Topic.validate`)."""
    if len(topic) > _LONGEST:
        return f"a Kafka topic has at most {_LONGEST} characters"
    if topic in (".", ".."):
        return "a Kafka topic cannot be called '.' or '..'"
    if not _LEGAL.issuperset(topic):
        return "a Kafka topic has only letters, digits, '.', '_' and '-'"
    return None


class TopicOwner(Feeder, Protocol):
    """What a topic needs of the driver."""

    def resolve(self, topic: Topic) -> None:
        """Find out how many partitions the topic has; ends in `found` or `missing`."""


class Topic:
    """One topic's lanes.

    Attributes:
        name: The topic.
        lanes: One per partition; empty while the number of partitions is not known.
        waiting: Messages that came meanwhile, in order.
        resolving: The driver is finding out.
        missing_until: Until then the topic is taken for missing, in the loop's time.
        missing: The error of messages for it meanwhile.
        batch_limit: The topic refuses batches larger than this; None: not known to.
    """

    def __init__(self, name: str, owner: TopicOwner) -> None:
        self.name = name
        self.lanes: list[Lane] = []
        self.waiting: list[Record] = []
        self.resolving = False
        self.missing_until = 0.0
        self.missing: DeliveryError | None = None
        self.batch_limit: int | None = None
        self._owner = owner
        self._lane_of: dict[bytes, Lane] = {}
        self._sticky = 0
        self._gone: list[Lane] = []

    def lane(self, key: bytes | None) -> Lane:
        """Where a message with that key goes."""
        if key is None:
            lane = self.lanes[self._sticky]
            if len(lane.pending) >= STICKY_RECORDS or lane.stuck:
                lane = self._next_sticky()
            return lane
        known = self._lane_of.get(key)
        if known is None:
            if len(self._lane_of) >= KEYS_REMEMBERED:
                self._lane_of.clear()
            known = self._lane_of[key] = self.lanes[partition_for(key, len(self.lanes))]
        return known

    def _next_sticky(self) -> Lane:
        """The next partition that is idle, else the next whose messages are taken, else simply the next."""
        turn = self.lanes[self._sticky + 1 :] + self.lanes[: self._sticky + 1]
        idle = (lane for lane in turn if lane.batch is None and not lane.pending)
        moving = (lane for lane in turn if not lane.stuck)
        lane = next(idle, None) or next(moving, None) or turn[0]
        self._sticky = lane.partition
        return lane

    def first_part(self, waiting: int) -> int:
        """How many of so many messages, for a partition that was idle, go first.

        All of them, or half of many: then the broker works on one half while the other is made ready, and so on.
        """
        if waiting < WORTH_DIVIDING:
            return waiting
        count = 0
        for lane in self.lanes:
            count += len(lane.pending) + (len(lane.batch.records) if lane.batch is not None else 0)
            if count >= CROWD:
                return (waiting + 1) // 2
        return waiting

    def fed(self, lane: Lane) -> None:
        """A batch of the lane went to the client: keyless messages go elsewhere now."""
        if lane.partition == self._sticky and len(self.lanes) > 1:
            self._next_sticky()

    def too_large(self, sizes: list[int]) -> None:
        """A batch of records of these sizes was refused: later ones are half as large, unless one record dominates."""
        total = sum(sizes)
        if max(sizes) <= total // 2:
            self.batch_limit = total // 2 if self.batch_limit is None else min(self.batch_limit, total // 2)

    def lost(self) -> None:
        """The client does not know the topic, or not that many partitions: ask again before anything is sent."""
        if not self.resolving:
            self.resolving = True
            self._owner.resolve(self)

    def found(self, partitions: int) -> None:
        """The topic has so many partitions.

        When the number has changed, keys map to other partitions from now on, as with every Kafka client. Messages that
        were waiting for a partition that is gone are mapped anew.
        """
        self.resolving = False
        self.missing = None
        homeless: list[Record] = []
        if partitions != len(self.lanes):
            self._lane_of.clear()
            self._sticky = 0
            for lane in self.lanes[partitions:]:
                homeless += lane.leave()
                if lane.batch is not None:
                    self._gone.append(lane)
            del self.lanes[partitions:]
            self.lanes += [self._new_lane(number) for number in range(len(self.lanes), partitions)]
        waiting, self.waiting = homeless + self.waiting, []
        for record in waiting:
            self.lane(record.key).pending.append(record)
        for lane in self.lanes:
            lane.feed()

    def _new_lane(self, partition: int) -> Lane:
        """The partition's lane: the one that it had, if that has a batch on its way, which must not be overtaken."""
        for lane in self._gone:
            if lane.partition == partition and lane.batch is not None:
                self._gone.remove(lane)
                lane.gone = False
                return lane
        return Lane(self._owner, self, partition)

    def all_lanes(self) -> list[Lane]:
        """Its lanes, and those of partitions that are gone but whose last batch has no answer yet."""
        if self._gone:
            self._gone = [lane for lane in self._gone if lane.batch is not None]
        return self.lanes + self._gone

    def not_found(self, error: DeliveryError, until: float) -> None:
        """The topic does not exist, or must not be used: what waits fails, and so does what comes until then."""
        self.resolving = False
        self.missing = error
        self.missing_until = until
        records = self.waiting
        self.waiting = []
        for lane in self.lanes:
            records += lane.leave()
            if lane.batch is not None:
                self._gone.append(lane)
        self.lanes = []
        self._lane_of.clear()
        for record in records:
            record.delivery.fail(error)

    def purge(self) -> None:
        """Lets go of messages whose callers have their answer."""
        if any(record.delivery.done for record in self.waiting):
            self.waiting = [r for r in self.waiting if not r.delivery.done or r.delivery.handed_over()]
        for lane in self.lanes:
            if lane.pending:
                lane.purge()

    @property
    def busy(self) -> bool:
        """Whether something waits or is on its way."""
        return bool(self.waiting) or any(lane.pending or lane.batch is not None for lane in self.all_lanes())

    def clear(self) -> None:
        """Forgets everything: `Broker` has ended it."""
        self.waiting.clear()
        for lane in self.all_lanes():
            lane.clear()
