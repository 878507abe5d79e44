"""What may be sent and what it becomes: coercion, validation, encoding."""

import asyncio
import copy
import dataclasses
import json
import math
import pickle
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from time import time_ns
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cqrs_brokers import Broker, BrokerClosedError, InvalidMessageError, Message, MessageTooLargeError, Receipt
from cqrs_brokers._message.encoding import encode
from cqrs_brokers._message.ids import new_message_id, new_text
from cqrs_brokers.driver import content_type_of, id_text, timestamp_ms
from cqrs_brokers.protocol import EventBody, set_id_text

from .drivers import Scripted


class Color(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Name(StrEnum):
    ANN = "ann"


class Model(pydantic.BaseModel):
    at: datetime
    amount: Decimal


@dataclasses.dataclass
class Order:
    order_id: UUID
    lines: tuple[int, ...]


@pytest.mark.parametrize(
    ("payload", "body"),
    [
        ({"a": 1, "b": [True, None, 1.5]}, b'{"a":1,"b":[true,null,1.5]}'),
        ({"ü": "ö\n"}, '{"ü":"ö\\n"}'.encode()),
        ([], b"[]"),
        ((1, "2"), b'[1,"2"]'),
        ("text", b'"text"'),
        (7, b"7"),
        (False, b"false"),
        (UUID(int=5), b'"00000000-0000-0000-0000-000000000005"'),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), b'"2026-01-02T03:04:05Z"'),
        ({"d": date(2026, 1, 2), "t": time(3, 4)}, b'{"d":"2026-01-02","t":"03:04:00"}'),
        (Decimal("1.10"), b'"1.10"'),
        ([Color.RED, Level.HIGH, Name.ANN], b'["red",3,"ann"]'),
        (Order(UUID(int=1), (1, 2)), b'{"order_id":"00000000-0000-0000-0000-000000000001","lines":[1,2]}'),
        (
            Model(at=datetime(2026, 1, 2, tzinfo=UTC), amount=Decimal("2.50")),
            b'{"at":"2026-01-02T00:00:00Z","amount":"2.50"}',
        ),
        ({"m": [Order(UUID(int=2), ())]}, b'{"m":[{"order_id":"00000000-0000-0000-0000-000000000002","lines":[]}]}'),
        (b"\xff\x00raw", b"\xff\x00raw"),
        (b"", b""),
    ],
)
def test_payloads_become_compact_json(payload: Any, body: bytes) -> None:
    """Each accepted kind has exactly one form; bytes are verbatim."""
    assert Message("n", "t", payload).body == body


def cyclic() -> list[Any]:
    knot: list[Any] = []
    knot.append(knot)
    return knot


@pytest.mark.parametrize(
    "payload",
    [
        None,
        math.nan,
        {"a": math.inf},
        Decimal("NaN"),
        {1: "a"},
        {None: 1},
        {"a": {2: 3}},
        {1, 2},
        pytest.param((x for x in "ab"), id="a generator"),
        {"a": b"bytes inside"},
        bytearray(b"x"),
        pytest.param(object(), id="an object"),
        cyclic(),
        "\ud800",
        {"\ud800": 1},
        SimpleNamespace(a=1),
        int,
    ],
    ids=repr,
)
async def test_payloads_without_a_json_form_are_refused(payload: Any) -> None:
    """InvalidMessageError before any I/O that names the payload; never the library's own error as its context."""
    driver = Scripted()
    broker = Broker(driver)
    with pytest.raises(InvalidMessageError, match="payload") as caught:
        await broker.send_message(Message("n", "t", payload))
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    assert driver.connects == 0


async def test_an_unencodable_payload_does_not_show_its_content() -> None:
    """The error names the type and the path, never a value of the payload."""
    import traceback

    with pytest.raises(InvalidMessageError, match=r"payload\.x is of type set") as caught:
        await Broker(Scripted()).send_message(Message("n", "t", {"password": "hunter2", "x": {"hunter2"}}))
    assert "hunter2" not in "".join(traceback.format_exception(caught.value)).replace('"hunter2"', "")


texts = st.text(st.characters(codec="utf-8"))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=15,
)


@given(st.dictionaries(texts, json_values, max_size=5))
def test_json_comes_back_as_it_was(payload: dict[str, Any]) -> None:
    """Whatever JSON can say is said without loss."""
    assert json.loads(encode(payload)) == payload


def valid(**changes: Any) -> Message:
    fields: dict[str, Any] = {"message_name": "OrderPlaced", "topic": "orders", "payload": b"{}"}
    return Message(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"topic": ""}, "topic is empty"),
        ({"topic": "a\nb"}, "not printable"),
        ({"topic": "ä" * 128}, "255 bytes"),
        ({"topic": 5}, "must be text"),
        ({"topic": []}, "must be text"),
        ({"message_name": ""}, "message_name is empty"),
        ({"message_name": None}, "must be text"),
        ({"content_type": "a" * 256}, "255 bytes"),
        ({"content_type": ""}, "content_type is empty"),
        ({"message_id": "not a uuid"}, "must be a UUID"),
        ({"timestamp": datetime(2026, 1, 1)}, "timezone-aware"),
        ({"timestamp": 5}, "timezone-aware"),
        ({"timestamp": datetime(1969, 12, 31, tzinfo=UTC)}, "before 1970"),
        ({"key": 5}, "key must be text"),
        ({"key": "\ud800"}, "lone surrogate"),
        ({"key": "k" * 32768}, "32767 bytes"),
        ({"headers": {"": "v"}}, "header name is empty"),
        ({"headers": {"n" * 129: "v"}}, "128 bytes"),
        ({"headers": {"n\0": "v"}}, "not printable"),
        ({"headers": {5: "v"}}, "must be text"),
        ({"headers": {"n": 5}}, "header 'n' is of type int, and this broker carries only str"),
        ({"headers": {"n": None}}, "header 'n' is None, and this broker carries only str"),
        ({"headers": {"n": "\udfff"}}, "lone surrogate"),
        ({"headers": {"n": "v" * 32768}}, "32767 bytes"),
        ({"headers": {f"n{i}": "" for i in range(101)}}, "100 are allowed"),
        ({"headers": [("n", "v")]}, "must be a mapping"),
        ({"headers": {"Message-ID": "v"}}, "reserved"),
        ({"headers": {"message-name": "v"}}, "reserved"),
        ({"headers": {"CONTENT-type": "v"}}, "reserved"),
        ({"headers": {"ordering-key": "v"}}, "reserved"),
        ({"payload_bytes": "text"}, "payload_bytes must be bytes"),
        ({"payload_bytes": bytearray(b"x")}, "payload_bytes must be bytes"),
    ],
)
async def test_what_cannot_be_sent_says_why(changes: dict[str, Any], says: str) -> None:
    """Each refusal names the field and the rule, and carries id and topic; twice in a row, too."""
    broker = Broker(Scripted())
    for _ in range(2):
        with pytest.raises(InvalidMessageError, match=says):
            await broker.send_message(valid(**changes))


async def test_the_size_counts_everything_in_utf8() -> None:
    """Body, key, header names and values together must not exceed max_message_bytes."""
    driver = Scripted(automatic=True)
    async with Broker(driver, max_message_bytes=20) as broker:
        fits = {"payload": b"x" * 8, "key": "ü", "headers": {"ä": "öö", "n": "v2x"}}
        assert (await broker.send_message(valid(**fits))).confirmed  # 8 + 2 + 2 + 4 + 1 + 3
        with pytest.raises(MessageTooLargeError, match="21 bytes and 20"):
            await broker.send_message(valid(**(fits | {"payload": b"x" * 9})))


async def test_headers_may_say_anything_printable_or_not_in_values() -> None:
    """Slashes, dots, quotes, spaces, non-ASCII, empty values, a hundred of them."""
    driver = Scripted(automatic=True)
    headers = {"/a/../b": "", 'it\'s "x"': "ü\n\t", "π": "☃"} | {f"h{i}": str(i) for i in range(97)}
    async with Broker(driver) as broker:
        await broker.send_message(valid(headers=headers))
    assert driver.seen[0].headers == headers


class Foreign:
    """A message of another framework."""

    def __init__(self) -> None:
        self.message_name = "OrderPlaced"
        self.topic = "orders"
        self.payload: Any = {"a": 1}
        self.message_id = UUID(int=9)


async def test_message_likes_are_coerced() -> None:
    """The four attributes are enough; the optional ones are used when there; the object is not changed."""
    driver = Scripted(automatic=True)
    rich = Foreign()
    at = datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2)))
    vars(rich).update(payload_bytes=b"raw", content_type="x/y", headers={"h": "v"}, key="k", timestamp=at)
    before = dict(vars(rich))
    async with Broker(driver) as broker:
        for like in (Foreign(), rich):
            await broker.send_message(like)
    plain, full = driver.seen
    assert (plain.message_name, plain.topic, plain.body) == ("OrderPlaced", "orders", b'{"a":1}')
    assert plain.message_id == UUID(int=9)
    assert plain.timestamp.tzinfo is not None
    assert (full.body, full.content_type, full.headers) == (b"raw", "x/y", {"h": "v"})
    assert (full.key, full.timestamp) == ("k", at)
    assert vars(rich) == before


async def test_an_event_body_brings_name_and_key_through_a_framework() -> None:
    """A payload from to_dict() of an event of ours gives the message its name and key, not fields of the body."""
    driver = Scripted(automatic=True)
    like = Foreign()
    like.payload = EventBody({"a": 1}, event_name="OrderShipped", ordering_key="k1")
    async with Broker(driver) as broker:
        await broker.send_message(like)
    sent = driver.seen[0]
    assert (sent.message_name, sent.key, sent.body) == ("OrderShipped", "k1", b'{"a":1}')
    copied = pickle.loads(pickle.dumps(like.payload))
    assert (copied, copied.event_name, copied.ordering_key) == ({"a": 1}, "OrderShipped", "k1")


@pytest.mark.parametrize("result", [None, "text", bytearray(b"x")])
async def test_an_encoder_must_return_bytes(result: Any) -> None:
    """value_serializer= returning something else is InvalidMessageError, as is one that raises."""
    broker = Broker(Scripted(), encoder=lambda payload: result)
    with pytest.raises(InvalidMessageError, match="must return bytes"):
        await broker.send_message(valid(payload={}))


async def test_an_encoder_runs_only_where_nothing_is_encoded_yet() -> None:
    """payload_bytes or a content type: the encoder is not asked, and the caller's message is not changed."""
    driver = Scripted(automatic=True)
    mine = valid(payload={"a": 1})
    async with Broker(driver, encoder=lambda payload: b"encoded") as broker:
        for sent in (mine, valid(payload_bytes=b"raw"), valid(payload={"a": 1}, content_type="application/json")):
            await broker.send_message(sent)
    assert [m.body for m in driver.seen] == [b"encoded", b"raw", b'{"a":1}']
    assert mine.payload_bytes is None
    assert mine.body == b'{"a":1}'

    def fails(payload: object) -> bytes:
        raise KeyError("hunter2")

    with pytest.raises(InvalidMessageError, match="the encoder raised KeyError") as caught:
        await Broker(Scripted(), encoder=fails).send_message(mine)
    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.__context__ is None


def test_content_types() -> None:
    """None means octet-stream for a bytes payload and JSON for all else; a given one is kept."""
    assert content_type_of(valid(payload=b"x")) == "application/octet-stream"
    assert content_type_of(valid(payload={})) == "application/json"
    assert content_type_of(valid(payload={}, payload_bytes=b"{}")) == "application/json"
    assert content_type_of(valid(content_type="text/x")) == "text/x"


def test_reprs_show_no_content() -> None:
    """A message shows its name, id, topic and size only."""
    shown = repr(valid(payload={"p": "hunter2"}, key="hunter2", headers={"h": "hunter2"}))
    assert "hunter2" not in shown
    assert "OrderPlaced" in shown


def test_message_ids_are_random_uuids() -> None:
    """Version 4, variant RFC 9562, and no two alike."""
    ids = [new_message_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert {(i.version, i.variant) for i in ids} == {(4, uuid4().variant)}
    digits = [set(column) for column in zip(*(i.hex for i in ids), strict=True)]
    fixed = {12: {"4"}, 16: set("89ab")}
    assert digits == [fixed.get(column, set("0123456789abcdef")) for column in range(32)], "not random everywhere"
    assert pickle.loads(pickle.dumps(ids[0])) == ids[0]


def test_a_message_makes_its_id_and_time_once() -> None:
    """The id and the time of a message are those of its making, also in what goes on the wire, and may be replaced."""
    before = datetime.now(UTC)
    message = Message("E", "t", {})
    made, text = timestamp_ms(message), id_text(message)
    assert before - timedelta(milliseconds=1) <= message.timestamp <= datetime.now(UTC)
    assert message.timestamp is message.timestamp
    assert message.message_id is message.message_id
    assert (int(message.timestamp.timestamp() * 1000), str(message.message_id).encode()) == (made, text)
    assert (timestamp_ms(message), id_text(message)) == (made, text)
    message.message_id, message.timestamp = UUID(int=7), datetime(2020, 1, 1, tzinfo=UTC)
    assert (id_text(message), message.message_id) == (b"00000000-0000-0000-0000-000000000007", UUID(int=7))
    assert (timestamp_ms(message), message.timestamp.year) == (1577836800000, 2020)


async def test_a_message_may_be_given_the_text_of_its_id() -> None:
    """Its id, its copies and its receipt are those of the id itself."""
    identity = uuid4()
    message = Message("n", "t", b"", uuid4())
    set_id_text(message, str(identity).encode())
    assert copy.copy(message).message_id == identity
    async with Broker(Scripted(automatic=True)) as broker:
        receipt = await broker.send_message(message)
    assert (id_text(message), message.message_id, receipt.message_id) == (str(identity).encode(), identity, identity)


@pytest.mark.parametrize("wrong", [None, 7, "2020-01-01", datetime(2020, 1, 1)])
async def test_a_wrong_time_is_refused(wrong: Any) -> None:
    """A timestamp that has no zone, given or assigned, is InvalidMessageError; None, given, is now."""
    assigned = valid()
    assigned.timestamp = wrong
    for message in (assigned,) if wrong is None else (assigned, valid(timestamp=wrong)):
        with pytest.raises(InvalidMessageError, match="timezone-aware"):
            await Broker(Scripted()).send_message(message)


@pytest.mark.parametrize("wrong", [None, 7, str(UUID(int=7)), str(UUID(int=7)).encode()])
async def test_a_wrong_id_is_refused(wrong: Any) -> None:
    """An id that is no UUID, given or assigned, is InvalidMessageError, also its text; None, given, is a new one."""
    assigned = valid()
    assigned.message_id = wrong
    like: Any = Foreign()
    like.message_id = wrong
    for message in (assigned, like) if wrong is None else (assigned, like, valid(message_id=wrong)):
        with pytest.raises(InvalidMessageError, match="must be a UUID"):
            await Broker(Scripted()).send_message(message)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_messages_can_be_copied_and_pickled(duplicate: Callable[[Message], Message]) -> None:
    """A copy is the same message: id, time and all."""
    for message in (Message("E", "t", {"a": 1}), valid(key="k", headers={"h": "v"}, payload_bytes=b"x")):
        copied = duplicate(message)
        for name in ("message_name", "topic", "payload", "key", "content_type", "timestamp", "message_id", "body"):
            assert getattr(copied, name) == getattr(message, name)
        assert dict(copied.headers) == dict(message.headers)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_is_encoded_anew(duplicate: Callable[[Message], Message]) -> None:
    """A copy of a message that was sent can get another payload."""
    template = Message("E", "t", {"a": 1})
    assert template.body == b'{"a":1}'
    copied = duplicate(template)
    copied.payload = {"a": 2}
    assert (template.body, copied.body) == (b'{"a":1}', b'{"a":2}')


class Branded(Message):
    """A subclass with a constructor and an attribute of its own."""

    def __init__(self, brand: str) -> None:
        super().__init__("E", "t", {"brand": brand}, key="k")
        self.brand = brand


def test_copies_of_subclasses() -> None:
    """A subclass of Message is copied and pickled with what it adds."""
    branded = Branded("acme")
    for duplicate in (copy.copy(branded), copy.deepcopy(branded), pickle.loads(pickle.dumps(branded))):
        assert (type(duplicate), duplicate.brand, duplicate.message_id) == (Branded, "acme", branded.message_id)


class Unreadable:
    """A message whose own code raises."""

    message_name, topic, message_id = "E", "t", UUID(int=1)

    @property
    def payload(self) -> object:
        raise LookupError("hunter2")


async def test_a_message_that_cannot_be_read_is_refused() -> None:
    """What a message's own code raises is the cause of an InvalidMessageError; in a batch, at its place."""
    driver = Scripted(automatic=True)
    unreadable: Any = Unreadable()
    async with Broker(driver) as broker:
        with pytest.raises(InvalidMessageError, match="reading the message raised LookupError") as caught:
            await broker.send_message(unreadable)
        assert "hunter2" not in str(caught.value)
        assert (type(caught.value.__cause__), caught.value.__context__) == (LookupError, None)
        outcomes = await broker.send_messages([valid()] * 600 + [unreadable] + [valid()] * 100)
    assert [number for number, outcome in enumerate(outcomes) if not isinstance(outcome, Receipt)] == [600]
    assert isinstance(outcomes[600], InvalidMessageError)
    assert len(driver.seen) == 700


class Nameless:
    """A message that raises when it is asked for its id."""

    @property
    def message_id(self) -> UUID:
        raise LookupError("hunter2")


async def test_a_closed_broker_reads_no_message() -> None:
    """What a closed broker says is the same whatever the message's own code raises."""
    broker = Broker(Scripted())
    await broker.close()
    nameless: Any = Nameless()
    with pytest.raises(BrokerClosedError) as caught:
        await broker.send_message(nameless)
    assert caught.value.__context__ is None


def test_message_ids_in_threads() -> None:
    """Threads that make messages at the same time get different ids, also when the pool runs empty."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            made = list(threads.map(lambda _: [new_text(time_ns()) for _ in range(2000)], range(4)))
    finally:
        sys.setswitchinterval(before)
    assert len({text for some in made for text in some}) == 8000


async def test_ten_thousand_topics_are_remembered_and_no_more() -> None:
    """What was found legal is kept in bounded sets."""
    driver = Scripted(automatic=True)
    async with Broker(driver) as broker:
        for start in range(0, 10_050, 1_005):
            await broker.send_messages([valid(topic=f"t{i}") for i in range(start, start + 1_005)])
            await asyncio.sleep(0)
        assert len(broker._validator._known_topics) <= 10_000


def test_mapping_types_are_payloads() -> None:
    """Any mapping with string keys, not only dict."""

    class View(Mapping[str, int]):
        def __getitem__(self, key: str) -> int:
            return 1

        def __iter__(self) -> Any:
            return iter(("a",))

        def __len__(self) -> int:
            return 1

    assert encode(View()) == b'{"a":1}'
