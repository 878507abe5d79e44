"""No secret, body, key or header value shows anywhere (I10): without a server.

The tables here, in `test_canary_opening`, `test_canary_amqp` and `test_canary_kafka` say which error classes each
situation must show, so that no class of the tree is left out.
"""

import asyncio
import collections
import datetime
import math
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import pytest
from pydantic import BaseModel

from cqrs_brokers import (
    AmbiguousPluginError,
    Broker,
    BrokerClosedError,
    BrokerError,
    BrokerStateError,
    ClosedWhilePendingError,
    ConfigError,
    DeliveryTimeoutError,
    DeliveryUnknownError,
    ECSTEvent,
    FlushTimeoutError,
    InvalidMessageError,
    Message,
    MessageTooLargeError,
    NotDeliveredError,
    NotificationEvent,
    PluginContractError,
    PluginLoadError,
    PluginNotFoundError,
    Receipt,
    ReturnedError,
    WrongLoopError,
    exceptions,
    open_broker,
)
from tests.core.drivers import Scripted, settle

from . import test_canary_amqp, test_canary_kafka
from .planting import Planted

# -- messages that cannot be sent --------------------------------------------------------------------------------------


class Loud:
    """Shows its text in every way, and raises with it where it is asked for more."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text

    @property
    def message_name(self) -> str:
        raise ValueError(self.text)


class Unserializable(BaseModel):
    model_config = {"arbitrary_types_allowed": True}
    value: Any


class Colour(Enum):
    RED = math.nan


@dataclass
class Holder:
    value: object


def circular(text: str) -> list[object]:
    made: list[object] = [text]
    made.append(made)
    return made


PAYLOADS: dict[str, Callable[[str], object]] = {
    "an object": Loud,
    "an object deep down": lambda text: {"a": [{text: Loud(text)}]},
    "a set": lambda text: {text},
    "a generator": lambda text: (text for _ in range(1)),
    "bytes inside": lambda text: {text: text.encode()},
    "a number that is not finite": lambda text: {text: math.nan},
    "an enum that is not finite": lambda text: {text: Colour.RED},
    "a key that is no text": lambda text: {(text,): 1},
    "a circle": circular,
    "a lone surrogate": lambda text: text + "\ud800",
    "a surrogate as key": lambda text: {text + "\ud800": 1},
    "a dataclass": lambda text: Holder(Loud(text)),
    "a pydantic model": lambda text: Unserializable(value=Loud(text)),
    "too deep": lambda text: (
        [text] if not text else __import__("functools").reduce(lambda x, _: [x], range(5000), text)
    ),
    "a deque": lambda text: collections.deque([text]),
    "a timedelta": lambda text: {text: datetime.timedelta(1)},
}
FIELDS: dict[str, Callable[[Planted], dict[str, Any]]] = {
    "a key of bytes": lambda p: {"key": p.key.text.encode()},
    "a key that talks": lambda p: {"key": Loud(p.key.text)},
    "a key that is too long": lambda p: {"key": p.key.text * 2000},
    "a key with a surrogate": lambda p: {"key": p.key.text + "\ud800"},
    "headers in a list": lambda p: {"headers": [("h", p.header.text)]},
    "a header value that is a list": lambda p: {"headers": {"h": [p.header.text]}},
    "a header value that talks": lambda p: {"headers": {"h": Loud(p.header.text)}},
    "a header value that is too long": lambda p: {"headers": {"h": p.header.text * 2000}},
    "a header value with a surrogate": lambda p: {"headers": {"h": p.header.text + "\ud800"}},
    "a reserved header": lambda p: {"headers": {"Message-Id": p.header.text}},
    "too many headers": lambda p: {"headers": {f"h{n}": p.header.text for n in range(101)}},
    "text as payload_bytes": lambda p: {"payload_bytes": p.body.text},
    "a timestamp that is text": lambda p: {"timestamp": p.body.text},
    "an id that is text": lambda p: {"message_id": p.body.text},
}
BROKERS = ["amqp://127.0.0.1:1", "kafka://127.0.0.1:1", "memory://canary", "devnull://"]


@pytest.mark.parametrize("url", BROKERS[:3])
async def test_invalid_messages(planted: Planted, url: str) -> None:
    """Every payload and field that is refused: InvalidMessageError, which names no value."""
    broker = open_broker(url, observers=[planted.observer])
    for name, make in PAYLOADS.items():
        ended = await planted.outcome(broker.send_message(planted.message(payload=make(planted.body.text))))
        assert type(ended) is InvalidMessageError, name
    for name, change in FIELDS.items():
        ended = await planted.outcome(broker.send_message(planted.message(**change(planted))))
        assert type(ended) is InvalidMessageError, name
    for ended in await broker.send_messages([planted.message(**change(planted)) for change in FIELDS.values()]):
        assert isinstance(ended, InvalidMessageError)
        planted.look_at(ended)
    await planted.outcome(broker.send_message(planted.body.text))  # type: ignore[arg-type]
    await planted.outcome(broker.send_message(planted.message(payload=b"x" * 2_000_000)))
    await broker.close()
    planted.delivered(InvalidMessageError, MessageTooLargeError)


async def test_encoders_that_quote_the_payload(planted: Planted) -> None:
    """An encoder that raises with the payload in its error, or returns it as text."""

    def quotes(payload: object) -> bytes:
        raise ValueError(f"cannot encode {payload}")

    for encoder in (quotes, str):
        broker = Broker(Scripted(automatic=True), encoder=encoder)  # type: ignore[arg-type]
        assert type(await planted.outcome(broker.send_message(planted.message()))) is InvalidMessageError
        await broker.close()


# -- what can happen on the way ----------------------------------------------------------------------------------------


async def test_outcomes_of_a_driver(planted: Planted) -> None:
    """Confirmed, timed out, answered late, closed, after close; messages and deliveries on the way."""
    driver = Scripted()
    broker = Broker(driver, observers=[planted.observer], delivery_timeout=0.2)
    sending = asyncio.create_task(planted.outcome(broker.send_message(planted.message())))
    await settle()
    driver.hand_over_all()
    late = driver.held[0]
    for where, value in {"a delivery": late, "a message": late.message}.items():
        planted.scanner.value(where, value)
    await sending
    late.fail(DeliveryUnknownError("too late"))
    late.confirm()
    driver.held.clear()
    for confirmed in (True, False):
        sending = asyncio.create_task(planted.outcome(broker.send_message(planted.message())))
        await settle()
        driver.hand_over_all()
        if confirmed:
            driver.held.pop().confirm()
        else:
            driver.held.pop().fail(ValueError("unclassified"))  # type: ignore[arg-type]
        await sending
    pending = [asyncio.create_task(planted.outcome(broker.send_message(planted.message()))) for _ in range(2)]
    await settle()
    driver.held[0].handed_over()
    cancelled = asyncio.create_task(broker.send_message(planted.message()))
    await settle()
    driver.held[-1].handed_over()
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    await broker.close(0.05)
    await asyncio.gather(*pending)
    await planted.outcome(broker.send_message(planted.message()))
    assert planted.observer.told
    planted.delivered(DeliveryTimeoutError, DeliveryUnknownError, ClosedWhilePendingError, BrokerClosedError)


async def test_a_return_that_proves_nothing_a_flush_without_time_and_a_closed_broker(planted: Planted) -> None:
    """ReturnedError as a driver says it, FlushTimeoutError, BrokerStateError."""
    driver = Scripted()
    broker = Broker(driver, observers=[planted.observer])
    sending = asyncio.ensure_future(planted.outcome(broker.send_message(planted.message())))
    await settle()
    await planted.outcome(broker.flush(0.01))
    driver.held[0].handed_over()
    driver.held[0].fail(ReturnedError("the broker returned it"))
    await sending
    await broker.close()
    await planted.outcome(broker.connect())
    assert planted.seen >= {ReturnedError, FlushTimeoutError, BrokerStateError}


async def test_another_thread(planted: Planted) -> None:
    """WrongLoopError in another thread, while the first loop runs."""
    broker = Broker(Scripted(automatic=True), observers=[planted.observer])
    await planted.outcome(broker.send_message(planted.message()))

    def run() -> None:
        asyncio.run(planted.outcome(broker.send_message(planted.message())))  # type: ignore[arg-type]

    thread = threading.Thread(target=run)
    thread.start()
    await asyncio.to_thread(thread.join)
    await broker.close()
    planted.delivered(WrongLoopError)


@pytest.mark.parametrize("url", BROKERS)
async def test_nobody_there_or_embedded(planted: Planted, url: str) -> None:
    """Sends to a port where nobody listens, to memory and to devnull, by one and by many."""
    broker = open_broker(url, observers=[planted.observer], delivery_timeout=0.3)
    plain = {"key": None, "headers": {}} if url.startswith("devnull") else {}
    await planted.outcomes(broker, [planted.message(**plain) for _ in range(3)])
    for ended in await broker.send_messages([planted.message(**plain) for _ in range(3)]):
        planted.look_at(ended)
    await planted.look_at_broker(broker)
    await broker.close()
    expected = {Receipt} if "://127" not in url else {exceptions.NotConnectedError}
    assert planted.seen == expected


async def test_events(planted: Planted) -> None:
    """Core's events show neither payload nor key, and their messages neither; a wrong one's error is the caller's."""
    event: NotificationEvent[dict[str, str]] | ECSTEvent[dict[str, str]]
    broker = Broker(Scripted(automatic=True), observers=[planted.observer])
    for kind in (NotificationEvent, ECSTEvent):
        event = kind[dict[str, str]](topic="t", payload={"x": planted.body.text}, key=planted.key.text)
        for text in (str(event), repr(event), f"{event}", repr(event.to_message())):
            planted.scanner.text("an event", text)
        await planted.outcome(broker.publish(event))
    await broker.close()
    assert planted.seen == {Receipt}


def test_a_context_is_not_looked_into(planted: Planted) -> None:
    """describe() shows an object by its type."""
    broker = open_broker("amqps://bob:x@127.0.0.1:1", ssl_context=ssl.create_default_context())
    assert broker.describe()["options"]["ssl_context"].value == "<SSLContext>"
    planted.scanner.value("describe()", broker.describe())


# -- completeness ------------------------------------------------------------------------------------------------------

HERE: set[type[BrokerError]] = {
    ConfigError,
    PluginNotFoundError,
    PluginContractError,
    PluginLoadError,
    AmbiguousPluginError,
    InvalidMessageError,
    MessageTooLargeError,
    DeliveryTimeoutError,
    DeliveryUnknownError,
    ClosedWhilePendingError,
    BrokerClosedError,
    BrokerStateError,
    FlushTimeoutError,
    ReturnedError,
    WrongLoopError,
    exceptions.UnreachableError,
    exceptions.NotConnectedError,
}
"""What the tests here and in `test_canary_opening` assert that they saw."""


def test_every_class_of_the_tree_is_seen() -> None:
    """Each class that is raised itself stands in a table whose test asserts that it came."""
    seen = set(HERE)
    for module in (test_canary_amqp, test_canary_kafka):
        for expected in module.SITUATIONS.values():
            seen |= expected
    bases = {BrokerError, exceptions.PluginError, exceptions.ConnectError, exceptions.DeliveryError, NotDeliveredError}
    tree = {found for name in exceptions.__all__ if issubclass(found := getattr(exceptions, name), BrokerError)}
    assert tree - seen == bases


def test_a_message_is_not_shown_by_its_copy(planted: Planted) -> None:
    """A copy of a message shows no more than the message."""
    import copy

    message = planted.message()
    assert message.body
    for shown in (message, copy.copy(message), copy.deepcopy(message)):
        assert isinstance(shown, Message)
        planted.scanner.value("a message", shown)
