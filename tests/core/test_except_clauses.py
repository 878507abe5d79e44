"""What `except DeliveryError`, `ConnectError`, `BrokerStateError` and `TimeoutError` catch around each method."""

import asyncio
import re
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from cqrs_brokers import (
    Broker,
    BrokerStateError,
    ConnectError,
    DeliveryError,
    Event,
    NotificationEvent,
    UnreachableError,
)

from .drivers import Scripted, message, settle

CLAUSES = (DeliveryError, ConnectError, BrokerStateError, TimeoutError)
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "errors.md"

Method = Callable[[Broker], Coroutine[Any, Any, Any]]


def an_event() -> Event[Any]:
    return NotificationEvent[Any](event_name="OrderPlaced", topic="orders", payload={})


async def enter(broker: Broker) -> None:
    async with broker:
        pass


async def flush(broker: Broker) -> None:
    broker_sends = asyncio.ensure_future(broker.send_message(message()))
    try:
        await settle()
        await broker.flush(0.01)
    finally:
        broker_sends.cancel()
        await asyncio.wait((broker_sends,))


METHODS: dict[str, Method] = {
    "send_message()": lambda broker: broker.send_message(message()),
    "publish()": lambda broker: broker.publish(an_event()),
    "send_messages()": lambda broker: broker.send_messages([message()]),
    "connect()": lambda broker: broker.connect(),
    "async with": enter,
    "flush()": flush,
    "close()": lambda broker: broker.close(),
    "health()": lambda broker: broker.health(),
}


def caught(raised: BaseException | None) -> set[type[BaseException]]:
    return {clause for clause in CLAUSES if isinstance(raised, clause)}


async def raised_by(method: Method, broker: Broker) -> BaseException | None:
    """What the method raises, in a task of its own."""
    (outcome,) = await asyncio.gather(method(broker), return_exceptions=True)
    return outcome if isinstance(outcome, BaseException) else None


async def no_answer(method: Method) -> BaseException | None:
    broker = Broker(Handed(), delivery_timeout=0.05, close_timeout=0.0)
    try:
        return await raised_by(method, broker)
    finally:
        await broker.close()


async def no_connection(method: Method) -> BaseException | None:
    driver = Scripted()
    driver.connect_errors = [UnreachableError("refused") for _ in range(20)]
    broker = Broker(driver, delivery_timeout=0.05, close_timeout=0.0)
    try:
        return await raised_by(method, broker)
    finally:
        await broker.close()


async def closed(method: Method) -> BaseException | None:
    broker = Broker(Scripted())
    await broker.close()
    return await raised_by(method, broker)


async def other_loop(method: Method) -> BaseException | None:
    raised: list[BaseException | None] = []
    async with Broker(Scripted()) as broker:
        thread = threading.Thread(target=lambda: raised.append(asyncio.run(raised_by(method, broker))))
        thread.start()
        await asyncio.to_thread(thread.join)
    return raised[0]


class Handed(Scripted):
    """Hands every message over and never hears of it again."""

    def submit(self, deliveries: Any, /) -> None:
        super().submit(deliveries)
        self.hand_over_all()


def all_of(names: set[str], clauses: set[type[BaseException]]) -> dict[str, set[type[BaseException]]]:
    return {name: clauses for name in names}  # noqa: C420 - nobody changes the set


SENDS = {"send_message()", "publish()"}
EXPECTED: dict[Callable[[Method], Coroutine[Any, Any, Any]], dict[str, set[type[BaseException]]]] = {
    no_answer: {**all_of(SENDS, {DeliveryError, TimeoutError}), "flush()": {TimeoutError}},
    no_connection: {
        **all_of(SENDS, {DeliveryError}),
        **all_of({"connect()", "async with"}, {ConnectError}),
        "flush()": {TimeoutError},
    },
    closed: {
        **all_of(SENDS, {DeliveryError}),
        **all_of({"connect()", "async with", "flush()"}, {BrokerStateError}),
    },
    other_loop: {
        **all_of(SENDS, {DeliveryError}),
        **all_of({"connect()", "async with", "flush()", "close()"}, {BrokerStateError}),
    },
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("situation", EXPECTED, ids=lambda situation: situation.__name__)
async def test_each_method_raises_what_the_table_says(
    situation: Callable[[Method], Coroutine[Any, Any, Any]], name: str
) -> None:
    """No answer, no connection, closed, another loop: exactly these clauses catch it."""
    assert caught(await situation(METHODS[name])) == EXPECTED[situation].get(name, set())


def test_the_table_of_the_errors_page_is_this_one() -> None:
    """A cell that says "nothing" stands where no situation is caught, and only there."""
    section = PAGE.read_text().partition("## What `except` catches")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]
    heads = [re.search(r"`except (\w+)`", cell) for cell in rows[0][1:]]
    assert [head and head[1] for head in heads] == [clause.__name__ for clause in CLAUSES]
    found: dict[str, set[str]] = {}
    for first, *cells in rows[1:]:
        catching = {
            clause.__name__
            for clause, cell in zip(CLAUSES, cells, strict=True)
            if not cell.strip().startswith("nothing")
        }
        for name in re.findall(r"`([^`]+)`", first):
            found[name] = found.get(name, set()) | catching
    expected = {
        name: {clause.__name__ for situation in EXPECTED.values() for clause in situation.get(name, set())}
        for name in METHODS
    }
    assert found == {**expected, "async with": expected["connect()"] | expected["close()"]}


def test_a_send_without_asyncio_says_that_no_asyncio_loop_runs() -> None:
    """Under another library's event loop nobody is told of a fork, and health() still answers."""

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        """As a library of another kind would: it drives the coroutine itself."""
        try:
            work.send(None)
        except StopIteration as end:
            return end.value
        raise AssertionError("it awaits something")

    broker = Broker(Scripted())
    with pytest.raises(DeliveryError, match="no asyncio event loop runs"):
        run(broker.send_message(message()))
    with pytest.raises(BrokerStateError, match="no asyncio event loop runs"):
        run(broker.connect())
    (outcome,) = run(broker.send_messages([message()]))
    assert "no asyncio event loop runs" in str(outcome)
    health = run(broker.health())
    assert not health.ok
    assert "no asyncio event loop runs" in health.reason
