"""One config string, any message broker, and the truth about every message.

    from cqrs_brokers import Message, open_broker

    async with open_broker("kafka://localhost:9092") as broker:
        receipt = await broker.send_message(Message(message_name="OrderPlaced", topic="orders", payload={"id": 1}))

An application needs these names; `help(name)` shows each:

    open_broker                      makes a Broker from a config string, or from $CQRS_BROKER_URL
    Broker                           sends messages: send_message, send_messages, publish, flush, health, close
    Message, NotificationEvent, ECSTEvent    what is sent
    Receipt                          a send succeeded; .confirmed says whether the broker confirmed it
    NotDeliveredError                a send failed: the message is not in the broker
    DeliveryUnknownError             nobody knows: the message may be in the broker
    SyncBroker                       for code without an event loop
    lifespan                         for FastAPI and Starlette
    Observer                         is told of every outcome
    MessageBroker                    the base class of your own broker

Authors of plugins begin with `cqrs_brokers.driver` and `cqrs_brokers.hooks`.
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
"""The modules of names that are imported at their first use. Opening a broker does not need these names. The event
classes are pydantic models: building them takes longer than importing everything else, and many applications have
classes of their own."""


def __getattr__(name: str) -> Any:
    if name in _IMPORTED_LATE:
        return getattr(import_module(f"{__name__}.{_IMPORTED_LATE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
