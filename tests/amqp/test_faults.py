"""Servers that die, freeze, block and come back: every send has its true outcome by its deadline."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable

import pytest

from cqrs_brokers import (
    Broker,
    BrokerBlockedError,
    BrokerClosedError,
    ClosedWhilePendingError,
    ConnectionLostError,
    DeliveryError,
    DeliveryTimeoutError,
    DeliveryUnknownError,
    Message,
    NotDeliveredError,
    Receipt,
    open_broker,
)
from cqrs_brokers_testkit.leaks import no_leaks
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.readers import bind_queue, drain_queue
from cqrs_brokers_testkit.servers import RabbitMQNode

pytestmark = pytest.mark.fault

Outcome = Receipt | DeliveryError


@pytest.fixture
async def proxy(rabbitmq_node: RabbitMQNode) -> AsyncIterator[FaultProxy]:
    async with FaultProxy((rabbitmq_node.host, rabbitmq_node.port)) as proxy:
        yield proxy


async def publish(broker: Broker, stop: asyncio.Event, key: int, seen: list[tuple[int, int, Outcome, str]]) -> None:
    """Sends one message after the other until told to stop, and notes each outcome."""
    number = 0
    while not stop.is_set():
        message = Message("n", "t", [key, number], key=str(key))
        try:
            outcome: Outcome = await broker.send_message(message)
        except DeliveryError as error:
            outcome = error
        seen.append((key, number, outcome, str(message.message_id)))
        number += 1


async def under_load(broker: Broker, fault: Callable[[], object]) -> list[tuple[int, int, Outcome, str]]:
    """What 16 publishers see while the fault happens, and for a second after it."""
    seen: list[tuple[int, int, Outcome, str]] = []
    stop = asyncio.Event()
    tasks = [asyncio.create_task(publish(broker, stop, key, seen)) for key in range(16)]
    await asyncio.sleep(0.5)
    await asyncio.to_thread(fault)
    await asyncio.sleep(1)
    stop.set()
    await asyncio.gather(*tasks)
    return seen


async def check(seen: list[tuple[int, int, Outcome, str]], url: str, queue: str) -> None:
    """Nothing confirmed is lost, doubled or out of order; nothing "not delivered" is there."""
    records = await asyncio.to_thread(drain_queue, url, queue)
    arrived = [str(record.message_id) for record in records]
    confirmed = {message_id for _, _, outcome, message_id in seen if isinstance(outcome, Receipt)}
    refused = {message_id for _, _, outcome, message_id in seen if isinstance(outcome, NotDeliveredError)}
    assert len(confirmed) > 100
    assert not confirmed - set(arrived), "lost"
    assert len(arrived) == len(set(arrived)), "duplicated"
    assert not refused & set(arrived), "wrongly not delivered"
    numbers: dict[int, list[int]] = {}
    for record in records:
        if record.message_id in confirmed:
            key, number = record.json()
            numbers.setdefault(key, []).append(number)
    assert all(found == sorted(found) for found in numbers.values()), "out of order"


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
    async with no_leaks(ignore=lambda line: f"port {proxy.port}" in line or f"port {rabbitmq_node.port}" in line):
        async with open_broker(rabbitmq_node.url_for(port=proxy.port, exchange=exchange)) as broker:
            seen = await under_load(broker, faults[fault])
            kinds = {type(outcome) for _, _, outcome, _ in seen}
            assert kinds <= {Receipt, ConnectionLostError}
            assert ConnectionLostError in kinds
    await check(seen, rabbitmq_node.url, queue)


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


async def test_close_while_blocked(rabbitmq_node: RabbitMQNode, exchange: str) -> None:
    """close(2) during an alarm with megabytes pending takes at most 3 s and leaves nothing."""
    bind_queue(rabbitmq_node.url, exchange)
    async with no_leaks():
        broker = open_broker(f"{rabbitmq_node.url}?exchange={exchange}")
        await broker.send_message(Message("n", "t", "before"))
        await asyncio.to_thread(rabbitmq_node.set_memory_alarm, True)
        try:
            sends = [asyncio.create_task(broker.send_message(Message("n", "t", b"x" * 200_000))) for _ in range(40)]
            await asyncio.sleep(0.5)
            started = time.monotonic()
            await broker.close(2)
            assert time.monotonic() - started < 3
            outcomes = await asyncio.gather(*sends, return_exceptions=True)
        finally:
            await asyncio.to_thread(rabbitmq_node.set_memory_alarm, False)
    assert {type(outcome) for outcome in outcomes} <= {ClosedWhilePendingError, BrokerClosedError}


@pytest.mark.parametrize("state", ["stalled", "paused", "refused", "idle"])
async def test_close_in_every_state(rabbitmq_node: RabbitMQNode, proxy: FaultProxy, exchange: str, state: str) -> None:
    """close(2) takes at most 3 s with the server stalled, frozen, gone or well, and leaves nothing behind."""
    bind_queue(rabbitmq_node.url, exchange)
    async with no_leaks(ignore=lambda line: f"port {proxy.port}" in line or f"port {rabbitmq_node.port}" in line):
        broker = open_broker(rabbitmq_node.url_for(port=proxy.port, exchange=exchange))
        await broker.send_message(Message("n", "t", 1))
        sends = []
        try:
            if state == "stalled":
                proxy.stall()
            elif state == "paused":
                rabbitmq_node.pause()
            elif state == "refused":
                proxy.refuse()
                proxy.reset()
                await asyncio.sleep(0.3)
            if state != "idle":
                sends = [asyncio.create_task(broker.send_message(Message("n", "t", b"x" * 100_000))) for _ in range(50)]
                await asyncio.sleep(0.2)
            started = time.monotonic()
            await broker.close(2)
            assert time.monotonic() - started < 3
            outcomes = await asyncio.gather(*sends, return_exceptions=True)
        finally:
            rabbitmq_node.resume()
            proxy.heal()
            proxy.accept()
        proxy.close_connections()
    assert {type(outcome) for outcome in outcomes} <= {ClosedWhilePendingError, BrokerClosedError}


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


_LEAVING = """
import asyncio, sys, warnings
from cqrs_brokers import Message, open_broker

async def main():
    broker = open_broker(sys.argv[1])
    await broker.send_message(Message("n", "t", 1))
    if sys.argv[2] == "pending":
        asyncio.ensure_future(broker.send_messages([Message("n", "t", n) for n in range(500)]))
        await asyncio.sleep(0)
    return broker

if sys.argv[2] == "closed loop":
    loop = asyncio.new_event_loop()
    broker = loop.run_until_complete(main())
    loop.close()
    broker._connection.drop()
else:
    broker = asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["idle", "pending"])
async def test_leaving_without_close(rabbitmq_node: RabbitMQNode, exchange: str, how: str) -> None:
    """Leaving asyncio.run without close gives one ResourceWarning of ours and no traceback."""
    bind_queue(rabbitmq_node.url, exchange)
    url = f"{rabbitmq_node.url}?exchange={exchange}"
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-X", "dev", "-c", _LEAVING, url, how],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("ResourceWarning: <") == 1, done.stderr
    assert "ResourceWarning: <Broker" in done.stderr
    assert "Task was destroyed" not in done.stderr


async def test_a_loop_closed_under_the_connection(rabbitmq_node: RabbitMQNode, exchange: str) -> None:
    """With its event loop closed the driver still drops its socket, without noise."""
    bind_queue(rabbitmq_node.url, exchange)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-X", "dev", "-c", _LEAVING, f"{rabbitmq_node.url}?exchange={exchange}", "closed loop"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "Task was destroyed" not in done.stderr, done.stderr
    assert "unclosed transport" not in done.stderr, done.stderr
