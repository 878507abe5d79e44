"""What stands above each code block of the page: an application with one command and one event."""

from collections.abc import Sequence
from typing import Any

import cqrs
import di  # noqa: F401 - for the blocks
from cqrs.bootstrap import requests as bootstrap  # noqa: F401 - for the blocks


class OrderPlaced(cqrs.NotificationEvent[dict[str, str]]):
    event_name: str = "order_placed"


class OrderCounted(cqrs.DomainEvent):
    pass


class PlaceOrder(cqrs.Request[None]):
    order_id: str
    topic: str


class PlaceOrderHandler(cqrs.RequestHandler[PlaceOrder, None]):
    def __init__(self) -> None:
        self._events: list[cqrs.IEvent] = []

    @property
    def events(self) -> Sequence[cqrs.IEvent]:
        return self._events

    async def handle(self, request: PlaceOrder) -> None:
        self._events.append(OrderPlaced(topic=request.topic, payload={"order_id": request.order_id}))


class OrderCountedHandler(cqrs.EventHandler[OrderCounted]):
    async def handle(self, event: OrderCounted) -> None:
        pass


def commands_mapper(commands: cqrs.RequestMap[Any]) -> None:
    commands.bind(PlaceOrder, PlaceOrderHandler)


def events_mapper(events: cqrs.EventMap[Any]) -> None:
    events.bind(OrderCounted, OrderCountedHandler)
