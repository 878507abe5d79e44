"""Core's own event classes."""

import asyncio
import json
import pickle
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pydantic
import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, computed_field, model_serializer

from cqrs_brokers import TOMBSTONE, Broker, ECSTEvent, InvalidMessageError, Message, NotificationEvent
from cqrs_brokers.driver import Capabilities
from cqrs_brokers.protocol import EventBody

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


def test_ordering_key_decides() -> None:
    """An event whose `ordering_key()` is overridden goes out under that key, also when `key=` was given."""
    assert OrderPlaced(payload=Order(order_id="o1", total=1), key="other").to_message().key == "o1"


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


class TestTombstones:
    """The event that takes the state away again."""

    async def test_deleted_sends_the_key_and_no_body(self) -> None:
        """Whatever `ordering_key()` would derive from a payload; name, topic, id and time as always."""
        driver = Scripted(automatic=True, capabilities=Capabilities(ordering_key=True, headers=True, tombstones=True))
        event = OrderPlaced.deleted("o1", event_name="OrderDeleted", headers={"tenant": "a"})
        async with Broker(driver) as broker:
            receipt = await broker.publish(event)
        sent = driver.seen[0]
        assert (sent.body, sent.key, sent.message_name, sent.topic) == (None, "o1", "OrderDeleted", "orders")
        assert (sent.headers, sent.timestamp) == ({"tenant": "a"}, event.event_timestamp)
        assert receipt.message_id == event.event_id

    async def test_a_broker_without_tombstones_refuses_it(self) -> None:
        """Before any I/O, with what to do instead."""
        driver = Scripted(automatic=True)
        with pytest.raises(InvalidMessageError, match="send an event that reports it"):
            await Broker(driver).publish(OrderPlaced.deleted("o1"))
        assert driver.connects == 0

    def test_what_to_dict_gives_is_the_event_again(self) -> None:
        """An outbox stores it as JSON: the key and that it is a tombstone are in it."""
        event = OrderPlaced.deleted("o1")
        body = event.to_dict()
        assert (body.deleted, body.ordering_key, body["payload"]) == (True, "o1", None)
        rebuilt = OrderPlaced.from_dict(**json.loads(json.dumps(body)))
        assert rebuilt == event
        assert rebuilt.payload is TOMBSTONE

    async def test_to_dict_of_it_goes_through_a_framework(self) -> None:
        """A message-like whose payload is such a mapping is a tombstone, also when somebody encoded the mapping."""
        driver = Scripted(automatic=True, capabilities=Capabilities(ordering_key=True, headers=True, tombstones=True))
        like = SimpleNamespace(
            message_name="x", topic="orders", payload=OrderPlaced.deleted("o1").to_dict(), message_id=UUID(int=1)
        )
        async with Broker(driver) as broker:
            await broker.send_message(like)
            like.payload_bytes = b"{}"
            await broker.send_message(like)
        assert [(sent.body, sent.key, sent.message_name) for sent in driver.seen] == [(None, "o1", "OrderPlaced")] * 2

    def test_only_ecst_events_have_it(self) -> None:
        """A notification carries no state that could be taken away."""
        assert not hasattr(NotificationEvent, "deleted")
        with pytest.raises(ValidationError):
            UserLeft(payload=TOMBSTONE)  # type: ignore[arg-type]


@pytest.mark.parametrize("unknown", [{"kye": "7"}, {"Headers": {}}, {"payload_bytes": b""}])
def test_an_event_refuses_unknown_keywords(unknown: dict[str, Any]) -> None:
    """A misspelt key loses the order: the error names it and not its value."""
    with pytest.raises(ValidationError, match=next(iter(unknown))) as caught:
        UserLeft(payload={"a": "hunter2"}, **unknown)
    assert "hunter2" not in str(caught.value)


async def test_events_have_headers() -> None:
    """They are headers of the message, with their types, and no part of the body; also through a framework."""
    headers: dict[str, Any] = {"tenant": "a", "try": 1, "raw": b"\x00", "flag": True, "none": None, "share": 0.5}
    typed = Capabilities(headers=True, header_types=frozenset({str, int, bytes, bool, type(None), float}))
    driver = Scripted(automatic=True, capabilities=typed)
    event = UserLeft(payload={}, headers=headers)
    like = SimpleNamespace(message_name="x", topic="t", payload=event.to_dict(), message_id=UUID(int=1), headers={})
    async with Broker(driver) as broker:
        await broker.publish(event)
        await broker.send_message(like)
    for sent in driver.seen:
        assert [(name, type(value), value) for name, value in sent.headers.items()] == [
            (name, type(value), value) for name, value in headers.items()
        ]
        assert "headers" not in json.loads(sent.body or b"")
    assert pickle.loads(pickle.dumps(event.to_dict())).headers == headers


def test_times_of_events_are_utc() -> None:
    """Another offset is turned into UTC; the payload's keep theirs."""
    there = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    body = UserLeft(payload={"at": there}, event_timestamp=there).to_dict()
    assert (body["event_timestamp"], body["payload"]) == ("2026-01-01T10:00:00Z", {"at": "2026-01-01T12:00:00+02:00"})


class Line(BaseModel):
    model_config = ConfigDict(extra="forbid")
    line_price: int = Field(alias="linePrice")


class Aliased(ECSTEvent[list[Line]]):
    topic: str = "t"
    trace_id: str = Field(default="", alias="traceId")

    @computed_field
    def count(self) -> int:
        return len(self.payload)


def test_from_dict_gives_the_event_back_with_aliases_and_computed_fields() -> None:
    """Fields are written by name and read by name or alias; a computed field is made anew.

    Before pydantic 2.14 the payload's class decides whether its own fields are read by name.
    """
    event = Aliased(payload=[Line(linePrice=3)], traceId="x")
    body = json.loads(json.dumps(event.to_dict()))
    assert (body["payload"], body["trace_id"], body["count"]) == ([{"line_price": 3}], "x", 1)
    if tuple(map(int, pydantic.VERSION.split(".")[:2])) < (2, 14):
        with pytest.raises(ValidationError, match="linePrice"):
            Aliased.from_dict(**body)
    else:
        assert Aliased.from_dict(**body) == event
    by_alias = body | {"payload": [{"linePrice": 3}], "traceId": body.pop("trace_id")}
    assert Aliased.from_dict(**{name: value for name, value in by_alias.items() if name != "trace_id"}) == event


class TestUserCode:
    """What an event's own code raises."""

    async def test_is_an_invalid_message(self) -> None:
        """From publish: ordering_key, to_dict, to_message; the cause is kept."""

        class NoKey(UserLeft):
            def ordering_key(self) -> str | None:
                raise KeyError("hunter2")

        class NoBody(UserLeft):
            def to_dict(self) -> EventBody:
                raise LookupError("hunter2")

        class NoMessage(UserLeft):
            def to_message(self) -> Message:
                raise ZeroDivisionError

        for event, says, cause in (
            (NoKey(payload={}), r"NoKey\.ordering_key\(\) raised KeyError", KeyError),
            (NoBody(payload={}), r"NoBody\.to_message\(\) raised LookupError", LookupError),
            (NoMessage(payload={}), r"to_message\(\) raised ZeroDivisionError", ZeroDivisionError),
        ):
            with pytest.raises(InvalidMessageError, match=says) as caught:
                await Broker(Scripted()).publish(event)
            assert "hunter2" not in str(caught.value)
            assert type(caught.value.__cause__) is cause
            assert caught.value.__context__ is None
            assert caught.value.broker == "Scripted"

    def test_a_serializer_that_makes_no_object_is_an_invalid_message(self) -> None:
        """The body of an event is a JSON object, also the body of a deletion."""

        class Listed(ECSTEvent[dict[str, Any]]):
            topic: str = "t"

            @model_serializer
            def _listed(self) -> list[str]:
                return ["hunter2"]

        for event in (Listed(payload={}), Listed.deleted("k")):
            with pytest.raises(InvalidMessageError, match="must be written as an object, not as a list") as caught:
                event.to_dict()
            assert caught.value.message_id == event.event_id

    @pytest.mark.parametrize("error", [asyncio.CancelledError, KeyboardInterrupt, SystemExit])
    async def test_what_is_no_ordinary_exception_passes(self, error: type[BaseException]) -> None:
        """A cancellation and the ways to end a program are not turned into something else."""

        class Ends(UserLeft):
            def ordering_key(self) -> str | None:
                raise error

        with pytest.raises(error):
            await Broker(Scripted()).publish(Ends(payload={}))

    async def test_what_is_no_event_says_what_to_do(self) -> None:
        """publish(message) names send_message; so does anything else without to_message()."""
        broker = Broker(Scripted())
        for wrong in (Message("n", "t", {}), {"a": 1}, None):
            with pytest.raises(InvalidMessageError, match=r"messages go through send_message\(\)"):
                await broker.publish(wrong)  # type: ignore[arg-type]
