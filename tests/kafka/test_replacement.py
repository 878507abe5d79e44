"""Producers that are replaced, partitions that come and go, other nodes: nothing is overtaken or forgotten.

On librdkafka's mock cluster: a real one does none of this at a chosen moment.
"""

import asyncio
import contextlib
import gc
from collections.abc import Callable
from typing import Any

import pytest

from cqrs_broker_kafka._driver import KafkaDriver
from cqrs_broker_kafka.internals import Producer
from cqrs_broker_kafka._partitioning import partition_for
from cqrs_brokers import Broker, ConnectionLostError, Message, Receipt, open_broker
from cqrs_brokers_testkit.kafka_mock import PRODUCE, KafkaMock
from cqrs_brokers_testkit.leaks import no_leaks
from cqrs_brokers_testkit.proxy import FaultProxy

pytestmark = pytest.mark.live

KEYS = [next(key for key in map(str, range(100)) if partition_for(key.encode(), 2) == part) for part in (0, 1)]
"""A key for each of two partitions."""


def message(partition: int = 0) -> Message:
    return Message("E", "t", {}, key=KEYS[partition])


def parts(broker: Broker) -> tuple[KafkaDriver, Producer]:
    driver = broker.driver
    assert isinstance(driver, KafkaDriver)
    assert driver.producer is not None
    return driver, driver.producer


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.contextmanager
def two_partitions(leaders: tuple[int, int] = (1, 2)) -> Any:
    with KafkaMock(2) as mock:
        mock.create_topic("t", 2)
        for partition, node in enumerate(leaders):
            mock.set_leader("t", partition, node)
        yield mock


async def test_a_partition_that_is_gone_for_a_moment() -> None:
    """What comes after a partition is back waits for the batch from before, also with another producer meanwhile."""
    with two_partitions() as mock:
        async with open_broker(mock.url) as broker:
            await broker.send_messages([message(0), message(1)])
            driver, producer = parts(broker)
            mock.push_errors(PRODUCE, *[6] * 3)  # refused for certain: aiokafka repeats it
            first = asyncio.create_task(broker.send_message(message(1)))
            await asyncio.sleep(0.02)
            known = producer._cluster._partitions["t"]
            for seen in ({0: known[0]}, known):  # a node that lags behind answers, then one that does not
                producer._cluster._partitions["t"] = seen
                driver.metadata_changed(None)
            driver._producers.replace(producer)
            await until(lambda: driver.producer not in (producer, None))
            second = await broker.send_message(message(1))
            assert (await first).offset == 1
            assert second.offset == 2


async def test_a_retired_producer_that_dies() -> None:
    """Its batch is unknown, what waited behind it goes with the next producer at once, and it is stopped."""
    async with no_leaks():
        with two_partitions() as mock:
            async with open_broker(mock.url) as broker:
                await broker.send_messages([message(0), message(1)])
                driver, old = parts(broker)
                mock.set_round_trip(3000, 2)
                slow = asyncio.create_task(broker.send_message(message(1)))
                await asyncio.sleep(0.1)
                driver._producers.replace(old)
                waiting = asyncio.create_task(broker.send_message(message(1)))
                await until(lambda: driver.producer not in (old, None))
                assert old.in_flight == 1
                mock.set_round_trip(0, 2)
                old._client._sender.sender_task.cancel()
                for task in old._requests:  # which the sender's end waits for
                    task.cancel()
                with pytest.raises(ConnectionLostError):
                    await slow
                assert isinstance(await asyncio.wait_for(waiting, 3), Receipt)
                await broker.send_message(message(1))
                await until(lambda: not any(each.connected() for each in old._client.client._conns.values()))
                assert not driver._producers._retired


async def test_close_while_a_dead_producer_repeats(caplog: pytest.LogCaptureFixture) -> None:
    """The request of a producer whose sender died, in its pause before it is repeated, ends with close()."""
    noise: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))

    def drain(**_: object) -> None:
        raise RuntimeError("a fault of the client")

    async with no_leaks():
        with two_partitions() as mock:
            broker = open_broker(mock.url)
            await broker.send_messages([message(0), message(1)])
            _, producer = parts(broker)
            mock.push_errors(PRODUCE, 6)
            send = asyncio.create_task(broker.send_message(message(1)))
            await asyncio.sleep(0.03)
            accumulator = producer._client._message_accumulator
            accumulator.drain_by_nodes = drain
            if not accumulator._waiter_future.done():
                accumulator._waiter_future.set_result(None)
            await asyncio.sleep(0.01)
            await broker.close(0)
            with pytest.raises(ConnectionLostError):
                await send
        await asyncio.sleep(0.3)
    assert not noise
    assert "a fault of the client" in caplog.text


async def test_a_partition_without_a_leader_is_asked_for_at_a_pace() -> None:
    """Metadata is asked for again every 50 ms while a leader is missing, and not in a loop; then the message goes."""
    with two_partitions() as mock:
        async with open_broker(mock.url) as broker:
            await broker.send_messages([message(0), message(1)])
            _, producer = parts(broker)
            updates: list[object] = []
            mock.set_leader("t", 1, -1)
            await producer.refresh()
            producer.watch_metadata(updates.append)
            send = asyncio.create_task(broker.send_message(message(1)))
            await asyncio.sleep(1)
            assert 0 < len(updates) <= 21
            assert not send.done()
            mock.set_leader("t", 1, 1)
            assert (await asyncio.wait_for(send, 2)).confirmed


@pytest.mark.fault
async def test_all_nodes_are_others_now() -> None:
    """When nothing is answered and the bootstrap server names none of the old nodes, connecting begins anew."""
    with KafkaMock(1) as old, KafkaMock(1) as new, FaultProxy() as proxy:
        for mock in (old, new):
            mock.create_topic("t", 2)
        host, _, port = old.bootstrap_servers.partition(":")
        proxy.target = (host, int(port))
        async with open_broker(f"kafka://{proxy.address}?delivery_timeout=8s") as broker:
            await broker.send_message(message())
            host, _, port = new.bootstrap_servers.partition(":")
            proxy.target = (host, int(port))
            old.down(1)
            handed = asyncio.create_task(broker.send_message(message()))
            await asyncio.sleep(0.2)
            behind = asyncio.create_task(broker.send_message(message()))
            outcomes = await asyncio.gather(handed, behind, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [ConnectionLostError, Receipt]
            assert (await broker.health()).ok


@pytest.mark.parametrize("late", [False, True])
async def test_a_client_that_fails_to_stop(
    late: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its tasks and sockets are gone all the same, and asyncio has no error that nobody looked at."""

    async def fails() -> None:
        try:
            await asyncio.sleep(60 if late else 0)
        finally:
            raise ConnectionResetError("while it was stopping")

    with two_partitions() as mock:
        async with no_leaks():
            broker = open_broker(mock.url)
            assert (await broker.send_message(message())).confirmed
            _, producer = parts(broker)
            monkeypatch.setattr(producer._client._sender, "close", fails)
            await broker.close(0.3)
            del producer, broker
        gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
