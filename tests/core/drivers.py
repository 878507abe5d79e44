"""Drivers for the tests of core: each does exactly what the test tells it."""

import asyncio
from collections.abc import Sequence

from cqrs_brokers.driver import Capabilities, Delivery, Driver, Link, PipelinedDriver
from cqrs_brokers.exceptions import ConnectError
from cqrs_brokers.protocol import Message, Receipt

ALL = Capabilities(confirms=True, ordering_key=True, headers=True, durable=True)


class Scripted(PipelinedDriver):
    """Keeps what it is given; the test hands over, confirms and fails."""

    def __init__(self, *, automatic: bool = False, capabilities: Capabilities = ALL) -> None:
        self._capabilities = capabilities
        self.automatic = automatic
        self.held: list[Delivery] = []
        self.batches: list[int] = []
        self.seen: list[Message] = []
        self.connects = 0
        self.connect_errors: list[Exception] = []
        self.connect_delay = 0.0
        self.closed: list[float] = []
        self.aborted = 0
        self.link: Link

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def bind(self, link: Link) -> None:
        self.link = link

    async def connect(self) -> None:
        self.connects += 1
        await asyncio.sleep(self.connect_delay)
        if self.connect_errors:
            error = self.connect_errors.pop(0)
            raise error

    async def ping(self) -> None:
        if self.connect_errors:
            raise self.connect_errors.pop(0)

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        self.batches.append(len(deliveries))
        self.seen += [delivery.message for delivery in deliveries]
        self.held += deliveries
        if self.automatic:
            asyncio.get_running_loop().call_soon(self.confirm_all)

    def hand_over_all(self) -> list[bool]:
        return [delivery.handed_over() for delivery in self.held]

    def confirm_all(self) -> None:
        held, self.held = self.held, []
        for delivery in held:
            if delivery.handed_over():
                delivery.confirm()

    async def close(self, grace: float) -> None:
        self.closed.append(grace)

    def abort(self) -> None:
        self.aborted += 1


class Simple(Driver):
    """A simple driver whose sends the test ends one by one."""

    def __init__(self, capabilities: Capabilities = ALL) -> None:
        self._capabilities = capabilities
        self.started: list[Message] = []
        self.gates: dict[str, asyncio.Future[Receipt | None]] = {}

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    async def send_message(self, message: Message) -> Receipt | None:
        self.started.append(message)
        gate = self.gates.get(message.message_name)
        if gate is None:
            gate = self.gates[message.message_name] = asyncio.get_running_loop().create_future()
        return await gate


def message(topic: str = "orders", key: str | None = None, name: str = "OrderPlaced") -> Message:
    return Message(name, topic, b"{}", key=key)


async def settle(turns: int = 10) -> None:
    """Lets the event loop run what is ready."""
    for _ in range(turns):
        await asyncio.sleep(0)


def unreachable(text: str = "refused") -> ConnectError:
    from cqrs_brokers.exceptions import UnreachableError

    return UnreachableError(text)
