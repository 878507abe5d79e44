"""What a payload becomes in JSON, at every depth and in every kind of container: the golden vectors of models."""

import collections
import dataclasses
import ipaddress
import json
import math
import random
import struct
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Any, Generic, NamedTuple, TypedDict, TypeVar
from uuid import UUID

import pydantic
import pydantic.dataclasses
import pytest
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, RootModel, SecretBytes, SecretStr, WrapSerializer

from cqrs_brokers import Broker, ECSTEvent, Event, InvalidMessageError, Message
from cqrs_brokers._message.encoding import encode
from cqrs_brokers._message.jsonable import UnencodableError
from cqrs_brokers.secret import Secret

from .drivers import Scripted

T = TypeVar("T")


class Item(BaseModel):
    sku: str


class Book(Item):
    isbn: str


class Anything(BaseModel):
    value: Any


class Box(BaseModel, Generic[T]):
    value: T


class Root(RootModel[Any]):
    pass


@dataclasses.dataclass
class Plain:
    value: Any


@pydantic.dataclasses.dataclass
class Checked:
    value: Any


@dataclasses.dataclass(slots=True)
class Slotted:
    value: Any


class Pair(NamedTuple):
    left: Any
    right: Any


class Typed(TypedDict):
    value: Any


class Level(IntEnum):
    HIGH = 3


class Name(StrEnum):
    ANN = "ann"


class Color(Enum):
    RED = ("red", 1)


class View(Mapping[str, Any]):
    """A mapping that is no dict."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __getitem__(self, key: str) -> Any:
        return self.value

    def __iter__(self) -> Iterator[str]:
        return iter(("value",))

    def __len__(self) -> int:
        return 1


CONTAINERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a mapping": (lambda value: {"value": value}, ".value"),
    "a mapping that is no dict": (View, ".value"),
    "an ordered dict": (lambda value: collections.OrderedDict(value=value), ".value"),
    "a list": (lambda value: [1, value], "[1]"),
    "a tuple": (lambda value: (value,), "[0]"),
    "a named tuple": (lambda value: Pair(1, value), "[1]"),
    "a model": (lambda value: Anything(value=value), ".value"),
    "a model made without validation": (lambda value: Item.model_construct(sku=value), ".sku"),
    "a generic model": (lambda value: Box[Any](value=value), ".value"),
    "a generic model, unparametrised": (lambda value: Box(value=value), ".value"),
    "a root model": (Root, ""),
    "a dataclass": (Plain, ".value"),
    "a dataclass with slots": (Slotted, ".value"),
    "pydantic's dataclass": (Checked, ".value"),
    "a typed dict": (lambda value: Typed(value=value), ".value"),
    "a model in a list in a mapping": (lambda value: {"lines": [0, 1, 2, Anything(value=value)]}, ".lines[3].value"),
    "a named tuple in a model": (lambda value: Anything(value=Pair(value, 1)), ".value[0]"),
}
REFUSED: dict[str, Callable[[], Any]] = {
    "NaN": lambda: math.nan,
    "an infinity": lambda: -math.inf,
    "Decimal NaN": lambda: Decimal("NaN"),
    "a decimal infinity": lambda: Decimal("-Infinity"),
    "a signalling NaN": lambda: Decimal("sNaN"),
    "bytes": lambda: b"hunter2",
    "a bytearray": lambda: bytearray(b"hunter2"),
    "a memoryview": lambda: memoryview(b"hunter2"),
    "a set": lambda: {"hunter2"},
    "a frozenset": lambda: frozenset({"hunter2"}),
    "a generator": lambda: (letter for letter in "hunter2"),
    "an iterator": lambda: iter(["hunter2"]),
    "a key that is a number": lambda: {1: "hunter2", "1": "b"},
    "a key that is None": lambda: {None: "hunter2"},
    "a key that is a bool": lambda: {True: "hunter2"},
    "a key that is a tuple": lambda: {("a",): "hunter2"},
    "a key that is a UUID": lambda: {UUID(int=1): "hunter2"},
    "pydantic's SecretStr": lambda: SecretStr("hunter2"),
    "pydantic's SecretBytes": lambda: SecretBytes(b"hunter2"),
    "pydantic's Secret": lambda: pydantic.Secret[str]("hunter2"),
    "a secret of ours": lambda: Secret("hunter2"),
    "an object": lambda: object(),
    "a class": lambda: Item,
    "a function": lambda: len,
    "a complex number": lambda: 1j,
    "a duration": lambda: timedelta(seconds=1),
    "a regular expression": lambda: __import__("re").compile("hunter2"),
    "a lone surrogate": lambda: "hunter2\ud800",
    "a key that is a lone surrogate": lambda: {"hunter2\ud800": 1},
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("refused", REFUSED)
async def test_what_has_no_json_form_has_none_at_any_depth(refused: str, container: str) -> None:
    """Refused in every container alike, with its path, and neither with its content nor with a warning that has it."""
    make, path = CONTAINERS[container]
    payload = make(REFUSED[refused]())
    with pytest.raises(InvalidMessageError) as caught:
        await Broker(Scripted()).send_message(Message("n", "t", payload))
    assert caught.value.text.startswith(f"payload{path} ")
    shown = "".join(traceback.format_exception(caught.value))
    assert 'hunter2"' not in caught.value.text
    assert "hunter2" not in shown.replace('lambda: "hunter2', "")
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("refused", REFUSED)
@pytest.mark.parametrize("event", [Event[dict[str, Any]], Event[Any], Event], ids=str)
async def test_what_has_no_json_form_is_refused_in_events(event: Any, refused: str) -> None:
    """Also in a payload that pydantic alone would write: the path begins at the event's field."""
    made = event(topic="t", payload={"lines": [{"price": REFUSED[refused]()}]})
    with pytest.raises(InvalidMessageError, match=r"payload\.lines\[0\]\.price") as caught:
        await Broker(Scripted()).publish(made)
    assert caught.value.message_id == made.event_id
    assert "hunter2" not in str(caught.value)


UTC_TIME = datetime(2026, 1, 2, 3, 4, 5, 125, tzinfo=UTC)
ACCEPTED: dict[str, tuple[Any, str]] = {
    "None": (None, "null"),
    "a bool": (True, "true"),
    "a large integer": (2**200, str(2**200)),
    "a float": (1234.5625, "1234.5625"),
    "a small float": (-0.0, "-0.0"),
    "a subclass of int": (Level.HIGH, "3"),
    "a subclass of str": (Name.ANN, '"ann"'),
    "an enum of tuples": (Color.RED, '["red",1]'),
    "a decimal with its digits": (Decimal("1.10"), '"1.10"'),
    "a large decimal": (Decimal("1E+400"), '"1E+400"'),
    "a UUID": (UUID(int=5), '"00000000-0000-0000-0000-000000000005"'),
    "a time in UTC": (UTC_TIME, '"2026-01-02T03:04:05.000125Z"'),
    "a time at the offset 0": (UTC_TIME.astimezone(timezone(timedelta(0), "GMT")), '"2026-01-02T03:04:05.000125Z"'),
    "a time at another offset": (
        datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=-5, minutes=-30))),
        '"2026-01-02T03:04:05-05:30"',
    ),
    "a time without a zone": (datetime(2026, 1, 2, 3, 4, 5), '"2026-01-02T03:04:05"'),
    "a date": (date(2026, 1, 2), '"2026-01-02"'),
    "a time of day": (time(3, 4), '"03:04:00"'),
    "a time of day in UTC": (time(3, 4, tzinfo=UTC), '"03:04:00Z"'),
    "an address": (ipaddress.IPv4Address("192.0.2.1"), '"192.0.2.1"'),
    "a network": (ipaddress.IPv6Network("2001:db8::/32"), '"2001:db8::/32"'),
    "a path": (PurePosixPath("/a/b"), '"/a/b"'),
    "a URL": (pydantic.HttpUrl("https://example.org/a"), '"https://example.org/a"'),
    "keys of subclasses of str": ({Name.ANN: 1}, '{"ann":1}'),
    "a counter": (collections.Counter("aab"), '{"a":2,"b":1}'),
    "a named tuple": (Pair(1, "2"), '[1,"2"]'),
    "an event": (
        Event(event_id=UUID(int=1), event_timestamp=UTC_TIME, event_name="n", topic="t", payload=1),
        '{"event_id":"00000000-0000-0000-0000-000000000001","event_timestamp":"2026-01-02T03:04:05.000125Z",'
        '"event_name":"n","topic":"t","payload":1}',
    ),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("accepted", ACCEPTED)
def test_one_value_has_one_spelling(accepted: str, container: str) -> None:
    """In every container alike."""
    make, _ = CONTAINERS[container]
    value, spelling = ACCEPTED[accepted]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert encode(make(value)).decode() == encode(make("@")).decode().replace('"@"', spelling)


def test_numbers_are_read_back_as_they_were() -> None:
    """Finite floats, and integers around the limits of 64 bits. How an exponent is written is pydantic's choice."""
    choice = random.Random(1)
    bits = (choice.getrandbits(64) for _ in range(20_000))
    floats = [value for each in bits if math.isfinite(value := struct.unpack("d", each.to_bytes(8))[0])]
    limits = [2**power + step for power in (31, 53, 63, 64, 200) for step in (-1, 0, 1)]
    integers = [*limits, *(-limit for limit in limits)]
    numbers = [*floats, 5e-324, 1.7976931348623157e308, 1e16, 1e22, 1e-7, 0.0, *integers]
    assert json.loads(encode({"all": numbers})) == {"all": numbers}


def test_declared_fields_have_the_same_spelling() -> None:
    """What a field is declared as changes nothing: pydantic's own forms are those of the one rule."""

    class Declared(BaseModel):
        at: datetime
        of: time
        on: date
        amount: Decimal
        id: UUID
        level: Level
        url: pydantic.HttpUrl
        address: ipaddress.IPv4Address
        path: PurePosixPath
        data: pydantic.Base64Bytes
        nothing: None = None

    declared = Declared(
        at=UTC_TIME,
        of=time(1, 2, tzinfo=UTC),
        on=date(2026, 1, 2),
        amount=Decimal("2.50"),
        id=UUID(int=1),
        level=Level.HIGH,
        url="https://example.org",
        address="192.0.2.1",
        path=PurePosixPath("/a"),
        data=b"AAH/",
    )
    assert encode(declared) == declared.model_dump_json().encode()


class TestNothingIsCut:
    """A payload whose class is a subclass of the declared one is written whole."""

    def test_in_a_field_a_list_a_mapping_and_an_event(self) -> None:
        """Wherever the declared class stands."""

        class Shelf(BaseModel):
            one: Item
            many: list[Item]
            named: dict[str, Item]
            maybe: Item | None

        book = Book(sku="1", isbn="2")
        whole = '{"sku":"1","isbn":"2"}'
        shelf = Shelf(one=book, many=[book], named={"a": book}, maybe=book)
        assert encode(shelf).decode() == (
            f'{{"one":{whole},"many":[{whole}],"named":{{"a":{whole}}},"maybe":{whole}}}'
        )
        assert Event[Item](topic="t", payload=book).to_dict()["payload"] == {"sku": "1", "isbn": "2"}
        assert ECSTEvent[list[Item]](topic="t", payload=[book]).to_dict()["payload"] == [{"sku": "1", "isbn": "2"}]

    def test_beside_a_serializer(self) -> None:
        """Also what a wrapping serializer hands on."""

        class Tagged(BaseModel):
            one: Item

            @pydantic.model_serializer(mode="wrap")
            def tag(self, handler: Any) -> Any:
                return handler(self) | {"tag": 1}

        assert encode(Tagged(one=Book(sku="1", isbn="2"))) == b'{"one":{"sku":"1","isbn":"2"},"tag":1}'

    def test_extra_fields(self) -> None:
        """A model that takes extra fields gives them."""

        class Open(BaseModel):
            model_config = ConfigDict(extra="allow")
            a: int

        assert encode(Open(a=1, b=[Decimal("1.0")])) == b'{"a":1,"b":["1.0"]}'
        with pytest.raises(UnencodableError, match=r"payload\.b\[1\] is not finite"):
            encode(Open(a=1, b=[1, math.nan]))


class TestWhatAModelSaysOfItself:
    """Excluded, computed and aliased fields, and serializers of the model's own: one golden vector each."""

    def test_excluded_fields(self) -> None:
        """They are left out."""

        class Account(BaseModel):
            name: str
            password: SecretStr = Field(exclude=True)

        assert encode(Account(name="a", password=SecretStr("hunter2"))) == b'{"name":"a"}'

    def test_computed_fields(self) -> None:
        """They are written after the others; one that raises names itself."""

        class Line(BaseModel):
            price: Decimal
            count: int

            @pydantic.computed_field
            def total(self) -> Decimal:
                return self.price * self.count

        class Broken(BaseModel):
            @pydantic.computed_field
            def total(self) -> int:
                raise LookupError("hunter2")

        assert encode(Line(price=Decimal("1.50"), count=2)) == b'{"price":"1.50","count":2,"total":"3.00"}'
        with pytest.raises(UnencodableError, match=r"payload\[0\]\.total cannot be written: .* LookupError") as caught:
            encode([Broken()])
        assert isinstance(caught.value.__cause__, LookupError)

    def test_aliases(self) -> None:
        """The field's name is written, unless the model says `serialize_by_alias`."""

        class Order(BaseModel):
            order_id: str = Field(alias="orderId")

        class Aliased(Order):
            model_config = ConfigDict(serialize_by_alias=True)

        assert encode(Order(orderId="7")) == b'{"order_id":"7"}'
        assert encode(Aliased(orderId="7")) == b'{"orderId":"7"}'

    def test_a_secret_with_a_serializer(self) -> None:
        """The serializer decides; those that pydantic calls for JSON only are called too."""

        class Token(BaseModel):
            token: SecretStr
            other: SecretStr | None = None

            @pydantic.field_serializer("token", when_used="json")
            def reveal(self, token: SecretStr) -> str:
                return token.get_secret_value()

            @pydantic.field_serializer("other", when_used="unless-none")
            def reveal_other(self, other: SecretStr, info: pydantic.FieldSerializationInfo) -> str:
                assert (info.mode, info.mode_is_json(), info.field_name) == ("json", True, "other")
                return other.get_secret_value()

        assert encode(Token(token=SecretStr("abc"))) == b'{"token":"abc","other":null}'
        assert encode(Token(token=SecretStr("abc"), other=SecretStr("d"))) == b'{"token":"abc","other":"d"}'

    def test_serializers_in_annotations(self) -> None:
        """Of a field, wrapped, deep inside a field, of bytes that the field declares as text."""

        class Model(BaseModel):
            plain: Annotated[set[int], PlainSerializer(sorted)]
            wrapped: Annotated[Decimal, WrapSerializer(lambda value, handler: [handler(value)])]
            deep: list[Annotated[int, PlainSerializer(lambda value: f"#{value}", when_used="json")]]
            encoded: pydantic.Base64Bytes
            other: int = 1

        model = Model(plain={2, 1}, wrapped=Decimal("1.0"), deep=[1, 2], encoded=b"AAH/")
        assert encode(model) == (
            b'{"plain":[1,2],"wrapped":["1.0"],"deep":["#1","#2"],"encoded":"AAH/","other":1}'
        )

    def test_model_serializers(self) -> None:
        """Plain ones, those that ask how they are called, and those that wrap."""

        class Whole(BaseModel):
            a: int = 1

            @pydantic.model_serializer
            def whole(self) -> list[int]:
                return [self.a]

        class Asking(BaseModel):
            a: Decimal = Decimal("1.0")

            @pydantic.model_serializer(mode="wrap")
            def asking(self, handler: Any, info: pydantic.SerializationInfo) -> Any:
                return handler(self) | {"mode": info.mode}

        assert encode({"x": Whole(), "y": Asking()}) == b'{"x":[1],"y":{"a":"1.0","mode":"json"}}'

    def test_what_serializers_return_is_held_to_the_rule(self) -> None:
        """NaN, sets, bytes and secrets of theirs are refused."""
        for returned in (math.nan, {1}, b"x", SecretStr("hunter2"), {1: 2}):

            def give(_value: Any, returned: Any = returned) -> Any:
                return returned

            class Model(BaseModel):
                a: Annotated[int, PlainSerializer(give)] = 1

            class Deep(BaseModel):
                a: list[Annotated[Any, WrapSerializer(lambda value, handler: handler(value))]]

            class Wrapping(BaseModel):
                a: Any

                @pydantic.model_serializer(mode="wrap")
                def same(self, handler: Any) -> Any:
                    return handler(self)

            with pytest.raises(UnencodableError, match=r"payload\.a "):
                encode(Model())
            with pytest.raises(UnencodableError, match=r"payload\.a "):
                encode(Wrapping(a=returned))
        with pytest.raises(UnencodableError, match=r"payload\.a\[0\] is not finite"):
            encode(Deep(a=[math.nan]))

    @pytest.mark.parametrize("when", ["always", "json"])
    def test_a_serializer_that_raises(self, when: Any) -> None:
        """Its error is the cause; pydantic's and Unicode errors, which quote what they are about, are not."""

        def fails(value: str) -> str:
            if value == "unicode":
                return value + b"\xff".decode()
            if value == "pydantic":
                return str(Item.model_validate({"sku": ["hunter2"]}))
            raise KeyError("hunter2")

        class Model(BaseModel):
            a: Annotated[str, PlainSerializer(fails, when_used=when)]

        class Deep(BaseModel):
            a: list[Annotated[str, PlainSerializer(fails, when_used=when)]]

        for model in (Model(a="key"), Deep(a=["key"])):
            with pytest.raises(UnencodableError, match="its own code raised KeyError") as caught:
                encode(model)
            assert "hunter2" not in str(caught.value)
            assert isinstance(caught.value.__cause__, KeyError)
        for value in ("unicode", "pydantic"):
            for model in (Model(a=value), Deep(a=[value])):
                with pytest.raises(UnencodableError, match="its own code raised") as caught:
                    encode(model)
                assert (caught.value.__cause__, caught.value.__context__) == (None, None)

    def test_dataclasses_of_pydantic(self) -> None:
        """Excluded fields, and those that only the constructor takes, are left out."""

        @pydantic.dataclasses.dataclass
        class Made:
            hidden: int = Field(default=1, exclude=True)
            shown: int = 2
            seed: dataclasses.InitVar[int] = 3

        assert encode([Made()]) == b'[{"shown":2}]'

    def test_a_model_that_refers_to_itself(self) -> None:
        """Models may be recursive, not circular."""

        class Node(BaseModel):
            kids: "list[Node]" = []
            shown: Annotated[int, PlainSerializer(str)] = 1

        assert encode(Node(kids=[Node()])) == b'{"kids":[{"kids":[],"shown":"1"}],"shown":"1"}'
        knot = Node()
        knot.kids.append(knot)
        with pytest.raises(UnencodableError, match=r"payload\.kids\[0\]\.kids\[0\].*… is nested too deeply"):
            encode(knot)


class TestPaths:
    """What cannot be written is named by its path."""

    def test_a_key_that_is_no_name_is_not_shown(self) -> None:
        """It may be content: an address, a text."""
        with pytest.raises(UnencodableError, match=r"^payload\.by_mail\[…\]\.x is of type set"):
            encode({"by_mail": {"ann@example.org": {"x": {1}}}})

    def test_a_mapping_that_raises(self) -> None:
        """The application's own code, not only serializers."""

        class Raises(View):
            def __getitem__(self, key: str) -> Any:
                raise LookupError(key)

        with pytest.raises(UnencodableError, match=r"^payload cannot be written: .* LookupError$") as caught:
            encode(Raises(1))
        assert caught.value.__cause__ is None  # nobody can look whether its text quotes what is in there

    def test_an_integer_with_more_digits_than_python_writes(self) -> None:
        """Python's own limit is named, not passed off as something else."""
        with pytest.raises(UnencodableError, match=r"payload\.a\[0\] is an integer of more digits than Python writes"):
            encode({"a": [10**5000]})
        for number in (10**4300 - 1, 1 - 10**4300):
            assert json.loads(encode({"a": [number], "b": number})) == {"a": [number], "b": number}
        for number in (10**4300, -(10**4300)):
            with pytest.raises(UnencodableError, match="more digits than Python writes"):
                encode(number)
            with pytest.raises(UnencodableError, match="more digits than Python writes"):
                encode({"a": number})

    def test_the_whole_payload(self) -> None:
        """There is no path to it."""
        with pytest.raises(UnencodableError, match=r"^payload is of type set"):
            encode({1})
