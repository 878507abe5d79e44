"""Makes a `Message` from what an application passes: an event or a message-like object. This module also calls the
broker's encoder."""

from __future__ import annotations

from inspect import getattr_static
from types import MemberDescriptorType
from typing import Any, NoReturn, TypeVar
from uuid import UUID

from cqrs_brokers.exceptions import DeliveryError, InvalidMessageError
from cqrs_brokers.protocol import TOMBSTONE, Encoded, Encoder, EventBody, Message, with_body

__all__ = ["Coercion", "readable"]

T = TypeVar("T")


class Coercion:
    """Makes messages for one broker, or for a `MessageValidator`.

    Args:
        address: The broker's redacted URL, or the broker's name if it has no URL, for errors. "": there is no broker.
        encoder: Makes the bodies of messages that have neither `payload_bytes` nor a content type. `TOMBSTONE` is not
            encoded. None: `Message.body` and the validator encode the payloads.
    """

    def __init__(self, *, address: str, encoder: Encoder | None) -> None:
        self._address = address
        self._encoder = encoder
        self.unchanged_type = Message if encoder is None else None
        """`message()` returns an object of exactly this class as it is, so callers need not call `message()` for such
        an object. None: every object needs the call, because there is an encoder."""

    def message(self, candidate: Any) -> Message:
        """The message to send: the caller's own object if it is a `Message` that needs no encoder, else a new object.

        Raises:
            InvalidMessageError: The object is no message, or the encoder failed.
            Exception: The object's own code raised this error. Callers make an `unreadable` error from it.
        """
        message = candidate if type(candidate) is Message else self._coerced(candidate)
        if (
            self._encoder is not None
            and message.payload_bytes is None
            and message.content_type is None
            and message.payload is not TOMBSTONE
        ):
            message = self._encoded(message, self._encoder)
        return message

    def unreadable(self, error: Exception, message: object) -> InvalidMessageError:
        """The error for a message that could not be read or checked, because code outside core raised `error`: for
        example a property of the message."""
        return InvalidMessageError.raised_by("reading the message", error, content=message, broker=self._address)

    def event_message(self, event: Any) -> Message:
        """The result of an event's `to_message()`. Callers pass the result to `message()`, which checks it.

        Raises:
            InvalidMessageError: The object is no event, or `to_message()` raised an error that is no `DeliveryError`.
            DeliveryError: `to_message()` raised this error.
        """
        refused: DeliveryError
        try:
            make = None if isinstance(event, Message) else getattr(event, "to_message", None)
            if callable(make):
                return make()  # type: ignore[no-any-return] # `message()` checks it
        except DeliveryError as error:
            refused = error.about(error.message_id, error.topic, self._address)
        except Exception as error:
            what = f"{type(event).__name__}.to_message()"
            refused = InvalidMessageError.raised_by(what, error, content=event, broker=self._address)
        else:
            refused = InvalidMessageError(
                f"a {type(event).__name__} is no event (it has no to_message()): messages go through send_message()",
                broker=self._address,
            )
        try:
            raise refused
        finally:
            del refused

    def _coerced(self, candidate: Any) -> Message:
        if isinstance(candidate, Message):
            return candidate
        required = [_given(candidate, name, _MISSING) for name in ("message_name", "topic", "payload", "message_id")]
        if any(value is _MISSING for value in required):
            self._refuse(
                f"a {type(candidate).__name__} is no message: it needs message_name, topic, payload and message_id "
                "(events go through Broker.publish)",
            )
        name, topic, payload, message_id = required
        key, headers = _given(candidate, "key", None), _given(candidate, "headers", None)
        payload_bytes = _given(candidate, "payload_bytes", None)
        if isinstance(payload, EventBody):
            name = payload.event_name
            key = payload.ordering_key if key is None else key
            headers = headers or payload.headers
            if payload.deleted:
                payload, payload_bytes = TOMBSTONE, None
        if message_id is None:
            self._refuse("message_id must be a UUID")
        return Message(
            name,
            topic,
            payload,
            message_id,
            key=key,
            headers=headers,
            content_type=_given(candidate, "content_type", None),
            timestamp=_given(candidate, "timestamp", None),
            payload_bytes=payload_bytes,
        )

    def _encoded(self, message: Message, encoder: Encoder) -> Message:
        encode = getattr(encoder, "encode_message", None)
        try:
            made: Any = encode(message) if encode is not None else encoder(message.payload)  # type: ignore[operator]
        except Exception as error:
            refused = InvalidMessageError.raised_by(
                "the encoder", error, content=message, message_id=message.message_id, broker=self._address
            )
        else:
            return self._with(message, made if isinstance(made, Encoded) else Encoded(made))
        try:
            raise refused
        finally:
            del refused

    def _with(self, message: Message, encoded: Encoded) -> Message:
        """A copy of the message with the body, the content type and the headers that the encoder returned."""
        if type(encoded.body) is not bytes:
            self._refuse(f"the encoder must return bytes, not {type(encoded.body).__name__}", message.message_id)
        made = with_body(message, encoded.body)
        made.content_type = encoded.content_type
        if encoded.headers:
            twice = set(message.headers) & set(encoded.headers)
            if twice:
                what = f"the encoder sets header {min(twice)!r}, and the message has it already"
                self._refuse(what, message.message_id)
            made.headers = {**message.headers, **encoded.headers}
        return made

    def _refuse(self, text: str, message_id: UUID | None = None) -> NoReturn:
        raise InvalidMessageError(text, message_id=message_id, broker=self._address)


_MISSING: Any = object()


def _given(candidate: Any, name: str, default: Any) -> Any:
    """An attribute of a message-like object, or the default if the object does not have the attribute. An
    `AttributeError` from the code of a property is raised, and not replaced by the default."""
    try:
        return getattr(candidate, name)
    except AttributeError:
        known = getattr_static(candidate, name, _MISSING)
        if known is not _MISSING and not isinstance(known, MemberDescriptorType):
            raise
        return default


def readable(candidate: object, name: str, kind: type[T]) -> T | None:
    """An attribute of an object that should be a message, for errors and observers. None: the attribute is missing or
    is no instance of `kind`, or the object's own code raised an error."""
    try:
        value = getattr(candidate, name, None)
    except Exception:
        value = None
    return value if isinstance(value, kind) else None
