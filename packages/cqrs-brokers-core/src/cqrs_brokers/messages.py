"""Validate and encode a message now and send it later: for an outbox, a journal, a queue of one's own.

    ready = MessageValidator().ready(message)   # raises what Broker.send_message would raise, before any I/O
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._message.validation import Validator
from .exceptions import DeliveryError
from .protocol import Capabilities, Message, MessageLike, snapshot

if TYPE_CHECKING:
    from .events import Event

__all__ = ["MessageValidator"]

_EVERYTHING = Capabilities(
    ordering_key=True,
    headers=True,
    tombstones=True,
    header_types=frozenset({str, bytes, int, float, bool, type(None)}),
)
"""What one broker cannot do is that broker's to refuse."""


class MessageValidator:
    """The rules by which `Broker` validates and encodes, without a broker: all but what one broker alone refuses.

    Args:
        max_message_bytes: The largest message: body, key and headers together.
        encoder: Encodes payloads that come without `payload_bytes` and without a content type. Default: JSON.
    """

    def __init__(
        self, *, max_message_bytes: int = 1_000_000, encoder: Callable[[object], bytes] | None = None
    ) -> None:
        self._validator = Validator(
            address="",
            capabilities=_EVERYTHING,
            refuse_topic=None,
            max_message_bytes=max_message_bytes,
            encoder=encoder,
        )

    def ready(self, message: MessageLike | Event[Any]) -> Message:
        """A snapshot of the message as `Broker` would send it: validated, and with its body as bytes.

        Args:
            message: A `Message`, anything with its attributes, or an event with `to_message()`.

        Raises:
            InvalidMessageError: It cannot be sent.
            MessageTooLargeError: It is larger than allowed.
        """
        try:
            to_message = getattr(message, "to_message", None)
            candidate = self._validator.message(message if to_message is None else to_message())
            self._validator.size(candidate)
            return snapshot(candidate)
        except DeliveryError:
            raise
        except Exception as error:
            refusal = self._validator.unreadable(error)
        raise refusal  # outside the handler: what the message's own code raised may quote the message
