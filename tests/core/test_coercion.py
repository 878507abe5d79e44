"""What is passed to a broker: message-likes with code of their own, encoders, and what is mistaken for something."""

import asyncio
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from cqrs_brokers import Broker, ConfigError, Encoded, InvalidMessageError, Message, MessageEncoder, open_broker
from cqrs_brokers.driver import Capabilities, content_type_of

from .drivers import Scripted, message


class Like:
    """A message of another framework; an attribute raises what the test says."""

    message_name, topic, payload, message_id = "E", "t", {"a": 1}, UUID(int=1)
    key: Any = None
    headers: Any = None
    content_type: Any = None
    timestamp: Any = None
    payload_bytes: Any = None


@pytest.mark.parametrize("error", [AttributeError, LookupError, TypeError, ValueError, RecursionError])
@pytest.mark.parametrize("attribute", [name for name in vars(Like) if not name.startswith("_")])
async def test_an_attribute_that_raises_refuses_the_message(attribute: str, error: type[Exception]) -> None:
    """Also one that need not be there: a key whose own code raises AttributeError is no missing key."""

    def fails(self: object) -> Any:
        raise error("hunter2")

    like: Any = type("Fails", (Like,), {attribute: property(fails)})()
    broker = Broker(Scripted())
    with pytest.raises(InvalidMessageError, match=f"reading the message raised {error.__name__}") as caught:
        await broker.send_message(like)
    assert "hunter2" not in str(caught.value)
    assert (type(caught.value.__cause__), caught.value.__context__) == (error, None)
    (outcome,) = await broker.send_messages([like])
    assert isinstance(outcome, InvalidMessageError)


@pytest.mark.parametrize("error", [asyncio.CancelledError, KeyboardInterrupt, SystemExit])
async def test_what_is_no_ordinary_exception_passes(error: type[BaseException]) -> None:
    """A cancellation and the ways to end a program are not turned into something else."""

    def fails(self: object) -> Any:
        raise error

    like: Any = type("Fails", (Like,), {"key": property(fails)})()
    with pytest.raises(error):
        await Broker(Scripted()).send_message(like)


async def test_attributes_that_are_not_there() -> None:
    """Optional ones may be missing, a slot without a value too; the four that are needed may not."""

    class Slotted:
        __slots__ = ("key", "message_id", "message_name", "payload", "topic")

    like: Any = Slotted()
    with pytest.raises(InvalidMessageError, match="a Slotted is no message: it needs message_name, topic"):
        await Broker(Scripted()).send_message(like)
    like.message_name, like.topic, like.payload, like.message_id = "E", "t", {}, UUID(int=1)
    async with Broker(Scripted(automatic=True)) as broker:
        assert (await broker.send_message(like)).confirmed


async def test_payloads_are_not_compared() -> None:
    """A payload whose comparison raises, as an array's does, is only encoded."""

    class Array(list[int]):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise ValueError("ambiguous")

    driver = Scripted(automatic=True)
    async with Broker(driver) as broker:
        await broker.send_message(
            SimpleNamespace(message_name="E", topic="t", payload=Array([1]), message_id=UUID(int=1))
        )
    assert driver.seen[0].body == b"[1]"


@pytest.mark.parametrize("one", [message(), {"a": 1}.get, 7, None])
async def test_send_messages_of_one(one: Any) -> None:
    """One message instead of many is an error of ours that names both ways out."""
    with pytest.raises(InvalidMessageError, match=r"send_messages\(\[message\]\), or send_message\(message\)"):
        await Broker(Scripted()).send_messages(one)


def test_one_observer_instead_of_a_sequence() -> None:
    """An error of ours with the remedy, from Broker and from open_broker."""

    class Watching:
        def sent(self, *_: object) -> None: ...
        def connection_changed(self, *_: object) -> None: ...

    one: Any = Watching()
    for make in (lambda: Broker(Scripted(), observers=one), lambda: open_broker("memory://", observers=one)):
        with pytest.raises(ConfigError, match=r"observers=\[Watching\(…\)\]"):
            make()


class Registry:
    """An encoder that sees the message."""

    def __init__(self, **headers: Any) -> None:
        self.headers = headers

    def encode_message(self, message: Message, /) -> Encoded:
        return Encoded(f"{message.topic}/{message.message_name}".encode(), "application/x-test", self.headers)


async def test_an_encoder_that_sees_the_message() -> None:
    """Topic and name are there; body, content type and headers go out; the caller's message is not changed."""
    driver = Scripted(automatic=True)
    encoder = Registry(schema="7")
    assert isinstance(encoder, MessageEncoder)
    sent = Message("OrderPlaced", "orders", {"a": 1}, key="k", headers={"tenant": "a"})
    async with Broker(driver, encoder=encoder) as broker:
        await broker.send_message(sent)
        await broker.send_message(Message("OrderPlaced", "orders", {}, payload_bytes=b"raw"))
    encoded, raw = driver.seen
    assert (encoded.body, content_type_of(encoded)) == (b"orders/OrderPlaced", "application/x-test")
    assert (encoded.headers, encoded.key) == ({"tenant": "a", "schema": "7"}, "k")
    assert (encoded.message_id, encoded.timestamp) == (sent.message_id, sent.timestamp)
    assert (raw.body, raw.headers) == (b"raw", {})
    assert (sent.headers, sent.content_type, sent.payload_bytes) == ({"tenant": "a"}, None, None)


@pytest.mark.parametrize(
    ("encoder", "says"),
    [
        (Registry(tenant="b"), "the encoder sets header 'tenant', and the message has it already"),
        (Registry(schema=7), "header 'schema' is of type int, and this broker carries only str"),
        (SimpleNamespace(encode_message=lambda message: Encoded("text")), "must return bytes, not str"),  # type: ignore[arg-type]
        (SimpleNamespace(encode_message=lambda message: None), "must return bytes, not NoneType"),
        (SimpleNamespace(encode_message=lambda message: message.nothing), "the encoder raised AttributeError"),
    ],
)
async def test_an_encoder_that_does_what_it_may_not(encoder: Any, says: str) -> None:
    """InvalidMessageError, before any I/O."""
    driver = Scripted(automatic=True, capabilities=Capabilities(headers=True))
    with pytest.raises(InvalidMessageError, match=says):
        await Broker(driver, encoder=encoder).send_message(Message("n", "t", {}, headers={"tenant": "a"}))
    assert driver.connects == 0


async def test_open_broker_takes_an_encoder() -> None:
    """Of either kind; anything else is a ConfigError."""
    from cqrs_broker_memory import published

    for encoder, body in ((lambda payload: b"made", b"made"), (Registry(), b"t/n")):
        async with open_broker("memory://encoders", encoder=encoder) as broker:
            await broker.send_message(Message("n", "t", {}))
        assert published("encoders")[-1].body == body
    with pytest.raises(ConfigError, match=r"encoder must be a function, or have encode_message\(\), not a str"):
        open_broker("memory://encoders", encoder="json")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content",
    [
        *("hunter2-hunter2", "it's \"hunter2hunter2\"", b"hunter2hunter2", 4711471147, Decimal("4711.50")),
        *(UUID(int=4711), date(1971, 4, 7), datetime(1971, 4, 7, 11, tzinfo=UTC)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("conversion", [str, repr])
async def test_a_cause_that_quotes_the_payload_is_left_out(content: Any, conversion: Callable[[Any], str]) -> None:
    """Whatever class it has, and also when a repr escaped it, or the error before it quotes it."""

    def quotes(payload: Any) -> bytes:
        raise ValueError(f"cannot encode {conversion(payload['a'][0])}")

    def quotes_before(payload: object) -> bytes:
        try:
            quotes(payload)
        except ValueError as error:
            raise LookupError("no") from error
        return b""

    def says_nothing(payload: object) -> bytes:
        raise ValueError("cannot encode it")

    for encoder, kept in ((quotes, False), (quotes_before, False), (says_nothing, True)):
        with pytest.raises(InvalidMessageError, match="the encoder raised") as caught:
            await Broker(Scripted(), encoder=encoder).send_message(Message("n", "t", {"a": [content]}))
        assert (caught.value.__cause__ is not None) is kept
