"""A relay in a process of its own that stands still at a given await point, for somebody to kill it there.

Real database, real RabbitMQ. Two outcomes that it would not give on demand are put in place of its receipts: of the
message "unknown" the first answer is lost, and the message "again" is refused once.
"""

from __future__ import annotations

import asyncio
from multiprocessing.connection import Connection
from typing import Any

import pika
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from cqrs_brokers import Broker, ConnectionLostError, DeliveryError, Message, Receipt, RejectedError, open_broker
from cqrs_brokers_outbox import Outbox, Relay

from .await_points import Watcher, stand_still

LEASE = 12.0


def broker_url(amqp: str, table: str) -> str:
    return f"{amqp}?exchange={table}&delivery_timeout=2s"


def declare(amqp: str, table: str, topic: str) -> None:
    """Lets the queue of a trial have a topic."""
    with pika.BlockingConnection(pika.URLParameters(amqp)) as connection:
        channel = connection.channel()
        channel.exchange_declare(table, "topic", durable=True)
        channel.queue_declare(table, durable=True)
        channel.queue_bind(table, table, topic)


class Troubled:
    """A broker whose answers for some messages are others, the first time. It keeps "slow" until it is let go.

    Attributes:
        has_slow: It has the message.
        go_on: Lets it go.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._before: set[str] = set()
        self.has_slow = asyncio.Event()
        self.go_on = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    async def send_messages(self, messages: list[Message]) -> list[Receipt | DeliveryError]:
        if any(message.message_name == "slow" for message in messages):
            self.has_slow.set()
            await self.go_on.wait()
        kept = [message for message in messages if not (message.message_name == "again" and self._first("again"))]
        outcomes: dict[Any, Any] = {
            message.message_id: outcome
            for message, outcome in zip(kept, await self._broker.send_messages(kept), strict=True)
        }
        for message in messages:
            if message not in kept:
                outcomes[message.message_id] = RejectedError("the queue is full")
            if message.message_name == "unknown" and self._first("unknown"):
                outcomes[message.message_id] = ConnectionLostError("the answer was lost")
        return [outcomes[message.message_id] for message in messages]

    async def send_message(self, message: Message) -> Receipt:
        (outcome,) = await self.send_messages([message])
        if isinstance(outcome, DeliveryError):
            raise outcome
        return outcome

    def _first(self, name: str) -> bool:
        first = name not in self._before
        self._before.add(name)
        return first


async def _until_sent(engine: AsyncEngine, table: str, condition: str) -> None:
    query = text(f"SELECT count(*) FROM {table} WHERE state NOT IN (2, 5) AND {condition}")
    while True:
        async with engine.connect() as connection:
            if (await connection.execute(query)).scalar() == 0:
                return
        await asyncio.sleep(0.02)


async def _directed(amqp: str, engine: AsyncEngine, outbox: Outbox, troubled: Troubled) -> None:
    """Lets things happen: the refused topic comes back, leases are renewed, something is in flight at the end."""
    table = outbox.tables.messages.name
    await _until_sent(engine, table, "topic <> 'lost'")
    await asyncio.to_thread(declare, amqp, table, "lost")
    await _until_sent(engine, table, "0 = 0")
    await asyncio.sleep(3.5)  # the leases are renewed
    async with engine.begin() as connection:
        await outbox.insert(connection, Message("slow", "orders", {}, key="slow"))
    await troubled.has_slow.wait()


async def _work(database: str, amqp: str, table: str) -> None:
    engine = create_async_engine(database)
    watching = create_async_engine(database)
    opened = open_broker(broker_url(amqp, table))
    troubled, outbox = Troubled(opened), Outbox(table)
    relay = Relay(engine, troubled, outbox, lease=LEASE, batch=4)  # type: ignore[arg-type]
    running = asyncio.create_task(relay.run())
    directed = asyncio.create_task(_directed(amqp, watching, outbox, troubled))
    await asyncio.wait([running, directed], return_when=asyncio.FIRST_COMPLETED)
    relay.stop()
    await asyncio.sleep(0.1)
    troubled.go_on.set()
    await running
    await directed
    await opened.close()
    await engine.dispose()
    await watching.dispose()


def run(database: str, amqp: str, table: str, point: str | None, occurrence: int, pipe: Connection) -> None:
    """Works until a point was reached so often, then stands still; without a point, to the end.

    Sends "reached", or at the end a dict with how often each point was reached.
    """
    counts: dict[str, int] = {}

    def reached(name: str) -> None:
        counts[name] = counts.get(name, 0) + 1
        if name == point and counts[name] == occurrence:
            pipe.send("reached")
            stand_still()

    watcher = Watcher(reached)
    watcher.start()
    asyncio.run(_work(database, amqp, table))
    pipe.send(counts)
