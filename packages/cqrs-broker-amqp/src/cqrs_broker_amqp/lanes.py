"""A channel in confirm mode that nobody else publishes on: the fast way through aiormq, and the documented one.

`FastLane` uses of aiormq, beyond its documentation, each with a test in tests/amqp/test_internals.py:

    Channel.write_queue, ChannelFrame, Channel.delivery_tag     to publish without a task and a lock for each message
    Channel._on_confirm_frame                                   to resolve all that one ack confirms in one loop
    Channel._on_return_frame, .confirmations, .message_id_delivery_tag      to learn which message was returned
    Connection.channels, Channel.number, .frames                to know whether the channel still is one

When one of them is not as expected, `PlainLane` publishes through aiormq's documented `basic_publish`, the call behind
aio-pika's `exchange.publish`: as true, but slower.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import aiormq
import pamqp.frame
from aiormq.abc import ChannelFrame
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from cqrs_brokers.driver import Delivery, confirm_all

from .internals import Connection
from .rendering import body_frames

__all__ = ["Entry", "FastLane", "Lane", "PlainLane", "make_lane", "unexpected"]

logger = logging.getLogger("cqrs_broker_amqp.lanes")

Entry = tuple[Delivery, bytes, bytes, bytes]
"""A rendered message: the delivery, its id, its frames, and its body when that is not among them."""

Handed = tuple[Delivery, bytes, float]
"""A message without an answer: the delivery, its id, when it was handed over (in the loop's time)."""


class Lane:
    """What the driver publishes through.

    Args:
        connection: Its connection.
        channel: The channel.
        failed: Called with a delivery and its return or nack, as aiormq's exception.
        resolved: Called after each resolution while `attentive` is set.
        drained: Called when what was sent last is with the operating system.
    """

    def __init__(
        self,
        connection: Connection,
        channel: Any,
        *,
        failed: Callable[[Delivery, BaseException], None],
        resolved: Callable[[Lane], None],
        drained: Callable[[Lane], None],
    ) -> None:
        self.connection = connection
        self.channel = channel
        self.failed = failed
        self.resolved = resolved
        self.drained = drained
        self.in_flight: dict[bytes, Any] = {}
        """What has no answer yet, by message id. An id is in it once."""
        self.attentive = False

    @property
    def open(self) -> bool:
        """Whether what is sent now reaches an open channel.

        aiormq forgets a channel when it reads the server's Channel.Close, before it answers it. Frames that follow the
        answer would make the server close the whole connection.
        """
        connection, channel = self.connection, self.channel
        return connection.channels.get(channel.number) is channel and connection.sockets.open

    @property
    def full(self) -> bool:
        """Whether the connection's write queue has no room."""
        return bool(self.channel.write_queue.full())

    @property
    def has_unread(self) -> bool:
        """Whether answers have come in that aiormq has not looked at."""
        return not self.channel.frames.empty()

    def send(self, entries: Sequence[Entry], now: float) -> bool:
        """Sends messages that are handed over.

        Returns:
            Whether the operating system has taken them; if not, `drained` will be called when it has.
        """
        raise NotImplementedError

    def oldest(self) -> Handed | None:
        """What waits for its answer longest."""
        raise NotImplementedError

    def take_in_flight(self) -> list[Delivery]:
        """What has no answer, and now gets none from this lane any more."""
        raise NotImplementedError


class FastLane(Lane):
    """Group commit: all that is ready goes out as one write, and one ack resolves all that it confirms."""

    def __init__(self, connection: Connection, channel: Any, **callbacks: Any) -> None:
        super().__init__(connection, channel, **callbacks)
        self._handed: dict[int, Handed] = {}
        self._last: int = channel.delivery_tag
        self._first = self._last + 1
        """No tag below it is without an answer."""
        self._frame_max = connection.frame_max
        # aiormq looks up in these which message a Basic.Return is about; it reads acks and nacks for nobody else here.
        channel.message_id_delivery_tag = _TagById(self.in_flight)
        channel.confirmations = _Returns(self._returned)
        channel._on_confirm_frame = self._answered

    def send(self, entries: Sequence[Entry], now: float) -> bool:
        """See `Lane`. Written at once: aiormq's writer task would do it some turns of the event loop later."""
        channel = self.channel
        tags, handed, frame_max = self.in_flight, self._handed, self._frame_max
        tag = self._last
        parts: list[bytes] = []
        for delivery, message_id, frames, body in entries:
            tag += 1
            tags[message_id] = tag
            handed[tag] = (delivery, message_id, now)
            parts.append(frames)
            if body:
                body_frames(body, frame_max, parts)
        self._last = channel.delivery_tag = tag
        if self.connection.sockets.write(b"".join(parts)):
            return True
        # aiormq's writer task says when the socket takes more. The queue has room: the caller has looked.
        drained = channel.loop.create_future()
        drained.add_done_callback(self._drained)
        channel.write_queue.put_nowait(ChannelFrame(payload=b"", should_close=False, drain_future=drained))
        return False

    def _drained(self, _: object) -> None:
        self.drained(self)

    async def _answered(self, frame: commands.Basic.Ack | commands.Basic.Nack) -> None:
        """Takes the place of aiormq's `_on_confirm_frame`, which makes one call in the event loop for each message."""
        tag, first, last, handed = frame.delivery_tag or 0, self._first, self._last, self._handed
        if tag > last:
            logger.error("RabbitMQ answered delivery tag %d, and the last one sent is %d: ignored", tag, last)
            return
        tags: Iterable[int]
        if frame.multiple:
            tag = tag or last  # AMQP 0-9-1: zero means all that is outstanding
            tags = range(first, tag + 1)
            first = max(first, tag + 1)
        else:
            tags = (tag,)
        in_flight, find = self.in_flight, handed.pop
        answered: list[Delivery] = []
        for tag in tags:
            one = find(tag, None)
            if one is not None:  # else it was returned, or has its answer
                delivery, message_id, _ = one
                del in_flight[message_id]
                answered.append(delivery)
        if isinstance(frame, commands.Basic.Ack):
            confirm_all(answered)
        else:
            for delivery in answered:
                self.failed(delivery, aiormq.exceptions.DeliveryError(None, frame))
        while first <= last and first not in handed:
            first += 1
        self._first = first
        if self.attentive:
            self.resolved(self)

    def _returned(self, tag: int, error: BaseException) -> None:
        one = self._handed.pop(tag, None)
        if one is not None:
            delivery, message_id, _ = one
            del self.in_flight[message_id]
            self.failed(delivery, error)
            if self.attentive:
                self.resolved(self)

    def oldest(self) -> Handed | None:
        """See `Lane`."""
        return next(iter(self._handed.values()), None)

    def take_in_flight(self) -> list[Delivery]:
        """See `Lane`."""
        taken = [delivery for delivery, _, _ in self._handed.values()]
        self._handed.clear()
        self.in_flight.clear()
        return taken


class _TagById:
    """Stands for aiormq's table of delivery tags, in which it looks up the id of a returned message."""

    def __init__(self, tags: Mapping[bytes, int]) -> None:
        self._tags = tags

    def get(self, message_id: str) -> int | None:
        """The tag of that message, or None when nothing with this id is in flight."""
        return self._tags.get(message_id.encode())


class _Returns:
    """Stands for aiormq's table of confirms, in which it looks up the future of a returned message."""

    def __init__(self, returned: Callable[[int, BaseException], None]) -> None:
        self._returned = returned

    def pop(self, tag: int, default: object = None) -> _Return:
        """What stands for the message's future."""
        return _Return(self._returned, tag)

    def __setitem__(self, tag: int, value: object) -> None:
        """aiormq marks the message as returned, so that the ack that follows is ignored. `FastLane` knows by itself."""


class _Return:
    """Stands for a returned message's future."""

    def __init__(self, returned: Callable[[int, BaseException], None], tag: int) -> None:
        self._returned = returned
        self._tag = tag

    def set_exception(self, error: BaseException) -> None:
        """The whole of the return has come."""
        self._returned(self._tag, error)


class PlainLane(Lane):
    """The way back to what aiormq documents: a task and a `basic_publish` per message."""

    def __init__(self, connection: Connection, channel: Any, **callbacks: Any) -> None:
        super().__init__(connection, channel, **callbacks)
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, entries: Sequence[Entry], now: float) -> bool:
        """See `Lane`. Tasks start in the order in which they were made, and aiormq's lock is fair."""
        loop = asyncio.get_running_loop()
        for delivery, message_id, frames, body in entries:
            self.in_flight[message_id] = (delivery, message_id, now)
            task = loop.create_task(self._publish(message_id, frames, body))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        loop.call_soon(self.drained, self)
        return False

    async def _publish(self, message_id: bytes, frames: bytes, body: bytes) -> None:
        read, _, publish = pamqp.frame.unmarshal(frames)
        also, _, header = pamqp.frame.unmarshal(frames[read:])
        assert isinstance(publish, commands.Basic.Publish)
        assert isinstance(header, ContentHeader)
        if header.body_size and not body:
            _, _, content = pamqp.frame.unmarshal(frames[read + also :])
            assert isinstance(content, ContentBody)
            body = content.value
        try:
            answer = await self.channel.basic_publish(
                body,
                exchange=publish.exchange,
                routing_key=publish.routing_key,
                properties=header.properties,
                mandatory=True,
            )
        except aiormq.exceptions.DeliveryError as error:
            self._end(message_id, error)
        except (Exception, asyncio.CancelledError):  # the channel is gone: whoever notices that takes what is in flight
            return
        else:
            if isinstance(answer, commands.Basic.Ack):
                self._end(message_id, None)

    def _end(self, message_id: bytes, error: BaseException | None) -> None:
        one = self.in_flight.pop(message_id, None)
        if one is None:
            return
        if error is None:
            one[0].confirm()
        else:
            self.failed(one[0], error)
        if self.attentive:
            self.resolved(self)

    def oldest(self) -> Handed | None:
        """See `Lane`."""
        return next(iter(self.in_flight.values()), None)

    def take_in_flight(self) -> list[Delivery]:
        """See `Lane`."""
        taken = [delivery for delivery, _, _ in self.in_flight.values()]
        self.in_flight.clear()
        for task in self._tasks:
            task.cancel()
        return taken


def make_lane(connection: Connection, channel: Any, **callbacks: Any) -> Lane:
    """The fast lane, or the plain one with a word in the log about why."""
    reason = unexpected(connection, channel)
    if reason is None:
        return FastLane(connection, channel, **callbacks)
    logger.warning("publishing through aiormq's basic_publish, several times slower: %s", reason)
    return PlainLane(connection, channel, **callbacks)


def unexpected(connection: Connection, channel: Any) -> str | None:
    """What of aiormq is not as `FastLane` needs it, or None."""
    wanted: Iterable[tuple[object, str, type]] = (
        (channel, "confirmations", MutableMapping),
        (channel, "message_id_delivery_tag", dict),
        (channel, "delivery_tag", int),
        (channel, "number", int),
        (channel, "write_queue", asyncio.Queue),
        (channel, "frames", asyncio.Queue),
        (connection, "channels", dict),
    )
    for owner, name, kind in wanted:
        if not isinstance(getattr(owner, name, None), kind):
            return f"aiormq's {type(owner).__name__}.{name} is no {kind.__name__}"
    for name in ("_on_confirm_frame", "_on_return_frame"):
        method = getattr(channel, name, None)
        if not inspect.iscoroutinefunction(method) or len(inspect.signature(method).parameters) != 1:
            return f"aiormq's {type(channel).__name__}.{name} is no coroutine of one frame"
    missing = {"payload", "should_close", "drain_future"} - set(getattr(ChannelFrame, "__dataclass_fields__", ()))
    return f"aiormq's ChannelFrame has no {', '.join(sorted(missing))}" if missing else None
