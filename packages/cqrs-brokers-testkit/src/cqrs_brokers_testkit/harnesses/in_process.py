"""The harnesses of `memory://` and `devnull://`, which need no server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cqrs_brokers import Message
from cqrs_brokers_testkit._optional import require
from cqrs_brokers_testkit.conformance import Harness, NotApplicable, Record, Refusal, Target

__all__ = ["DevnullHarness", "MemoryHarness"]

NO_CREDENTIALS = "it knows no users"
NO_TLS = "it has no connection that could be encrypted"
NO_NACK = "it has no queues of which one could refuse what another holds"


class MemoryHarness(Harness):
    """`memory://`, read back through its `published`."""

    url = "memory://conformance?capacity=1000000"
    wire = False
    not_applicable: Mapping[str, str] = {
        "delivery.nack-is-not-success": NO_NACK,
        "delivery.missing-destination": "every topic exists",
        "delivery.forbidden-destination": NO_CREDENTIALS,
        "delivery.blocked-is-waited-out": "it is never blocked",
        "delivery.wrong-password": NO_CREDENTIALS,
        "delivery.wrong-permission": NO_CREDENTIALS,
        "delivery.tls-failure": NO_TLS,
    }

    def read_back(self, topic: str, count: int) -> Sequence[Record]:
        """The records that `published` has for this topic."""
        return [
            Record(
                topic=record.topic,
                key=record.key,
                name=record.name,
                message_id=str(record.message_id),
                headers=record.headers,
                body=record.body,
                content_type=record.content_type,
                timestamp=record.timestamp,
            )
            for record in require("cqrs_broker_memory", extra="memory").published("conformance").find(topic=topic)
        ]

    def stuck_destination(self) -> Target:
        raise NotApplicable("it takes every message at once")

    def refuse_next(self) -> Refusal:
        """The script refuses the first message of a broker."""
        topic = self.new_topic_name()
        return Refusal(f"{self.url}&fail=1", topic, Message("Refused", topic, {}))


class DevnullHarness(Harness):
    """`devnull://` keeps nothing. So the suite can only prove that this broker promises nothing."""

    url = "devnull://"
    wire = False
    discards = True
    not_applicable: Mapping[str, str] = {
        **MemoryHarness.not_applicable,
        "delivery.refused-is-not-delivered": "it refuses nothing",
        "delivery.refused-spares-its-neighbours": "it refuses nothing",
    }
