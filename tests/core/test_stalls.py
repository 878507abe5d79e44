"""The event loop stood still: what came in meanwhile is looked at before anything is decided."""

import asyncio
import socket
import time
from collections.abc import Sequence

import pytest

from cqrs_brokers import (
    AuthenticationError,
    Broker,
    ConnectError,
    DeliveryTimeoutError,
    NotConnectedError,
    NotDeliveredError,
    Receipt,
    UnreachableError,
)
from cqrs_brokers.driver import Capabilities, Delivery, PipelinedDriver
from cqrs_brokers.tasks import patient_timeout

from .drivers import Scripted, message, settle


class OverASocket(PipelinedDriver):
    """Its answers come through a socket and two tasks, as with a real client."""

    def __init__(self) -> None:
        self.held: list[Delivery] = []
        self.ours, self.theirs = socket.socketpair()
        self.pings: list[asyncio.Future[None]] = []
        self.connect_silent = self.answers_ping = False

    capabilities = Capabilities(confirms=True)

    async def connect(self) -> None:
        self.reader, self.writer = await asyncio.open_connection(sock=self.ours)
        self.task = asyncio.get_running_loop().create_task(self.read())

    async def read(self) -> None:
        while line := await self.reader.readline():
            if line == b"pong\n":
                self.pings.pop().set_result(None)
            else:
                await asyncio.sleep(0)
                self.held.pop(0).confirm()

    async def ping(self) -> None:
        self.pings.append(asyncio.get_running_loop().create_future())
        await self.pings[0]

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        self.held += [delivery for delivery in deliveries if delivery.handed_over()]

    async def close(self, grace: float) -> None:
        self.task.cancel()
        self.writer.close()
        self.theirs.close()


async def stand_still(driver: OverASocket, answers: bytes, seconds: float) -> None:
    """The broker answers while the process does nothing."""
    driver.theirs.sendall(answers)
    time.sleep(seconds)


async def test_confirms_that_came_while_the_loop_stood_still_are_receipts() -> None:
    """All of them, although every deadline has passed."""
    driver = OverASocket()
    async with Broker(driver, delivery_timeout=0.2) as broker:
        sends = [asyncio.ensure_future(broker.send_message(message())) for _ in range(200)]
        await settle()
        await stand_still(driver, b"ok\n" * 200, 0.6)
        outcomes = await asyncio.gather(*sends, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Receipt}


async def test_what_was_not_confirmed_meanwhile_says_for_how_long_the_loop_stood_still() -> None:
    """Within a moment; a message that was not handed over ends at once, for nothing can come in for it."""
    driver = OverASocket()
    async with Broker(driver, delivery_timeout=0.2, max_in_flight=1) as broker:
        handed = asyncio.ensure_future(broker.send_message(message()))
        waiting = asyncio.ensure_future(broker.send_message(message()))
        await settle()
        await stand_still(driver, b"", 0.7)
        with pytest.raises(NotDeliveredError, match=r"stood still for 0\.[5-9] s"):
            await waiting
        assert not handed.done()
        with pytest.raises(DeliveryTimeoutError, match=r"stood still for 0\.[5-9] s"):
            await handed


async def test_a_deadline_in_time_says_nothing_of_a_stall() -> None:
    """A timer that fires when it is due."""
    driver = OverASocket()
    async with Broker(driver, delivery_timeout=0.1) as broker:
        with pytest.raises(DeliveryTimeoutError) as caught:
            await broker.send_message(message())
    assert "stood still" not in str(caught.value)


async def test_a_flush_looks_before_it_gives_up() -> None:
    """flush(): no FlushTimeoutError when the confirms are there."""
    driver = OverASocket()
    async with Broker(driver) as broker:
        sending = asyncio.ensure_future(broker.send_message(message()))
        await settle()
        flushing = asyncio.ensure_future(broker.flush(0.1))
        await settle()
        await stand_still(driver, b"ok\n", 0.5)
        await flushing
        assert (await sending).confirmed


async def test_a_close_looks_before_it_ends_messages() -> None:
    """close(): the confirm that lay in the socket is a receipt, not ClosedWhilePendingError."""
    driver = OverASocket()
    broker = Broker(driver)
    sending = asyncio.ensure_future(broker.send_message(message()))
    await settle()
    closing = asyncio.ensure_future(broker.close(0.1))
    await settle()
    await stand_still(driver, b"ok\n", 0.5)
    await closing
    assert (await sending).confirmed


async def test_health_looks_before_it_says_that_nobody_answers() -> None:
    """health(): the answer to the ping lay in the socket."""
    driver = OverASocket()
    async with Broker(driver, connect_timeout=0.1) as broker:
        asking = asyncio.ensure_future(broker.health())
        await settle()
        await stand_still(driver, b"pong\n", 0.5)
        assert (await asking).ok


async def test_connect_says_for_how_long_the_loop_stood_still() -> None:
    """connect(): a driver that got no answer in the moment that is left."""
    driver = Scripted()
    driver.connect_delay = 60
    broker = Broker(driver, connect_timeout=0.1)
    connecting = asyncio.ensure_future(broker.connect())
    await settle()
    time.sleep(0.6)
    with pytest.raises(UnreachableError, match=r"stood still for 0\.\d s"):
        await connecting
    await broker.close(0)


class WithItsOwnTimeOut(Scripted):
    """As clients are: it gives a step of connecting up by itself, and blames the broker."""

    def __init__(self, error: ConnectError, *, stands_still: float, always_fails: bool = False) -> None:
        super().__init__()
        self.error, self.stands_still, self.always_fails = error, stands_still, always_fails
        self.attempts = 0

    async def connect(self) -> None:
        self.attempts += 1
        if self.attempts == 1:
            asyncio.get_running_loop().call_soon(time.sleep, self.stands_still)
            await asyncio.sleep(0.1)
        if self.attempts == 1 or self.always_fails:
            raise self.error


async def test_an_attempt_during_which_the_loop_stood_still_is_made_again() -> None:
    """connect(): the driver's own time-out fired before it read the answers, so its error proves nothing."""
    driver = WithItsOwnTimeOut(UnreachableError("it does not answer"), stands_still=0.9)
    async with Broker(driver, connect_timeout=1.0):
        assert driver.attempts == 2


async def test_a_loss_in_the_first_attempt_does_not_end_the_connection_of_the_second() -> None:
    """What the driver said of the attempt that failed is over."""
    driver = WithItsOwnTimeOut(UnreachableError("it does not answer"), stands_still=0.9)
    broker = Broker(driver, connect_timeout=1.0)
    connecting = asyncio.ensure_future(broker.connect())
    await settle(2)
    driver.link.lost(UnreachableError("reset"))
    await connecting
    await settle()
    assert (driver.attempts, broker.state) == (2, "connected")
    await broker.close()


@pytest.mark.parametrize(
    ("error", "always_fails", "stands_still", "attempts", "says"),
    [
        (UnreachableError("it does not answer"), True, 0.9, 2, "stood still for 0."),
        (UnreachableError("it does not answer"), False, 0.1, 1, "it does not answer"),
        (AuthenticationError("wrong password"), False, 0.9, 1, "wrong password"),
    ],
    ids=["once only", "a short stall", "credentials are not tried twice"],
)
async def test_what_a_stall_does_not_explain(
    error: ConnectError, always_fails: bool, stands_still: float, attempts: int, says: str
) -> None:
    """connect() raises the driver's error; the text says for how long the loop stood still, if that matters."""
    driver = WithItsOwnTimeOut(error, stands_still=stands_still, always_fails=always_fails)
    broker = Broker(driver, connect_timeout=1.0)
    with pytest.raises(type(error), match=says):
        await broker.connect()
    assert driver.attempts == attempts
    await broker.close(0)


async def test_a_message_without_a_connection_says_for_how_long_the_loop_stood_still() -> None:
    """Whatever the reason is that it was not sent."""
    driver = Scripted()
    driver.connect_delay = 60
    broker = Broker(driver, delivery_timeout=0.2)
    sending = asyncio.ensure_future(broker.send_message(message()))
    await settle()
    time.sleep(0.7)
    with pytest.raises(NotConnectedError, match=r"stood still for 0\.[4-9] s"):
        await sending
    await broker.close(0)


@pytest.mark.parametrize("stands_still", [False, True])
async def test_a_patient_timeout(stands_still: bool) -> None:
    """After a standstill there is a moment to read the answer; otherwise it is as asyncio.timeout."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    loop = asyncio.get_running_loop()
    if stands_still:
        loop.call_soon(time.sleep, 0.6)
        theirs.sendall(b"a\nb\n")
    began = loop.time()
    try:
        async with patient_timeout(0.2):
            for _ in range(2):
                await reader.readline()
                await asyncio.sleep(0.02)
        assert stands_still
    except TimeoutError:
        assert not stands_still
        assert loop.time() - began < 0.4
    writer.close()
    theirs.close()


async def test_a_patient_timeout_ends_after_the_moment() -> None:
    """If nothing came in meanwhile."""
    asyncio.get_running_loop().call_soon(time.sleep, 0.6)
    with pytest.raises(TimeoutError):
        async with patient_timeout(0.2):
            await asyncio.Event().wait()
