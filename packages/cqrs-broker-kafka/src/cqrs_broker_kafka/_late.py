"""Finds the reason why a message has no outcome at its deadline. The reason may come from the last answer for the
partition, from the state of the topic, or from the state of the node that leads the partition."""

from __future__ import annotations

from cqrs_brokers.driver import Delivery
from cqrs_brokers.exceptions import (
    BackpressureError,
    DeliveryError,
    DeliveryTimeoutError,
    DestinationNotFoundError,
    RejectedError,
)

from ._codes import error_of
from ._partition import Partition
from ._topic import Topic

__all__ = ["why"]


def why(topic: Topic | None, delivery: Delivery, *, handed: bool, now: float) -> DeliveryError | None:
    """See `PipelinedDriver.why_late`.

    Args:
        topic: The message's topic. None: the driver has had no message for this topic.
        now: The event loop's time.
    """
    if topic is None:
        return None
    holders = topic.holders(delivery.message.key, handed=handed)
    if handed:
        answers = {each.last for each in holders}
        last = answers.pop() if len(answers) == 1 else None
        if last is None:
            return None
        return DeliveryTimeoutError(
            f"the broker did not confirm the message before the deadline; its last answer was {last.name}: {last.text}"
        )
    if topic.unknown_since is not None:
        text = "the topic did not exist at the deadline: create it"
        return DestinationNotFoundError(text)
    if len(holders) > 1 and not all(each.stuck for each in holders):
        return None
    return _why_it_waits(holders[0], now) if holders else None


def _why_it_waits(partition: Partition, now: float) -> DeliveryError | None:
    node, last = partition.leader, partition.last
    if node is not None and node.throttled_until > now:
        text = "the cluster throttles this client (quota): send fewer messages at a time, or raise the quota"
        return BackpressureError(text)
    if last is not None and last.error is RejectedError:
        return error_of(last, in_doubt=False)
    if last is not None:
        return BackpressureError(
            f"partition {partition.number} took no message until the deadline; the last answer was {last.name}: "
            f"{last.text}"
        )
    if node is None:
        text = f"partition {partition.number} has no leader: see the state of the cluster, and send again later"
        return BackpressureError(text)
    if node.failure is not None:
        return BackpressureError(
            f"node {node.number} at {node.host}, the leader of partition {partition.number}, cannot be reached: check "
            "that it runs, its advertised.listeners, and the network"
        )
    return None
