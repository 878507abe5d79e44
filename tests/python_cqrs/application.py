"""A python-cqrs application, as small as the tests allow: one command whose handler emits the events it is told to."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import cqrs
import di
from cqrs.bootstrap import requests
from cqrs.message_brokers import MessageBroker
from pydantic import BaseModel

import cqrs_brokers
from cqrs_brokers.driver import Capabilities, Driver
from cqrs_brokers.protocol import Message
from cqrs_brokers_python_cqrs import ECSTEvent, NotificationEvent


class Order(BaseModel):
    order_id: str
    total: int = 0


class OrderPlaced(ECSTEvent[Order]):
    """The bridge's, with an ordering key from its payload."""

    topic: str = "orders"

    def ordering_key(self) -> str | None:
        return self.payload.order_id


class OrderSeen(NotificationEvent[dict[str, Any]]):
    """The bridge's, with the name that it is given."""

    topic: str = "orders"
    event_name: str = "order.seen"


class CoreOrderPlaced(cqrs_brokers.ECSTEvent[Order]):
    """Core's own class: python-cqrs knows it only because the bridge registered it."""

    topic: str = "orders"

    def ordering_key(self) -> str | None:
        return self.payload.order_id


class OwnOrderPlaced(cqrs.NotificationEvent[dict[str, Any]]):
    """python-cqrs' own."""

    event_name: str = "own.order_placed"
    topic: str = "orders"


def key_of(message: cqrs.message_brokers.Message) -> str | None:
    """The ordering key of python-cqrs' own events."""
    key = message.payload["payload"].get("order_id")
    return key if isinstance(key, str) else None


class Recorder(Driver):
    """Keeps what it is given. Each send first awaits `before`, which may raise."""

    capabilities = Capabilities(confirms=True, ordering_key=True, headers=True)

    def __init__(
        self,
        before: Callable[[Message], Awaitable[None]] | None = None,
        capabilities: Capabilities = capabilities,
    ) -> None:
        self.capabilities = capabilities  # type: ignore[misc] # a property in the base
        self.sent: list[Message] = []
        self.connects = 0
        self._before = before

    async def connect(self) -> None:
        self.connects += 1

    async def send_message(self, message: Message) -> None:
        if self._before is not None:
            await self._before(message)
        self.sent.append(message)


class Emit(cqrs.Request[None]):
    """Emits these events."""

    events: list[Any]


class EmitHandler(cqrs.RequestHandler[Emit, None]):
    def __init__(self) -> None:
        self._events: list[Any] = []

    @property
    def events(self) -> Sequence[cqrs.IEvent]:
        return self._events

    async def handle(self, request: Emit) -> None:
        self._events.extend(request.events)


def mediator(broker: MessageBroker, **options: Any) -> cqrs.RequestMediator:
    """A mediator from python-cqrs' own bootstrap."""
    return requests.bootstrap(
        di_container=di.Container(),
        message_broker=broker,
        commands_mapper=lambda commands: commands.bind(Emit, EmitHandler),
        **options,
    )
