"""Events that are core's and python-cqrs' own at once.

    class OrderPlaced(ECSTEvent[Order]):
        topic: str = "orders"

        def ordering_key(self) -> str | None:
            return self.payload.order_id

A type checker and python-cqrs' emitter take them for its `INotificationEvent`; its outbox rebuilds them with
`from_dict`; `Broker` sends them under their `event_name` and their ordering key. Importing this module also makes
python-cqrs' emitter accept core's own classes, which it would otherwise drop without a word.

Not here: python-cqrs' own event classes. They work unchanged; their ordering key comes from `message_broker`.
"""

from __future__ import annotations

from typing import Any, Generic, Self, TypeVar

from cqrs import INotificationEvent

from cqrs_brokers import events as core

__all__ = ["ECSTEvent", "NotificationEvent"]

P = TypeVar("P")

# The emitter is a singledispatch whose default does nothing: an event of a class that it does not know is lost.
INotificationEvent.register(core.Event)


class _OutboxEvent(core.Event[P], INotificationEvent[P], Generic[P]):
    """What python-cqrs asks of an event beyond what core's has."""

    def proto(self) -> Any:
        """The event as a protobuf message. Override it when a `ProtobufEventSerializer` is used."""
        raise NotImplementedError(f"{type(self).__name__} has no protobuf form: override proto()")

    @classmethod
    def from_proto(cls, proto: Any) -> Self:
        """Rebuilds an event from what `proto` returned. Override it together with `proto`."""
        raise NotImplementedError(f"{cls.__name__} has no protobuf form: override from_proto()")


class NotificationEvent(_OutboxEvent[P], core.NotificationEvent[P], Generic[P]):
    """Tells that something happened; consumers ask back for what they need."""


class ECSTEvent(_OutboxEvent[P], core.ECSTEvent[P], Generic[P]):
    """Event-carried state transfer: brings the state along, so that consumers need not ask."""
