"""Several brokers, and several relays, in one process and one meter provider."""

import asyncio
import gc
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from cqrs_brokers import Broker, MessageTooLargeError, UnroutableError, open_broker
from cqrs_brokers_opentelemetry.outbox import OutboxObserver
from cqrs_brokers_outbox import Outbox, Relay
from cqrs_brokers_outbox.status import Lag
from tests.core.drivers import Scripted, message, settle

from .recording import Recording

SENT, STATE = "messaging.client.sent.messages", "cqrs_brokers.connection.state"
TOPIC = "messaging.destination.name"


def _states(recording: Recording) -> dict[str, int]:
    points = recording.metrics().get(STATE, [])
    return {attributes["state"]: value for attributes, value in points if value}


async def test_brokers_of_one_server_are_added_up() -> None:
    """Every broker counts; a closed one leaves the gauges, and what it has sent stays."""
    recording = Recording()
    first = Broker(Scripted(automatic=True), observers=[recording.observer()])
    second_driver = Scripted()
    async with first:
        async with Broker(second_driver, observers=[recording.observer()]) as second:
            await first.send_messages([message(topic="orders") for _ in range(10)])
            sendings = [asyncio.create_task(second.send_message(message(topic="orders"))) for _ in range(3)]
            await settle()
            found = recording.metrics()
            assert [value for _, value in found[SENT]] == [10]
            assert [value for _, value in found["cqrs_brokers.messages.in_flight"]] == [3]
            ((attributes, _),) = found["cqrs_brokers.messages.oldest"]
            assert attributes[TOPIC] == "orders"
            assert _states(recording) == {"connected": 2}
            second_driver.automatic = True
            second_driver.confirm_all()
            await asyncio.gather(*sendings)
        assert _states(recording) == {"connected": 1}
        await first.send_messages([message(topic="orders") for _ in range(5)])
        assert [value for _, value in recording.metrics()[SENT]] == [18]
    assert _states(recording) == {}
    assert [value for _, value in recording.metrics()[SENT]] == [18]


async def test_brokers_of_two_servers_are_told_apart() -> None:
    """Their attributes differ, so each has its own values."""
    recording = Recording()
    async with (
        open_broker("memory://a", observers=[recording.observer()]) as first,
        open_broker("devnull://", observers=[recording.observer()]) as second,
    ):
        await first.send_message(message(topic="orders"))
        await second.send_messages([message(topic="orders"), message(topic="orders")])
        found = recording.metrics()
    sent = {attributes["messaging.system"]: value for attributes, value in found[SENT]}
    assert sent == {"memory": 1, "devnull": 2}
    connected = {attributes["messaging.system"]: value for attributes, value in found[STATE] if value}
    assert connected == {"memory": 1, "devnull": 1}


async def test_one_broker_after_the_other() -> None:
    """The next broker of a process has metrics, although the first one is gone."""
    recording = Recording()
    for count in (7, 14):
        async with open_broker("memory://x", observers=[recording.observer()]) as broker:
            await broker.send_messages([message(topic="orders") for _ in range(7)])
            assert [value for _, value in recording.metrics()[SENT]] == [count]
            assert _states(recording) == {"connected": 1}
        del broker
        gc.collect()


def test_an_observer_from_before_the_provider_was_set() -> None:
    """The global provider may be set between two brokers: both have metrics, once."""
    program = """
import asyncio
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from cqrs_brokers import Message, open_broker
from cqrs_brokers_opentelemetry import OpenTelemetryObserver

async def main():
    first = open_broker("memory://x", observers=[OpenTelemetryObserver()])
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    metrics.set_meter_provider(provider)
    second = open_broker("memory://x", observers=[OpenTelemetryObserver()])
    third = open_broker("memory://x", observers=[OpenTelemetryObserver(meter_provider=provider)])
    async with first, second, third:
        for broker in (first, second, third):
            await broker.send_message(Message("n", "orders", {}))
        (scope,) = reader.get_metrics_data().resource_metrics[0].scope_metrics
        (sent,) = [m for m in scope.metrics if m.name == "messaging.client.sent.messages"]
        print([point.value for point in sent.data.data_points])

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[3]\n", "")


async def test_since_when_a_destination_fails() -> None:
    """From the call of the first message that failed, until one is confirmed; other destinations have no value."""
    recording, driver = Recording(), Scripted()

    def failing() -> dict[str, float]:
        points = recording.metrics().get("cqrs_brokers.messages.failing", [])
        return {attributes[TOPIC]: value for attributes, value in points}

    async with Broker(driver, observers=[recording.observer()]) as broker:
        for attempt in range(2):
            sendings = [asyncio.create_task(broker.send_message(message(topic=t))) for t in ("a", "b", "c")]
            await asyncio.sleep(0.05)
            driver.hand_over_all()
            for held, error in zip(
                driver.held, (UnroutableError("no queue"), None, MessageTooLargeError("10")), strict=True
            ):
                held.confirm() if error is None else held.fail(error)
            driver.held.clear()
            await asyncio.gather(*sendings, return_exceptions=True)
            assert list(failing()) == ["a"]
            assert failing()["a"] >= 0.05 * (attempt + 1)
        sending = asyncio.create_task(broker.send_message(message(topic="a")))
        await settle()
        assert list(failing()) == ["a"]
        driver.confirm_all()
        await sending
        assert failing() == {}


def test_relays_of_one_process_are_added_up() -> None:
    """Partitions are added; what all relays of an outbox tell counts once; a relay that ended, or is gone, leaves."""
    recording = Recording()
    first, second = (OutboxObserver(meter_provider=recording.meters) for _ in range(2))
    first.leases_changed([1, 2, 3])
    second.leases_changed([4])
    first.lag([Lag("orders", 1, 5, 90.0), Lag("stock", 2, 1, 3.0)])
    second.lag([Lag("orders", 1, 4, 91.0), Lag("orders", 4, 2, 8.0)])
    first.sent(1, message(topic="orders"), UnroutableError("no queue"))
    second.sent(2, message(topic="orders"), UnroutableError("no queue"))
    found = recording.metrics()
    assert found["cqrs_brokers.outbox.partitions"] == [({}, 4)]
    assert found["cqrs_brokers.outbox.lag"] == [({TOPIC: "orders"}, 91.0), ({TOPIC: "stock"}, 3.0)]
    assert found["cqrs_brokers.outbox.unsent"] == [({TOPIC: "orders"}, 7), ({TOPIC: "stock"}, 1)]
    assert [value for _, value in found["cqrs_brokers.outbox.sent"]] == [2]
    first.ended()
    assert recording.metrics()["cqrs_brokers.outbox.partitions"] == [({}, 1)]
    assert recording.metrics()["cqrs_brokers.outbox.lag"] == [({TOPIC: "orders"}, 91.0)]
    del second
    gc.collect()
    assert recording.metrics()["cqrs_brokers.outbox.partitions"] == [({}, 0)]


@pytest.mark.timeout(60)
async def test_a_relay_that_ended_has_no_partitions(tmp_path: Path) -> None:
    """Two relays of an outbox, of one topic each; the second ends."""
    recording, outbox = Recording(), Outbox()
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/outbox.db")
    await outbox.create_table(engine)
    async with AsyncSession(engine) as session, session.begin():
        for topic in ("orders", "bills"):
            outbox.add(session, message(topic=topic))

    def value(name: str) -> int:
        return sum(value for _, value in recording.metrics().get(f"cqrs_brokers.outbox.{name}", []))

    def relay(broker: Broker, topic: str) -> Relay:
        observer = OutboxObserver(meter_provider=recording.meters)
        return Relay(engine, broker, outbox, topics=[topic], observers=[observer])

    try:
        async with open_broker("memory://x?delivery_timeout=5s") as broker:
            async with relay(broker, "orders") as first:
                while value("sent") < 1:
                    await asyncio.sleep(0.05)
                alone = value("partitions")
                async with relay(broker, "bills") as second:
                    while value("sent") < 2:
                        await asyncio.sleep(0.05)
                    assert value("partitions") == 2 * alone > 0
                assert second is not None
                assert value("partitions") == alone
            assert first is not None
            assert value("partitions") == 0
    finally:
        await engine.dispose()
