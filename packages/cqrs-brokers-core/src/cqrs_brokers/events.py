"""Integration events, as pydantic models. An application publishes events to tell other applications what happened.

    class OrderPlaced(ECSTEvent[Order]):
        topic: str = "orders"

        def ordering_key(self) -> str | None:
            return self.payload.order_id

With the framework python-cqrs, use the event classes of the package `cqrs_brokers_python_cqrs` instead. The classes of
that package derive both from the classes of this module and from an event class of python-cqrs. The event emitter of
python-cqrs silently drops every event whose class the emitter does not know.
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
    """The base class of `NotificationEvent` and `ECSTEvent`. An unknown keyword is an error: if a misspelt `key=` were
    ignored, the events would lose their order.

    Attributes:
        event_id: Identifies the event. The value becomes the id of the message. Default: a new random UUID.
        event_timestamp: When the event happened. The time is converted to UTC. A time without a time zone is refused.
            Default: now.
        event_name: What happened. The value becomes the name of the message. Default: the name of the class, without
            type parameters.
        topic: The topic of the message.
        payload: The data of the event. `TOMBSTONE`: the event was made with `ECSTEvent.deleted`.
        key: The ordering key, unless a subclass overrides `ordering_key()`. Events with the same topic and ordering key
            keep their order.
        headers: The headers of the message. The headers are not in the body.
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
        """The key that keeps events in order, or None. Override this method to derive the key from the payload. This
        method is not called for an event that was made with `ECSTEvent.deleted`, because that event has its key."""
        return self.key

    def to_dict(self) -> EventBody:
        """The body of the message, ready for JSON. The body has every field except `key`, `headers` and the fields that
        the class excludes. The body also has the computed fields of the class. The keys of the body are the names of
        the fields, or their aliases if the class has `serialize_by_alias`. If the class has a `model_serializer`, the
        body is the result of that serializer. `event_timestamp` has the form of RFC 3339.

        If the event was made with `ECSTEvent.deleted`, the body also has `deleted` and `key`, and the payload in the
        body is None. `Broker` does not send this body: an outbox stores the body.

        Raises:
            InvalidMessageError: A value in the event has no JSON form, or code of the event or of a value in the event
                raised an exception. Or a `model_serializer` made something else than a dict.
        """
        key = self._message_key()
        deleted = self.payload is TOMBSTONE
        try:
            body = jsonable(self.model_copy(update={"payload": None}) if deleted else self, "")
            if not isinstance(body, dict):
                raise UnencodableError(f"the event must be written as an object, not as a {type(body).__name__}")
        except UnencodableError as error:
            refused = InvalidMessageError(str(error), message_id=self.event_id, topic=self.topic)
            refused.__cause__ = safe_cause(error.__cause__, self)
        else:
            if deleted:
                body |= {"key": key, "deleted": True}
            return EventBody(body, event_name=self.event_name, ordering_key=key, headers=self.headers, deleted=deleted)
        raise refused  # raised outside the `except` block, so that `error` is not its __context__

    @classmethod
    def from_dict(cls, **body: Any) -> Self:
        """Makes an event again from the result of `to_dict`. The outbox of python-cqrs calls this method for the events
        that it has stored.

        The body has no `headers`, and it has a `key` only for a deletion. So an event that goes through this outbox
        loses the headers that it was made with. If the event must keep its order, its class must override
        `ordering_key()`. The keys of the body may be the names of the fields or their aliases. For the fields of a
        payload that is a pydantic model, this is true only with pydantic 2.14 or newer. With an older pydantic, the
        class of the payload decides whether names or aliases are accepted. Computed fields are computed again.

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
        """The message that `Broker.publish` checks and sends.

        Raises:
            InvalidMessageError: The reasons are the same as in `to_dict`.
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
        """The result of `ordering_key()`. If the event reports a deletion, the result is the field `key`, because there
        is no payload from which a key could be derived.

        Raises:
            InvalidMessageError: `ordering_key()` raised an exception.
        """
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
    """Event-carried state transfer: the event contains the new state, so that consumers need not ask for the state.

    The method `deleted` makes an event that reports a deletion.
    """

    @classmethod
    def deleted(cls, key: str, **fields: Any) -> Self:
        """Makes an event that reports the deletion of the object with this key. The message of the event has the key
        and no body.

        In a compacted topic, Kafka removes the earlier messages with this key some time later. Only a broker with the
        capability `tombstones` takes such a message. With every other broker, publishing the event raises an
        `InvalidMessageError`: publish an ordinary event about the deletion instead.

        Args:
            key: The ordering key of the deleted object.
            **fields: Fields of the event, except `payload` and `key`: for example `event_name` and `topic`.

        Raises:
            pydantic.ValidationError: A field is missing, wrong or unknown.
        """
        return cls(payload=TOMBSTONE, key=key, **fields)  # type: ignore[arg-type] # as `_tombstone_is_no_payload`

    @field_validator("payload", mode="wrap")
    @classmethod
    def _tombstone_is_no_payload(cls, payload: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        return payload if payload is TOMBSTONE else validate(payload)
