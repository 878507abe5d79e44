"""Which reason a message without a key gets at its deadline, when its partitions differ."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cqrs_broker_kafka import _late as late
from cqrs_broker_kafka._partition import Partition
from cqrs_broker_kafka._topic import Topic
from cqrs_brokers import DeliveryError, DeliveryTimeoutError, RejectedError

from .log_model import Around, add, answer, new_delivery

FEW_REPLICAS = 19


@pytest.fixture
def topic() -> Topic:
    """A topic of two partitions with a living leader."""
    producer = Around(idempotent=True, most=1)
    topic = Topic("t", lambda name, number: Partition(producer, name, number))
    topic.found(2)
    for partition in topic.partitions:
        partition.leader = SimpleNamespace(throttled_until=0.0, failure=None)
    return topic


def refuse(partition: Partition) -> None:
    """A record of the partition is sent and refused for too few replicas. It waits for its next attempt."""
    add(partition, new_delivery(0))
    batch = partition.take()
    assert batch is not None
    partition.answered(answer(batch, FEW_REPLICAS))


def send_again(partition: Partition) -> None:
    partition.resume()
    assert partition.take() is not None


def why(topic: Topic, *, handed: bool) -> DeliveryError | None:
    delivery: Any = SimpleNamespace(message=SimpleNamespace(key=None))
    return late.why(topic, delivery, handed=handed, now=1.0)


def test_in_flight_when_only_another_partition_was_refused(topic: Topic) -> None:
    """The answer for the other partition says nothing about it."""
    sick, sound = topic.partitions
    refuse(sick)
    add(sound, new_delivery(1))
    assert sound.take() is not None
    assert why(topic, handed=True) is None
    send_again(sick)
    assert why(topic, handed=True) is None


def test_in_flight_when_every_partition_that_may_hold_it_was_refused(topic: Topic) -> None:
    """The last answer is named."""
    for partition in topic.partitions:
        refuse(partition)
        send_again(partition)
        error = why(topic, handed=True)
        assert isinstance(error, DeliveryTimeoutError)
        assert "NOT_ENOUGH_REPLICAS" in str(error)


def test_waiting_when_only_another_partition_was_refused(topic: Topic) -> None:
    """It may wait behind the batch of a partition that is well, so it is not a refusal."""
    sick, sound = topic.partitions
    refuse(sick)
    for number in (1, 2):
        add(sound, new_delivery(number))
    assert sound.take() is not None
    assert why(topic, handed=False) is None


def test_waiting_where_every_partition_that_may_hold_it_was_refused(topic: Topic) -> None:
    """It is refused for the same reason: partitions with nothing that waits do not hold it."""
    sick, sound = topic.partitions
    refuse(sick)
    assert isinstance(why(topic, handed=False), RejectedError)
    refuse(sound)
    assert isinstance(why(topic, handed=False), RejectedError)
