"""What a message has around its body: text of every kind, and headers of every type."""

import math
from enum import Enum, IntEnum, StrEnum
from typing import Any

import pytest

from cqrs_brokers import Broker, InvalidMessageError, Message, MessageTooLargeError
from cqrs_brokers.driver import Capabilities

from .drivers import Scripted, message

TYPED = Capabilities(
    confirms=True, ordering_key=True, headers=True, header_types=frozenset({str, bytes, int, float, bool, type(None)})
)


class Text(str):
    """A text of a class of its own, which says of itself what it is not."""

    def __str__(self) -> str:
        return "something else"

    def encode(self, *_: Any, **__: Any) -> bytes:
        return b"something else"


class Mixed(str, Enum):  # noqa: UP042 - what it is about
    ORDERS = "orders"


class Named(StrEnum):
    ORDERS = "orders"


class Plain(Enum):
    ORDERS = "orders"


class Level(IntEnum):
    HIGH = 3


@pytest.mark.parametrize("text", [Text("orders"), Mixed.ORDERS, Named.ORDERS])
async def test_text_is_text_whatever_its_class(text: str) -> None:
    """In every field the driver, and the receipt, have the plain text, the first time and the second."""
    driver = Scripted(automatic=True)
    async with Broker(driver) as broker:
        for _ in range(2):
            receipt = await broker.send_message(
                Message(text, text, {}, key=text, content_type=text, headers={text: text})
            )
            assert type(receipt.topic) is str
    for sent in driver.seen:
        fields = (sent.message_name, sent.topic, sent.key, sent.content_type, *sent.headers, *sent.headers.values())
        assert {type(field) for field in fields} == {str}
        assert set(fields) == {"orders"}


NOTHING_ELSE = pytest.param(object(), id="an object")  # its repr would be another one in each process


@pytest.mark.parametrize("text", [Plain.ORDERS, Level.HIGH, b"orders", 7, NOTHING_ELSE], ids=repr)
@pytest.mark.parametrize("field", ["message_name", "topic", "key", "content_type", "a header name"])
async def test_what_is_no_text_is_refused_in_every_field(field: str, text: Any) -> None:
    """Also an enum member that is not text itself."""
    fields: dict[str, Any] = {"message_name": "n", "topic": "t", "payload": {}}
    fields |= {"headers": {text: "v"}} if field == "a header name" else {field: text}
    with pytest.raises(InvalidMessageError, match=f"{field} must be text, not {type(text).__name__}"):
        await Broker(Scripted(capabilities=TYPED)).send_message(Message(**fields))


async def test_a_name_and_a_topic_that_are_swapped_are_told() -> None:
    """When the topic is one that the broker cannot have, and the name is one that it can."""

    class Strict(Scripted):
        def refuse_topic(self, topic: str) -> str | None:
            return "topics are in lower case here" if topic != topic.lower() else None

    for swapped, told in ((Message("orders", "OrderPlaced", {}), True), (Message("OrderPlaced", "Orders", {}), False)):
        with pytest.raises(InvalidMessageError, match="topics are in lower case here") as caught:
            await Broker(Strict()).send_message(swapped)
        assert ("if the two are swapped" in caught.value.text) is told


async def test_a_driver_is_asked_about_topics_before_their_form_is_checked() -> None:
    """Once about a topic that it accepts, never about an empty one; after a refusal about the message's name, too."""
    asked: list[str] = []

    class Asked(Scripted):
        def refuse_topic(self, topic: str) -> str | None:
            asked.append(topic)
            return "refused here" if topic == "refused" else None

    async with Broker(Asked(automatic=True)) as broker:
        await broker.send_messages(Message("name", topic, {}) for topic in ("t", "t", "\t", "x" * 256, "", "refused"))
    assert asked == ["t", "\t", "x" * 256, "refused", "name"]


async def test_a_driver_that_raises_when_it_is_asked_about_a_topic_breaks_its_contract() -> None:
    """The message is refused, and the error blames the driver, not the message."""

    class Fails(Scripted):
        def refuse_topic(self, topic: str) -> str | None:
            raise KeyError(topic)

    broker, sent = Broker(Fails()), message()
    with pytest.raises(InvalidMessageError, match=r"the driver's refuse_topic\(\) raised KeyError") as caught:
        await broker.send_message(sent)
    assert (caught.value.message_id, caught.value.topic) == (sent.message_id, sent.topic)
    assert isinstance(caught.value.__cause__, KeyError)
    assert [breach[:2] for breach in broker.contract_breaches] == [("refuse_topic", "raised KeyError")]


async def test_headers_arrive_with_their_types() -> None:
    """Where the broker carries them, and nothing is made of them on the way."""
    headers = {"s": "text", "b": b"\x00\xff", "i": -(2**63), "f": 0.1, "t": True, "n": None}
    driver = Scripted(automatic=True, capabilities=TYPED)
    async with Broker(driver) as broker:
        await broker.send_message(Message("n", "t", {}, headers=headers))
    assert [(type(value), value) for value in driver.seen[0].headers.values()] == [
        (type(value), value) for value in headers.values()
    ]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (2**63, "'h' does not fit into a signed integer of 64 bits"),
        (-(2**63) - 1, "64 bits"),
        (math.nan, "'h' is not finite"),
        (-math.inf, "not finite"),
        (b"x" * 32_768, "'h' is longer than 32767 bytes"),
        (Level.HIGH, "'h' is of type Level"),
        (bytearray(b"x"), "'h' is of type bytearray"),
        (["x"], "'h' is of type list"),
        (1 + 2j, "'h' is of type complex"),
    ],
    ids=repr,
)
async def test_header_values_that_no_broker_carries(value: Any, says: str) -> None:
    """The error names the header, not what it says."""
    with pytest.raises(InvalidMessageError, match=says):
        await Broker(Scripted(capabilities=TYPED)).send_message(Message("n", "t", {}, headers={"h": value}))


@pytest.mark.parametrize("value", [b"hunter2", 7, 0.5, True, None], ids=repr)
async def test_a_header_of_a_type_that_the_broker_does_not_carry(value: Any) -> None:
    """Refused with the types that it carries, not written as text."""
    with pytest.raises(InvalidMessageError, match="carries only str: a header value must be text") as caught:
        await Broker(Scripted()).send_message(Message("n", "t", {}, headers={"h": value}))
    assert "hunter2" not in str(caught.value)


async def test_typed_headers_count() -> None:
    """A number is 8 bytes, a bool 1, None 0, bytes their length; each with its name."""
    headers = {"i": 1, "f": 1.0, "t": True, "n": None, "b": b"12"}
    async with Broker(Scripted(automatic=True, capabilities=TYPED), max_message_bytes=25) as broker:
        await broker.send_message(Message("n", "t", b"x", headers=headers))  # 1 + 5 names + 8 + 8 + 1 + 0 + 2
        with pytest.raises(MessageTooLargeError, match="26 bytes"):
            await broker.send_message(Message("n", "t", b"xx", headers=headers))


async def test_headers_that_repeat_are_still_checked() -> None:
    """After many equal headers, those with another type, size or value are checked as before."""
    driver = Scripted(automatic=True, capabilities=TYPED)
    usual: dict[str, Any] = {"tenant": "orders", "n": "1"}
    async with Broker(driver, max_message_bytes=200) as broker:
        for _ in range(100):
            await broker.send_message(Message("E", "t", {}, headers=usual))
        await broker.send_message(Message("E", "t", {}, headers={"tenant": Mixed.ORDERS, Text("n"): "1"}))
        assert {type(text) for item in driver.seen[-1].headers.items() for text in item} == {str}
        assert driver.seen[-1].headers == usual
        with pytest.raises(MessageTooLargeError):  # the headers count, also if they are compared only
            await broker.send_message(Message("E", "t", None, headers=usual, payload_bytes=b"x" * 190))
        usual["n"] = object()
        with pytest.raises(InvalidMessageError):
            await broker.send_message(Message("E", "t", {}, headers=usual))
        usual["n"] = "x" * 300
        with pytest.raises(MessageTooLargeError):
            await broker.send_message(Message("E", "t", {}, headers=usual))


async def test_numbers_that_equal_others_keep_their_type() -> None:
    """1, 1.0 and True are equal; each arrives as what it is, also after many of another type."""
    driver = Scripted(automatic=True, capabilities=TYPED)
    async with Broker(driver) as broker:
        for value in (1, True, 1.0):
            for _ in range(40):
                await broker.send_message(Message("E", "t", {}, headers={"n": value}))
                assert type(driver.seen[-1].headers["n"]) is type(value)
