"""What an application's own encoder is: it makes the body of a message where it is not made as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from cqrs_brokers.protocol import Message

__all__ = ["NO_HEADERS", "Encoded", "Encoder", "HeaderValue", "MessageEncoder"]

HeaderValue = str | bytes | int | float | bool | None
"""What a header may say; `Capabilities.header_types` has which of these a broker carries."""

NO_HEADERS: Final[Mapping[str, HeaderValue]] = MappingProxyType({})


class Encoded(NamedTuple):
    """What a `MessageEncoder` makes of a message.

    Attributes:
        body: The bytes that go on the wire.
        content_type: Their MIME type. None: that of the payload, as without an encoder.
        headers: Headers that consumers need to read the body; they are added to the message's own.
    """

    body: bytes
    content_type: str | None = None
    headers: Mapping[str, HeaderValue] = NO_HEADERS


@runtime_checkable
class MessageEncoder(Protocol):
    """An encoder that sees the message: for formats that need its topic or name, such as those of a schema registry."""

    def encode_message(self, message: Message, /) -> Encoded:
        """The body of a message, and what goes with it. Called before the message is sent; it must not block."""


Encoder = Callable[[object], bytes] | MessageEncoder
"""Makes the body of a message: of its payload alone, or of the whole."""
