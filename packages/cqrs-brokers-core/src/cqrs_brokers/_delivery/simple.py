"""Wraps a driver that has only `send_message`, so that `Broker` can treat every driver as a pipelined driver.

The sends run in tasks of this module. If the driver has the capability `ordering_key`, at most one send runs at a time
for the same topic and key. Messages without a key do not wait for each other.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Sequence
from typing import Any

from cqrs_brokers.driver import Driver, Link, PipelinedDriver
from cqrs_brokers.exceptions import DeliveryError, DeliveryUnknownError
from cqrs_brokers.protocol import Capabilities, Message, MessageBroker, Receipt, snapshot
from cqrs_brokers.tasks import Tasks

from .delivery import Sending

__all__ = ["SimpleSender"]


class SimpleSender(PipelinedDriver):
    """A pipelined driver that calls the wrapped driver's `send_message` once for each message."""

    def __init__(self, broker: MessageBroker) -> None:
        self._broker = broker
        self._driver = broker if isinstance(broker, Driver) else _Undeclared()
        self._tasks = Tasks()
        self._per_key: dict[tuple[str, str], collections.deque[tuple[Sending, Message]]] = {}
        self.passes_through = not isinstance(broker, Driver)
        """Whether the wrapped driver is a plain `MessageBroker`. Such a driver gets the message of the delivery itself,
        not a copy."""
        said = getattr(broker, "capabilities", None)
        self.declared: Capabilities | None = said if isinstance(said, Capabilities) else None
        """The capabilities that the wrapped driver declares. None: the wrapped driver is a plain `MessageBroker` that
        declares no capabilities."""
        self._ordered = self.capabilities.ordering_key

    @property
    def capabilities(self) -> Capabilities:
        return self._driver.capabilities if self.declared is None else self.declared

    def bind(self, link: Link) -> None:
        self._driver.bind(link)

    def refuse_topic(self, topic: str) -> str | None:
        return self._driver.refuse_topic(topic)

    async def connect(self) -> None:
        await self._driver.connect()

    async def ping(self) -> None:
        await self._driver.ping()

    def submit(self, deliveries: Sequence[Any], /) -> None:
        for delivery in deliveries:
            message = delivery.message
            if not self.passes_through:
                message = snapshot(message)
            if not self._ordered or message.key is None:
                self._tasks.spawn(self._send(delivery, message))
                continue
            order = (message.topic, message.key)
            behind = self._per_key.get(order)
            if behind is not None:
                behind.append((delivery, message))
            else:
                self._per_key[order] = collections.deque(((delivery, message),))
                self._tasks.spawn(self._send_in_turn(order))

    async def _send_in_turn(self, order: tuple[str, str]) -> None:
        per_key = self._per_key  # the task may end after `abort`, when there are other queues
        queue = per_key[order]
        try:
            while queue:
                await self._send(*queue.popleft())
        finally:
            del per_key[order]

    async def _send(self, delivery: Sending, message: Message) -> None:
        if not delivery.handed_over():
            return
        task = asyncio.current_task()
        assert task is not None
        try:
            result = await self._broker.send_message(message)
            if result is not None and not isinstance(result, Receipt):
                raise TypeError(f"send_message() returned a {type(result).__name__}, not a Receipt or None")
        except DeliveryError as classified:
            delivery.fail(classified)
        except (asyncio.CancelledError, Exception) as raised:
            cancelled = isinstance(raised, asyncio.CancelledError)
            what = "the driver raised an unclassified " + type(raised).__name__
            error = DeliveryUnknownError("the send was cancelled inside the driver" if cancelled else what)
            error.__cause__ = raised
            delivery.fail(error)
            if cancelled and task.cancelling():
                raise
        else:
            delivery.accept(result)

    async def close(self, grace: float) -> None:
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=grace)
            await self._tasks.end(0.4)
        await self._driver.close(grace)

    def abort(self) -> None:
        self._tasks.abort()
        self._per_key = {}
        self._driver.abort()


class _Undeclared(Driver):
    """Has the methods of `Driver` that a plain `MessageBroker` lacks, for example `connect` and `close`."""

    async def send_message(self, message: object) -> None:
        raise AssertionError("a plain MessageBroker is called directly")
