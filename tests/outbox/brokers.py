"""A broker that does what a real one does not do on demand: it refuses, forgets to answer, takes its time."""

import asyncio
from collections.abc import Callable, Sequence

from cqrs_brokers import Broker, Capabilities, DeliveryError, Message, MessageBroker
from cqrs_brokers.driver import Delivery, PipelinedDriver

Script = Callable[[Message, int], DeliveryError | float | None]
"""Told the message and how often it came before: an error, seconds to wait, or None for a receipt."""


class ScriptedBroker(PipelinedDriver):
    """Keeps what arrived, in order. It takes as many messages at a time as it is given, of one key too.

    An error with a true attribute `arrived` is told after the message was kept: the answer was lost.
    """

    capabilities = Capabilities(confirms=True, ordering_key=True, headers=True)  # type: ignore[assignment]

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or (lambda message, times: None)
        self.arrived: list[Message] = []
        self.tried: dict[str, int] = {}
        self.in_flight: set[tuple[str, str | None]] = set()
        self.overlaps = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        for delivery in deliveries:
            if delivery.handed_over():
                task = asyncio.create_task(self._deliver(delivery, delivery.message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _deliver(self, delivery: Delivery, message: Message) -> None:
        name = message.message_name
        times = self.tried.get(name, 0)
        self.tried[name] = times + 1
        place = (message.topic, message.key)
        if message.key is not None and place in self.in_flight:
            self.overlaps += 1
        self.in_flight.add(place)
        await self.gate.wait()
        answer = self.script(message, times)
        await asyncio.sleep(answer if isinstance(answer, float) else 0)
        self.in_flight.discard(place)
        if isinstance(answer, DeliveryError):
            if getattr(answer, "arrived", False):
                self.arrived.append(message)
            delivery.fail(answer)
        else:
            self.arrived.append(message)
            delivery.confirm(partition=3, offset=len(self.arrived))

    @property
    def names(self) -> list[str]:
        return [message.message_name for message in self.arrived]


def lost(error: DeliveryError) -> DeliveryError:
    """The error of a message that arrived all the same."""
    error.arrived = True  # type: ignore[attr-defined]
    return error


def opened(driver: MessageBroker, delivery_timeout: float = 3.0) -> Broker:
    return Broker(driver, name="scripted", delivery_timeout=delivery_timeout)
