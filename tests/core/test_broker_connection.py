"""Connecting: lazily and once, reconnecting, permanent failures, one-pass connect()."""

import asyncio
import gc
from typing import Any

import pytest

from cqrs_brokers import (
    AuthenticationError,
    Broker,
    BrokerStateError,
    ConnectError,
    ConnectionLostError,
    NotConnectedError,
    Receipt,
    UnreachableError,
)
from cqrs_brokers._connection.connection import _backoff

from .drivers import Scripted, message, settle, unreachable


async def test_many_first_sends_make_one_connection() -> None:
    """However many sends wait, the driver connects once."""
    driver = Scripted(automatic=True)
    driver.connect_delay = 0.02
    broker = Broker(driver)
    assert all(r.confirmed for r in await asyncio.gather(*(broker.send_message(message()) for _ in range(50))))
    assert driver.connects == 1
    await broker.close()


async def test_waiting_sends_outlast_failed_attempts() -> None:
    """A condition that can pass is waited out: the send succeeds at the third attempt."""
    driver = Scripted(automatic=True)
    driver.connect_errors = [unreachable(), unreachable()]
    broker = Broker(driver)
    assert (await broker.send_message(message())).confirmed
    assert driver.connects == 3
    await broker.close()


async def test_no_connection_until_the_deadline_names_the_cause() -> None:
    """NotConnectedError, retryable, caused by the last ConnectError; then nobody waits and nothing goes on."""
    driver = Scripted()
    driver.connect_errors = [unreachable("port 1 refused") for _ in range(100)]
    broker = Broker(driver, delivery_timeout=0.3)
    with pytest.raises(NotConnectedError, match="port 1 refused") as caught:
        await broker.send_message(message())
    assert isinstance(caught.value.__cause__, UnreachableError)
    assert caught.value.retryable
    await asyncio.sleep(1.1)
    attempts = driver.connects
    await asyncio.sleep(1.1)
    assert driver.connects == attempts, "it goes on connecting for nobody"
    assert broker.describe()["state"] == "idle"
    await broker.close()


async def test_a_permanent_error_fails_waiting_sends_at_once_and_stops() -> None:
    """A wrong password ends every waiting send now, and further ones, without another attempt for 5 s."""
    driver = Scripted()
    driver.connect_errors = [AuthenticationError("wrong password")]
    broker = Broker(driver)
    async with asyncio.timeout(1):
        results = await asyncio.gather(*(broker.send_message(message()) for _ in range(3)), return_exceptions=True)
        with pytest.raises(NotConnectedError) as caught:
            await broker.send_message(message())
    assert {type(result) for result in results} == {NotConnectedError}
    assert isinstance(caught.value.__cause__, AuthenticationError)
    assert not caught.value.retryable
    assert driver.connects == 1
    broker._connection._retry_at = 0.0  # 5 s later
    driver.automatic = True
    assert (await broker.send_message(message())).confirmed
    await broker.close()


async def test_connect_is_one_pass_and_raises_its_class() -> None:
    """connect() does not retry, whatever the class; a later one may succeed."""
    driver = Scripted()
    driver.connect_errors = [unreachable(), AuthenticationError("wrong"), ValueError("bug")]
    broker = Broker(driver)
    with pytest.raises(UnreachableError):
        await broker.connect()
    with pytest.raises(AuthenticationError):
        await broker.connect()
    with pytest.raises(ConnectError) as caught:
        await broker.connect()
    assert isinstance(caught.value.__cause__, ValueError)
    assert driver.connects == 3
    await broker.connect()
    await broker.connect()
    assert driver.connects == 4
    await broker.close()


@pytest.mark.parametrize("error", [None, ValueError("bug"), unreachable()])
async def test_a_driver_whose_methods_are_no_coroutine_functions_fails(error: Exception | None) -> None:
    """connect() and health() end, and say what the driver raised."""
    driver = Scripted()

    def at_once() -> Any:
        if error is not None:
            raise error

    broker = Broker(driver)
    await broker.connect()
    driver.connect = driver.ping = at_once  # type: ignore[method-assign]
    health = await broker.health()
    driver.link.lost(unreachable())
    await settle()
    with pytest.raises(ConnectError) as caught:
        await asyncio.wait_for(broker.connect(), 2.0)
    says = "refused" if isinstance(error, ConnectError) else f"unclassified {type(error or TypeError()).__name__}"
    assert says in health.reason
    assert says in str(caught.value)
    await broker.close(0)


async def test_a_silent_peer_ends_at_connect_timeout() -> None:
    """A driver that never returns is cancelled; the error says what to check."""
    driver = Scripted()
    driver.connect_delay = 60
    broker = Broker(driver, connect_timeout=0.1)
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(UnreachableError, match=r"no answer within 0\.1 s"):
        await broker.connect()
    assert loop.time() - started < 1.1
    await broker.close()


async def test_a_stray_cancellation_in_the_driver_is_no_cancellation_of_ours() -> None:
    """A driver whose connect() ends in CancelledError is a failed attempt."""
    driver = Scripted()

    async def connect() -> None:
        driver.connects += 1
        if driver.connects == 1:
            raise asyncio.CancelledError

    driver.connect = connect  # type: ignore[method-assign]
    driver.automatic = True
    broker = Broker(driver)
    with pytest.raises(UnreachableError):
        await broker.connect()
    assert (await broker.send_message(message())).confirmed
    await broker.close()


async def test_a_lost_connection_is_made_anew() -> None:
    """After lost() the supervisor reconnects by itself; what the driver kept and what is new goes on."""
    driver = Scripted(automatic=False)
    async with Broker(driver) as broker:
        sendings = [asyncio.create_task(broker.send_message(message())) for _ in range(2)]
        await settle()
        driver.held[0].handed_over()
        driver.held[0].fail(ConnectionLostError("reset"))
        driver.connect_errors = [unreachable()]
        driver.link.lost(unreachable("reset"))
        sendings.append(asyncio.create_task(broker.send_message(message())))
        await settle()
        assert len(driver.seen) == 2, "nothing is submitted while not connected"
        driver.automatic = True
        driver.held.pop(0)
        while driver.connects < 3:
            await asyncio.sleep(0.01)
        await settle()
        driver.confirm_all()
        results = await asyncio.gather(*sendings, return_exceptions=True)
    assert [type(result) for result in results] == [ConnectionLostError, Receipt, Receipt]


async def test_a_permanent_error_while_reconnecting_fails_what_was_not_handed_over() -> None:
    """A rotated password: waiting sends and those in the driver's queue fail at once."""
    driver = Scripted()
    broker = Broker(driver)
    await broker.connect()
    sending = asyncio.create_task(broker.send_message(message()))
    await settle()
    driver.connect_errors = [AuthenticationError("rotated")]
    driver.link.lost(unreachable())
    with pytest.raises(NotConnectedError) as caught:
        await sending
    assert isinstance(caught.value.__cause__, AuthenticationError)
    assert driver.hand_over_all() == [False]
    assert not (await broker.health()).ok or driver.connects > 2
    await broker.close()


async def test_retry_count_bounds_the_passes() -> None:
    """After that many failed passes waiting sends fail; the next send starts anew."""
    driver = Scripted()
    driver.connect_errors = [unreachable() for _ in range(5)]
    broker = Broker(driver, retry_count=2, retry_delay=0.01)
    for attempts in (2, 4):
        with pytest.raises(NotConnectedError):
            await broker.send_message(message())
        await settle()
        assert driver.connects == attempts
    await broker.close()


async def test_an_externally_cancelled_supervisor_is_replaced() -> None:
    """Somebody who cancels every task does not leave a broker that hangs."""
    driver = Scripted(automatic=True)
    broker = Broker(driver)
    await broker.connect()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await settle()
    assert driver.aborted == 1
    assert (await broker.send_message(message())).confirmed
    assert driver.connects == 2
    await broker.close()


async def test_health_is_bounded_and_never_raises() -> None:
    """Healthy, refusing, not answering, closed: an answer each, with the reason."""
    driver = Scripted()
    driver.connect_errors = [unreachable("refused")]
    broker = Broker(driver, connect_timeout=0.1)
    assert (await broker.health()).reason == "refused"
    assert (await broker.health()).ok
    driver.connect_errors = [unreachable("no pong")]
    sick = await broker.health()
    assert (sick.ok, sick.reason) == (False, "no pong")

    async def ping() -> None:
        await asyncio.sleep(60)

    driver.ping = ping  # type: ignore[method-assign]
    assert not (await broker.health()).ok
    await broker.close()
    assert (await broker.health()).reason == (
        "the broker is closed and cannot be opened again: make a new Broker (give lifespan() a function that makes one)"
    )


async def test_a_client_that_reconnects_by_itself_is_named_at_the_deadline() -> None:
    """While the driver says so, what is not handed over ends in NotConnectedError; health says it; it passes."""
    driver = Scripted()
    async with Broker(driver, delivery_timeout=0.05) as broker:
        driver.link.reconnecting(unreachable("node 1 does not answer"))
        with pytest.raises(NotConnectedError, match="node 1 does not answer") as caught:
            await broker.send_message(message())
        assert isinstance(caught.value.__cause__, UnreachableError)
        assert (await broker.health()).reason == "node 1 does not answer"
        driver.link.reconnecting(None)
        assert (await broker.health()).ok
        assert driver.connects == 1
        driver.hand_over_all()


async def test_an_attempt_that_fails_as_the_broker_closes_leaves_no_complaint(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever turn the close comes in, asyncio has no error that nobody looked at."""
    for turns in range(8):
        driver = Scripted()
        driver.connect_errors = [unreachable() for _ in range(5)]
        broker = Broker(driver)
        connecting = asyncio.ensure_future(broker.connect())
        await settle(turns)
        await broker.close(0.0)
        with pytest.raises((ConnectError, BrokerStateError)):
            await connecting
        del broker, driver, connecting
    gc.collect()
    await settle()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_the_pauses_between_attempts_double_up_to_a_second_however_long_it_takes() -> None:
    """0.1, 0.2, 0.4, 0.8, 1, 1, …: also after a day of attempts."""
    assert [round(_backoff(attempts), 1) for attempts in (0, 1, 2, 3, 4, 5, 6)] == [0.1, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert _backoff(86_400) == 1.0


async def test_an_attempt_that_fails_blocks_no_later_connection() -> None:
    """What the driver said of a connection that was never used ends with the attempt."""
    driver = Scripted(automatic=True)
    connect = driver.connect

    async def blocked_at_first() -> None:
        if driver.connect_errors:
            driver.link.blocked("an alarm")
        await connect()

    driver.connect = blocked_at_first  # type: ignore[method-assign]
    driver.connect_errors = [unreachable("refused"), unreachable("refused")]
    broker = Broker(driver)
    health = await broker.health()
    assert (health.blocked, health.reason) == (False, "refused")
    assert (await broker.send_message(message(), timeout=2.0)).confirmed
    assert broker.state == "connected"
    await broker.close()


class Flapping(Scripted):
    """Every connection is lost at once; until then messages are confirmed, if the test wants that."""

    def __init__(self, *, confirming: bool) -> None:
        super().__init__(automatic=confirming)

    async def connect(self) -> None:
        await super().connect()
        asyncio.get_running_loop().call_later(0.01, self.link.lost, unreachable("reset by peer"))


@pytest.mark.parametrize("confirming", [False, True])
async def test_a_connection_that_is_lost_at_once_does_not_reset_the_pauses(confirming: bool) -> None:
    """They go on growing until a connection lasts, or the broker confirms a message."""
    driver = Flapping(confirming=confirming)
    broker = Broker(driver)
    loop = asyncio.get_running_loop()
    end = loop.time() + 1.5
    sends = set()
    while loop.time() < end:
        sends.add(asyncio.ensure_future(broker.send_message(message())))
        await asyncio.sleep(0.02)
    connects = driver.connects
    await broker.close(0)
    await asyncio.wait(sends)
    await asyncio.gather(*sends, return_exceptions=True)
    # Without growth at most 0.11 s lie between two attempts; with it 0.06, 0.11, 0.21, 0.41 s at least.
    assert (connects >= 8) is confirming, connects


async def test_an_outage_is_logged_once_for_each_reason(caplog: pytest.LogCaptureFixture) -> None:
    """Attempts that fail alike are one line, and so is a loss; the next outage is logged anew."""
    driver = Scripted(automatic=True)
    async with Broker(driver, retry_delay=0.01) as broker:
        for _ in range(2):
            assert (await broker.send_message(message())).confirmed
            driver.connect_errors = [unreachable("refused") for _ in range(10)]
            driver.link.lost(unreachable("reset by peer"))
            while driver.connect_errors:
                await asyncio.sleep(0.01)
    lines = [record.getMessage() for record in caplog.records if record.name == "cqrs_brokers.connection"]
    assert [("reset by peer" in line, "refused" in line) for line in lines] == [(True, False), (False, True)] * 2
