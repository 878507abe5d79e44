"""A bad network between client and broker: stalls, half-open connections, resets, cuts, latency, a narrow line."""

import asyncio
import gc
from collections.abc import Callable
from pathlib import Path

import pytest

from cqrs_brokers import (
    BackpressureError,
    ConnectError,
    DeliveryError,
    DeliveryUnknownError,
    DestinationNotFoundError,
    Message,
    NotConnectedError,
    ProtocolError,
    Receipt,
    UnreachableError,
    open_broker,
)
from cqrs_brokers_testkit.leaks import no_leaks
from cqrs_brokers_testkit.proxy import Ending, FaultProxy
from cqrs_brokers_testkit.readers import drain_topic
from cqrs_brokers_testkit.servers import KafkaCluster

from .publishers import publishing

pytestmark = pytest.mark.fault

Name = Callable[[str], str]


def refuse(proxy: FaultProxy) -> None:
    proxy.refuse()
    proxy.reset()


FAULTS: dict[str, Callable[[FaultProxy], object]] = {
    "stall both ways": lambda proxy: proxy.stall(),
    "stall towards the broker": lambda proxy: proxy.stall("up"),
    "answers stall": lambda proxy: proxy.stall("down"),
    "answers are lost": lambda proxy: proxy.swallow("down"),
    "half-open: we are not heard": lambda proxy: proxy.swallow("up"),
    "reset": lambda proxy: proxy.reset(),
    "closed": lambda proxy: proxy.close_connections(),
    "half-closed by the broker": lambda proxy: proxy.half_close("down"),
    "half-closed by the client": lambda proxy: proxy.half_close("up"),
    "cut in a request": lambda proxy: proxy.cut_after(700, "up"),
    "cut in an answer": lambda proxy: proxy.cut_after(130, "down"),
    "closed in an answer": lambda proxy: proxy.cut_after(70, "down", by="close"),
    "refused for a while": refuse,
    "garbage": lambda proxy: proxy.corrupt("down"),
    "latency": lambda proxy: proxy.delay(0.2, jitter=0.1),
    "narrow": lambda proxy: proxy.throttle(20_000),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_line_faults_under_load(proxy: FaultProxy, broken: KafkaCluster, unique_name: Name, fault: str) -> None:
    """Each is waited out: every send gets its receipt, nothing is lost, twice or out of order, nothing is left."""
    topic = unique_name("line")
    broken.create_topic(topic, 3)
    async with no_leaks(ignore=lambda found: "remote port 0" in found):  # the proxy's listener, opened anew
        async with open_broker(f"kafka://{proxy.address}?request_timeout_ms=1000") as broker:
            async with publishing(broker, topic, pause=0.02) as publishers:
                await publishers.recovered(5)
                await asyncio.to_thread(FAULTS[fault], proxy)
                await asyncio.sleep(1.5)
                proxy.heal()
                proxy.accept()
                await publishers.recovered(5)
    assert len(publishers.receipts) == len(publishers.outcomes)
    assert publishers.slowest < 8
    await publishers.check(broken)


@pytest.mark.parametrize("fault", ["answers are lost", "half-open: we are not heard", "reset", "cut in an answer"])
@pytest.mark.parametrize("mode", ["acks=all", "acks=1", "acks=0"])
async def test_line_faults_with_weaker_settings(
    proxy: FaultProxy, broken: KafkaCluster, unique_name: Name, fault: str, mode: str
) -> None:
    """Without idempotence: each send ends in time, what is confirmed is there, "not delivered" is never there."""
    topic = unique_name("weak")
    broken.create_topic(topic, 3)
    options = f"{mode}&enable_idempotence=false&allow_unsafe=true&request_timeout_ms=1000&delivery_timeout=4s"
    async with no_leaks():
        async with open_broker(f"kafka://{proxy.address}?{options}") as broker:
            async with publishing(broker, topic, pause=0.02) as publishers:
                await publishers.recovered(5)
                await asyncio.to_thread(FAULTS[fault], proxy)
                await asyncio.sleep(1.5)
                proxy.heal()
                await publishers.recovered(5)
    assert publishers.slowest < 5
    assert {receipt.confirmed for receipt in publishers.receipts.values()} == {mode != "acks=0"}
    await publishers.check(broken, duplicates=True, lost=mode == "acks=0")


async def test_silence_is_named(proxy: FaultProxy, broken: KafkaCluster, unique_name: Name) -> None:
    """A line that stays silent: unknown or "not connected" with the cause, health says it, then it recovers."""
    topic = unique_name("silence")
    broken.create_topic(topic)
    loop = asyncio.get_running_loop()
    async with open_broker(f"kafka://{proxy.address}?request_timeout_ms=2000&delivery_timeout=7s") as broker:
        await broker.send_message(Message("E", topic, {}, key="k"))
        proxy.stall()
        started = loop.time()
        first = asyncio.create_task(broker.send_message(Message("E", topic, {}, key="k")))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(broker.send_message(Message("E", topic, {}, key="k")))
        outcomes = await asyncio.gather(first, second, return_exceptions=True)
        assert loop.time() - started < 8.2
        assert isinstance(outcomes[0], DeliveryUnknownError)
        assert isinstance(outcomes[1], NotConnectedError)
        assert "does not answer" in str(outcomes[1])
        assert not (await asyncio.wait_for(broker.health(), 11)).ok
        proxy.heal()
        assert (await broker.send_message(Message("E", topic, {}, key="k"))).confirmed
        assert (await broker.health()).ok


@pytest.mark.parametrize("ending", ["stall", "reset", "close"])
async def test_connecting_is_cut(proxy: FaultProxy, broken: KafkaCluster, ending: Ending) -> None:
    """The line breaks at any point of connecting: a ConnectError in time, nothing is left, the next try works."""
    loop = asyncio.get_running_loop()
    kinds = []
    for count in (1, 30, 100, 200, 300, 400, 450, 500, 550, 600, 650, 700, 800, 1000):  # Kafka 3.9: < 450
        proxy.cut_after(count, "down", by=ending)
        async with no_leaks():
            broker = open_broker(f"kafka://{proxy.address}?connect_timeout=400ms")
            started = loop.time()
            try:
                await broker.connect()
            except ConnectError as error:
                kinds.append(type(error))
            assert loop.time() - started < 2
            proxy.heal()
            await broker.connect()
            await broker.close()
    assert len(kinds) > 4
    assert set(kinds) <= {UnreachableError, ProtocolError}


async def test_metadata_while_a_produce_request_waits(
    proxy: FaultProxy, broken: KafkaCluster, unique_name: Name
) -> None:
    """With the connection that produces silent, health is good and another topic's partitions are found at once."""
    first, other = unique_name("first"), unique_name("other")
    broken.create_topic(first)
    broken.create_topic(other)
    async with open_broker(f"kafka://{proxy.address}") as broker:
        await broker.send_message(Message("E", first, {}))
        for connection in list(proxy.connections):
            connection.stall("down")
        waiting = asyncio.create_task(broker.send_message(Message("E", first, {})))
        await asyncio.sleep(0.2)
        async with asyncio.timeout(5):
            assert (await broker.health()).ok
            with pytest.raises(DestinationNotFoundError):
                await broker.send_message(Message("E", unique_name("missing"), {}))
        assert not waiting.done()
        proxy.heal()
        assert (await waiting).confirmed


def resident() -> int:
    """This process's memory now, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def test_flood_on_a_narrow_line(proxy: FaultProxy, broken: KafkaCluster, unique_name: Name) -> None:
    """Far more than the line takes: BackpressureError at the deadline, truly, and memory within the window's bytes."""
    topic = unique_name("flood")
    broken.create_topic(topic, 3)
    loop = asyncio.get_running_loop()
    outcomes: list[Receipt | DeliveryError] = []
    slowest = 0.0
    window, size = 8 * 2**20, 100_000
    options = f"delivery_timeout=500ms&max_in_flight_bytes={window}&close_timeout=1s"
    async with open_broker(f"kafka://{proxy.address}?{options}") as broker:
        await broker.send_message(Message("E", topic, {}))

        async def worker(until: float) -> None:
            nonlocal slowest
            while (started := loop.time()) < until:
                try:
                    outcomes.append(await broker.send_message(Message("E", topic, bytes(size))))
                except DeliveryError as error:
                    outcomes.append(error.with_traceback(None))
                slowest = max(slowest, loop.time() - started)

        proxy.throttle(50_000, way="up")
        gc.collect()
        before = resident()
        most = before
        workers = [asyncio.create_task(worker(loop.time() + 6)) for _ in range(200)]  # they alone hold 20 MB
        while not all(task.done() for task in workers):
            await asyncio.sleep(0.1)
            most = max(most, resident())
        attempted = len(outcomes) * size
        assert attempted > 150e6
        assert most - before < 200 * size + 3 * window + 20e6  # 64 MB; each byte may be in a record and in a batch too
        assert slowest < 1.5
        proxy.heal()
        await asyncio.sleep(1)
        assert (await broker.send_message(Message("E", topic, {}))).confirmed
    refused = {str(outcome.message_id) for outcome in outcomes if isinstance(outcome, BackpressureError)}
    records = await asyncio.to_thread(drain_topic, broken.reader_bootstrap_servers, topic, timeout=20.0)
    assert refused
    assert not refused & {record.message_id for record in records}
