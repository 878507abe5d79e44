"""Several relays, a relay that stops, one that is gone: partitions, leases, tokens. The broker is scripted."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import make_url, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from cqrs_brokers import DeliveryError, RejectedError
from cqrs_brokers_outbox import OutboxError, Relay, State
from cqrs_brokers_outbox._relay.store import Store
from cqrs_brokers_outbox.opening import check_schema
from cqrs_brokers_outbox.relay import _shielded
from cqrs_brokers_testkit.proxy import FaultProxy

from .brokers import ScriptedBroker, opened
from .conftest import Database, make_database
from .test_relay import all_in, numbered, relay, rows, store, until

pytestmark = pytest.mark.live


async def _holds(running: Relay, partitions: int) -> bool:
    return len((await running.health()).partitions) == partitions


async def _has_in_flight(running: Relay, rows: int) -> bool:
    return (await running.health()).in_flight == rows


async def test_two_relays_share_the_partitions_and_keep_the_order(database: Database) -> None:
    """Each key is in one relay's hands; on SQLite one works and the other stands by."""
    driver = ScriptedBroker(lambda message, times: 0.001)
    changes: list[Any] = []
    async with relay(database, driver, batch=20) as first:
        await until(lambda: _holds(first, 1 if database.kind == "aiosqlite" else 16))
        async with relay(database, driver, batch=20) as second:
            if database.kind != "aiosqlite":
                await until(lambda: _holds(second, 8))
                await until(lambda: _holds(first, 8))
            for start in range(0, 200, 50):
                await store(database, *[numbered(n, f"k{n % 20}") for n in range(start, start + 50)])
            await until(all_in(State.SENT, database))
            changes = [(await each.health()).sent for each in (first, second)]
    assert sum(changes) == 200
    if database.kind != "aiosqlite":
        assert min(changes) > 0
    assert driver.overlaps == 0
    assert len(driver.names) == 200
    for key in range(20):
        mine = [int(name.rpartition("/")[2]) for name in driver.names if f"/k{key}/" in name]
        assert mine == sorted(mine)


async def test_stopping_gives_the_partitions_back_at_once(database: Database) -> None:
    """The next relay need not wait for a lease; what was in flight is marked, and nothing comes twice."""
    driver = ScriptedBroker(lambda message, times: 0.3)
    await store(database, *[numbered(n, f"k{n}") for n in range(10)])
    async with relay(database, driver):
        await until(lambda: sum(driver.tried.values()) == 10)
    assert {row.state for row in await rows(database)} == {State.SENT}
    driver.script = lambda message, times: None
    async with relay(database, driver):
        await store(database, numbered(11))
        await until(lambda: len(driver.arrived) == 11, within=5)
    assert {row.attempts_unknown for row in await rows(database)} == {0}


async def test_a_cancellation_finishes_what_is_in_flight(database: Database) -> None:
    """Cancelled or stopped: what the broker has is marked, the partitions are free, and run() is cancelled."""
    driver = ScriptedBroker(lambda message, times: 0.3)
    await store(database, *[numbered(n, f"k{n}") for n in range(10)])
    async with opened(driver) as broker:
        task = asyncio.create_task(Relay(database.engine(), broker, database.outbox, lease=15.0).run())
        await until(lambda: sum(driver.tried.values()) == 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert {row.state for row in await rows(database)} == {State.SENT}
    driver.script = lambda message, times: None
    async with relay(database, driver):
        await store(database, numbered(11))
        await until(lambda: len(driver.arrived) == 11, within=5)
    assert {row.attempts_unknown for row in await rows(database)} == {0}


class Swallowing:
    """Swallows the first cancellation, as `asyncio.wait_for` of Python 3.11 may in a driver that connects."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.swallowed = 0
        self.waits = asyncio.Event()

    async def __call__(self, *arguments: Any) -> Any:
        if not self.swallowed:
            try:
                self.waits.set()
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.swallowed += 1
        return await self._call(*arguments)


async def test_a_cancellation_that_a_driver_swallows_while_the_relay_starts(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaving the block ends the relay all the same; nothing is sent any more."""
    driver = ScriptedBroker()
    await store(database, numbered(1))
    async with opened(driver) as broker:
        running = Relay(database.engine(), broker, database.outbox, lease=15.0)
        await running.__aenter__()
        swallowing = Swallowing(check_schema)
        monkeypatch.setattr("cqrs_brokers_outbox.relay.check_schema", swallowing)
        await swallowing.waits.wait()
        async with asyncio.timeout(10):
            await running.__aexit__(None, None, None)
    assert swallowing.swallowed == 1
    assert driver.names == []


async def test_a_cancellation_that_a_driver_swallows_at_a_query(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay stops, and gives its partitions back."""
    driver = ScriptedBroker()
    async with opened(driver) as broker:
        running = Relay(database.engine(), broker, database.outbox, lease=15.0)
        await running.__aenter__()
        await until(lambda: _holds(running, 1 if database.kind == "aiosqlite" else 16))
        swallowing = Swallowing(Store.rows)

        async def swallowed_rows(*arguments: Any) -> Any:
            return await swallowing(*arguments)

        monkeypatch.setattr(Store, "rows", swallowed_rows)
        await swallowing.waits.wait()
        async with asyncio.timeout(10):
            await running.__aexit__(None, None, None)
    assert swallowing.swallowed == 1
    async with relay(database, driver):
        await store(database, numbered(1))
        await until(lambda: driver.names == ["t/k/1"], within=5)


async def test_stop_before_and_while_a_relay_starts(database: Database) -> None:
    """run() returns without work; afterwards it can run."""
    driver = ScriptedBroker()
    await store(database, numbered(1))
    async with opened(driver) as broker:
        running = Relay(database.engine(), broker, database.outbox, lease=15.0)
        async with asyncio.timeout(10):
            running.stop()
            await running.run()
            task = asyncio.create_task(running.run())
            await asyncio.sleep(0)
            running.stop()
            await task
            assert driver.names == []
            task = asyncio.create_task(running.run())
            await until(all_in(State.SENT, database))
            running.stop()
            await task


async def test_a_relay_runs_once_at_a_time(database: Database) -> None:
    """Also while it starts: stop() would end one of two runs only."""
    driver = ScriptedBroker()
    async with opened(driver) as broker:
        running = Relay(database.engine(), broker, database.outbox, lease=15.0)
        first = asyncio.create_task(running.run())
        await asyncio.sleep(0)
        with pytest.raises(OutboxError, match="this relay runs already"):
            async with asyncio.timeout(5):
                await running.run()
        await store(database, numbered(1))
        await until(lambda: driver.names == ["t/k/1"])
        running.stop()
        async with asyncio.timeout(10):
            await first


async def test_a_relay_that_is_left_slowly_can_run_again(
    postgresql_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its block calls stop() once a second: the last call must not end the next run."""
    database, driver = postgresql_database, ScriptedBroker()
    close = Store.close

    async def slowly(store: Store) -> None:
        await asyncio.sleep(1.5)
        await close(store)

    async with opened(driver) as broker:
        running = Relay(database.engine(), broker, database.outbox, lease=15.0)
        async with running:
            await until(lambda: _holds(running, 16))
            monkeypatch.setattr(Store, "close", slowly)
        monkeypatch.setattr(Store, "close", close)
        async with running:
            await store(database, numbered(1))
            await until(lambda: driver.names == ["t/k/1"], within=5)


async def test_leaving_ends_although_a_driver_swallows_a_cancellation() -> None:
    """asyncio.wait_for does that in Python 3.11."""
    swallowed = 0

    async def leaving() -> None:
        nonlocal swallowed
        for _ in range(2):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(20)
            swallowed += 1
        await asyncio.sleep(20)

    async with asyncio.timeout(10):
        await _shielded(leaving(), 0.0)
    assert swallowed == 2


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "postgresql+psycopg", "mysql+asyncmy"])
@pytest.mark.parametrize("way", ["stop", "cancel", "leave"])
async def test_a_relay_stops_while_its_database_does_not_answer(scheme: str, way: str) -> None:
    """A database that takes the connection and says nothing keeps no relay that starts."""
    connections = []
    server = await asyncio.start_server(lambda *streams: connections.append(streams), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    engine = create_async_engine(f"{scheme}://me:secret@127.0.0.1:{port}/x")
    async with opened(ScriptedBroker()) as broker:
        running = Relay(engine, broker, lease=15.0)
        task = asyncio.create_task(running.__aenter__() if way == "leave" else running.run())
        await until(lambda: connections)
        async with asyncio.timeout(5):
            if way == "stop":
                running.stop()
                await task
            else:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
    for _, writer in connections:
        writer.close()
    server.close()
    await engine.dispose()


@pytest.mark.parametrize("kind", ["asyncpg", "psycopg", "asyncmy"])
async def test_a_relay_stops_after_its_database_has_stopped_to_answer(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """It waits for the database no longer than for what is in flight, and a little for each connection."""
    database = make_database(kind, request, tmp_path)
    await database.outbox.create_table(database.engine())
    driver = ScriptedBroker()
    with FaultProxy() as proxy:
        proxy.target = (urlsplit(database.url).hostname, urlsplit(database.url).port)
        engine = create_async_engine(make_url(database.url).set(host=proxy.host, port=proxy.port))
        async with opened(driver) as broker:
            running = Relay(engine, broker, database.outbox, lease=15.0, close_timeout=1.0)
            task = asyncio.create_task(running.run())
            await store(database, numbered(1))
            await until(lambda: driver.arrived)
            proxy.stall()
            await store(database, numbered(2))
            running.stop()
            async with asyncio.timeout(15):
                await task
        proxy.reset()
        await engine.dispose()
    for each in database.engines:
        await each.dispose()


async def test_a_lease_that_was_lost_fences_every_mark_but_receipts(database: Database) -> None:
    """Another relay has the partition: a failure is not written, a receipt is."""
    answers: dict[str, DeliveryError | None] = {"t/a/1": RejectedError("full"), "t/b/1": None}
    driver = ScriptedBroker(lambda message, times: answers[message.message_name])
    driver.gate.clear()
    await store(database, numbered(1, "a"), numbered(1, "b"))
    lease = database.outbox.tables.lease
    async with relay(database, driver) as running:
        await until(lambda: _has_in_flight(running, 2))
        async with database.main.begin() as connection:
            far = text("9999999999999999")
            await connection.execute(update(lease).values(owner="other", token=lease.c.token + 1, until=far))
        driver.gate.set()

        async def marked() -> bool:
            return [row.state for row in await rows(database)] == [State.READY, State.SENT]

        await until(marked)
        health = await running.health()
    assert health.fenced == 1


async def test_a_receipt_for_a_partition_that_was_lost_frees_the_rows_behind(database: Database) -> None:
    """The other relay has tried the row too, and has put the next row of the key behind it. Nobody else frees it."""
    driver = ScriptedBroker()
    driver.gate.clear()
    await store(database, numbered(1, "a"), numbered(2, "a"))
    tables = database.outbox.tables
    async with relay(database, driver) as running:
        await until(lambda: _has_in_flight(running, 2))
        first, second = [row.id for row in await rows(database)]
        async with database.main.begin() as connection:
            far = text("9999999999999999")
            lease = tables.lease
            await connection.execute(update(lease).values(owner="other", token=lease.c.token + 1, until=far))
            for number, state in ((first, State.WAITING), (second, State.BEHIND)):
                await connection.execute(
                    update(tables.messages).where(tables.messages.c.id == number).values(state=state, not_before=far)
                )
        await until(lambda: _holds(running, 0))
        driver.gate.set()

        async def marked() -> bool:
            return [row.state for row in await rows(database)] == [State.SENT, State.READY]

        await until(marked, within=5)


@pytest.mark.parametrize("database", ["asyncpg", "psycopg", "asyncmy"], indirect=True)
async def test_a_partition_that_is_given_back_during_a_claim_costs_no_other(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim meets the next owner. The relay keeps its other partitions."""
    change, waiting, go_on = Store.change, asyncio.Event(), asyncio.Event()

    async def slowly(store: Store, statement: Any) -> int:
        if "SET claimed_to = CASE" in statement[0] and not waiting.is_set():
            waiting.set()
            await go_on.wait()
        return await change(store, statement)

    monkeypatch.setattr(Store, "change", slowly)
    driver = ScriptedBroker()
    async with relay(database, driver) as first:
        await until(lambda: _holds(first, 16))
        await store(database, *[numbered(n, f"k{n}") for n in range(50)])
        await asyncio.wait_for(waiting.wait(), 10)
        async with relay(database, driver) as second:
            await until(lambda: _holds(second, 8))
            go_on.set()
            await until(all_in(State.SENT, database), within=6)
            assert await _holds(first, 8)
    assert {row.attempts_unknown for row in await rows(database)} == {0}


async def test_partitions_whose_take_over_was_not_answered_are_taken_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database has them as this relay's. It need not wait for the end of a lease that it does not use."""
    query, failures = Store.rows, 1

    async def rows_failing(store: Store, statement: Any) -> Any:
        nonlocal failures
        if "SELECT DISTINCT topics" in statement[0] and failures < 3:
            failures += 1
            if failures == 3:  # the first one is in join(); this one is after the commit of the take-over
                raise OperationalError("", None, Exception("gone"))
        return await query(store, statement)

    monkeypatch.setattr(Store, "rows", rows_failing)
    driver = ScriptedBroker()
    await store(database, numbered(1))
    async with relay(database, driver):
        await until(lambda: driver.names == ["t/k/1"], within=6)


async def test_a_relay_that_gets_work_sees_soon_that_a_lease_has_ended(postgresql_database: Database) -> None:
    """It was idle when it last looked, and its probes stop while it has work."""
    database, driver = postgresql_database, ScriptedBroker(lambda message, times: 0.05)
    lease = database.outbox.tables.lease
    async with opened(driver) as broker:
        async with Relay(database.engine(), broker, database.outbox, lease=60.0) as running:
            await until(lambda: _holds(running, 16))
            await asyncio.sleep(2.5)
            await store(database, *[numbered(n) for n in range(200)])
            await until(lambda: driver.names)
            async with database.main.begin() as connection:
                dead = update(lease).where(lease.c.number == 3)
                await connection.execute(dead.values(owner="dead", token=lease.c.token + 1, until=1))
            await asyncio.sleep(2.5)
            async with database.main.connect() as connection:
                owner = (await connection.execute(select(lease.c.owner).where(lease.c.number == 3))).scalar()
    assert owner == running.name


async def test_who_takes_over_counts_what_may_have_been_sent(database: Database) -> None:
    """Rows up to the position of a relay that vanished are counted before they are sent; later ones are not."""
    await store(database, *[numbered(n, f"k{n}") for n in range(4)])
    position = (await rows(database))[1].id
    driver = ScriptedBroker()
    async with relay(database, driver, topics=["nothing"]):
        pass
    lease = database.outbox.tables.lease
    partitions = 1 if database.kind == "aiosqlite" else 16
    async with database.main.begin() as connection:
        await connection.execute(
            lease.insert(),
            [
                {"scope": "*", "number": n, "owner": "dead", "until": 1, "token": 5, "claimed_to": position}
                for n in range(partitions)
            ],
        )
    async with relay(database, driver):
        await until(all_in(State.SENT, database))
    assert [row.attempts_unknown for row in await rows(database)] == [1, 1, 0, 0]


async def test_a_claim_while_the_relay_asks_for_its_leases(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows may be claimed after the relay has begun to ask which partitions to give back, and before it gives them
    back. It keeps their partitions until they are marked: the next relay would send them again and count nothing."""
    if database.kind == "aiosqlite":
        pytest.skip("SQLite has one partition, and the relay that has it keeps it")
    driver = ScriptedBroker(lambda message, times: None)
    driver.gate.clear()
    query, asked, go_on = Store.rows, asyncio.Event(), asyncio.Event()
    of_first: set[Store] = set()

    async def rows_slowly(store: Store, statement: Any) -> Any:
        found = await query(store, statement)
        if "claimed_to, until <" in statement[0]:  # the partitions, and the relays, which have no number
            relays = sum(row.number is None for row in found)
            if relays == 1:
                of_first.add(store)
            elif store in of_first:
                asked.set()
                await go_on.wait()
        return found

    monkeypatch.setattr(Store, "rows", rows_slowly)
    async with relay(database, driver) as first:
        await until(lambda: _holds(first, 16))
        async with relay(database, driver) as second:
            await asyncio.wait_for(asked.wait(), 10)
            await store(database, *[numbered(n, f"k{n}") for n in range(100)])
            await until(lambda: _has_in_flight(first, 100))
            go_on.set()
            await asyncio.sleep(1.5)
            assert (await second.health()).in_flight == 0
            driver.gate.set()
            await until(all_in(State.SENT, database))
            await until(lambda: _holds(second, 8))
    assert set(driver.tried.values()) == {1}
    assert {row.attempts_unknown for row in await rows(database)} == {0}
