"""Observers cost nothing when there are none, and cannot break a send, whatever they raise."""

import asyncio
import logging
from typing import Any

import pytest

from cqrs_brokers import Broker, DeliveryError, Message, Receipt, UnroutableError
from cqrs_brokers._delivery.in_flight import InFlight
from cqrs_brokers.observers import Observers
from tests.core.drivers import Scripted, message, settle


async def test_nothing_is_called_when_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without observers one attribute is read per message: no call of ours is made for them."""

    def called(*_: object) -> None:
        raise AssertionError("called without an observer")

    monkeypatch.setattr(InFlight, "notify", called)
    monkeypatch.setattr(Observers, "sent", called)
    monkeypatch.setattr(Broker, "_observe", called)
    broker = Broker(Scripted(automatic=True))
    assert not broker._in_flight.watched
    assert (await broker.send_message(message())).confirmed
    outcomes = await broker.send_messages([message(), message(topic="")])
    assert [isinstance(outcome, Receipt) for outcome in outcomes] == [True, False]
    assert not broker._in_flight.watched
    await broker.close()


class Raises:
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error
        self.told = 0

    def sent(self, *_: Any) -> None:
        self.told += 1
        raise self.error("what an observer says")

    connection_changed = sent


class Counts:
    def __init__(self) -> None:
        self.outcomes: list[Receipt | DeliveryError] = []

    def sent(self, message: Message, outcome: Receipt | DeliveryError, elapsed: float) -> None:
        self.outcomes.append(outcome)

    def connection_changed(self, state: str, reason: str) -> None: ...


@pytest.mark.parametrize(
    "error",
    [ValueError, AssertionError, StopIteration, RecursionError],
)
async def test_whatever_one_raises(error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    """Receipts, errors and the other observer are as without it; the log names its class and not its text."""
    broken, good = Raises(error), Counts()
    driver = Scripted()
    broker = Broker(driver, observers=[broken, good])
    with caplog.at_level(logging.DEBUG):
        sending = [asyncio.create_task(broker.send_message(message())) for _ in range(2)]
        await settle()
        driver.hand_over_all()
        driver.held[0].confirm()
        driver.held[1].fail(UnroutableError("no queue"))
        driver.held.clear()
        receipt, failed = await asyncio.gather(*sending, return_exceptions=True)
        await broker.close()
    assert isinstance(receipt, Receipt)
    assert isinstance(failed, UnroutableError)
    assert good.outcomes == [receipt, failed]
    assert broken.told >= 2
    assert f"Raises raised {error.__name__} in sent()" in caplog.text
    assert "what an observer says" not in caplog.text


async def test_a_stray_cancellation_in_one() -> None:
    """CancelledError, which an observer may have from a future of its own, is no reason to lose an outcome."""
    broken = Raises(asyncio.CancelledError)
    driver = Scripted()
    broker = Broker(driver)
    await broker.connect()
    broker._observers._observers = (broken,)
    broker._in_flight.watch(broker._observe)
    sending = asyncio.create_task(broker.send_message(message()))
    await settle()
    driver.hand_over_all()
    raised = None
    try:
        driver.held.pop().confirm()
    except asyncio.CancelledError as error:
        raised = error
    await asyncio.wait([sending], timeout=0.2)
    ended = sending.done()
    sending.cancel()
    await asyncio.wait([sending])
    broker._observers._observers = ()
    await broker.close(0)
    assert raised is None
    assert ended
