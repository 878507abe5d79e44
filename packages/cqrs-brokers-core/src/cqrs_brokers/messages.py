"""Validates and encodes a message that is sent later: for an outbox, a journal, or a queue of your own.

    ready = MessageValidator().ready(message)   # raises what Broker.send_message would raise, before any I/O
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
"""All capabilities. A broker with fewer capabilities may still refuse the message when it is sent."""


class MessageValidator:
    """Validates and encodes messages as `Broker` does, but needs no broker. So this class does not find faults that
    only some brokers refuse.

    Args:
        max_message_bytes: The most bytes that a message may have: body, key and headers together.
        encoder: Makes the body of a message that has neither `payload_bytes` nor a content type. Default: JSON.
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
        """Returns a copy of the message as `Broker` would send it. The copy is validated, and its body is encoded.

        Args:
            message: A `Message`, any other `MessageLike`, or an event (an object with a method `to_message()`).

        Raises:
            InvalidMessageError: The message cannot be sent.
            MessageTooLargeError: The message is larger than `max_message_bytes`.
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
        raise refusal  # outside the handler: what the message's own code raised may quote the message
