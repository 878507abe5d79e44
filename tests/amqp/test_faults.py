"""Servers that die, freeze, block and come back: every send has its true outcome by its deadline."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable

import pytest

from cqrs_brokers import (
    Broker,
    BrokerBlockedError,
    BrokerClosedError,
    ClosedWhilePendingError,
    ConnectionLostError,
    DeliveryTimeoutError,
    DeliveryUnknownError,
    Message,
    Receipt,
    open_broker,
)
from cqrs_brokers_testkit.leaks import no_leaks
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.readers import bind_queue, drain_queue
from cqrs_brokers_testkit.servers import RabbitMQNode

from .outcomes import Sent, check, ids, not_the_proxys

pytestmark = pytest.mark.fault

Send = asyncio.Task[Receipt]
Name = Callable[[str], str]
KEYS, BURST, AT_ONCE = 16, 8, 48
PAUSE, LATENCY = 0.03, 0.05  # the pause is the shorter one: something is in flight at any time


@pytest.fixture
async def proxy(rabbitmq_node: RabbitMQNode) -> AsyncIterator[FaultProxy]:
    async with FaultProxy((rabbitmq_node.host, rabbitmq_node.port)) as proxy:
        yield proxy


async def publish(broker: Broker, stop: asyncio.Event, key: str, sends: list[tuple[Message, Send]]) -> None:
    """Sends a burst every few milliseconds until told to stop, and does not wait for one before the next."""
    pending: set[Send] = set()
    for number in itertools.count():
        burst = [Message("n", "t", [key, number, place], key=key) for place in range(BURST)]
        tasks = [asyncio.create_task(broker.send_message(message)) for message in burst]
        sends += zip(burst, tasks, strict=True)
        pending.update(tasks)
        if stop.is_set():
            break
        await asyncio.sleep(PAUSE)
        while len(pending) >= AT_ONCE:
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.wait(pending)


async def under_load(broker: Broker, fault: Callable[[], object]) -> list[Sent]:
    """What the publishers see while the fault happens, and for a second after it; in the order of their calls."""
    sends: list[tuple[Message, Send]] = []
    stop = asyncio.Event()
    tasks = [asyncio.create_task(publish(broker, stop, f"key {number}", sends)) for number in range(KEYS)]
    await asyncio.sleep(0.5)
    await asyncio.to_thread(fault)
    await asyncio.sleep(1)
    stop.set()
    await asyncio.gather(*tasks)
    return [(message, send.exception() or send.result()) for message, send in sends]


@pytest.mark.parametrize("fault", ["close_all_connections", "kill", "stop_app", "reset", "fin"])
async def test_connections_lost_under_load(
    rabbitmq_node: RabbitMQNode, proxy: FaultProxy, exchange: str, fault: str
) -> None:
    """A lost connection makes what was handed over ConnectionLostError and nothing else; the rest waits and arrives."""
    queue = bind_queue(rabbitmq_node.url, exchange)

    def kill() -> None:
        rabbitmq_node.kill()
        rabbitmq_node.start()

    def restart() -> None:
        rabbitmq_node.stop_app()
        rabbitmq_node.start_app()

    faults = {
        "close_all_connections": rabbitmq_node.close_all_connections,
        "kill": kill,
        "stop_app": restart,
        "reset": proxy.reset,
        "fin": proxy.close_connections,
    }
    async with no_leaks(ignore=not_the_proxys(proxy, rabbitmq_node)):
        async with open_broker(rabbitmq_node.url_for(port=proxy.port, exchange=exchange)) as broker:
            proxy.delay(LATENCY, way="down")
            sent = await under_load(broker, faults[fault])
    assert {type(outcome) for _, outcome in sent} == {Receipt, ConnectionLostError}
    assert len(ids(sent, Receipt)) > 100
    await check(rabbitmq_node.url, queue, sent)


async def test_memory_alarm(rabbitmq_node: RabbitMQNode, exchange: str) -> None:
    """Blocked: handed over is DeliveryTimeoutError, the rest BrokerBlockedError; it resumes by itself."""
    queue = bind_queue(rabbitmq_node.url, exchange)
    loop = asyncio.get_running_loop()
    async with open_broker(f"{rabbitmq_node.url}?exchange={exchange}&delivery_timeout=2s") as broker:
        await broker.send_message(Message("n", "t", "before"))
        await asyncio.to_thread(rabbitmq_node.set_memory_alarm, True)
        try:
            started = loop.time()
            first = Message("n", "t", "handed over")
            with pytest.raises(DeliveryTimeoutError):
                await broker.send_message(first)
            assert loop.time() - started < 3
            health = await broker.health()
            assert not health.ok
            assert health.blocked
            assert "alarm" in health.reason
            assert health.latency < 1  # RabbitMQ would not answer a ping
            started = loop.time()
            outcomes = await broker.send_messages([Message("n", "t", number) for number in range(100)])
            assert loop.time() - started < 3
            assert {type(outcome) for outcome in outcomes} == {BrokerBlockedError}
            assert "memory" in str(outcomes[0]) or "alarm" in str(outcomes[0])
        finally:
            await asyncio.to_thread(rabbitmq_node.set_memory_alarm, False)
        await asyncio.sleep(0.5)
        assert (await broker.send_message(Message("n", "t", "after"))).confirmed
        assert (await broker.health()).ok
    bodies = [record.json() for record in await asyncio.to_thread(drain_queue, rabbitmq_node.url, queue, 3)]
    assert bodies == ["before", "handed over", "after"]


async def test_memory_alarm_before_the_connection(rabbitmq_node: RabbitMQNode, exchange: str) -> None:
    """With the alarm on at connecting or reconnecting, connect() works, the first send finds out, the next waits."""
    queue = bind_queue(rabbitmq_node.url, exchange)
    broker = open_broker(f"{rabbitmq_node.url}?exchange={exchange}&delivery_timeout=1s")
    sent: list[Sent] = []

    async def send(expected: type[object]) -> None:
        message = Message("n", "t", expected.__name__, key="k")
        sent.append((message, (await broker.send_messages([message]))[0]))
        assert type(sent[-1][1]) is expected

    await asyncio.to_thread(rabbitmq_node.set_memory_alarm, True)
    try:
        await broker.connect()  # RabbitMQ blocks a connection when it first publishes
        await send(DeliveryTimeoutError)
        await send(BrokerBlockedError)
        await asyncio.to_thread(rabbitmq_node.close_all_connections)
        while (await broker.health()).blocked:
            await asyncio.sleep(0.01)
        await send(DeliveryTimeoutError)
        await send(BrokerBlockedError)
    finally:
        await asyncio.to_thread(rabbitmq_node.set_memory_alarm, False)
    while (await broker.health()).blocked:
        await asyncio.sleep(0.01)
    await send(Receipt)
    await broker.close()
    await check(rabbitmq_node.url, queue, sent)


async def test_close_while_blocked(rabbitmq_node: RabbitMQNode, exchange: str) -> None:
    """close(2) during an alarm with megabytes pending takes at most 3 s, leaves nothing and tells the truth."""
    queue = bind_queue(rabbitmq_node.url, exchange)
    messages = [Message("n", "t", b"x" * 200_000) for _ in range(40)]
    async with no_leaks():
        broker = open_broker(f"{rabbitmq_node.url}?exchange={exchange}")
        sent: list[Sent] = [(first := Message("n", "t", "before"), await broker.send_message(first))]
        await asyncio.to_thread(rabbitmq_node.set_memory_alarm, True)
        try:
            sends = [asyncio.create_task(broker.send_message(message)) for message in messages]
            await asyncio.sleep(0.5)
            started = time.monotonic()
            await broker.close(2)
            assert time.monotonic() - started < 3
            sent += zip(messages, await asyncio.gather(*sends, return_exceptions=True), strict=True)
        finally:
            await asyncio.to_thread(rabbitmq_node.set_memory_alarm, False)
    assert {type(outcome) for _, outcome in sent[1:]} == {ClosedWhilePendingError, BrokerClosedError}
    await asyncio.sleep(0.3)  # what RabbitMQ may still read
    await check(rabbitmq_node.url, queue, sent)


@pytest.mark.parametrize("state", ["stalled", "paused", "refused", "idle"])
async def test_close_in_every_state(rabbitmq_node: RabbitMQNode, proxy: FaultProxy, exchange: str, state: str) -> None:
    """close(2) takes at most 3 s with the server stalled, frozen, gone or well, leaves nothing and tells the truth."""
    queue = bind_queue(rabbitmq_node.url, exchange)
    # More than the sockets and the proxy take in, less than the window.
    messages = [Message("n", "t", b"x" * 100_000) for _ in range(0 if state == "idle" else 300)]
    async with no_leaks(ignore=not_the_proxys(proxy, rabbitmq_node)):
        broker = open_broker(rabbitmq_node.url_for(port=proxy.port, exchange=exchange))
        sent: list[Sent] = [(first := Message("n", "t", "before"), await broker.send_message(first))]
        try:
            if state == "stalled":
                proxy.stall()
            elif state == "paused":
                rabbitmq_node.pause()
            elif state == "refused":
                proxy.refuse()
                proxy.reset()
                await asyncio.sleep(0.3)
            sends = [asyncio.create_task(broker.send_message(message)) for message in messages]
            await asyncio.sleep(0.2)
            started = time.monotonic()
            await broker.close(2)
            assert time.monotonic() - started < 3
            sent += zip(messages, await asyncio.gather(*sends, return_exceptions=True), strict=True)
        finally:
            rabbitmq_node.resume()
            proxy.heal()
            proxy.accept()
        await asyncio.sleep(0.3)  # what was held back arrives
        proxy.close_connections()
    some: set[type[object]] = {ClosedWhilePendingError, BrokerClosedError}
    expected = {"stalled": some, "paused": some, "refused": {BrokerClosedError}, "idle": set()}[state]
    assert {type(outcome) for _, outcome in sent[1:]} == expected
    await check(rabbitmq_node.url, queue, sent)


async def test_half_open_connection_is_recycled(rabbitmq_node: RabbitMQNode, proxy: FaultProxy, exchange: str) -> None:
    """Silence after a deadline ends the connection; the next send goes over a new one."""
    bind_queue(rabbitmq_node.url, exchange)
    url = rabbitmq_node.url_for(port=proxy.port, exchange=exchange, delivery_timeout="1s")
    async with open_broker(url) as broker:
        await broker.send_message(Message("n", "t", 1))
        for connection in list(proxy.connections):
            connection.stall()
        started = time.monotonic()
        with pytest.raises(DeliveryTimeoutError):
            await broker.send_message(Message("n", "t", 2))
        assert time.monotonic() - started < 2
        await asyncio.sleep(2)
        assert (await broker.send_message(Message("n", "t", 3))).confirmed
        assert time.monotonic() - started < 6


async def test_slow_is_not_dead(rabbitmq_node: RabbitMQNode, proxy: FaultProxy, exchange: str) -> None:
    """Latency lowers the throughput and makes no error."""
    bind_queue(rabbitmq_node.url, exchange)
    async with open_broker(rabbitmq_node.url_for(port=proxy.port, exchange=exchange)) as broker:
        proxy.delay(0.1, jitter=0.1)
        outcomes = await broker.send_messages([Message("n", "t", number) for number in range(2000)])
        assert all(isinstance(outcome, Receipt) for outcome in outcomes)
        proxy.heal()


async def test_garbage_ends_the_connection(rabbitmq_node: RabbitMQNode, proxy: FaultProxy, exchange: str) -> None:
    """Bytes that are no AMQP: what was handed over is unknown, and the next send works."""
    bind_queue(rabbitmq_node.url, exchange)
    async with open_broker(rabbitmq_node.url_for(port=proxy.port, exchange=exchange)) as broker:
        await broker.send_message(Message("n", "t", 1))
        for connection in list(proxy.connections):
            connection.corrupt()
        with pytest.raises(ConnectionLostError):
            await broker.send_message(Message("n", "t", 2))
        assert (await broker.send_message(Message("n", "t", 3))).confirmed


async def test_a_stray_cancellation_never_surfaces(
    rabbitmq_node: RabbitMQNode, proxy: FaultProxy, exchange: str
) -> None:
    """In a TaskGroup a closing connection is a BrokerError, not a cancellation that would pass for an ordinary one."""
    bind_queue(rabbitmq_node.url, exchange)
    broker = open_broker(rabbitmq_node.url_for(port=proxy.port, exchange=exchange, heartbeat=1))
    await broker.send_message(Message("n", "t", 1))
    proxy.stall()

    async def send_and_close() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(broker.send_message(Message("n", "t", 2)))
            group.create_task(broker.close(0.2))

    with pytest.raises(ExceptionGroup) as caught:
        await send_and_close()
    assert caught.group_contains(DeliveryUnknownError)
    proxy.heal()


async def test_heartbeats_notice_a_dead_connection_under_a_send(
    rabbitmq_node: RabbitMQNode, proxy: FaultProxy, exchange: str
) -> None:
    """A send that is pending when aiormq gives up on a silent connection is unknown, not cancelled; the next works."""
    bind_queue(rabbitmq_node.url, exchange)
    url = rabbitmq_node.url_for(port=proxy.port, exchange=exchange, heartbeat=1)
    async with open_broker(url) as broker:
        await broker.send_message(Message("n", "t", 1))
        for connection in list(proxy.connections):
            connection.stall()
        told: list[tuple[type[BaseException], int]] = []

        async def send() -> None:
            try:
                await broker.send_message(Message("n", "t", 2))
            except BaseException as error:
                task = asyncio.current_task()
                assert task is not None
                told.append((type(error), task.cancelling()))
                raise

        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(send())
        assert [type(error) for error in caught.value.exceptions] == [ConnectionLostError]
        assert told == [(ConnectionLostError, 0)]
        assert (await broker.send_message(Message("n", "t", 3))).confirmed


async def test_heartbeats_notice_an_idle_dead_connection(
    rabbitmq_node: RabbitMQNode, proxy: FaultProxy, exchange: str
) -> None:
    """A silent connection without any send is given up after three heartbeats and made anew."""
    bind_queue(rabbitmq_node.url, exchange)
    async with open_broker(rabbitmq_node.url_for(port=proxy.port, exchange=exchange, heartbeat=1)) as broker:
        await broker.connect()
        for connection in list(proxy.connections):
            connection.stall()
        await asyncio.sleep(8)
        assert proxy.accepted >= 2
        assert (await broker.send_message(Message("n", "t", 1))).confirmed
