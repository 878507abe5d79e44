"""python-cqrs' concurrent event handling, and one broker over several event loops."""

import asyncio
import gc
from typing import Any

import pytest

from cqrs_brokers import Broker, UnroutableError
from cqrs_brokers.protocol import Message
from cqrs_brokers_python_cqrs import message_broker

from .application import Emit, Order, OrderPlaced, Recorder, mediator


async def test_one_failing_event_leaves_its_siblings_their_success_and_no_future_unobserved() -> None:
    """The failing one raises out of the mediator; the others are sent; the event loop has nothing to complain about."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))

    async def refuses_the_second(message: Message) -> None:
        await asyncio.sleep(0.01 if message.key == "2" else 0.05)
        if message.key == "2":
            raise UnroutableError("no queue")

    recorder = Recorder(before=refuses_the_second)
    events = [OrderPlaced(payload=Order(order_id=str(number))) for number in range(5)]
    async with message_broker(Broker(recorder)) as adapter:
        application = mediator(adapter, concurrent_event_handle_enable=True, max_concurrent_event_handlers=5)
        with pytest.raises(UnroutableError) as caught:
            await application.send(Emit(events=events))
        assert caught.value.message_id == events[2].event_id
        await adapter.broker.flush()
    assert sorted(str(message.key) for message in recorder.sent) == ["0", "1", "3", "4"]

    del caught, application, adapter
    await asyncio.sleep(0)
    gc.collect()
    assert complaints == []


async def test_events_of_one_key_keep_their_order_when_handled_concurrently() -> None:
    """python-cqrs starts a task for each; `Broker` sends those of the same topic and key one after the other."""
    delays = iter([0.03, 0.02, 0.01, 0.0])

    async def slower_first(message: Message) -> None:
        await asyncio.sleep(next(delays))

    recorder = Recorder(before=slower_first)
    events = [OrderPlaced(payload=Order(order_id="same", total=number)) for number in range(4)]
    async with message_broker(Broker(recorder)) as adapter:
        application = mediator(adapter, concurrent_event_handle_enable=True, max_concurrent_event_handlers=4)
        await application.send(Emit(events=events))
    assert [message.message_id for message in recorder.sent] == [event.event_id for event in events]


def test_one_broker_serves_an_event_loop_per_test() -> None:
    """A new mediator per loop, as python-cqrs needs it; the broker connects anew and warns once."""
    recorder = Recorder()
    adapter = message_broker(Broker(recorder))

    async def one_test(number: int, *, close: bool) -> None:
        await mediator(adapter).send(Emit(events=[OrderPlaced(payload=Order(order_id=str(number)))]))
        if close:
            await adapter.broker.close()

    with pytest.warns(ResourceWarning, match="not closed"):
        asyncio.run(one_test(0, close=False))
    with pytest.warns(ResourceWarning, match="not closed"):
        asyncio.run(one_test(1, close=False))
    asyncio.run(one_test(2, close=True))
    assert [message.key for message in recorder.sent] == ["0", "1", "2"]
    assert recorder.connects == 3
