"""Integration events as pydantic models: what a CQRS application publishes.

    class OrderPlaced(ECSTEvent[Order]):
        topic: str = "orders"

        def ordering_key(self) -> str | None:
            return self.payload.order_id

Under python-cqrs use the bridge's classes (`cqrs_brokers_python_cqrs`), which are these and python-cqrs' own at once:
its emitter drops the classes that it does not know.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Generic, Self, TypeVar
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from ._message.ids import new_message_id
from .protocol import EventBody, Message

__all__ = ["ECSTEvent", "Event", "NotificationEvent"]

P = TypeVar("P")


class Event(BaseModel, Generic[P]):
    """What both kinds have.

    Attributes:
        event_id: Identifies the event; becomes the message id.
        event_timestamp: When it happened, timezone-aware.
        event_name: What happened; becomes the message name. Default: the class name.
        topic: Where it goes.
        payload: What it says.
        key: Events with the same topic and key keep their order. Default: `ordering_key()`.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)  # an error must not show the payload

    event_id: UUID = Field(default_factory=new_message_id)
    event_timestamp: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    event_name: str = ""
    topic: str
    payload: P
    key: str | None = Field(default=None, exclude=True)

    def model_post_init(self, context: Any, /) -> None:
        if not self.event_name:
            # Generic classes have their parameters in the name: OrderPlaced[Order].
            object.__setattr__(self, "event_name", type(self).__name__.partition("[")[0])

    def ordering_key(self) -> str | None:
        """The key that keeps events in order, or None. Override it to derive the key from the payload."""
        return self.key

    def to_dict(self) -> EventBody:
        """The body: every field but `key`, ready for JSON, in snake_case and with RFC 3339 times."""
        return EventBody(
            self.model_dump(mode="json"), event_name=self.event_name, ordering_key=self.ordering_key()
        )

    @classmethod
    def from_dict(cls, **body: Any) -> Self:
        """The event again, from what `to_dict` returned; an outbox rebuilds its rows with it.

        The body has no `key`: an event that goes through an outbox must override `ordering_key()` to keep its order.

        Raises:
            pydantic.ValidationError: A field is missing or wrong.
        """
        return cls.model_validate(body)

    def to_message(self) -> Message:
        """The message that `Broker.publish` sends."""
        return Message(
            self.event_name,
            self.topic,
            self.to_dict(),
            self.event_id,
            key=self.ordering_key(),
            timestamp=self.event_timestamp,
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.event_name!r} {self.event_id} topic={self.topic!r}>"

    __str__ = __repr__


class NotificationEvent(Event[P], Generic[P]):
    """Tells that something happened; consumers ask back for what they need."""


class ECSTEvent(Event[P], Generic[P]):
    """Event-carried state transfer: brings the state along, so that consumers need not ask."""
