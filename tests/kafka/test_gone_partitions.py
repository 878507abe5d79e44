"""Partitions that a topic does not have any more, while a batch for one of them is on its way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cqrs_broker_kafka._partition import Batch, Partition, State
from cqrs_broker_kafka._partitioning import partition_for
from cqrs_broker_kafka._records import Records, varints
from cqrs_broker_kafka._topic import Topic
from cqrs_brokers import ConnectionLostError

from .log_model import Around, Delivery, answer

KEY = next(key for key in map(str, range(100)) if partition_for(key.encode(), 3) == 2)
UNKNOWN_TOPIC = 3


class Owner(Around):
    """The driver, as far as one topic needs it."""

    def __init__(self) -> None:
        super().__init__(idempotent=True, most=100)
        self.topic = Topic("orders", lambda topic, number: Partition(self, topic, number))

    def left(self, partition: Partition, records: Records) -> None:
        self.topic.left(records)

    def submit(self, name: bytes) -> Delivery:
        """As `KafkaDriver.submit`."""
        delivery: Any = Delivery(name)
        content = varints[len(KEY)] + KEY.encode() + name
        if self.topic.is_open:
            self.topic.partition(KEY).pending.parts += (delivery, 0, content)
            self.topic.partition(KEY).filled()
        else:
            self.topic.waiting.parts += (delivery, 0, content)
        return delivery

    def written(self, number: int) -> tuple[Batch, list[bytes]]:
        """The next batch of a partition."""
        batch = self.topic.partitions[number].take()
        assert batch is not None
        return batch, [bytes(delivery.name) for delivery in batch.records.deliveries]  # type: ignore[attr-defined]


@pytest.fixture
def owner() -> Owner:
    """A topic of three partitions, the third of which is gone while a batch for it is in flight."""
    owner = Owner()
    owner.topic.found(3)
    owner.submit(b"first")
    assert owner.written(2)[1] == [b"first"]
    owner.submit(b"second")
    owner.topic.found(1)
    return owner


def test_a_refused_batch_goes_before_later_records_of_its_key(owner: Owner) -> None:
    """The records of the batch, those that waited behind it, and those that came meanwhile keep their order."""
    (gone,) = owner.topic.gone()
    owner.submit(b"third")
    assert owner.topic.partitions[0].state is State.IDLE
    gone.answered(answer(gone.batch, UNKNOWN_TOPIC))  # type: ignore[arg-type]
    owner.submit(b"fourth")
    assert owner.written(0)[1] == [b"first", b"second", b"third", b"fourth"]


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda gone: gone.answered(answer(gone.batch, 0, 7)), id="receipt"),
        pytest.param(lambda gone: gone.give_up(ConnectionLostError("gone")), id="given up"),
        pytest.param(lambda gone: gone.answered(answer(gone.batch, 18)), id="refused for good"),
        pytest.param(lambda gone: gone.lost("lost"), id="lost"),
    ],
)
def test_later_records_go_on_when_the_batch_has_ended(owner: Owner, end: Callable[[Partition], object]) -> None:
    """Whatever became of the batch, what came after it is written."""
    (gone,) = owner.topic.gone()
    end(gone)
    assert owner.topic.is_open
    owner.submit(b"third")
    assert owner.written(0)[1][-2:] == [b"second", b"third"]


def test_a_partition_that_comes_back_keeps_its_order(owner: Owner) -> None:
    """The batch belongs to the partition again, and what came meanwhile waits behind it."""
    (gone,) = owner.topic.gone()
    owner.submit(b"third")
    owner.topic.found(3)
    assert owner.topic.partitions[2] is gone
    gone.answered(answer(gone.batch, UNKNOWN_TOPIC))  # type: ignore[arg-type]
    gone.resume()
    assert owner.written(2)[1] == [b"first", b"second", b"third"]


def test_a_message_that_is_over_leaves_its_place(owner: Owner) -> None:
    """The batch for the partition that is gone has no answer yet: what was sent before its deadline is let go."""
    (partition,) = owner.topic.gone()
    assert partition.batch is not None
    delivery: Any = partition.batch.records.deliveries[0]
    owner.topic.purge()
    assert not delivery.released
    delivery.expire()
    owner.topic.purge()
    assert delivery.released
