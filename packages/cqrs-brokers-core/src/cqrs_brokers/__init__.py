"""One config string, any message broker, and the truth about every message.

    from cqrs_brokers import Message, open_broker

    async with open_broker("kafka://localhost:9092") as broker:
        receipt = await broker.send_message(Message("OrderPlaced", "orders", {"id": 1}, key="1"))

For plugin authors: `cqrs_brokers.driver` and `cqrs_brokers.hooks`.
"""

from typing import TYPE_CHECKING, Any

from . import exceptions, protocol
from ._broker import Broker
from ._connection.health import Health
from ._discovery.discovery import BrokerInfo, available_brokers
from ._discovery.opening import open_broker
from .exceptions import *  # noqa: F403 - the tree is the public API; its module says what is in it
from .exceptions import __all__ as _errors
from .observers import Observer
from .protocol import TOMBSTONE, Capabilities, Message, MessageBroker, MessageLike, Receipt

if TYPE_CHECKING:
    from .events import ECSTEvent, Event, NotificationEvent

__all__ = [
    "TOMBSTONE",
    "Broker",
    "BrokerInfo",
    "Capabilities",
    "ECSTEvent",
    "Event",
    "Health",
    "Message",
    "MessageBroker",
    "MessageLike",
    "NotificationEvent",
    "Observer",
    "Receipt",
    "available_brokers",
    "exceptions",
    "open_broker",
    "protocol",
]
__all__ += _errors

_EVENTS = frozenset({"ECSTEvent", "Event", "NotificationEvent"})


def __getattr__(name: str) -> Any:
    # The event classes are pydantic models: building them costs more than importing all the rest, and many
    # applications bring their own.
    if name in _EVENTS:
        from . import events

        return getattr(events, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
