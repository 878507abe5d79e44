"""The bridge's event classes: core's and python-cqrs' own at once."""

import uuid
from datetime import UTC, datetime
from typing import Any

import cqrs
import orjson
import pytest
from cqrs.serializers import ProtobufEventSerializer
from pydantic import ValidationError

import cqrs_brokers
from cqrs_brokers.protocol import EventBody
from cqrs_brokers_python_cqrs import ECSTEvent, NotificationEvent

from .application import CoreOrderPlaced, Order, OrderPlaced, OrderSeen

EVENTS: list[Any] = [OrderPlaced(payload=Order(order_id="1", total=3)), OrderSeen(payload={"a": [1, None]})]


@pytest.mark.parametrize("event", EVENTS, ids=["ECSTEvent", "NotificationEvent"])
def test_they_are_both_libraries_classes(event: Any) -> None:
    """isinstance says so to core, to python-cqrs and to a type checker, which reads the class statement."""
    assert isinstance(event, cqrs_brokers.Event)
    assert isinstance(event, cqrs.INotificationEvent)
    assert cqrs.INotificationEvent in type(event).__mro__


def test_the_kinds_are_core_s_kinds() -> None:
    """An ECSTEvent is no NotificationEvent, as in core."""
    assert issubclass(OrderPlaced, cqrs_brokers.ECSTEvent)
    assert not issubclass(OrderPlaced, cqrs_brokers.NotificationEvent)
    assert issubclass(OrderSeen, cqrs_brokers.NotificationEvent)


def test_core_s_classes_are_registered_with_python_cqrs() -> None:
    """Its emitter drops the classes that it does not know without a word."""
    assert issubclass(CoreOrderPlaced, cqrs.INotificationEvent)
    assert not issubclass(CoreOrderPlaced, cqrs.IDomainEvent)


@pytest.mark.parametrize("event", EVENTS, ids=["ECSTEvent", "NotificationEvent"])
def test_from_dict_rebuilds_what_to_dict_said(event: Any) -> None:
    """Through JSON, as python-cqrs' outbox stores it; typed payloads come back typed."""
    rebuilt = type(event).from_dict(**orjson.loads(orjson.dumps(event.to_dict())))
    assert rebuilt == event
    assert type(rebuilt.payload) is type(event.payload)


def test_an_event_that_cannot_be_made_is_named_without_its_payload() -> None:
    """python-cqrs' outbox logs the error of a row that it cannot rebuild."""
    with pytest.raises(ValidationError, match=r"OrderPlaced\npayload.order_id") as caught:
        OrderPlaced.from_dict(topic="orders", payload={"order_id": ["secret"]})
    assert "secret" not in str(caught.value)


def test_a_rebuilt_event_has_its_ordering_key_again_when_the_payload_says_it() -> None:
    """A key given as `key=` is not in the body and does not survive an outbox; an overridden `ordering_key()` does."""
    by_payload = OrderPlaced(payload=Order(order_id="1"))
    by_argument = OrderSeen(payload={}, key="2")
    assert OrderPlaced.from_dict(**by_payload.to_dict()).ordering_key() == "1"
    assert OrderSeen.from_dict(**by_argument.to_dict()).ordering_key() is None


def test_to_dict_is_a_dict_that_orjson_serialises() -> None:
    """python-cqrs encodes with orjson, which must see an ordinary mapping."""
    body: Any = OrderPlaced(payload=Order(order_id="1")).to_dict()
    assert isinstance(body, EventBody)
    assert orjson.loads(orjson.dumps(body)) == dict(body)


def test_ids_and_times_are_core_s() -> None:
    """A random UUID and an aware UTC time, where python-cqrs' own have a naive local one."""
    event = OrderSeen(payload={})
    assert isinstance(event.event_id, uuid.UUID)
    assert event.event_timestamp.tzinfo is not None
    assert abs((datetime.now(UTC) - event.event_timestamp).total_seconds()) < 60


def test_they_can_be_made_without_a_subclass() -> None:
    """With a type in brackets and every field given."""
    event = NotificationEvent[dict[str, int]](topic="t", event_name="n", payload={"a": 1})
    assert event.to_dict()["event_name"] == "n"
    assert ECSTEvent[Order](topic="t", payload=Order(order_id="1")).event_name == "ECSTEvent"


def test_protobuf_needs_both_methods_and_says_so() -> None:
    """python-cqrs' protobuf codec calls `proto` and `from_proto`; the default tells what to override."""
    serializer = ProtobufEventSerializer({OrderSeen: object})
    with pytest.raises(NotImplementedError, match=r"OrderSeen.*override proto"):
        serializer.serialize(OrderSeen(payload={}))
    with pytest.raises(NotImplementedError, match=r"OrderSeen.*override from_proto"):
        OrderSeen.from_proto(object())
