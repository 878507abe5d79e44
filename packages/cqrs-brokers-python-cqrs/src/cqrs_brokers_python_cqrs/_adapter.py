"""`BrokerAdapter`: a `Broker` as python-cqrs' own `MessageBroker`.

    python-cqrs' Message → body by python-cqrs' own encoder, name, ordering key → core's Message → Broker

The application passes the adapter to python-cqrs' own bootstrap functions, which make the mediators.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import orjson
from cqrs.message_brokers import protocol
from cqrs.serializers.default import message_wire_bytes

from cqrs_brokers import TOMBSTONE, Broker, ConfigError, InvalidMessageError, Message, open_broker
from cqrs_brokers.protocol import EventBody, HeaderValue

from ._reprs import ReprWarnings

__all__ = ["BrokerAdapter", "OrderingKey", "lifespan", "message_broker"]

T = TypeVar("T")

OrderingKey = Callable[[protocol.Message], str | None]
"""Gives the ordering key for a message that does not come from core's or the bridge's events. None: the message has no
ordering key."""


class BrokerAdapter(protocol.MessageBroker):
    """Sends python-cqrs' messages through a `Broker`.

    Pass the adapter as `message_broker=` to python-cqrs' `bootstrap` functions and to its `EventProducer`. The adapter
    may be made before an event loop runs. The first message connects the `Broker`. `async with` connects the `Broker`
    at its beginning, and flushes and closes the `Broker` at its end.

    Args:
        broker: The `Broker` that sends the messages.
        ordering_key: Gives the ordering key of messages that do not come from core's or the bridge's events. The
            messages of those events have the keys of the events.
    """

    def __init__(self, broker: Broker, /, *, ordering_key: OrderingKey | None = None) -> None:
        self._broker = broker
        self._ordering_key = ordering_key
        self._reprs = ReprWarnings()

    @property
    def broker(self) -> Broker:
        """The `Broker`, for `health()`, `flush()`, `send_messages()` and whatever python-cqrs has no method for."""
        return self._broker

    async def send_message(self, message: protocol.Message) -> None:
        """Sends one message and waits for its outcome.

        The body is what python-cqrs' own brokers would send, byte for byte. Only an event that reports a deletion has
        no body. The name of a message of core's or the bridge's events is the event's `event_name`. Every other message
        has the name that python-cqrs gave.

        Raises:
            NotDeliveredError: The message is not in the broker, and this call will not put it there.
            DeliveryUnknownError: The message may be in the broker.
        """
        refused: InvalidMessageError
        try:
            translated = self._translated(message)
        except InvalidMessageError as error:
            self._broker.refuse(message, error)
            raise
        except Exception as error:  # the message's own code
            refused = InvalidMessageError.raised_by("reading the message", error, content=message, broker=self._address)
        else:
            await self._broker.send_message(translated)
            return
        try:
            raise self._broker.refuse(message, refused)  # outside the handler: what was caught is at most its cause
        finally:
            del refused

    async def __aenter__(self) -> Self:
        await self._broker.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._broker.__aexit__(kind, error, traceback)

    def __repr__(self) -> str:
        return f"<BrokerAdapter of {self._broker!r}>"

    def _translated(self, message: protocol.Message) -> Message:
        payload = message.payload
        if isinstance(payload, EventBody):
            headers = self._merged(message, payload)
            if payload.deleted:
                return Message(
                    payload.event_name,
                    message.topic,
                    TOMBSTONE,
                    message.message_id,
                    key=payload.ordering_key,
                    headers=headers,
                )
            name, key = payload.event_name, payload.ordering_key
        else:
            name, key, headers = message.message_name, None, message.headers or {}
            self._reprs.look_at(name, payload)
            if self._ordering_key is not None:
                key = self._asked(message, self._ordering_key, "the function given as ordering_key")
        body = self._asked(message, message_wire_bytes, "encoding the payload")
        return Message(
            name,
            message.topic,
            # `payload_bytes` is what is sent; the payload only decides the default content type.
            body if isinstance(payload, bytes | bytearray | memoryview) else payload,
            message.message_id,
            key=key,
            headers=headers,
            content_type=message.content_type,
            payload_bytes=body,
        )

    def _merged(self, message: protocol.Message, payload: EventBody) -> Mapping[str, HeaderValue]:
        """Returns the headers of the codec and those of the event together.

        Raises:
            InvalidMessageError: Both have a header with the same name.
        """
        codecs = message.headers
        if not codecs or not payload.headers:
            return codecs or payload.headers
        twice = codecs.keys() & payload.headers.keys()
        if twice:
            raise InvalidMessageError(
                f"the codec sets header {min(twice)!r}, and the event has it already",
                message_id=message.message_id,
                topic=message.topic,
                broker=self._address,
            )
        return {**payload.headers, **codecs}

    def _asked(self, message: protocol.Message, function: Callable[[protocol.Message], T], what: str) -> T:
        """Returns the result of the function.

        Raises:
            InvalidMessageError: The function raised an error. An error of python-cqrs' encoder does not become the
                cause, because its text may quote the payload.
        """
        try:
            return function(message)
        except Exception as error:
            refused = InvalidMessageError.raised_by(
                what, error, content=message, message_id=message.message_id, topic=message.topic, broker=self._address
            )
            if isinstance(error, orjson.JSONEncodeError):
                refused.__cause__ = None
        try:
            raise refused
        finally:
            del refused

    @property
    def _address(self) -> str:
        return self._broker.name if self._broker.url is None else self._broker.url


def message_broker(
    url_or_broker: str | Broker | None = None, *, ordering_key: OrderingKey | None = None, **options: Any
) -> BrokerAdapter:
    """Makes the message broker that python-cqrs' bootstrap functions and its `EventProducer` take.

    This function is synchronous, as those functions need it, and does no network I/O.

    Args:
        url_or_broker: A config string, or a `Broker` that was made before. None: the environment variable
            `CQRS_BROKER_URL` has the config string.
        ordering_key: Called with each message that does not come from core's or the bridge's events; returns the
            ordering key of the message, or None.
        options: The keywords of `open_broker`, except `encoder`. An option that is given here overrides the same option
            in the string.

    Raises:
        ConfigError: The string or an option is wrong, there is no string, options were given beside a `Broker`, or
            `encoder` was given.
        PluginError: The scheme is misspelt, not installed or claimed twice, or its plugin is broken or incompatible.
    """
    if "encoder" in options:
        raise ConfigError(
            "encoder: python-cqrs makes the bodies, so it would never be asked; give python-cqrs a codec for the event"
        )
    if isinstance(url_or_broker, Broker):
        if options:
            names = ", ".join(sorted(options))
            raise ConfigError(f"{names}: a Broker has its options already; give them where it is made")
        return BrokerAdapter(url_or_broker, ordering_key=ordering_key)
    return BrokerAdapter(open_broker(url_or_broker, **options), ordering_key=ordering_key)


def lifespan(adapter: BrokerAdapter) -> Callable[[object], AbstractAsyncContextManager[None]]:
    """Makes a lifespan for a FastAPI or Starlette application. The lifespan connects at start-up, and flushes and
    closes at shutdown.

        app = FastAPI(lifespan=lifespan(adapter))

    A broker that cannot be reached stops the start-up with a `ConnectError`.
    """

    @asynccontextmanager
    async def connected(_app: object) -> AsyncIterator[None]:
        async with adapter:
            yield

    return connected
