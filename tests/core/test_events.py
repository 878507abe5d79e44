"""Core's own event classes."""

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from cqrs_brokers import Broker, ECSTEvent, NotificationEvent

from .drivers import Scripted


class Order(BaseModel):
    order_id: str
    total: int


class OrderPlaced(ECSTEvent[Order]):
    topic: str = "orders"

    def ordering_key(self) -> str | None:
        return self.payload.order_id


class UserLeft(NotificationEvent[dict[str, Any]]):
    topic: str = "users"


async def test_publish_sends_name_topic_id_time_key_and_body() -> None:
    """An event becomes a message: the key is no field of the body."""
    driver = Scripted(automatic=True)
    event = OrderPlaced(payload=Order(order_id="o1", total=3))
    async with Broker(driver) as broker:
        receipt = await broker.publish(event)
    sent = driver.seen[0]
    assert receipt.message_id == event.event_id == sent.message_id
    assert (sent.message_name, sent.topic, sent.key, sent.timestamp) == (
        "OrderPlaced",
        "orders",
        "o1",
        event.event_timestamp,
    )
    assert sent.payload == {
        "event_id": str(event.event_id),
        "event_timestamp": event.event_timestamp.isoformat().replace("+00:00", "Z"),
        "event_name": "OrderPlaced",
        "topic": "orders",
        "payload": {"order_id": "o1", "total": 3},
    }


def test_names_and_keys_by_hand() -> None:
    """event_name= and key= override the defaults; the class name has no type parameters."""
    assert ECSTEvent[Order](topic="t", payload=Order(order_id="1", total=1)).event_name == "ECSTEvent"
    event = UserLeft(payload={}, event_name="user.left", key="u1")
    body = event.to_dict()
    assert (body.event_name, body.ordering_key) == ("user.left", "u1")
    assert "key" not in body


def test_timestamps_are_aware() -> None:
    """The default is UTC; a naive one is refused."""
    assert UserLeft(payload={}).event_timestamp.tzinfo is not None
    with pytest.raises(ValidationError):
        UserLeft(payload={}, event_timestamp=datetime(2026, 1, 1))
    assert UserLeft(payload={}, event_timestamp=datetime(2026, 1, 1, tzinfo=UTC)).to_dict()["event_timestamp"] == (
        "2026-01-01T00:00:00Z"
    )


def test_reprs_show_no_payload() -> None:
    """str and repr name the event only."""
    event = UserLeft(payload={"p": "hunter2"}, key="hunter2")
    assert "hunter2" not in repr(event) + str(event) + f"{event}"
