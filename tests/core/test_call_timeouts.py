"""A timeout of a single call, beside those of the broker."""

import asyncio
import math
import time
from typing import Any

import pytest

from cqrs_brokers import Broker, DeliveryTimeoutError, ECSTEvent, InvalidMessageError, NotDeliveredError, Receipt
from cqrs_brokers.exceptions import DeliveryError
from cqrs_brokers.protocol import Message

from .drivers import Scripted, message, settle


async def timed(work: Any) -> tuple[Any, float]:
    """What became of it, and after how many seconds."""
    started = time.monotonic()
    try:
        outcome = await work
    except DeliveryError as error:
        outcome = error
    return outcome, time.monotonic() - started


async def test_each_call_ends_at_its_own_deadline() -> None:
    """Shorter and longer than the broker's, in any order, handed over, waiting in the driver, and waiting for room."""
    driver = Scripted()
    async with Broker(driver, delivery_timeout=0.4, max_in_flight=8) as broker:
        long = asyncio.create_task(timed(broker.send_message(message(), timeout=0.7)))
        usual = asyncio.create_task(timed(broker.send_message(message())))
        short = asyncio.create_task(timed(broker.send_message(message(), timeout=0.1)))
        await settle()
        driver.hand_over_all()
        waiting_long = asyncio.create_task(timed(broker.send_message(message(), timeout=0.5)))
        waiting = asyncio.create_task(timed(broker.send_messages([message()], timeout=0.2)))
        published = asyncio.create_task(timed(broker.publish(ECSTEvent(topic="t", payload=1), timeout=0.3)))
        results = await asyncio.gather(long, usual, short, waiting_long, waiting, published)
        timeouts = (0.7, 0.4, 0.1, 0.5, 0.2, 0.3)
        ended = [(took, timeout) for (_, took), timeout in zip(results, timeouts, strict=True)]
        assert all(timeout - 0.01 < took < timeout + 2 for took, timeout in ended)
        assert [timeout for _, timeout in sorted(ended)] == sorted(timeouts)
        outcomes = [outcome[0] if isinstance(outcome, list) else outcome for outcome, _ in results]
        assert [type(outcome) for outcome in outcomes[:3]] == [DeliveryTimeoutError] * 3
        assert all(isinstance(outcome, NotDeliveredError) for outcome in outcomes[3:])
        driver.confirm_all()
        await broker.close(0.1)


async def test_the_usual_deadline_holds_after_a_long_one() -> None:
    """A call with a long timeout that comes first does not hold up those that have none."""
    driver = Scripted()
    async with Broker(driver, delivery_timeout=0.2) as broker:
        long = asyncio.create_task(timed(broker.send_message(message(), timeout=60)))
        await settle()
        _, took = await timed(broker.send_message(message()))
        assert 0.19 < took < 5  # and not 60
        driver.confirm_all()
        assert isinstance((await long)[0], Receipt)
        _, took = await timed(broker.send_message(message()))  # in order again
        assert 0.19 < took < 5  # and not 60
        await broker.close(0.1)


NOTHING_ELSE = pytest.param(object(), id="an object")  # its repr would be another one in each process


@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf, True, "5", NOTHING_ELSE], ids=repr)
async def test_a_timeout_that_is_no_time(wrong: Any) -> None:
    """InvalidMessageError before anything is sent, from each way to send."""
    driver = Scripted(automatic=True)
    broker = Broker(driver)
    for call in (
        broker.send_message(message(), timeout=wrong),
        broker.send_messages([message()], timeout=wrong),
        broker.publish(ECSTEvent(topic="t", payload=1), timeout=wrong),
    ):
        with pytest.raises(InvalidMessageError, match="timeout must be seconds above 0"):
            await call
    assert driver.connects == 0


async def test_observers_are_told_the_time_since_the_call() -> None:
    """Also of calls with a timeout of their own."""
    seen: list[float] = []

    class Observer:
        def sent(self, message: Message, outcome: Receipt | DeliveryError, elapsed: float) -> None:
            seen.append(elapsed)

        def connection_changed(self, state: str, reason: str) -> None: ...

    async with Broker(Scripted(automatic=True), observers=[Observer()]) as broker:
        await broker.send_message(message(), timeout=100)
        await broker.send_messages([message()], timeout=200)
    assert len(seen) == 2
    assert all(0 <= elapsed < 10 for elapsed in seen)


async def test_many_calls_with_timeouts_of_their_own() -> None:
    """Three thousand that wait, with deadlines of their own: all end in time, and the event loop is not blocked."""
    broker = Broker(Scripted(), delivery_timeout=5, max_in_flight=100)
    await broker.connect()
    started = time.monotonic()
    sends = [broker.send_message(message(), timeout=0.5 + number % 100 / 100) for number in range(3_000)]
    outcomes = await asyncio.gather(*sends, return_exceptions=True)
    assert all(isinstance(outcome, NotDeliveredError) for outcome in outcomes)
    assert time.monotonic() - started < 20
    await broker.close(0.1)
