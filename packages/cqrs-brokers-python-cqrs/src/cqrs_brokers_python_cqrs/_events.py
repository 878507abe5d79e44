"""Event classes that derive from core's and from python-cqrs' event classes.

    class OrderPlaced(ECSTEvent[Order]):
        topic: str = "orders"

        def ordering_key(self) -> str | None:
            return self.payload.order_id

For a type checker and for python-cqrs' emitter these events are python-cqrs' `INotificationEvent`. python-cqrs' outbox
rebuilds them with `from_dict`. `Broker` sends them with their `event_name` and their ordering key. Importing this
module also makes python-cqrs' emitter accept core's own events. Otherwise the emitter would drop them silently.

python-cqrs' own event classes work unchanged. Their ordering key comes from the argument `ordering_key` of
`message_broker`.
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

# The emitter is a singledispatch whose default does nothing: an event of an unknown class is lost.
INotificationEvent.register(core.Event)
take_aware_times()


class _OutboxEvent(core.Event[P], INotificationEvent[P], Generic[P]):
    """The methods that an event of python-cqrs needs, and that differ from core's event or are missing there."""

    def to_dict(self) -> EventBody:
        """Returns the same body as core's event, if python-cqrs' encoder can write the body.

        Raises:
            InvalidMessageError: A value in the event has no JSON form, or python-cqrs' encoder cannot write it (an
                integer of more than 64 bits, a lone surrogate), or the code of the event's class raised an exception.
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
    """Event-carried state transfer: the event contains the new state, so that consumers need not ask for the state."""


_INTEGERS = range(-(2**63), 2**64)


def _unwritable(value: object, path: str) -> str:
    """Returns a sentence with the path of a part of the body that python-cqrs' encoder (orjson) cannot write. "": there
    is no such part."""
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
