"""An order and its event in one transaction (SQLite); the relay is killed; the event arrives all the same."""

import asyncio
import signal
import sys
import tempfile
import time

import report
from sqlalchemy import Column, Integer, MetaData, Table, insert, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from cqrs_broker_memory import published
from cqrs_brokers import Message, open_broker
from cqrs_brokers_outbox import Outbox, Relay

LEASE = 10.5  # so long keeps a relay its rows when it is killed: its sends take 500 ms, and 10 s
NOBODY = "amqp://guest:guest@127.0.0.1:9/?delivery_timeout=500ms"

metadata = MetaData()
orders = Table("orders", metadata, Column("id", Integer, primary_key=True))
outbox = Outbox(metadata=metadata)


def run() -> str:
    """Places an order and one that fails, kills a relay, and lets another one end the work.

    Returns:
        What to say in the summary.

    Raises:
        AssertionError: Another event arrived than that of the order that was placed.
    """
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_run(f"sqlite+aiosqlite:///{folder}/shop.db"))


async def _run(database: str) -> str:
    engine = create_async_engine(database)
    await outbox.create_table(engine)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    async with AsyncSession(engine) as session:
        for number in (1, 2):
            await session.execute(insert(orders).values(id=number))
            outbox.add(session, Message("OrderPlaced", "orders", {"id": number}, key=f"order-{number}"))
            await (session.commit() if number == 1 else session.rollback())
    report.said("order 1 and its event are committed; order 2 and its event are rolled back")
    await _kill_a_relay(engine, database)
    started = time.monotonic()
    async with open_broker("memory://outbox?delivery_timeout=500ms") as broker:
        async with Relay(engine, broker, outbox, lease=LEASE):
            async with asyncio.timeout(3 * LEASE):
                while not published("outbox"):  # noqa: ASYNC110 - the memory broker has no event to wait for
                    await asyncio.sleep(0.1)
    await engine.dispose()
    report.said(f"another relay took over after {time.monotonic() - started:.1f} s and sent it")
    arrived = [(record.name, record.key) for record in published("outbox")]
    assert arrived == [("OrderPlaced", "order-1")], f"expected the event of order 1, found {arrived}"
    return "the event of a committed order arrived although its relay was killed; that of a rolled-back one did not"


async def _kill_a_relay(engine: AsyncEngine, database: str) -> None:
    command = [sys.executable, "-m", "cqrs_brokers_outbox", "relay", "--database", database, "--broker", NOBODY]
    relay = await asyncio.create_subprocess_exec(
        *command, "--lease", str(LEASE), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(30), engine.connect() as connection:
            claimed = text("SELECT count(*) FROM outbox_lease WHERE claimed_to > 0")
            while not (await connection.execute(claimed)).scalar():
                await connection.rollback()
                await asyncio.sleep(0.05)
    finally:
        relay.send_signal(signal.SIGKILL)
        await relay.wait()
    report.said("a relay claimed the event, for a broker that nobody runs, and was killed with SIGKILL")
