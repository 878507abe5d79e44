"""What python-cqrs' own events do to a payload, row by row of docs/how-to/from-python-cqrs.md, and what ours do."""

import dataclasses
import json
import math
import warnings
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any
from uuid import UUID

import cqrs
import orjson
import pytest
from cqrs.message_brokers import protocol
from cqrs.models.pydantic import PydanticNotificationEvent
from pydantic import BaseModel, SecretStr, ValidationError

import cqrs_brokers
from cqrs_brokers import TOMBSTONE, Broker, ConfigError, InvalidMessageError
from cqrs_brokers.driver import Capabilities
from cqrs_brokers.protocol import EventBody
from cqrs_brokers_python_cqrs import ECSTEvent, NotificationEvent, message_broker

from .application import Emit, Order, OrderPlaced, Recorder, mediator


class Model(BaseModel):
    order_id: str = "7"
    share: float = 0.5


class Color(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Line:
    line_price: Decimal


@dataclasses.dataclass
class Whole:
    order_id: UUID
    lines: list[Line]
    by_sku: dict[str, Line]
    color: Color
    level: Level
    at: datetime
    raw: bytes
    tags: set[str]
    lasts: timedelta
    share: float


@dataclasses.dataclass
class Collapsing:
    a_b: int
    aB: int


WHOLE = Whole(
    order_id=UUID(int=7),
    lines=[Line(Decimal("1.10"))],
    by_sku={"a_b": Line(Decimal("2"))},
    color=Color.RED,
    level=Level.HIGH,
    at=datetime(2026, 1, 2, tzinfo=UTC),
    raw=b"\x00\xff",
    tags={"x"},
    lasts=timedelta(seconds=90),
    share=math.nan,
)


async def body_of(event: Any, **options: Any) -> dict[str, Any]:
    """The body on the wire, through python-cqrs' own mediator and our adapter."""
    recorder = Recorder()
    async with message_broker(Broker(recorder, **options)) as adapter:
        await mediator(adapter).send(Emit(events=[event]))
    body: dict[str, Any] = json.loads(recorder.sent[0].body or b"")
    return body


def own(payload: Any, **fields: Any) -> Any:
    return cqrs.NotificationEvent(event_name="n", topic="t", payload=payload, **fields)


def ours(payload: Any, **fields: Any) -> NotificationEvent[Any]:
    return NotificationEvent[Any](event_name="n", topic="t", payload=payload, **fields)


class TestPythonCqrsOwnEvents:
    """The column "python-cqrs' own"."""

    async def test_a_pydantic_model_becomes_its_repr(self) -> None:
        """And the adapter warns of it."""
        with pytest.warns(UserWarning, match="as the text of its repr"):
            body = await body_of(own(Model()))
        assert body["payload"] == "order_id='7' share=0.5"

    async def test_a_dataclass_becomes_camel_case(self) -> None:
        """Nested and in lists too, but the keys of mappings are kept."""
        payload = (await body_of(own(WHOLE)))["payload"]
        assert payload["lines"] == [{"linePrice": "1.10"}]
        assert payload["bySku"] == {"a_b": {"linePrice": "2"}}

    async def test_keys_can_collapse(self) -> None:
        """Two fields whose camelCase is the same are one: a value is lost."""
        assert (await body_of(own(Collapsing(1, 2))))["payload"] == {"aB": 2}

    async def test_kinds_of_values(self) -> None:
        """UUIDs without dashes, bytes as base64, sets as arrays, durations as text, NaN as null."""
        payload = (await body_of(own(WHOLE)))["payload"]
        assert payload["orderId"] == "00000000000000000000000000000007"
        assert (payload["color"], payload["level"], payload["raw"]) == ("red", 3, "AP8=")
        assert (payload["tags"], payload["lasts"], payload["share"]) == (["x"], "0:01:30", None)

    async def test_times(self) -> None:
        """The event's own is local and has no zone; in payloads UTC is `Z` and another offset is kept."""
        body = await body_of(own(WHOLE))
        assert datetime.fromisoformat(body["eventTimestamp"]).tzinfo is None
        assert body["payload"]["at"] == "2026-01-02T00:00:00Z"
        tokyo = dataclasses.replace(WHOLE, at=datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=9))))
        assert (await body_of(own(tokyo)))["payload"]["at"] == "2026-01-02T00:00:00+09:00"

    async def test_the_id_has_no_dashes(self) -> None:
        """32 hex digits."""
        assert (await body_of(own({}, event_id=UUID(int=7))))["eventId"] == "00000000000000000000000000000007"

    async def test_a_mapping_keeps_its_keys(self) -> None:
        """Keys as they are; NaN is null here too."""
        assert (await body_of(own({"a_b": 1, "x": math.nan})))["payload"] == {"a_b": 1, "x": None}

    async def test_a_large_integer_is_an_error_of_its_encoder(self) -> None:
        """Above 64 bits; it is raised before the adapter is asked."""
        with pytest.raises(TypeError, match="64-bit"):
            await body_of(own({"n": 2**64}))

    async def test_pydantic_notification_events_raise_for_a_decimal(self) -> None:
        """snake_case with dashes; a Decimal is python-cqrs' own TypeError at the send."""
        event: Any = PydanticNotificationEvent[dict[str, Any]](event_name="n", topic="t", payload={"a_b": 1})
        body = await body_of(event)
        assert (body["payload"], body["event_id"]) == ({"a_b": 1}, str(event.event_id))
        amount = {"a": Decimal("1.10")}
        broken: Any = PydanticNotificationEvent[dict[str, Any]](event_name="n", topic="t", payload=amount)
        with pytest.raises(TypeError):
            await body_of(broken)


class TestTheBridgesEvents:
    """The column "the bridge's"."""

    async def test_a_pydantic_model_becomes_json(self) -> None:
        """Names as they are."""
        assert (await body_of(ours(Model())))["payload"] == {"order_id": "7", "share": 0.5}

    async def test_a_dataclass_keeps_its_names(self) -> None:
        """Also two that would collapse; what has no form in JSON is refused, with its path."""
        assert (await body_of(ours(Collapsing(1, 2))))["payload"] == {"a_b": 1, "aB": 2}
        good = dataclasses.replace(WHOLE, raw="", tags=[], lasts="", share=1.5)  # type: ignore[arg-type]
        assert (await body_of(ours(good)))["payload"] == {
            "order_id": "00000000-0000-0000-0000-000000000007",
            "lines": [{"line_price": "1.10"}],
            "by_sku": {"a_b": {"line_price": "2"}},
            "color": "red",
            "level": 3,
            "at": "2026-01-02T00:00:00Z",
            "raw": "",
            "tags": [],
            "lasts": "",
            "share": 1.5,
        }

    @pytest.mark.parametrize(
        ("payload", "says"),
        [
            (dataclasses.replace(WHOLE, raw=b"hunter2"), r"payload\.raw is of type bytes"),
            (dataclasses.replace(WHOLE, raw="", tags={"hunter2"}), r"payload\.tags is of type set"),  # type: ignore[arg-type]
            ({"x": math.nan}, r"payload\.x is not finite"),
            ({"x": timedelta(1)}, r"payload\.x is of type timedelta"),
            (Model(share=math.nan), r"payload\.share is not finite"),
            ({"x": SecretStr("hunter2")}, r"payload\.x is a secret"),
            ({1: "hunter2"}, "payload has a key of type int"),
            ({"lines": [{"n": 2**64}]}, r"payload\.lines\[0\]\.n is an integer of more than 64 bits"),
            ({"n": -(2**63) - 1}, r"payload\.n is an integer of more than 64 bits"),
            ({"by@mail": "hunter2\ud800"}, r"payload\[…\] is not valid Unicode"),
            ({"hunter2\ud800": 1}, "payload has a key that is not valid Unicode"),
        ],
    )
    async def test_what_has_no_form_is_refused(self, payload: Any, says: str) -> None:
        """InvalidMessageError out of the mediator, also for what only python-cqrs' encoder cannot write."""
        recorder = Recorder()
        async with message_broker(Broker(recorder)) as adapter:
            with pytest.raises(InvalidMessageError, match=says) as caught:
                await mediator(adapter).send(Emit(events=[ours(payload)]))
        assert "hunter2" not in str(caught.value)
        assert recorder.sent == []

    async def test_nan_in_a_declared_float(self) -> None:
        """Refused, where python-cqrs' encoder writes null."""

        class Declared(ECSTEvent[Model]):
            topic: str = "t"

        event = Declared(payload=Model(share=math.nan))
        assert b'"share":null' in orjson.dumps(event.payload.model_dump())
        with pytest.raises(InvalidMessageError, match=r"payload\.share is not finite"):
            await body_of(event)

    async def test_the_largest_integers_pass(self) -> None:
        """64 bits, with sign and without."""
        numbers = [2**64 - 1, -(2**63)]
        assert (await body_of(ours(numbers)))["payload"] == numbers

    def test_unknown_keywords_are_refused(self) -> None:
        """As in core."""
        with pytest.raises(ValidationError, match="kye"):
            OrderPlaced(payload=Order(order_id="1"), kye="7")  # type: ignore[call-arg]

    async def test_headers_and_tombstones_go_through_the_mediator(self) -> None:
        """python-cqrs hands on only what `to_dict` returned; the adapter finds both there."""
        recorder = Recorder(capabilities=Capabilities(ordering_key=True, headers=True, tombstones=True))
        events: list[Any] = [
            OrderPlaced(payload=Order(order_id="1"), headers={"tenant": "a"}),
            OrderPlaced.deleted("1", headers={"tenant": "b"}),
            cqrs_brokers.ECSTEvent[Any].deleted("2", topic="orders"),
        ]
        async with message_broker(Broker(recorder)) as adapter:
            await mediator(adapter).send(Emit(events=events))
        placed, deleted, core = recorder.sent
        assert (placed.headers, placed.body is None) == ({"tenant": "a"}, False)
        assert (deleted.headers, deleted.key, deleted.body) == ({"tenant": "b"}, "1", None)
        assert (core.key, core.body, core.payload) == ("2", None, TOMBSTONE)

    async def test_a_tombstone_on_a_broker_without_them(self) -> None:
        """Refused with what to do instead."""
        async with message_broker(Broker(Recorder())) as adapter:
            with pytest.raises(InvalidMessageError, match="send an event that reports it"):
                await mediator(adapter).send(Emit(events=[OrderPlaced.deleted("1")]))

    async def test_headers_of_a_codec_and_of_the_event(self) -> None:
        """Both go out; one name in both is refused."""
        recorder = Recorder()
        body = EventBody({}, event_name="n", ordering_key=None, headers={"tenant": "a"})
        async with message_broker(Broker(recorder)) as adapter:
            await adapter.send_message(protocol.Message("n", "t", body, payload_bytes=b"x", headers={"codec": "v1"}))
            with pytest.raises(InvalidMessageError, match="the codec sets header 'tenant', and"):
                await adapter.send_message(protocol.Message("n", "t", body, headers={"tenant": "b"}))
        assert recorder.sent[0].headers == {"tenant": "a", "codec": "v1"}


class TestWarnings:
    """A payload that was turned into the text of a repr is told, once."""

    async def test_once_for_each_class(self) -> None:
        """The warning names the event and what to do; the message is sent all the same."""

        class Broken(cqrs.NotificationEvent[Model]):
            pass

        recorder = Recorder()
        async with message_broker(Broker(recorder)) as adapter:
            three = Emit(events=[Broken(event_name="n", topic="t", payload=Model()) for _ in range(3)])
            with pytest.warns(UserWarning, match=r"payload of Broken .* cqrs_brokers_python_cqrs\.") as caught:
                await mediator(adapter).send(three)
        assert len(caught) == 1
        assert len(recorder.sent) == 3
        assert "order_id" not in str(caught[0].message)

    async def test_it_points_at_the_code_that_sends(self) -> None:
        """Python shows the line that awaits `send_message`, not a line of the adapter."""
        payload = own(Model()).to_dict()
        async with message_broker(Broker(Recorder())) as adapter:
            with pytest.warns(UserWarning, match="as the text of its repr") as caught:
                await adapter.send_message(protocol.Message(message_name="n", topic="t", payload=payload))
        assert caught[0].filename == __file__

    async def test_where_warnings_are_errors(self, caplog: pytest.LogCaptureFixture) -> None:
        """The message is not lost for it; the log has it."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            await body_of(own(Model()))
        assert "as the text of its repr" in caplog.text

    @pytest.mark.parametrize(
        "payload", ["text", "a = 1", "a sentence, with x=1", "=", "x=", {"a": "b='c'"}, Line(Decimal("1")), None]
    )
    async def test_other_payloads_are_not_warned_of(self, payload: Any) -> None:
        """Text that only the application can mean."""
        await body_of(own(payload))  # warnings are errors in these tests, and in this one they are not lost
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            await body_of(own(payload))

    @pytest.mark.parametrize("text", ["a='b'", "Order(order_id='7')", "<shop.Order object at 0x7f00>"])
    async def test_other_reprs_are(self, text: str) -> None:
        """Python's own, and a dataclass' too, when somebody made text of them."""
        with pytest.warns(UserWarning, match="repr"):
            await body_of(own(text))


def test_an_encoder_is_refused() -> None:
    """python-cqrs makes the bodies: it would never be asked."""
    with pytest.raises(ConfigError, match="python-cqrs makes the bodies"):
        message_broker("devnull://", encoder=lambda payload: b"")


class Raises:
    """A message of python-cqrs' shape whose own code raises."""

    message_name, topic, message_id, headers, content_type, payload_bytes = "n", "t", UUID(int=1), None, None, None

    @property
    def payload(self) -> Any:
        raise LookupError("hunter2")


async def test_a_message_that_cannot_be_read_is_refused() -> None:
    """What its own code raises is the cause of an InvalidMessageError."""
    unreadable: Any = Raises()
    async with message_broker(Broker(Recorder())) as adapter:
        with pytest.raises(InvalidMessageError, match="reading the message raised LookupError") as caught:
            await adapter.send_message(unreadable)
    assert (type(caught.value.__cause__), caught.value.__context__) == (LookupError, None)
    assert "hunter2" not in str(caught.value)
