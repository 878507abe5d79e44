"""Integration events as pydantic models: what a CQRS application publishes.

    class OrderPlaced(ECSTEvent[Order]):
        topic: str = "orders"

        def ordering_key(self) -> str | None:
            return self.payload.order_id

Under python-cqrs use the bridge's classes (`cqrs_brokers_python_cqrs`). They derive from these classes and from
python-cqrs' own, because python-cqrs' emitter drops events of classes that it does not know.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Self, TypeVar
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from ._message.ids import new_message_id
from ._message.jsonable import UnencodableError, jsonable
from .exceptions import InvalidMessageError, safe_cause
from .protocol import TOMBSTONE, EventBody, HeaderValue, Message

__all__ = ["ECSTEvent", "Event", "NotificationEvent"]

P = TypeVar("P")

_UTCDatetime = Annotated[AwareDatetime, AfterValidator(lambda moment: moment.astimezone(UTC))]


class Event(BaseModel, Generic[P]):
    """The base of both kinds of events. Unknown keywords are an error: a misspelt `key=` would lose the order.

    Attributes:
        event_id: Identifies the event; becomes the message id.
        event_timestamp: When the event happened, in UTC; a time without a zone is refused.
        event_name: What happened; becomes the message name. Default: the class name.
        topic: The topic of the message.
        payload: The data of the event.
        key: What `ordering_key()` returns if it is not overridden. Events with the same topic and key keep their order.
        headers: Headers of the message; no part of the body.
    """

    model_config = ConfigDict(  # an error must not show the payload
        frozen=True, extra="forbid", hide_input_in_errors=True
    )

    event_id: UUID = Field(default_factory=new_message_id)
    event_timestamp: _UTCDatetime = Field(default_factory=lambda: datetime.now(UTC))
    event_name: str = ""
    topic: str
    payload: P
    key: str | None = Field(default=None, exclude=True)
    headers: dict[str, HeaderValue] = Field(default_factory=dict, exclude=True)

    def model_post_init(self, context: Any, /) -> None:
        if not self.event_name:
            # Generic classes have their parameters in the name: OrderPlaced[Order].
            object.__setattr__(self, "event_name", type(self).__name__.partition("[")[0])

    def ordering_key(self) -> str | None:
        """The key that keeps events in order, or None. Override it to derive the key from the payload."""
        return self.key

    def to_dict(self) -> EventBody:
        """The body: every field except `key` and `headers`, ready for JSON, in snake_case and with RFC 3339 times.

        The body of an event made with `ECSTEvent.deleted` also has `deleted` and the key, so that an outbox can store
        it.

        Raises:
            InvalidMessageError: Something in it has no JSON form, or the event's own code raised.
        """
        key = self._message_key()
        deleted = self.payload is TOMBSTONE
        try:
            if deleted:
                body = jsonable(self.model_copy(update={"payload": None}), "") | {"key": key, "deleted": True}
            else:
                body = jsonable(self, "")
        except UnencodableError as error:
            refused = InvalidMessageError(str(error), message_id=self.event_id, topic=self.topic)
            refused.__cause__ = safe_cause(error.__cause__, self)
        else:
            return EventBody(body, event_name=self.event_name, ordering_key=key, headers=self.headers, deleted=deleted)
        raise refused  # raised outside the `except` block, so that `error` is not its __context__

    @classmethod
    def from_dict(cls, **body: Any) -> Self:
        """Rebuilds an event from what `to_dict` returned. An outbox uses it for the events in its rows.

        The body has no `headers`, and it has a `key` only for a deletion. So an event that goes through an outbox must
        override `ordering_key()` to keep its order. The body may have the names of fields or their aliases. For the
        fields of a payload that is a model, this needs pydantic 2.14. With an older pydantic the class of the payload
        decides whether it accepts names or aliases. Computed fields are computed again.

        Raises:
            pydantic.ValidationError: A field is missing, wrong or unknown.
        """
        for name, computed in cls.model_computed_fields.items():
            if name not in cls.model_fields:
                body.pop(name, None)
                body.pop(computed.alias or name, None)
        if body.pop("deleted", None) is True and "deleted" not in cls.model_fields:
            body["payload"] = TOMBSTONE
        return cls.model_validate(body, by_alias=True, by_name=True)

    def to_message(self) -> Message:
        """The message that `Broker.publish` sends.

        Raises:
            InvalidMessageError: As `to_dict`.
        """
        deleted = self.payload is TOMBSTONE
        body: Any = TOMBSTONE if deleted else self.to_dict()
        return Message(
            self.event_name,
            self.topic,
            body,
            self.event_id,
            key=self._message_key() if deleted else body.ordering_key,
            headers=self.headers or None,
            timestamp=self.event_timestamp,
        )

    def _message_key(self) -> str | None:
        """`ordering_key()`. For a tombstone: the key that the event was made with, because it has no payload to derive
        one from."""
        if self.payload is TOMBSTONE:
            return self.key
        try:
            return self.ordering_key()
        except Exception as error:  # the application's own code
            refused = InvalidMessageError.raised_by(
                f"{type(self).__name__}.ordering_key()", error, content=self, message_id=self.event_id, topic=self.topic
            )
        raise refused

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.event_name!r} {self.event_id} topic={self.topic!r}>"

    __str__ = __repr__


class NotificationEvent(Event[P], Generic[P]):
    """Reports that something happened. Consumers ask the application for the data that they need."""


class ECSTEvent(Event[P], Generic[P]):
    """Event-carried state transfer: the event contains the state, so that consumers need not ask for it.

    `deleted` makes an event which reports a deletion.
    """

    @classmethod
    def deleted(cls, key: str, **fields: Any) -> Self:
        """Makes the event which reports that the object with this key was deleted. Its message has the key and no body.

        A compacted topic then forgets the key. Only a broker with the capability `tombstones` takes it. On every other
        broker, publishing it raises an `InvalidMessageError`: send an ordinary event about the deletion instead.

        Args:
            key: The ordering key of the deleted object.
            **fields: Fields of the event, except `payload` and `key`: for example `event_name` and `topic`.

        Raises:
            pydantic.ValidationError: A field is wrong, or unknown.
        """
        return cls(payload=TOMBSTONE, key=key, **fields)  # type: ignore[arg-type] # as `_tombstone_is_no_payload`

    @field_validator("payload", mode="wrap")
    @classmethod
    def _tombstone_is_no_payload(cls, payload: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        return payload if payload is TOMBSTONE else validate(payload)
