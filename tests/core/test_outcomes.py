"""A send is awaited as a future is: woken in order and in its own context, cancelled, and interrupted."""

import asyncio
import contextvars
from collections.abc import Callable

import pytest

from cqrs_brokers import Broker, NackedError, Receipt

from .drivers import Scripted, message, settle

WHO = contextvars.ContextVar("WHO", default="nobody")


async def sends(broker: Broker, count: int) -> list[asyncio.Task[Receipt]]:
    """Starts so many sends; they are with the driver."""
    tasks = [asyncio.create_task(broker.send_message(message()), name=f"send {number}") for number in range(count)]
    await settle()
    return tasks


async def test_callers_are_woken_in_order_in_one_turn() -> None:
    """What was confirmed together wakes up in the next turn of the loop, in the order of the confirms."""
    driver = Scripted()
    woken: list[int] = []

    async def send(number: int) -> None:
        await broker.send_message(message())
        woken.append(number)

    async with Broker(driver) as broker:
        tasks = [asyncio.create_task(send(number)) for number in range(100)]
        await settle()
        driver.confirm_all()
        assert woken == []
        await settle(1)
        assert woken == list(range(100))
        await asyncio.gather(*tasks)


async def test_a_caller_wakes_in_its_own_context() -> None:
    """Context variables are those of the task, whoever confirmed and whoever woke before it."""
    driver = Scripted()

    async def send(name: str) -> tuple[str, asyncio.Task[object] | None]:
        WHO.set(name)
        await broker.send_message(message())
        before = WHO.get()
        WHO.set("changed")
        return before, asyncio.current_task()

    async with Broker(driver) as broker:
        tasks = [asyncio.create_task(send(name)) for name in "abc"]
        await settle()
        driver.confirm_all()
        found = await asyncio.gather(*tasks)
        assert found == [("a", tasks[0]), ("b", tasks[1]), ("c", tasks[2])]
        assert WHO.get() == "nobody"


async def test_a_caller_that_sends_again_at_once() -> None:
    """A task that sends as soon as it is woken, and is confirmed at once, is woken again; none is woken twice."""
    driver = Scripted(automatic=True)

    async def worker() -> int:
        return sum([(await broker.send_message(message())).confirmed for _ in range(50)])

    async with Broker(driver) as broker:
        assert await asyncio.gather(*(worker() for _ in range(20))) == [50] * 20


async def test_a_cancelled_caller_is_woken_with_its_message() -> None:
    """`Task.cancel(msg)` reaches the send; the others are not touched; a late confirm wakes nobody."""
    driver = Scripted()
    async with Broker(driver) as broker:
        tasks = await sends(broker, 3)
        tasks[1].cancel("enough")
        driver.confirm_all()
        with pytest.raises(asyncio.CancelledError, match="enough"):
            await tasks[1]
        assert (await tasks[0]).confirmed
        assert (await tasks[2]).confirmed


@pytest.mark.parametrize("fails", [False, True])
async def test_an_outcome_before_a_cancel(fails: bool) -> None:
    """As with a future: a task that is cancelled after its outcome came, and before it is woken, is cancelled."""
    driver = Scripted()
    async with Broker(driver) as broker:
        (task,) = await sends(broker, 1)
        if fails:
            delivery = driver.held.pop()
            delivery.handed_over()
            delivery.fail(NackedError("no"))
        else:
            driver.confirm_all()
        assert task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await broker.health()).in_flight == 0


async def test_a_cancel_twice_is_one() -> None:
    """The second cancellation of a send that is not woken yet changes nothing for those that follow it."""
    driver = Scripted()
    async with Broker(driver) as broker:
        (task,) = await sends(broker, 1)
        task.cancel()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        driver.hand_over_all()
        driver.held.clear()
        again = await sends(broker, 1)
        driver.confirm_all()
        assert (await again[0]).confirmed


async def test_a_timeout_ends_a_send() -> None:
    """`asyncio.timeout` and `asyncio.wait_for` end a send as any other await."""
    driver = Scripted()
    async with Broker(driver) as broker:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await broker.send_message(message())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(broker.send_message(message()), 0.01)
        driver.hand_over_all()


async def test_a_task_in_plain_python() -> None:
    """asyncio's own task written in Python awaits a send, too."""
    driver = Scripted(automatic=True)
    async with Broker(driver) as broker:
        loop = asyncio.get_running_loop()
        task = asyncio.tasks._PyTask(broker.send_message(message()), loop=loop)  # type: ignore[attr-defined]
        assert (await task).confirmed
        refused = asyncio.tasks._PyTask(broker.send_message(message()), loop=loop)  # type: ignore[attr-defined]
        await settle(1)
        refused.cancel()
        with pytest.raises(asyncio.CancelledError):
            await refused


def test_an_interrupted_caller_does_not_hold_up_the_others() -> None:
    """A task that raises SystemExit when it is woken ends the loop's run; who was to be woken after it still is."""
    driver = Scripted()
    broker = Broker(driver)

    async def leave() -> None:
        await broker.send_message(message())
        raise SystemExit(3)

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(broker.connect())
        before = loop.run_until_complete(sends(broker, 2))
        leaving = loop.create_task(leave())
        loop.run_until_complete(settle())
        after = loop.run_until_complete(sends(broker, 2))
        loop.call_soon(driver.confirm_all)
        with pytest.raises(SystemExit):
            loop.run_until_complete(settle())
        assert isinstance(leaving.exception(), SystemExit)
        receipts = loop.run_until_complete(asyncio.gather(*before, *after))
        assert all(receipt.confirmed for receipt in receipts)
        loop.run_until_complete(broker.close())
    finally:
        loop.close()


# -- `Link.wake_after` ------------------------------------------------------------------------------------------------


def in_the_loop(function: Callable[[], object]) -> None:
    """Calls it as the event loop calls the protocol of a connection: in no task."""
    asyncio.get_running_loop().call_soon(function)


async def test_callers_go_on_before_wake_after_returns() -> None:
    """The callers whose outcomes a handler brings go on in its turn of the loop, in order, each in its context. They
    may send again at once."""
    driver = Scripted()
    told: list[object] = []

    async def send(number: int) -> None:
        WHO.set(str(number))
        await broker.send_message(message())
        told.append((WHO.get(), asyncio.current_task()))
        await broker.send_message(message())

    def answer() -> None:
        driver.link.wake_after(driver.confirm_all)
        told.append("returned")

    async with Broker(driver) as broker:
        tasks = [asyncio.create_task(send(number)) for number in range(3)]
        await settle()
        in_the_loop(answer)
        await settle(1)
        assert told == [*((str(number), tasks[number]) for number in range(3)), "returned"]
        assert len(driver.held) == 3
        driver.confirm_all()
        await asyncio.gather(*tasks)


async def test_wake_after_inside_a_task() -> None:
    """A task cannot go on inside another one, so the callers go on in the next turn of the loop."""
    driver = Scripted()
    async with Broker(driver) as broker:
        (task,) = await sends(broker, 1)
        driver.link.wake_after(driver.confirm_all)
        assert not task.done()
        assert (await task).confirmed


async def test_wake_after_a_cancellation_of_the_same_turn() -> None:
    """A caller that was cancelled before the handler ran is woken once, and is cancelled; the others have receipts."""
    driver = Scripted()
    async with Broker(driver) as broker:
        tasks = await sends(broker, 3)
        tasks[1].cancel()
        in_the_loop(lambda: driver.link.wake_after(driver.confirm_all))
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Receipt, asyncio.CancelledError, Receipt]


async def test_a_handler_that_raises_has_woken_its_callers() -> None:
    """The error of a handler goes to the event loop, and the outcomes that came before it go to the callers."""
    driver = Scripted()
    loop = asyncio.get_running_loop()
    reported: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))

    def fails() -> None:
        driver.confirm_all()
        raise RuntimeError("the handler's own fault")

    try:
        async with Broker(driver) as broker:
            (task,) = await sends(broker, 1)
            in_the_loop(lambda: driver.link.wake_after(fails))
            await settle(1)
            assert task.done()
            (later,) = await sends(broker, 1)
            driver.confirm_all()
            assert (await later).confirmed
    finally:
        loop.set_exception_handler(None)
    assert [str(context["exception"]) for context in reported] == ["the handler's own fault"]
