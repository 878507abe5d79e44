"""`send_messages` of a large batch: the event loop gets turns, and what holds for small batches holds."""

import asyncio
import contextvars
import gc
import time
from random import Random

import pytest

from cqrs_brokers import BackpressureError, Broker, DeliveryError, Message, NotDeliveredError, Observer, Receipt
from cqrs_brokers._delivery.outcomes import BulkDelivery

from .drivers import Scripted

COUNT = 2_000


@pytest.fixture(autouse=True)
def a_turn_after_every_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fast machine, too."""
    monkeypatch.setattr("cqrs_brokers._broker.TURN", 0.0)


def batch(key: str | None = None) -> list[Message]:
    return [Message("A", "orders", {"n": n}, key=key) for n in range(COUNT)]


async def test_the_event_loop_gets_turns() -> None:
    """Other tasks run while the batch is made ready."""
    driver = Scripted(automatic=True)
    async with Broker(driver) as broker:
        sending = asyncio.create_task(broker.send_messages(batch()))
        seen = set[int]()
        while len(driver.seen) < COUNT:
            await asyncio.sleep(0)
            seen.add(len(driver.seen))
        assert len(seen) >= COUNT // 250
        assert all(isinstance(outcome, Receipt) for outcome in await sending)


async def test_nothing_of_a_batch_is_kept_after_the_call() -> None:
    """What the window notes of it while it looks for stuck destinations would keep all receipts of the call alive."""
    looked = asyncio.Event()

    class Watched(Scripted):
        def destination(self, message: Message) -> str:
            looked.set()
            return message.topic

    def kept() -> dict[int, object]:
        gc.collect()
        return {id(each): each for each in gc.get_objects() if isinstance(each, BulkDelivery | Receipt)}

    driver = Watched()
    before = kept()  # constants of other test modules
    async with Broker(driver, max_in_flight=500) as broker:
        sending = asyncio.create_task(broker.send_messages(batch()))
        await looked.wait()
        driver.automatic = True
        driver.confirm_all()
        await sending
        del sending
        await asyncio.sleep(0)  # the event loop keeps the task in this turn
        assert kept().keys() == before.keys()


async def test_a_later_call_goes_behind_the_whole_batch() -> None:
    """The order of calls holds for messages with the same key, for single ones and for batches."""
    driver = Scripted(automatic=True)
    async with Broker(driver) as broker:
        first, single, second = batch("k"), Message("A", "orders", {}, key="k"), batch("k")
        first_call = asyncio.create_task(broker.send_messages(first))
        await asyncio.sleep(0)
        assert len(driver.seen) < COUNT
        await asyncio.gather(first_call, broker.send_message(single), broker.send_messages(second))
    sent = [message.message_id for message in driver.seen]
    assert sent == [message.message_id for message in [*first, single, *second]]


@pytest.mark.parametrize("seed", range(20))
async def test_calls_keep_their_order(seed: int) -> None:
    """Batches and single messages, called by tasks in any turn of the event loop, some of them cancelled."""
    random, called = Random(seed), list[Message]()

    async def call(messages: list[Message], after: int) -> None:
        for _ in range(after):
            await asyncio.sleep(0)
        called.extend(messages)
        await (broker.send_messages(messages) if len(messages) > 1 else broker.send_message(messages[0]))

    driver = Scripted(automatic=True)
    async with Broker(driver) as broker:
        sizes = [random.choice([1, 1, 600, 900]) for _ in range(12)]
        calls = [
            asyncio.create_task(call([Message("A", "orders", {}, key="k") for _ in range(size)], random.randrange(12)))
            for size in sizes
        ]
        for _ in range(random.randrange(8)):
            await asyncio.sleep(0)
        if seed % 2:
            random.choice(calls).cancel()
        await asyncio.wait(calls)
    seen = {message.message_id for message in driver.seen}
    assert [message.message_id for message in driver.seen] == [
        message.message_id for message in called if message.message_id in seen
    ]
    if not seed % 2:
        assert len(seen) == sum(sizes)


async def test_a_close_flushes_the_whole_batch() -> None:
    """Also the messages that were not ready at the call of close()."""
    broker = Broker(Scripted(automatic=True))
    await broker.connect()
    sending = asyncio.create_task(broker.send_messages(batch()))
    await asyncio.sleep(0)
    await broker.close()
    assert all(isinstance(outcome, Receipt) for outcome in await sending)


async def test_a_flush_waits_for_the_whole_batch() -> None:
    """Also for the messages that were not ready at the call of flush()."""
    driver = Scripted(automatic=True)
    async with Broker(driver) as broker:
        sending = asyncio.create_task(broker.send_messages(batch()))
        await asyncio.sleep(0)
        await broker.flush()
        assert len(driver.seen) == COUNT
        assert not driver.held
        await sending


async def test_the_deadline_ends_the_making_ready() -> None:
    """What was not handed over by then is not delivered, and was never given to the driver."""

    def slow(payload: object) -> bytes:
        time.sleep(0.001)
        return b"{}"

    driver = Scripted(automatic=True)
    async with Broker(driver, encoder=slow) as broker:
        began = time.monotonic()
        outcomes = await broker.send_messages(batch(), timeout=0.5)
        assert time.monotonic() - began < 1.7
    late = [outcome for outcome in outcomes if isinstance(outcome, BackpressureError)]
    assert len(outcomes) == COUNT
    assert late
    assert "before this message of the batch was made ready" in str(late[-1])
    assert not {error.message_id for error in late} & {message.message_id for message in driver.seen}


async def test_a_cancelled_call_sends_no_more_and_is_observed() -> None:
    """Observers get one outcome for each message of the batch."""

    class Counts(Observer):
        def __init__(self) -> None:
            self.outcomes: list[Receipt | DeliveryError] = []

        def sent(self, message: Message, outcome: Receipt | DeliveryError, elapsed: float) -> None:
            self.outcomes.append(outcome)

    counts, driver = Counts(), Scripted(automatic=True)
    async with Broker(driver, observers=[counts]) as broker:
        sending = asyncio.create_task(broker.send_messages(batch()))
        await asyncio.sleep(0)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert (await broker.send_message(Message("A", "orders", {}))).confirmed
    assert len(driver.seen) < COUNT
    assert len(counts.outcomes) == COUNT + 1
    assert sum(isinstance(outcome, NotDeliveredError) for outcome in counts.outcomes) >= COUNT - len(driver.seen)


async def test_before_send_runs_in_the_context_of_its_call() -> None:
    """Even when another call makes the rest of the batch ready."""
    who = contextvars.ContextVar("who", default="nobody")

    class Notes(Observer):
        def __init__(self) -> None:
            self.asked: list[str] = []

        def before_send(self, message: Message) -> None:
            self.asked.append(who.get())

    async def send_batch() -> None:
        who.set("batch")
        await broker.send_messages(batch())

    notes = Notes()
    async with Broker(Scripted(automatic=True), observers=[notes]) as broker:
        sending = asyncio.create_task(send_batch())
        await asyncio.sleep(0)
        who.set("single")
        await broker.send_message(Message("A", "orders", {}))
        await sending
    assert notes.asked == ["batch"] * COUNT + ["single"]
