"""Runs a broker that has only `send_message`, so that `Broker` can treat every driver as a pipelined one.

Each send is a task of ours. With the capability `ordering_key` at most one runs at a time per topic and key; messages
without a key are not serialised.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Sequence

from cqrs_brokers.driver import Driver, Link, PipelinedDriver
from cqrs_brokers.exceptions import DeliveryError, DeliveryUnknownError
from cqrs_brokers.protocol import Capabilities, Message, MessageBroker, Receipt, snapshot
from cqrs_brokers.tasks import Tasks

from .delivery import RELEASED, Delivery

__all__ = ["SimpleSender"]


class SimpleSender(PipelinedDriver):
    """A pipelined driver over one `send_message`."""

    def __init__(self, broker: MessageBroker) -> None:
        self._broker = broker
        self._driver = broker if isinstance(broker, Driver) else _Undeclared()
        self._tasks = Tasks()
        self._lanes: dict[tuple[str, str], collections.deque[tuple[Delivery, Message]]] = {}
        self.declares = isinstance(broker, Driver)
        """Whether it is a `Driver`; a plain `MessageBroker` is given the caller's own object."""
        said = getattr(broker, "capabilities", None)
        self.declared: Capabilities | None = said if isinstance(said, Capabilities) else None
        """What it says it can do; a plain `MessageBroker` need not say anything."""
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

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        for delivery in deliveries:
            message = delivery.message
            if self.declares:  # a plain MessageBroker is given the message as it is
                message = snapshot(message)
            if not self._ordered or message.key is None:
                self._tasks.spawn(self._send(delivery, message))
                continue
            lane = (message.topic, message.key)
            behind = self._lanes.get(lane)
            if behind is not None:
                behind.append((delivery, message))
            else:
                self._lanes[lane] = collections.deque(((delivery, message),))
                self._tasks.spawn(self._send_in_turn(lane))

    async def _send_in_turn(self, lane: tuple[str, str]) -> None:
        queue = self._lanes[lane]
        try:
            while queue:
                await self._send(*queue.popleft())
        finally:
            del self._lanes[lane]

    async def _send(self, delivery: Delivery, message: Message) -> None:
        if not delivery.handed_over():
            return
        task = asyncio.current_task()
        assert task is not None
        error: DeliveryError
        try:
            result = await self._broker.send_message(message)
            if result is not None and not isinstance(result, Receipt):
                raise TypeError(f"send_message() returned a {type(result).__name__}, not a Receipt or None")
        except DeliveryError as classified:
            self._fail(delivery, classified)
        except asyncio.CancelledError as cancelled:
            error = DeliveryUnknownError("the send was cancelled inside the driver")
            error.__cause__ = cancelled
            self._fail(delivery, error)
            if task.cancelling():
                raise
        except Exception as unclassified:
            error = DeliveryUnknownError(f"the driver raised an unclassified {type(unclassified).__name__}")
            error.__cause__ = unclassified
            self._fail(delivery, error)
        else:
            if delivery._state < RELEASED:
                delivery.accept(result)

    @staticmethod
    def _fail(delivery: Delivery, error: DeliveryError) -> None:
        if delivery._state < RELEASED:  # `Broker` was closed meanwhile and has ended it: no fault of the driver
            delivery.fail(error)

    async def close(self, grace: float) -> None:
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=grace)
            await self._tasks.end(0.4)
        await self._driver.close(grace)

    def abort(self) -> None:
        self._tasks.abort()
        self._lanes.clear()
        self._driver.abort()


class _Undeclared(Driver):
    """Stands for the lifecycle of a plain `MessageBroker`, which has none."""

    async def send_message(self, message: object) -> None:
        raise AssertionError("a plain MessageBroker is called directly")
