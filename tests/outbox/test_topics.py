"""Relays of some topics: several scopes in one table, and claims that do not look at other relays' rows."""

import asyncio
import json
from typing import Any

import pytest
from sqlalchemy import text

from cqrs_brokers import ConnectionLostError, DeliveryError, DestinationNotFoundError, Message
from cqrs_brokers_outbox import OutboxAdmin, OutboxError, Relay, State
from cqrs_brokers_outbox._relay.leases import Leases
from cqrs_brokers_outbox._relay.store import Store
from cqrs_brokers_outbox.opening import make_statements

from .brokers import ScriptedBroker, opened
from .conftest import Database
from .test_relay import all_in, numbered, relay, rows, store, until

pytestmark = pytest.mark.live


def mine(driver: ScriptedBroker, topic: str, key: str) -> list[str]:
    return [name for name in driver.names if name.startswith(f"{topic}/{key}/")]


async def test_relays_for_two_brokers(postgresql_database: Database) -> None:
    """topics= gives each relay its own; relays whose topics overlap are refused."""
    database = postgresql_database
    await store(database, *[numbered(n, topic=topic) for n in range(5) for topic in ("left", "right")])
    left, right = ScriptedBroker(), ScriptedBroker()
    async with relay(database, left, topics=["left"]), relay(database, right, topics=["right"]):
        await until(all_in(State.SENT, database))
        async with opened(ScriptedBroker()) as broker:
            with pytest.raises(OutboxError, match="another relay is at work"):
                await Relay(database.engine(), broker, database.outbox, lease=15.0).run()
    assert left.names == [f"left/k/{n}" for n in range(5)]
    assert right.names == [f"right/k/{n}" for n in range(5)]


async def test_relays_with_overlapping_topics_that_begin_at_the_same_time(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """At least one of them ends, with a word in the log, and no message is sent by both."""
    driver = ScriptedBroker()
    async with opened(driver) as broker:
        relays = [Relay(database.engine(), broker, database.outbox, lease=15.0, topics=["b", t]) for t in "ac"]
        for each in relays:
            await each.__aenter__()

        async def refused() -> bool:
            return not all([(await each.health()).running for each in relays])

        await until(refused)
        await store(database, *[numbered(n, f"k{n}", "b") for n in range(20)])
        await asyncio.sleep(1)
        errors = [error for each in relays if (error := await _left(each)) is not None]
    assert errors
    assert all("another relay is at work on 'b'" in str(error) for error in errors)
    assert len(set(driver.names)) == len(driver.names)
    assert "outbox relay: it has ended, and sends nothing any more: another relay is at work" in caplog.text


async def test_a_relay_that_stood_still_while_another_began_with_its_topics(postgresql_database: Database) -> None:
    """Its leases had ended, so the other one was let in. It may not renew them."""
    database = postgresql_database
    stores = [Store(database.main, make_statements(database.main, database.outbox.tables)) for _ in range(2)]

    def leases(owner: str, topics: list[str] | None, lease: float) -> Leases:
        return Leases(stores[topics is None], owner=owner, topics=topics, lease=lease, partitions=2, broker="")

    still, other = leases("still", None, 0.3), leases("other", ["t"], 60.0)
    await still.join()
    await still.step(set)
    assert still.tokens
    await asyncio.sleep(0.5)
    await other.join()
    await other.step(set)
    with pytest.raises(OutboxError, match="another relay is at work"):
        await still.step(set)
    assert still.left() < 0
    await other.leave(set)
    for each in stores:
        await each.close()


async def _left(running: Relay) -> Exception | None:
    try:
        await running.__aexit__(None, None, None)
    except OutboxError as error:
        return error
    return None


async def test_several_scopes_share_a_table(database: Database) -> None:
    """Each relay has leases of its own and sends its topics alone, in order, two topics in one relay too."""
    places = [(topic, key) for topic in ("a", "b", "c") for key in ("k", "l")]
    await store(database, *[numbered(n, key, topic) for n in range(40) for topic, key in places])
    both, single = ScriptedBroker(), ScriptedBroker()
    async with relay(database, both, topics=["a", "b"], batch=7), relay(database, single, topics=["c"], batch=7):
        await until(all_in(State.SENT, database))
        async with OutboxAdmin(database.main, database.outbox) as admin:
            leases = (await admin.status()).leases
    assert len({lease.scope for lease in leases}) == 2
    assert all(lease.owner for lease in leases)
    for topic, key in places:
        driver, other = (single, both) if topic == "c" else (both, single)
        assert mine(driver, topic, key) == [f"{topic}/{key}/{n}" for n in range(40)]
        assert mine(other, topic, key) == []


async def test_a_topic_that_is_named_twice_is_one(database: Database) -> None:
    """Each message is sent once, and the relay has the scope of those that name the topic once."""
    await store(database, *[numbered(n) for n in range(3)])
    driver, other = ScriptedBroker(), ScriptedBroker()
    async with relay(database, driver, topics=["t", "t"]), relay(database, other, topics=["t"]):
        await until(all_in(State.SENT, database))
        await asyncio.sleep(0.3)
    assert driver.names + other.names == [f"t/k/{n}" for n in range(3)]


async def test_scopes_do_not_touch_each_other_s_failures(database: Database) -> None:
    """A refused topic and an unknown outcome in one scope; a parked row's release in it wakes nobody else's."""
    gone = True

    def refuse(message: Message, times: int) -> DeliveryError | None:
        return DestinationNotFoundError("no such topic") if gone else None

    def lose(message: Message, times: int) -> DeliveryError | None:
        return ConnectionLostError("reset") if message.message_name == "right/k/0" and times == 0 else None

    await store(database, *[numbered(n, topic=topic) for n in range(5) for topic in ("left", "right")])
    left, right = ScriptedBroker(refuse), ScriptedBroker(lose)
    async with relay(database, left, topics=["left"]), relay(database, right, topics=["right"]):

        async def settled() -> bool:
            states = {topic: {row.state for row in await rows(database) if row.topic == topic} for topic in topics}
            return states == {"left": {State.REFUSED, State.BEHIND}, "right": {State.SENT}}

        topics = ("left", "right")
        await until(settled)
        gone = False
        await until(all_in(State.SENT, database))
    assert left.names == [f"left/k/{n}" for n in range(5)]
    assert right.names == [f"right/k/{n}" for n in range(5)]
    unknown = {row.message_name: row.attempts_unknown for row in await rows(database) if row.attempts_unknown}
    assert unknown == {"right/k/0": 1}


async def test_a_scope_s_partitions_change_alone(postgresql_database: Database) -> None:
    """`partitions` with topics changes the relays of these topics; the others keep theirs."""
    database = postgresql_database
    async with relay(database, ScriptedBroker(), topics=["a"]), relay(database, ScriptedBroker(), topics=["b"]):
        async with OutboxAdmin(database.engine(), database.outbox) as admin:
            await until(lambda: _counts(admin, 16, 16))
            await admin.partitions(3, topics=["a"], timeout=30)
            await until(lambda: _counts(admin, 3, 16))


async def _counts(admin: OutboxAdmin, *expected: int) -> bool:
    scopes: dict[str, int] = {}
    for lease in (await admin.status()).leases:
        scopes[lease.scope] = scopes.get(lease.scope, 0) + 1
    return sorted(scopes.values()) == sorted(expected)


FOREIGN = 20_000
NUMBERS = {
    "postgresql": "generate_series(1, {0}) n",
    "mysql": "(SELECT seq AS n FROM seq_1_to_{0}) n",
    "sqlite": "(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {0}) SELECT n FROM s) n",
}


@pytest.mark.parametrize("topics", [["mine"], ["mine", "also"]])
async def test_a_claim_of_topics_does_not_look_at_other_relays_rows(database: Database, topics: list[str]) -> None:
    """20 000 rows of a topic whose relay is away stand before ours: the database reads ours by an index."""
    statements = make_statements(database.main, database.outbox.tables, topics=topics)
    table = database.outbox.tables.messages.name
    columns = (
        "place, hash, state, topic, message_name, message_id, body, made_at, created_at, attempts, attempts_unknown"
    )
    numbers = NUMBERS[statements.dialect].format(FOREIGN)
    async with database.main.begin() as connection:
        await connection.execute(
            text(
                f"INSERT INTO {table} ({columns}) SELECT 0, n, 0, 'foreign', 'n', 'id', 'b', 1, 1, 0, 0 FROM {numbers}"
            )
        )
    await store(database, *[numbered(n, f"k{n}", topic) for n in range(300) for topic in topics])
    opened = Store(database.main, statements)
    try:
        await opened.change((f"ANALYZE {'TABLE ' if statements.dialect == 'mysql' else ''}{table}", {}))
        claim, parameters = statements.claim(range(16), 16, busy=[1, 2], crowded=[], limit=100)
        claimed = await opened.rows((claim, parameters))
        assert [row.topic for row in claimed] == (topics * 100)[:100]
        assert [row.id for row in claimed] == sorted(row.id for row in claimed)
        plan = await opened.rows((EXPLAIN[statements.dialect] + claim, parameters))
        assert looked_at(statements.dialect, table, plan) < 1_000
    finally:
        await opened.close()


EXPLAIN = {
    "postgresql": "EXPLAIN (ANALYZE, FORMAT JSON) ",
    "mysql": "ANALYZE FORMAT=JSON ",
    "sqlite": "EXPLAIN QUERY PLAN ",
}


def looked_at(dialect: str, table: str, plan: Any) -> float:
    """How many rows the database read for the claim. SQLite does not count: it must use the index."""
    if dialect == "sqlite":
        reads = [row.detail for row in plan if " o" in row.detail and ("SCAN" in row.detail or "SEARCH" in row.detail)]
        assert reads
        assert len(reads) == sum(f"ix_{table}_topic (state=? AND topic=?)" in read for read in reads), reads
        return 0
    tree = plan[0][0]
    tree = json.loads(tree) if isinstance(tree, str) else tree
    total = 0.0

    def visit(node: Any) -> None:
        nonlocal total
        if isinstance(node, dict):
            loops = node.get("Actual Loops", node.get("r_loops", 1)) or 0
            found = node.get("Actual Rows", node.get("r_rows", 0)) or 0
            if dialect != "postgresql" or "Relation Name" in node:  # the other nodes pass on what these read
                total += loops * (found + (node.get("Rows Removed by Filter") or 0))
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            visit(child)

    visit(tree)
    assert total > 0
    return total
