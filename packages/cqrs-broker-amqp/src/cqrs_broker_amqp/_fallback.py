"""Publishes with aiormq's documented method `basic_publish`, as aio-pika's `exchange.publish` does. `make_channel` uses
`_PlainChannel` only if an undocumented part of aiormq has changed, so that `FastChannel` cannot be used.

With RabbitMQ, messages and outcomes are the same as with `FastChannel`, but publishing is several times slower. With
Apache Qpid a returned message counts as nacked, because a nack is never held for the return that follows.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Iterable, MutableMapping, Sequence
from typing import Any

import aiormq
import pamqp.frame
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from cqrs_brokers.driver import Delivery

from ._channels import ConfirmChannel, FastChannel
from ._client import Connection
from ._rendering import FRAME_END
from ._unanswered import Entry

__all__ = ["make_channel", "unexpected"]

logger = logging.getLogger("cqrs_broker_amqp.channels")

_BEFORE_PROPERTIES = 7 + 2 + 2 + 8
"""The bytes in a content header's frame before the properties: type, channel and size, class, weight, size of the
body."""


class _Properties(commands.Basic.Properties):
    """The properties as `_rendering` wrote them. pamqp would write floats in headers with 32 bits, and would refuse
    large floats."""

    rendered = b""

    def marshal(self) -> bytes:
        """Returns the bytes that were rendered."""
        return self.rendered


class _PlainChannel(ConfirmChannel):
    """Publishes each message with a task and a `basic_publish`, as aiormq documents it."""

    def __init__(self, connection: Connection, channel: Any, **callbacks: Any) -> None:
        super().__init__(connection, channel, **callbacks)
        self._entries: dict[bytes, Entry] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, entries: Sequence[Entry], now: float) -> None:
        """See `ConfirmChannel`. The messages keep their order, because tasks start in the order in which they were made
        and aiormq's lock is fair."""
        loop = asyncio.get_running_loop()
        if not self._entries:
            self.quiet_since = now
        for entry in entries:
            self._entries[entry[1]] = entry
            self.in_flight.add(entry[1])
            task = loop.create_task(self._publish(entry))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _publish(self, entry: Entry) -> None:
        _, message_id, frames, body, _, _ = entry
        read, _, publish = pamqp.frame.unmarshal(frames)
        also, _, header = pamqp.frame.unmarshal(frames[read:])
        assert isinstance(publish, commands.Basic.Publish)
        assert isinstance(header, ContentHeader)
        properties = _Properties(**dict[str, Any](header.properties))
        properties.rendered = frames[read + _BEFORE_PROPERTIES : read + also - len(FRAME_END)]
        if header.body_size and not body:
            _, _, content = pamqp.frame.unmarshal(frames[read + also :])
            assert isinstance(content, ContentBody)
            body = content.value
        try:
            answer = await self.channel.basic_publish(
                body,
                exchange=publish.exchange,
                routing_key=publish.routing_key,
                properties=properties,
                mandatory=True,
            )
        except aiormq.exceptions.DeliveryError as error:
            self._end(message_id, error)
        except (Exception, asyncio.CancelledError):  # no answer will come: the closed channel or the deadline ends it
            return
        else:
            if isinstance(answer, commands.Basic.Ack):
                self._end(message_id, None)

    def _end(self, message_id: bytes, error: BaseException | None) -> None:
        entry = self._entries.pop(message_id, None)
        if entry is None:
            return
        self.in_flight.discard(message_id)
        self.quiet_since = self.channel.loop.time()
        if error is None:
            entry[0].confirm()
        else:
            self._failed(self, entry, error)
        if self.watched:
            returned = error is None or isinstance(error, aiormq.exceptions.PublishError)
            self._on_answer(self, entry[:1] if returned else ())

    def entries(self) -> list[Entry]:
        """See `ConfirmChannel`."""
        return list(self._entries.values())

    def oldest(self) -> Delivery | None:
        """See `ConfirmChannel`."""
        return next((entry[0] for entry in self._entries.values()), None)

    def take(self) -> list[Entry]:
        """See `ConfirmChannel`."""
        taken = super().take()
        self._entries.clear()
        for task in self._tasks:
            task.cancel()
        return taken


def make_channel(connection: Connection, channel: Any, **callbacks: Any) -> ConfirmChannel:
    """Makes a fast channel. If aiormq is not as expected, makes a slower channel instead, and logs the reason."""
    reason = unexpected(connection, channel)
    if reason is None:
        return FastChannel(connection, channel, **callbacks)
    logger.warning("publishing through aiormq's basic_publish, several times slower: %s", reason)
    return _PlainChannel(connection, channel, **callbacks)


def unexpected(connection: Connection, channel: Any) -> str | None:
    """Returns a text that says why `FastChannel` cannot use this aiormq. None: `FastChannel` can be used."""
    wanted: Iterable[tuple[object, str, type]] = (
        (channel, "confirmations", MutableMapping),
        (channel, "message_id_delivery_tag", dict),
        (channel, "delivery_tag", int),
        (channel, "number", int),
        (channel, "frames", asyncio.Queue),
        (connection, "channels", dict),
    )
    for owner, name, kind in wanted:
        if not isinstance(getattr(owner, name, None), kind):
            return f"aiormq's {type(owner).__name__}.{name} is no {kind.__name__}"
    for name in ("_on_confirm_frame", "_on_return_frame"):
        method = getattr(channel, name, None)
        if not inspect.iscoroutinefunction(method) or len(inspect.signature(method).parameters) != 1:
            return f"aiormq's {type(channel).__name__}.{name} is not an async function of one frame"
    return None
