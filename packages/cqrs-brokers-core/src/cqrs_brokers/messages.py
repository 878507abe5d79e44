"""Validates and encodes a message that is sent later: for an outbox, a journal, or a queue of your own.

    ready = MessageValidator().ready(message)   # raises InvalidMessageError or MessageTooLargeError
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._message.coercion import Coercion
from ._message.validation import Validator
from .exceptions import DeliveryError
from .protocol import Capabilities, Encoder, Message, MessageLike, snapshot

if TYPE_CHECKING:
    from .events import Event

__all__ = ["MessageValidator"]

_EVERYTHING = Capabilities(
    ordering_key=True,
    headers=True,
    tombstones=True,
    header_types=frozenset({str, bytes, int, float, bool, type(None)}),
)
"""All capabilities that a message may need. A broker with fewer capabilities may still refuse the message later."""


class MessageValidator:
    """Validates and encodes messages as `Broker` does, but without a broker. A message that only some brokers refuse is
    accepted, for example a message with a topic that only Kafka refuses.

    Args:
        max_message_bytes: The most bytes that a message may have: body, key and headers together.
        encoder: Encodes the payload of a message that has neither `payload_bytes` nor a content type. `TOMBSTONE` is
            not encoded. None: a payload of bytes stays as it is, and any other payload is encoded as JSON.
    """

    def __init__(self, *, max_message_bytes: int = 1_000_000, encoder: Encoder | None = None) -> None:
        self._validator = Validator(
            address="",
            capabilities=_EVERYTHING,
            refuse_topic=None,
            max_message_bytes=max_message_bytes,
        )
        self._coercion = Coercion(address="", encoder=encoder)

    def ready(self, message: MessageLike | Event[Any]) -> Message:
        """Returns a validated copy of the message. The `payload_bytes` of the copy are the encoded body. If the message
        is a tombstone, the copy has no `payload_bytes`.

        Args:
            message: A `Message`, any other `MessageLike`, or an event (an object with a method `to_message()`).

        Raises:
            InvalidMessageError: A part of the message is wrong, the payload cannot be encoded, or code of the message,
                the event or the encoder raised an error.
            MessageTooLargeError: The message is larger than `max_message_bytes`.
            DeliveryError: Code of the message or the event raised this error. Such an error is raised as it is.
        """
        try:
            is_event = hasattr(message, "to_message")
            candidate = self._coercion.message(self._coercion.event_message(message) if is_event else message)
            self._validator.check(candidate)
            return snapshot(candidate)
        except DeliveryError:
            raise
        except Exception as error:
            refusal = self._coercion.unreadable(error, message)
        raise refusal  # outside the handler: the error of the message's own code may quote the message
