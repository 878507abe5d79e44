"""What a driver knows about a late message, and about a broker that slows it down, reaches callers and observers."""

import asyncio
from typing import Any

import pytest

from cqrs_brokers import (
    BackpressureError,
    Broker,
    DeliveryError,
    DeliveryTimeoutError,
    Message,
    NotConnectedError,
    RejectedError,
)
from cqrs_brokers.driver import Delivery

from .drivers import Scripted, message, unreachable


class Knowing(Scripted):
    """Knows why messages are late."""

    def __init__(self, waiting: DeliveryError | Exception, handed: DeliveryError | None = None) -> None:
        super().__init__()
        self._waiting, self._handed = waiting, handed

    def why_late(self, delivery: Delivery, /, *, handed: bool) -> DeliveryError | None:
        if handed:
            return self._handed
        if isinstance(self._waiting, DeliveryError):
            return self._waiting
        raise self._waiting


async def late(driver: Scripted, *, hand_over: bool) -> DeliveryError:
    async with Broker(driver, delivery_timeout=0.05) as broker:
        send = asyncio.create_task(broker.send_message(message()))
        await asyncio.sleep(0)
        if hand_over:
            driver.hand_over_all()
        with pytest.raises(DeliveryError) as caught:
            await send
        if hand_over:
            driver.held[0].release()
        else:
            driver.hand_over_all()
    return caught.value


async def test_a_waiting_message_ends_with_what_the_driver_knows() -> None:
    """The error names the message, and is the driver's."""
    error = await late(Knowing(RejectedError("too few replicas")), hand_over=False)
    assert isinstance(error, RejectedError)
    assert error.text == "too few replicas"
    assert error.message_id is not None


async def test_a_handed_message_ends_with_what_the_driver_knows() -> None:
    """The same, for a message whose outcome is unknown."""
    known = DeliveryTimeoutError("the last answer was 7")
    error = await late(Knowing(RejectedError("x"), known), hand_over=True)
    assert isinstance(error, DeliveryTimeoutError)
    assert error.text == "the last answer was 7"


async def test_an_error_of_the_other_kind_is_not_believed() -> None:
    """A driver cannot make an unknown outcome a "not delivered", nor the reverse."""
    handed = await late(Knowing(RejectedError("x"), RejectedError("not written")), hand_over=True)
    assert type(handed) is DeliveryTimeoutError
    waiting = await late(Knowing(DeliveryTimeoutError("unknown")), hand_over=False)
    assert type(waiting) is BackpressureError


async def test_a_driver_that_raises_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The error is the usual one, and the log says what the driver did."""
    error = await late(Knowing(LookupError("a fault")), hand_over=False)
    assert type(error) is BackpressureError
    assert "why_late()" in caplog.text


async def test_a_missing_connection_goes_before() -> None:
    """While the client reconnects, that is the reason."""
    driver = Knowing(RejectedError("x"))
    async with Broker(driver, delivery_timeout=0.05) as broker:
        driver.link.reconnecting(unreachable("node 1 does not answer"))
        with pytest.raises(NotConnectedError):
            await broker.send_message(message())
        driver.hand_over_all()


class States:
    """An observer that keeps the states of the connection."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def sent(self, message: Message, outcome: Any, elapsed: float) -> None:
        """Nothing."""

    def connection_changed(self, state: str, reason: str) -> None:
        self.seen.append((state, reason))


async def test_a_broker_that_throttles_is_seen() -> None:
    """health() stays ok and says it; observers are told when it begins and when it ends, not for each answer."""
    driver, states = Scripted(), States()
    async with Broker(driver, observers=[states]) as broker:
        driver.link.throttled("a quota, 1 s")
        driver.link.throttled("a quota, 2 s")
        health = await broker.health()
        assert (health.ok, health.reason) == (True, "throttled: a quota, 2 s")
        driver.link.throttled(None)
        driver.link.throttled(None)
        assert (await broker.health()).reason == "ok"
    told = [state for state in states.seen if "throttled" in state[0]]
    assert told == [("throttled", "a quota, 1 s"), ("unthrottled", "")]


@pytest.mark.parametrize("outage", ["lost", "blocked"])
async def test_a_broker_that_takes_messages_again_shortly_before_a_deadline(outage: str) -> None:
    """The error names the time before as the reason; the topic is not to blame."""
    driver = Scripted()
    async with Broker(driver, delivery_timeout=1.0, retry_delay=0.01) as broker:
        if outage == "lost":
            driver.connect_delay = 0.8
            driver.link.lost(unreachable())
        else:
            driver.link.blocked("an alarm")
            asyncio.get_running_loop().call_later(0.8, driver.link.unblocked)
        with pytest.raises(BackpressureError, match="took no messages until shortly before the deadline"):
            await broker.send_message(message())
        assert broker.state == "connected"
        driver.hand_over_all()


async def test_a_topic_that_takes_nothing_long_after_an_outage() -> None:
    """The outage is not to blame then."""
    driver = Scripted()
    async with Broker(driver, delivery_timeout=1.0, retry_delay=0.01) as broker:
        driver.link.lost(unreachable())
        with pytest.raises(BackpressureError, match="takes nothing for this topic"):
            await broker.send_message(message())
        driver.hand_over_all()
