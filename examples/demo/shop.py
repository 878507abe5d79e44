"""A small shop on python-cqrs: the application of the demo. It does not know which broker its events go to.

Read it from top to bottom: what is said (payloads), what happened (events), what is asked for (commands), what is done
(handlers), and how the parts are put together.
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import cqrs
import di
from cqrs.bootstrap.requests import bootstrap
from cqrs.message_brokers import MessageBroker
from pydantic import BaseModel

from cqrs_brokers_python_cqrs import ECSTEvent, NotificationEvent

TOPIC = "shop.orders"


# -- Payloads: what the events say. Typed, so that a wrong one never leaves the application. ---------------------------


class Order(BaseModel):
    order_id: str
    customer: str
    total: Decimal


class Shipment(BaseModel):
    order_id: str


# -- Events: what happened. Those of one order have the same ordering key, so that they arrive in the order in which ---
# -- they were published: "shipped" never before "placed". -------------------------------------------------------------


class OrderPlaced(ECSTEvent[Order]):
    """Event-carried state transfer: brings the whole order along, so that nobody has to ask the shop for it."""

    topic: str = TOPIC

    def ordering_key(self) -> str:
        return self.payload.order_id


class OrderShipped(NotificationEvent[Shipment]):
    """A notification: tells that it happened; who needs to know more asks the shop."""

    topic: str = TOPIC

    def ordering_key(self) -> str:
        return self.payload.order_id


# -- Commands: what somebody asks the shop to do. ----------------------------------------------------------------------


class PlaceOrder(cqrs.Request[None]):
    order_id: str
    customer: str
    total: Decimal


class ShipOrder(cqrs.Request[None]):
    order_id: str


# -- Handlers: do it, and say what happened. The mediator publishes the events when `handle` returns. ------------------


class PlaceOrderHandler(cqrs.RequestHandler[PlaceOrder, None]):
    def __init__(self) -> None:
        self._events: list[cqrs.IEvent] = []

    @property
    def events(self) -> Sequence[cqrs.IEvent]:
        return self._events

    async def handle(self, request: PlaceOrder) -> None:
        # A real shop writes the order to its database here.
        order = Order(order_id=request.order_id, customer=request.customer, total=request.total)
        self._events.append(OrderPlaced(payload=order))


class ShipOrderHandler(cqrs.RequestHandler[ShipOrder, None]):
    def __init__(self) -> None:
        self._events: list[cqrs.IEvent] = []

    @property
    def events(self) -> Sequence[cqrs.IEvent]:
        return self._events

    async def handle(self, request: ShipOrder) -> None:
        self._events.append(OrderShipped(payload=Shipment(order_id=request.order_id)))


# -- Put together with python-cqrs' own bootstrap. `broker` is all that differs between RabbitMQ, Kafka and a test. ----


def commands(mapper: cqrs.RequestMap[Any]) -> None:
    mapper.bind(PlaceOrder, PlaceOrderHandler)
    mapper.bind(ShipOrder, ShipOrderHandler)


def make_mediator(broker: MessageBroker) -> cqrs.RequestMediator:
    return bootstrap(di_container=di.Container(), commands_mapper=commands, message_broker=broker)


# -- One day in the shop: what the demo runs, once for each broker. ----------------------------------------------------


async def one_day(mediator: cqrs.RequestMediator) -> None:
    await mediator.send(PlaceOrder(order_id="order-1", customer="Ada", total=Decimal("19.90")))
    await mediator.send(PlaceOrder(order_id="order-2", customer="Grace", total=Decimal("250.00")))
    await mediator.send(ShipOrder(order_id="order-1"))
