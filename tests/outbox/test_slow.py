"""A topic, or a key, that gets no answer holds up no other."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cqrs_brokers import (
    DeliveryError,
    DestinationNotFoundError,
    InvalidMessageError,
    Message,
    NotConnectedError,
)
from cqrs_brokers.driver import Delivery
from cqrs_brokers_outbox import OutboxAdmin, Relay, State
from cqrs_brokers_outbox._relay.keys import Keys

from .brokers import ScriptedBroker, opened
from .conftest import Database
from .test_observing import Notes
from .test_relay import all_in, numbered, relay, rows, store, until

pytestmark = pytest.mark.live

TIMEOUT = 120.0
"""The broker's delivery_timeout: far longer than any of these tests may take."""


class StuckBroker(ScriptedBroker):
    """Gives no answer for some messages until `release` is set."""

    def __init__(self, is_stuck: Callable[[Message], bool]) -> None:
        super().__init__()
        self._is_stuck = is_stuck
        self.release = asyncio.Event()

    async def _deliver(self, delivery: Delivery, message: Message) -> None:
        if self._is_stuck(message):
            await self.release.wait()
        await super()._deliver(delivery, message)


def sent_of(database: Database, topic: str) -> Callable[[], Any]:
    async def check() -> bool:
        return {row.state for row in await rows(database) if row.topic == topic} == {State.SENT}

    return check


@pytest.mark.parametrize("pipeline", [False, True])
async def test_a_topic_without_answers_holds_up_no_other(database: Database, pipeline: bool) -> None:
    """Rows of both topics in one claim, by the same keys: all of the healthy one are sent meanwhile, in order."""
    driver = StuckBroker(lambda message: message.topic == "lonely")
    await store(database, *[numbered(n, f"k{n % 7}", topic) for n in range(70) for topic in ("lonely", "orders")])
    async with opened(driver, TIMEOUT) as broker:
        async with Relay(database.engine(), broker, database.outbox, pipeline_keys=pipeline, close_timeout=2):
            await until(sent_of(database, "orders"))
            await store(database, *[numbered(n, f"k{n % 7}", "orders") for n in range(70, 140)])
            await until(sent_of(database, "orders"))
            assert not [row for row in await rows(database) if row.topic == "lonely" and row.state != State.READY]
            driver.release.set()
            await until(all_in(State.SENT, database))
    for topic, count in (("lonely", 70), ("orders", 140)):
        for key in range(7):
            mine = [name for name in driver.names if name.startswith(f"{topic}/k{key}/")]
            assert mine == [f"{topic}/k{key}/{n}" for n in range(key, count, 7)]


async def test_many_rows_of_a_topic_without_answers_leave_room_for_others(database: Database) -> None:
    """Ten batches of the stuck topic stand before the healthy one's rows: these are claimed and sent all the same."""
    driver = StuckBroker(lambda message: message.topic == "lonely")
    await store(database, *[numbered(n, f"k{n}", "lonely") for n in range(500)])
    await store(database, *[numbered(n, f"k{n % 20}", "orders") for n in range(300)])
    async with opened(driver, TIMEOUT) as broker:
        async with Relay(database.engine(), broker, database.outbox, batch=50, close_timeout=2) as running:
            await until(sent_of(database, "orders"))
            assert (await running.health()).in_flight < 500
            driver.release.set()
            await until(all_in(State.SENT, database))
    assert len(driver.names) == 800


async def test_a_key_without_answers_holds_up_its_topic_once_and_no_longer(postgresql_database: Database) -> None:
    """Kafka: one partition of a topic takes nothing. Rows of other keys that come later go on, each by itself."""
    database = postgresql_database
    driver = StuckBroker(lambda message: str(message.key).startswith("stuck"))
    await store(database, *[numbered(n, "stuck") for n in range(3)])
    async with opened(driver, TIMEOUT) as broker:
        async with Relay(database.engine(), broker, database.outbox):
            await asyncio.sleep(1.5)
            for n in range(3):
                await store(database, *[numbered(n, key) for key in ("a", "stuck2", "b")])
                await until(lambda n=n: {f"t/a/{n}", f"t/b/{n}"} <= set(driver.names))  # type: ignore[misc]
            driver.release.set()
            await until(all_in(State.SENT, database))
    assert [name for name in driver.names if "/stuck/" in name] == [f"t/stuck/{n}" for n in range(3)]


async def test_health_says_what_waits(database: Database) -> None:
    """Not ok where a person must help; ok, with what waits, where the relay goes on by itself."""

    def script(message: Message, times: int) -> DeliveryError | None:
        if message.topic == "gone":
            return DestinationNotFoundError("no such topic")
        return InvalidMessageError("no") if message.message_name == "t/odd/0" and times == 0 else None

    driver = StuckBroker(lambda message: message.topic == "lonely")
    driver.script = script
    async with opened(driver, TIMEOUT) as broker:
        relay = Relay(database.engine(), broker, database.outbox)
        assert (await relay.health()).reason == "the relay does not run"
        async with relay, OutboxAdmin(database.engine(), database.outbox) as admin:
            await until(lambda: _health(relay, ok=True, reason="ok"))
            assert (await relay.health()).running
            await store(database, numbered(0, "k", "lonely"))
            await until(lambda: _health(relay, ok=True, reason="topic 'lonely' has given no receipt for "))
            await store(database, numbered(0, "odd"), numbered(1, "odd"))
            await until(lambda: _health(relay, ok=False, reason="rows that are parked: 1; release or discard them"))
            health = await relay.health()
            assert health.running
            assert "topic 'lonely' has given no receipt for " in health.reason
            await admin.release()
            await store(database, numbered(0, "k", "gone"))
            await until(lambda: _health(relay, ok=False, reason="topics that the broker refuses: 'gone'; make them"))
            driver.script = lambda message, times: None
            driver.release.set()
            await until(lambda: _health(relay, ok=True, reason="ok"))
    assert (await relay.health()).running is False


async def _health(relay: Relay, *, ok: bool, reason: str) -> bool:
    health = await relay.health()
    return health.ok is ok and health.reason.startswith(reason)


async def test_health_says_how_a_relay_ended(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped: no error. Otherwise the error, without the text of the database, which may quote messages."""

    def fail(_: object) -> None:
        raise LookupError("a secret")

    async with opened(ScriptedBroker()) as broker:
        relay = Relay(database.engine(), broker, database.outbox)
        async with relay:
            await until(lambda: _health(relay, ok=True, reason="ok"))
            relay.stop()
            await until(lambda: _health(relay, ok=False, reason="the relay does not run"))
            assert (await relay.health()).reason == "the relay does not run"
        monkeypatch.setattr(Keys, "claim_begins", fail)
        await relay.__aenter__()
        await store(database, numbered(1))
        await until(lambda: _health(relay, ok=False, reason="the relay does not run; the relay ended: LookupError"))
        assert "secret" not in (await relay.health()).reason
        with pytest.raises(LookupError):
            await relay.__aexit__(None, None, None)


async def test_a_topic_whose_node_is_away_stops_no_other(postgresql_database: Database) -> None:
    """No connection for one topic, while others get receipts: the relay waits with this topic alone."""
    database = postgresql_database
    away = True

    def script(message: Message, times: int) -> DeliveryError | float | None:
        return NotConnectedError("its node is away") if away and message.topic == "lonely" else None

    class Slowly(ScriptedBroker):
        async def _deliver(self, delivery: Delivery, message: Message) -> None:
            await asyncio.sleep(0.5 if message.topic == "lonely" else 0)
            await super()._deliver(delivery, message)

    driver, notes = Slowly(script), Notes()
    async with relay(database, driver, observers=[notes]):
        for n in range(10):
            await store(database, numbered(n, "k", "orders"), numbered(n, "k", "lonely"))
            await until(lambda n=n: f"orders/k/{n}" in driver.names)  # type: ignore[misc]
            await asyncio.sleep(0.2)
        assert driver.tried["lonely/k/0"] > 1
        assert notes.of("trouble") == []
        away = False
        await until(all_in(State.SENT, database))
    assert [name for name in driver.names if "lonely" in name] == [f"lonely/k/{n}" for n in range(10)]
