"""Events that are core's and python-cqrs' own at once.

    class OrderPlaced(ECSTEvent[Order]):
        topic: str = "orders"

        def ordering_key(self) -> str | None:
            return self.payload.order_id

For a type checker and for python-cqrs' emitter these events are python-cqrs' `INotificationEvent`. python-cqrs' outbox
rebuilds them with `from_dict`. `Broker` sends them with their `event_name` and their ordering key. Importing this
module also makes python-cqrs' emitter accept core's own classes. Otherwise it would drop them silently.

Not here: python-cqrs' own event classes. They work unchanged; their ordering key comes from `message_broker`.
"""

from __future__ import annotations

from typing import Any, Generic, Self, TypeVar

import orjson
from cqrs import INotificationEvent

from cqrs_brokers import InvalidMessageError
from cqrs_brokers import events as core
from cqrs_brokers.protocol import EventBody

from ._outbox import take_aware_times

__all__ = ["ECSTEvent", "NotificationEvent"]

P = TypeVar("P")

# The emitter is a singledispatch whose default does nothing: an event of a class that it does not know is lost.
INotificationEvent.register(core.Event)
take_aware_times()


class _OutboxEvent(core.Event[P], INotificationEvent[P], Generic[P]):
    """What an event of python-cqrs needs, and core's event does not have."""

    def to_dict(self) -> EventBody:
        """The body, as that of core's events. python-cqrs' encoder can write it.

        Raises:
            InvalidMessageError: Something in it has no JSON form, or python-cqrs' encoder cannot write it (an integer
                of more than 64 bits, a lone surrogate). Or the event's own code raised.
        """
        body = super().to_dict()
        try:
            orjson.dumps(body)
        except TypeError:
            refused = InvalidMessageError(_unwritable(body, ""), message_id=self.event_id, topic=self.topic)
        else:
            return body
        raise refused  # outside the handler: orjson's error may quote the payload

    def proto(self) -> Any:
        """The event as a protobuf message. Override it when a `ProtobufEventSerializer` is used."""
        raise NotImplementedError(f"{type(self).__name__} has no protobuf form: override proto()")

    @classmethod
    def from_proto(cls, proto: Any) -> Self:
        """Rebuilds an event from what `proto` returned. Override it together with `proto`."""
        raise NotImplementedError(f"{cls.__name__} has no protobuf form: override from_proto()")


class NotificationEvent(_OutboxEvent[P], core.NotificationEvent[P], Generic[P]):
    """Reports that something happened. Consumers ask the application for the data that they need."""


class ECSTEvent(_OutboxEvent[P], core.ECSTEvent[P], Generic[P]):
    """Event-carried state transfer: the event contains the state, so that consumers need not ask for it."""


_INTEGERS = range(-(2**63), 2**64)


def _unwritable(value: object, path: str) -> str:
    """Which part of a body python-cqrs' encoder (orjson) cannot write: a sentence with its path, or ""."""
    if isinstance(value, int) and value not in _INTEGERS:
        return f"{path} is an integer of more than 64 bits, which python-cqrs' encoder cannot write: make it text"
    if isinstance(value, str) and not _is_unicode(value):
        return f"{path} is not valid Unicode (a lone surrogate)"
    if isinstance(value, dict):
        if not all(map(_is_unicode, value)):
            return f"{path or 'the event'} has a key that is not valid Unicode (a lone surrogate)"
        parts = [(f"{path}.{key}" if path else key, item) for key, item in value.items()]
        parts = [(inner if inner.rpartition(".")[2].isidentifier() else f"{path}[…]", item) for inner, item in parts]
    elif isinstance(value, list):
        parts = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    else:
        return ""
    return next(filter(None, (_unwritable(item, inner) for inner, item in parts)), "")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
