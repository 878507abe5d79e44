"""Observers cost nothing when there are none, and cannot break a send or leak a message, whatever they raise."""

import asyncio
import logging
from typing import Any

import pytest

from cqrs_brokers import Broker, DeliveryError, Message, Observer, Receipt, UnroutableError, observers
from cqrs_brokers.observers import Observers
from tests.core.drivers import Scripted, message, settle


async def test_nothing_is_called_when_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without observers one attribute is read per message: no call of ours is made for them."""

    def called(*_: object) -> None:
        raise AssertionError("called without an observer")

    monkeypatch.setattr(Observers, "sent", called)
    monkeypatch.setattr(Broker, "_observe", called)
    broker = Broker(Scripted(automatic=True))
    monkeypatch.setattr(broker._observers, "before_send", called)
    assert not broker._in_flight.watchers
    assert (await broker.send_message(message())).confirmed
    outcomes = await broker.send_messages([message(), message(topic="")])
    assert [isinstance(outcome, Receipt) for outcome in outcomes] == [True, False]
    assert not broker._in_flight.watchers
    await broker.close()


class Raises(Observer):
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error
        self.told = 0

    def sent(self, *_: Any) -> None:
        self.told += 1
        raise self.error("what an observer says")

    connection_changed = sent


class Counts(Observer):
    def __init__(self) -> None:
        self.outcomes: list[Receipt | DeliveryError] = []

    def sent(self, message: Message, outcome: Receipt | DeliveryError, elapsed: float) -> None:
        self.outcomes.append(outcome)


@pytest.mark.parametrize(
    "error",
    [ValueError, AssertionError, StopIteration, RecursionError],
)
async def test_whatever_one_raises(error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    """Receipts, errors and the other observer are as without it; the log has its traceback."""
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
    assert f"{error.__name__}: what an observer says" in caplog.text
    assert 'raise self.error("what an observer says")' in caplog.text


class Quotes(Observer):
    """Its errors quote what it was given."""

    def before_send(self, message: Message) -> dict[str, str]:
        raise LookupError(f"no tenant for {message.body!r}")

    def sent(self, message: Message, outcome: Receipt | DeliveryError, elapsed: float) -> None:
        try:
            raise ValueError(message.headers["token"])
        except ValueError as error:
            raise RuntimeError("cannot count") from error


async def test_an_error_that_quotes_the_message(caplog: pytest.LogCaptureFixture) -> None:
    """The log has the lines of code and no text, neither that of the error nor that of its cause."""
    async with Broker(Scripted(automatic=True), observers=[Quotes()]) as broker:
        secret = Message("n", "t", b"the body", headers={"token": "the header"})
        assert (await broker.send_message(secret)).confirmed
    for line in ("Quotes raised LookupError in before_send()", "Quotes raised RuntimeError in sent()"):
        assert line in caplog.text
    assert 'raise RuntimeError("cannot count") from error' in caplog.text
    for content in ("the body", "the header"):
        assert content not in caplog.text


async def test_the_same_fault_is_logged_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each method of each observer has its own minute."""
    now = 1_000.0
    monkeypatch.setattr(observers, "monotonic", lambda: now)
    async with Broker(Scripted(automatic=True), observers=[Raises(ValueError), Raises(KeyError)]) as broker:
        await broker.send_messages([message() for _ in range(5)])
        now += 59
        await broker.send_message(message())
        assert [caplog.text.count(f"{kind} in sent()") for kind in ("ValueError", "KeyError")] == [1, 1]
        now += 1
        await broker.send_message(message())
        assert [caplog.text.count(f"{kind} in sent()") for kind in ("ValueError", "KeyError")] == [2, 2]


async def test_a_stray_cancellation_in_one() -> None:
    """CancelledError, which an observer may have from a future of its own, is no reason to lose an outcome."""
    broken = Raises(asyncio.CancelledError)
    driver = Scripted()
    async with Broker(driver, observers=[broken]) as broker:
        sending = asyncio.create_task(broker.send_message(message()))
        await settle()
        driver.hand_over_all()
        driver.held.pop().confirm()
        assert (await asyncio.wait_for(sending, 1)).confirmed
    assert broken.told == 4
