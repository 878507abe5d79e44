"""Many messages whose deadlines pass together: the event loop gets turns, and no late message is submitted."""

import asyncio
import time

import pytest

from cqrs_brokers import BackpressureError, Broker, DeliveryError, Message, Observer, Receipt

from .drivers import Scripted

FEW, COUNT, WINDOW = 100, 1_500, 25


@pytest.fixture(autouse=True)
def few_in_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a test needs few messages."""
    monkeypatch.setattr("cqrs_brokers._delivery.deadlines.FEW", FEW)


class Turns(Observer):
    """Notes in which turn of the event loop each message ended, and confirms what the driver holds in the first one."""

    def __init__(self, driver: Scripted) -> None:
        self.turn = 0
        self.ended: list[int] = []
        self._driver = driver
        self._counting = asyncio.ensure_future(self._count())

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(0)
            self.turn += 1

    def sent(self, message: Message, outcome: Receipt | DeliveryError, elapsed: float) -> None:
        if isinstance(outcome, BackpressureError):
            if not self.ended:
                asyncio.get_running_loop().call_soon(self._driver.confirm_all)
            self.ended.append(self.turn)

    def stop(self) -> None:
        self._counting.cancel()


@pytest.mark.parametrize("in_order", [True, False], ids=["one timeout", "timeouts of their own"])
async def test_deadlines_end_messages_in_several_turns(in_order: bool) -> None:
    """At most about a hundred end in a turn here. Places that become free meanwhile go to messages in time only."""
    driver = Scripted()
    turns = Turns(driver)
    async with Broker(driver, delivery_timeout=0.3, max_in_flight=WINDOW, observers=[turns]) as broker:
        late = [Message("A", "orders", {"n": n}) for n in range(COUNT)]
        sending = asyncio.create_task(broker.send_messages(late, timeout=None if in_order else 0.2))
        while not turns.ended:
            await asyncio.sleep(0.01)
        assert len(driver.seen) <= WINDOW
        driver.automatic = True
        in_time = await broker.send_messages([Message("A", "orders", {"late": False}) for _ in range(200)])
        outcomes = await sending
    turns.stop()
    assert all(isinstance(outcome, Receipt) for outcome in in_time)
    refused = [outcome for outcome in outcomes if isinstance(outcome, BackpressureError)]
    assert len(refused) >= COUNT - WINDOW
    per_turn = [turns.ended.count(turn) for turn in set(turns.ended)]
    assert max(per_turn) <= FEW + WINDOW
    assert not {message.message_id for message in late[WINDOW:]} & {message.message_id for message in driver.seen}


@pytest.mark.parametrize("in_order", [True, False], ids=["one timeout", "timeouts of their own"])
async def test_no_late_message_is_submitted_after_a_standstill(in_order: bool) -> None:
    """A place became free before the process stood still, and the deadlines passed meanwhile."""
    driver = Scripted()
    async with Broker(driver, delivery_timeout=0.3, max_in_flight=WINDOW) as broker:
        late = [Message("A", "orders", {"n": n}) for n in range(60)]
        sending = asyncio.create_task(broker.send_messages(late, timeout=None if in_order else 0.3))
        while not driver.held:
            await asyncio.sleep(0)
        submitted = len(driver.seen)
        driver.confirm_all()
        time.sleep(0.5)
        outcomes = await sending
        assert len(driver.seen) == submitted
        assert sum(isinstance(outcome, Receipt) for outcome in outcomes) == submitted
        driver.automatic = True
        assert isinstance(await broker.send_message(Message("A", "orders", {})), Receipt)
