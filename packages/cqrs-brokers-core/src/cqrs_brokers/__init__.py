"""Sends messages to message brokers. A config string selects the broker.

    from cqrs_brokers import Message, open_broker

    async with open_broker("kafka://localhost:9092") as broker:
        receipt = await broker.send_message(Message(message_name="OrderPlaced", topic="orders", payload={"id": 1}))

Applications use these names. `help(name)` shows the documentation of a name:

    open_broker                      makes a Broker from a config string, or from $CQRS_BROKER_URL
    Broker                           sends messages; has send_message, send_messages, publish, flush, health, close
    Message, NotificationEvent, ECSTEvent    what is sent
    Receipt                          a send succeeded; .confirmed says whether the broker confirmed it
    NotDeliveredError                a send failed: the message is not in the broker, and will not come later
    DeliveryUnknownError             the outcome is unknown: the message may be in the broker, or may not
    SyncBroker                       sends messages from code without an event loop
    lifespan                         opens and closes a Broker together with a FastAPI or Starlette application
    Observer                         gets the outcome of every message
    MessageBroker                    the base class for a broker of your own

Authors of plugins read `cqrs_brokers.driver` and `cqrs_brokers.hooks` first.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from . import exceptions, protocol
from ._broker import Broker
from ._discovery.discovery import BrokerInfo, available_brokers
from ._discovery.opening import open_broker
from .exceptions import *  # noqa: F403 - the whole tree is public
from .observers import Observer
from .protocol import TOMBSTONE, Capabilities, Encoded, Message, MessageBroker, MessageEncoder, MessageLike, Receipt

if TYPE_CHECKING:
    from ._connection.health import Health
    from ._lifespan import lifespan
    from ._synchronous import SyncBroker
    from .events import ECSTEvent, Event, NotificationEvent

__all__ = [
    "Broker",
    "BrokerInfo",
    "Capabilities",
    "ECSTEvent",
    "Encoded",
    "Event",
    "Health",
    "Message",
    "MessageBroker",
    "MessageEncoder",
    "MessageLike",
    "NotificationEvent",
    "Observer",
    "Receipt",
    "SyncBroker",
    "TOMBSTONE",
    "available_brokers",
    "exceptions",
    "lifespan",
    "open_broker",
    "protocol",
]
__all__ += exceptions.__all__
__all__.sort()

_IMPORTED_LATE: Final = {
    "ECSTEvent": "events",
    "Event": "events",
    "Health": "_connection.health",
    "NotificationEvent": "events",
    "SyncBroker": "_synchronous",
    "lifespan": "_lifespan",
}
"""Names that are imported only when they are used, each with its module. These names are not needed to open a broker.
The event classes are pydantic models. Building these models takes time, and many applications use event classes of
their own instead."""


def __getattr__(name: str) -> Any:
    if name in _IMPORTED_LATE:
        return getattr(import_module(f"{__name__}.{_IMPORTED_LATE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
