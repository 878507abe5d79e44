"""Bodies against an independent statement of the contract, for payloads drawn from every kind that is accepted."""

import collections
import dataclasses
import json
import math
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address
from pathlib import PurePosixPath
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID

import pydantic.dataclasses
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel, SecretBytes, SecretStr, computed_field, field_serializer

from cqrs_brokers import Broker, ECSTEvent, InvalidMessageError, Message

from .drivers import Scripted

T = TypeVar("T")


class Color(Enum):
    RED = "red"
    NUMBER = 7


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass
class Plain:
    first: Any
    second: Any


@pydantic.dataclasses.dataclass
class Checked:
    first: Any
    second: Any


class Model(BaseModel):
    first: Any
    second: Any


class Sub(Model):
    third: Any = None


class Declared(BaseModel):
    """A field that is declared as a class, and has a subclass of it."""

    model: Model


class Said(BaseModel):
    """A class that says of itself what is written."""

    model_config = ConfigDict(extra="allow", serialize_by_alias=True)

    value: Any = Field(alias="otherName")
    left_out: str = Field(default="hunter2", exclude=True)
    served: Any = None

    @computed_field
    def computed(self) -> Any:
        return [self.value]

    @field_serializer("served")
    def serve(self, value: Any) -> Any:
        return {"served": value}


class Box(BaseModel, Generic[T]):
    content: T


class Root(RootModel[Any]):
    pass


# A drawn payload is a pair: the value, and what JSON must say of it. The second is put together here, beside the first,
# by the table of docs/reference/wire.md; the encoder has no part in it.
Drawn = tuple[Any, Any]


def drawn(values: st.SearchStrategy[Any], says: Callable[[Any], Any]) -> st.SearchStrategy[Drawn]:
    return values.map(lambda value: (value, says(value)))


def rfc3339(moment: datetime | time) -> str:
    """By hand: the digits, the fraction when there is one, `Z`, the offset, or nothing."""
    text = f"{moment:%H:%M:%S}" if isinstance(moment, time) else f"{moment.year:04}-{moment:%m-%dT%H:%M:%S}"
    text += f".{moment.microsecond:06}" if moment.microsecond else ""
    offset = moment.utcoffset()
    if offset is None:
        return text
    minutes = int(offset.total_seconds() // 60)
    hours, rest = divmod(abs(minutes), 60)
    return text + (f"{'-' if minutes < 0 else '+'}{hours:02}:{rest:02}" if minutes else "Z")


def dashed(value: UUID) -> str:
    """8-4-4-4-12."""
    digits = value.hex
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


zones = st.none() | st.just(UTC) | st.integers(-720, 840).map(lambda minutes: timezone(timedelta(minutes=minutes)))
texts = st.text(st.characters(codec="utf-8"), max_size=20)
leaves = st.one_of(
    drawn(st.none() | st.booleans() | texts, lambda value: value),
    drawn(st.integers() | st.integers(-(2**300), 2**300), lambda value: value),
    drawn(st.floats(allow_nan=False, allow_infinity=False), lambda value: value),
    drawn(st.decimals(allow_nan=False, allow_infinity=False), str),
    drawn(st.uuids(), dashed),
    drawn(st.datetimes(timezones=zones), rfc3339),
    drawn(st.times(), rfc3339),
    drawn(st.dates(), lambda value: f"{value.year:04}-{value.month:02}-{value.day:02}"),
    drawn(st.sampled_from(Color), lambda value: value.value),
    drawn(st.just(IPv4Address("192.0.2.1")), lambda value: "192.0.2.1"),
    drawn(st.just(PurePosixPath("/a")), lambda value: "/a"),
)


def containers(inner: st.SearchStrategy[Drawn]) -> st.SearchStrategy[Drawn]:
    """Everything that holds other values."""
    two = st.tuples(inner, inner)

    def of_two(make: Callable[[Any, Any], Any], says: Callable[[Any, Any], Any]) -> st.SearchStrategy[Drawn]:
        return two.map(lambda pair: (make(pair[0][0], pair[1][0]), says(pair[0][1], pair[1][1])))

    def of_one(make: Callable[[Any], Any], says: Callable[[Any], Any]) -> st.SearchStrategy[Drawn]:
        return inner.map(lambda one: (make(one[0]), says(one[1])))

    def named(first: Any, second: Any) -> dict[str, Any]:
        return {"first": first, "second": second}

    lists = st.lists(inner, max_size=4)
    mappings = st.dictionaries(texts, inner, max_size=4)
    return st.one_of(
        lists.map(lambda items: ([value for value, _ in items], [says for _, says in items])),
        lists.map(lambda items: (tuple(value for value, _ in items), [says for _, says in items])),
        mappings.map(lambda items: ({k: v for k, (v, _) in items.items()}, {k: s for k, (_, s) in items.items()})),
        mappings.map(
            lambda items: (
                collections.OrderedDict((k, v) for k, (v, _) in items.items()),
                {k: s for k, (_, s) in items.items()},
            )
        ),
        of_two(Pair, lambda left, right: [left, right]),
        of_two(Plain, named),
        of_two(lambda first, second: Checked(first=first, second=second), named),
        of_two(lambda first, second: Model(first=first, second=second), named),
        of_two(
            lambda first, second: Declared(model=Sub(first=first, second=second, third=1)),
            lambda first, second: {"model": {"first": first, "second": second, "third": 1}},
        ),
        of_two(
            lambda value, served: Said(otherName=value, served=served, extra=value),
            lambda value, served: {
                "otherName": value,
                "served": {"served": served},
                "computed": [value],
                "extra": value,
            },
        ),
        of_one(lambda content: Box[Any](content=content), lambda content: {"content": content}),
        of_one(lambda content: Box(content=content), lambda content: {"content": content}),
        of_one(Root, lambda content: content),
    )


payloads = st.recursive(leaves, containers, max_leaves=12)


@given(payloads)
@settings(deadline=None)
def test_a_body_says_what_the_payload_says(payload: Drawn) -> None:
    """Decoded, it is what the contract says of the payload: alone, in an event, in a generic event."""
    value, says = payload
    if value is not None:
        body = Message("n", "t", value).body
        assert body is not None
        assert same(json.loads(body), says)
    for event in (ECSTEvent(topic="t", payload=value), ECSTEvent[Any](topic="t", payload=value)):
        body = event.to_message().body
        assert body is not None
        assert same(json.loads(body)["payload"], says)


def same(got: Any, says: Any) -> bool:
    """Equal, and of the same type: 1 is not True, and not 1.0."""
    if type(got) is not type(says):
        return False
    if isinstance(got, dict):
        return got.keys() == says.keys() and all(same(got[key], says[key]) for key in got)
    if isinstance(got, list):
        return len(got) == len(says) and all(map(same, got, says))
    return bool(got == says)


SECRET = "hunter2-hunter2"
refused = st.sampled_from(
    [
        lambda: math.nan,
        lambda: math.inf,
        lambda: Decimal("NaN"),
        lambda: Decimal("Infinity"),
        lambda: SECRET.encode(),
        lambda: bytearray(SECRET, "ascii"),
        lambda: {SECRET},
        lambda: frozenset({SECRET}),
        lambda: (letter for letter in SECRET),
        lambda: {7: SECRET},
        lambda: {None: SECRET},
        lambda: {date(2026, 1, 2): SECRET},
        lambda: SecretStr(SECRET),
        lambda: SecretBytes(SECRET.encode()),
        lambda: SECRET + "\ud800",
        lambda: object(),
        lambda: timedelta(seconds=1),
        lambda: UUID,
    ]
)


@given(st.data())
@settings(deadline=None)
async def test_a_payload_with_something_that_has_no_form_is_refused(data: st.DataObject) -> None:
    """Wherever it is: InvalidMessageError without the value, and nothing goes to the driver."""
    bad = data.draw(refused)()
    payload = data.draw(st.just((bad, None)))
    for _ in range(data.draw(st.integers(0, 4))):
        payload = data.draw(containers(st.just(payload)).filter(lambda one: one[0] not in ([], (), {})))
    driver = Scripted(automatic=True)
    broker = Broker(driver)
    for send in (
        lambda: broker.send_message(Message("n", "t", payload[0])),
        lambda: broker.publish(ECSTEvent[Any](topic="t", payload=payload[0])),
    ):
        if type(payload[0]) is bytes:  # the whole payload: it is its own body
            break
        with pytest.raises(InvalidMessageError) as caught:
            await send()
        assert SECRET not in str(caught.value)
        assert SECRET not in repr(caught.value.__cause__)
    assert driver.seen == []
