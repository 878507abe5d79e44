"""Closing: what was accepted is flushed, everything has an outcome, nothing is left."""

import asyncio
import gc
from typing import Any

import pytest

from cqrs_brokers import (
    Broker,
    BrokerClosedError,
    BrokerStateError,
    ClosedWhilePendingError,
    NotConnectedError,
    Receipt,
    UnreachableError,
)

from .drivers import Scripted, message, settle, unreachable


def others() -> set[asyncio.Task[object]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


async def test_close_flushes_what_was_accepted() -> None:
    """10 000 accepted by 20 tasks, then close(): every one has its receipt."""
    driver = Scripted(automatic=True)
    broker = Broker(driver)
    await broker.connect()
    batches = [asyncio.create_task(broker.send_messages([message() for _ in range(500)])) for _ in range(20)]
    await settle(1)
    await broker.close()
    outcomes = [outcome for batch in await asyncio.gather(*batches) for outcome in batch]
    assert len(outcomes) == 10_000
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    assert not others()


async def test_close_before_the_first_connection_flushes_too() -> None:
    """A send that waits for the connection is accepted: close() lets it finish."""
    driver = Scripted(automatic=True)
    driver.connect_delay = 0.05
    broker = Broker(driver)
    sending = asyncio.create_task(broker.send_message(message()))
    await settle(1)
    await broker.close()
    assert (await sending).confirmed


async def test_what_is_left_at_the_timeout_is_told_apart() -> None:
    """Handed over: unknown. Not handed over: not delivered. The window is empty and no task is left."""
    driver = Scripted()
    broker = Broker(driver, max_in_flight=5)
    await broker.connect()
    sendings = [asyncio.create_task(broker.send_message(message())) for _ in range(3)]
    await settle()
    driver.held[0].handed_over()
    await broker.close(0.05)
    results = await asyncio.gather(*sendings, return_exceptions=True)
    assert [type(result) for result in results] == [ClosedWhilePendingError, BrokerClosedError, BrokerClosedError]
    assert driver.held[1].handed_over() is False
    assert not others()


async def test_after_close_every_call_says_so() -> None:
    """A send raises and a batch returns BrokerClosedError; connect and flush raise BrokerStateError."""
    broker = Broker(Scripted())
    await broker.close()
    with pytest.raises(BrokerClosedError, match="make a new Broker"):
        await broker.send_message(message())
    for call in (broker.connect(), broker.flush()):
        with pytest.raises(BrokerStateError, match="make a new Broker"):
            await call
    outcomes = await broker.send_messages([message(), message()])
    assert [type(outcome) for outcome in outcomes] == [BrokerClosedError] * 2


async def test_close_is_idempotent_and_concurrent() -> None:
    """Later callers await the first; the driver is closed once."""
    driver = Scripted()
    broker = Broker(driver)
    await broker.connect()
    await asyncio.gather(*(broker.close() for _ in range(5)))
    await broker.close()
    assert len(driver.closed) == 1


async def test_a_shorter_later_close_shortens_the_first() -> None:
    """close(0.05) ends a close(60) that waits for a stalled driver."""
    driver = Scripted()
    broker = Broker(driver)
    await broker.connect()
    sending = asyncio.create_task(broker.send_message(message()))
    await settle()
    first = asyncio.create_task(broker.close(60))
    await settle()
    async with asyncio.timeout(2):
        await broker.close(0.05)
        await first
        with pytest.raises(BrokerClosedError):
            await sending


async def test_a_cancelled_close_ends_by_force() -> None:
    """The caller's cancellation is genuine, and nothing is left when it leaves."""
    driver = Scripted()
    broker = Broker(driver)
    await broker.connect()
    sending = asyncio.create_task(broker.send_message(message()))
    await settle()
    closing = asyncio.create_task(broker.close(60))
    await settle()
    closing.cancel()
    async with asyncio.timeout(3):
        with pytest.raises(asyncio.CancelledError):
            await closing
    with pytest.raises(BrokerClosedError):
        await sending
    assert not others()


async def test_close_while_the_broker_is_down_is_bounded() -> None:
    """Waiting sends end with the close; the supervisor too."""
    driver = Scripted()
    driver.connect_errors = [unreachable() for _ in range(1000)]
    broker = Broker(driver)
    sending = asyncio.create_task(broker.send_message(message()))
    await asyncio.sleep(0.05)
    loop = asyncio.get_running_loop()
    started = loop.time()
    await broker.close(0.2)
    assert loop.time() - started < 1.2
    with pytest.raises(BrokerClosedError):
        await sending
    assert not others()


async def test_a_driver_that_hangs_in_close_is_aborted(caplog: pytest.LogCaptureFixture) -> None:
    """close(t) ends within t + 1 s whatever the driver does."""
    driver = Scripted()

    async def hang(grace: float) -> None:
        await asyncio.sleep(60)

    driver.close = hang  # type: ignore[method-assign]
    broker = Broker(driver)
    await broker.connect()
    loop = asyncio.get_running_loop()
    started = loop.time()
    await broker.close(0.1)
    assert loop.time() - started < 1.1
    assert driver.aborted == 1
    assert [(breach.method, breach.message_id) for breach in broker.contract_breaches] == [("close", None)]
    assert not others()


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("raised", [ValueError, asyncio.CancelledError])
async def test_a_driver_that_fails_in_close_is_aborted(raised: type[BaseException], at_once: bool) -> None:
    """Also when it awaits one of its own tasks after it has cancelled it, and so ends in CancelledError; also when its
    close() is no coroutine function."""
    driver = Scripted()

    def close_at_once(grace: float) -> Any:
        raise raised

    async def close(grace: float) -> None:
        raise raised

    driver.close = close_at_once if at_once else close  # type: ignore[method-assign]
    broker = Broker(driver)
    await broker.connect()
    await broker.close(0)
    assert driver.aborted == 1
    assert [breach.what for breach in broker.contract_breaches] == [f"raised {raised.__name__}"]


@pytest.mark.parametrize("late", [False, True])
async def test_a_driver_that_fails_in_abort_does_not_end_the_close(
    late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Its breaches are told, and asyncio has nothing to say."""
    driver = Scripted()

    async def close(grace: float) -> None:
        if late:
            await asyncio.sleep(60)
        raise ValueError

    def abort() -> None:
        raise RuntimeError

    driver.close, driver.abort = close, abort  # type: ignore[method-assign]
    broker = Broker(driver)
    await broker.connect()
    await broker.close(0)
    assert [breach.method for breach in broker.contract_breaches] == ["close", "abort"]
    assert not others()
    del broker
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


async def test_async_with_fails_at_start_up_with_the_cause() -> None:
    """`async with` raises the ConnectError itself, and leaves nothing."""
    driver = Scripted()
    driver.connect_errors = [unreachable("nobody there")]
    with pytest.raises(UnreachableError, match="nobody there"):
        async with Broker(driver):
            raise AssertionError("not reached")
    await settle()
    assert not others()


async def test_sends_during_a_close_are_refused() -> None:
    """From the call of close() on, new sends are BrokerClosedError while old ones are flushed."""
    driver = Scripted()
    broker = Broker(driver)
    await broker.connect()
    old = asyncio.create_task(broker.send_message(message()))
    await settle()
    closing = asyncio.create_task(broker.close())
    await settle()
    with pytest.raises(BrokerClosedError):
        await broker.send_message(message())
    driver.confirm_all()
    assert (await old).confirmed
    await closing


async def test_a_connect_that_waits_is_told_of_the_close() -> None:
    """connect() in another task does not hang when the broker is closed meanwhile."""
    driver = Scripted()
    driver.connect_delay = 60
    broker = Broker(driver)
    connecting = asyncio.create_task(broker.connect())
    await settle()
    await broker.close(0.05)
    with pytest.raises(Exception) as caught:
        await connecting
    assert not isinstance(caught.value, NotConnectedError)
    assert not others()


async def test_a_message_that_never_found_a_connection_says_why_when_the_broker_closes() -> None:
    """It is not delivered, and the ConnectError is its cause."""
    driver = Scripted()
    driver.connect_errors = [unreachable("refused") for _ in range(20)]
    broker = Broker(driver)
    sending = asyncio.ensure_future(broker.send_message(message()))
    while driver.connects < 2:
        await asyncio.sleep(0.01)
    await broker.close(0)
    with pytest.raises(BrokerClosedError, match="there was no connection: refused") as caught:
        await sending
    assert isinstance(caught.value.__cause__, UnreachableError)
