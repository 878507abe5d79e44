"""The one module that knows aiormq from the inside. Everything else uses what is public.

What is used beyond its documentation, each with a test in tests/amqp/test_internals.py, so that a new aiormq turns a
test red and not a user:

    Connection._rpc                       to see with which code the server refuses a handshake
    Connection._on_reader_done            to learn of a lost connection at once, not after aiormq's own goodbyes
    Connection.__handle_connection_blocked / …_unblocked    no other event tells of them
    Connection._Base__future_store        aiormq's own tasks, to end them when they do not end
    Connection.channels, .write_queue, .connection_tune; ChannelFrame
    Channel.confirmations, .message_id_delivery_tag, .delivery_tag      to publish without a task and a lock per message

When the parts that publishing needs are not as expected, `PlainLane` publishes through aiormq's documented
`basic_publish`, the call behind aio-pika's `exchange.publish`: as true, but slower.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol

import aiormq
import pamqp.frame
from aiormq.abc import ChannelFrame
from aiormq.connection import TransportFactory
from pamqp import commands
from pamqp.header import ContentHeader
from yarl import URL

from cqrs_brokers.driver import Delivery

from .errors import HandshakeRefused
from .rendering import body_frames

__all__ = ["Confirm", "Connection", "Entry", "FastLane", "Lane", "PlainLane", "Sockets", "make_lane", "unexpected"]

logger = logging.getLogger("cqrs_broker_amqp.internals")

DEFAULT_FRAME_MAX = 131_072
LARGEST_FRAME = 16 * 2**20
"""No server sends frames of this size: RabbitMQ's default limit is 128 KiB."""

Entry = tuple[Delivery, str, bytes, bytes]
"""A rendered message: the delivery, its id, the frames before the body, the body."""


class _Reader(asyncio.StreamReader):
    """Remembers when something last came in, and does not wait for frames that nobody sends."""

    last_inbound = 0.0

    def readexactly(self, n: int) -> Coroutine[Any, Any, bytes]:
        """As StreamReader's. Garbage on the wire reads as the size of a huge frame, for which aiormq would wait."""
        if n > LARGEST_FRAME:
            raise ConnectionError(f"a frame of {n} bytes is announced: this is not AMQP")
        return super().readexactly(n)

    def feed_data(self, data: Any) -> None:
        self.last_inbound = asyncio.get_running_loop().time()
        super().feed_data(data)


class Sockets(TransportFactory):
    """Opens the connection's socket and keeps hold of it, so that it can be dropped without asking aiormq.

    Args:
        host: Name or address.
        port: Port.
        tls: The TLS context, or None.
    """

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        self._host, self._port, self._tls = host, port, tls
        self._reader: _Reader | None = None
        self._transport: asyncio.Transport | None = None
        self._aborted = False

    async def create(self, url: URL, **_: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Called by aiormq."""
        loop = asyncio.get_running_loop()
        reader = self._reader = _Reader(loop=loop)
        reader.last_inbound = loop.time()
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        try:
            transport, _protocol = await loop.create_connection(lambda: protocol, self._host, self._port, ssl=self._tls)
        except OSError as error:
            raise aiormq.exceptions.AMQPConnectionError(*error.args) from error
        self._transport = transport
        if self._aborted:
            transport.abort()
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    @property
    def last_inbound(self) -> float:
        """When the last byte came, in the loop's time."""
        return self._reader.last_inbound if self._reader is not None else 0.0

    def abort(self) -> None:
        """Drops the socket; also when the event loop is closed."""
        self._aborted = True
        transport = self._transport
        if transport is None:
            return
        try:
            transport.abort()
        except RuntimeError:  # the event loop is closed: asyncio cannot even close the socket any more
            _close_socket(transport)


def _close_socket(transport: Any) -> None:
    """Closes a transport's socket behind the back of a closed event loop."""
    inner = transport
    ssl_protocol = getattr(transport, "_ssl_protocol", None)
    if ssl_protocol is not None:
        transport._closed = True
        inner = getattr(ssl_protocol, "_transport", None)
    sock = getattr(inner, "_sock", None)
    if isinstance(sock, socket.socket):
        inner._sock = None  # or the transport would warn, when it is collected, of a socket that is closed
        sock.close()


class Watcher(Protocol):
    """Who is told what happens to a connection."""

    def ended(self, error: BaseException | None) -> None:
        """Nothing more will come in."""

    def blocked(self, reason: str) -> None:
        """The server reads nothing more from connections that publish."""

    def unblocked(self) -> None:
        """It reads again."""


class Connection(aiormq.Connection):
    """aiormq's connection, which says what happens to it.

    Args:
        url: User, password, host, port and heartbeat, as aiormq wants them.
        vhost: The virtual host, decoded: aiormq does not decode all of them right.
        sockets: Opens the socket.
        watcher: Is told.
    """

    def __init__(self, url: URL, *, vhost: str, sockets: Sockets, watcher: Watcher) -> None:
        super().__init__(url, transport_factory=sockets)
        self.vhost = vhost
        self._watcher: Watcher | None = watcher

    @staticmethod
    async def _rpc(request: Any, writer: asyncio.StreamWriter, frame_receiver: Any, wait_response: bool = True) -> Any:
        """As aiormq's, but a refusal keeps its code and text."""
        writer.write(pamqp.frame.marshal(request, 0))
        await writer.drain()
        if not wait_response:
            return None
        _, _, frame = await frame_receiver.get_frame()
        if isinstance(frame, commands.Connection.Close):
            raise HandshakeRefused(frame.reply_code or 0, frame.reply_text or "")
        if request.synchronous and frame.name not in request.valid_responses:
            raise aiormq.exceptions.InvalidFrameError(f"{frame.name} is no answer to {request.name}")
        return frame

    def _on_reader_done(self, task: Any) -> None:
        """Instead of aiormq's goodbyes, which may take minutes: the watcher drops the socket and our tasks."""
        if self._watcher is not None:
            self._watcher.ended(asyncio.CancelledError() if task.cancelled() else task.exception())

    async def _Connection__handle_connection_blocked(self, frame: Any) -> None:  # noqa: N802
        await super()._Connection__handle_connection_blocked(frame)  # type: ignore[misc]
        if self._watcher is not None:
            self._watcher.blocked(str(frame.reason))

    async def _Connection__handle_connection_unblocked(self, frame: Any) -> None:  # noqa: N802
        await super()._Connection__handle_connection_unblocked(frame)  # type: ignore[misc]
        if self._watcher is not None:
            self._watcher.unblocked()

    def forget_watcher(self) -> None:
        """From here on nobody is told."""
        self._watcher = None

    @property
    def tasks(self) -> list[asyncio.Task[Any]]:
        """aiormq's tasks for this connection and its channels that have not ended."""
        store = getattr(self, "_Base__future_store", None)
        wrapped = (getattr(item, "task", None) for item in tuple(getattr(store, "futures", ())))
        return [task for task in wrapped if isinstance(task, asyncio.Task) and not task.done()]

    @property
    def frame_max(self) -> int:
        """The largest frame; 0 on the wire means no limit."""
        return self.connection_tune.frame_max or DEFAULT_FRAME_MAX

    def free_number(self, first: int) -> int:
        """The lowest channel number from `first` on that is not in use."""
        return next(number for number in range(first, 65_536) if number not in self.channels)

    def drop_tasks(self) -> None:
        """Ends aiormq's tasks without awaiting them, also when their event loop is closed."""
        for task in self.tasks:
            if not self.loop.is_closed():
                task.cancel()
                continue
            task._log_destroy_pending = False  # type: ignore[attr-defined] # it can never finish
            coroutine: Any = task.get_coro()
            for _ in range(10):  # a `finally` that awaits keeps a coroutine from closing at the first try
                with contextlib.suppress(Exception):
                    coroutine.close()
                    break


class Confirm:
    """Stands in aiormq's table of confirms for one message: the four methods that aiormq calls on a future there."""

    __slots__ = ("lane", "delivery", "message_id", "handed_at")

    def __init__(self, lane: Lane, delivery: Delivery, message_id: str, handed_at: float) -> None:
        self.lane = lane
        self.delivery = delivery
        self.message_id = message_id
        self.handed_at = handed_at

    def done(self) -> bool:
        """Never: a resolved one is not in the table."""
        return False

    def cancelled(self) -> bool:
        """Never: nobody can cancel it."""
        return False

    def set_result(self, frame: object) -> None:
        """An ack came."""
        lane = self.lane
        if lane.in_flight.pop(self.message_id, None) is not None:
            self.delivery.confirm()
            if lane.attentive:
                lane.resolved(lane)

    def set_exception(self, error: BaseException) -> None:
        """A return or a nack came."""
        lane = self.lane
        if lane.in_flight.pop(self.message_id, None) is not None:
            lane.failed(self.delivery, error)
            if lane.attentive:
                lane.resolved(lane)


class Lane:
    """A channel in confirm mode that nobody else publishes on.

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
        self.in_flight: dict[str, Any] = {}
        """What has no answer yet, by message id, in the order of handing over. An id is in it once."""
        self.attentive = False

    @property
    def open(self) -> bool:
        """Whether what is sent now reaches an open channel.

        aiormq forgets a channel when it reads the server's Channel.Close, before it answers it. Frames that follow the
        answer would make the server close the whole connection.
        """
        return self.connection.channels.get(self.channel.number) is self.channel

    @property
    def full(self) -> bool:
        """Whether the connection's write queue has no room."""
        return bool(self.channel.write_queue.full())

    @property
    def has_unread(self) -> bool:
        """Whether answers have come in that aiormq has not looked at."""
        return not self.channel.frames.empty()

    def send(self, entries: Sequence[Entry], now: float) -> None:
        """Sends messages that are handed over."""
        raise NotImplementedError

    def oldest(self) -> Confirm | None:
        """What waits for its answer longest."""
        raise NotImplementedError

    def take_in_flight(self) -> list[Delivery]:
        """What has no answer, and now gets none from this lane any more."""
        raise NotImplementedError


class FastLane(Lane):
    """Group commit: all that is ready goes out as one write, without a task, a lock or a future per message."""

    def __init__(self, connection: Connection, channel: Any, **callbacks: Any) -> None:
        super().__init__(connection, channel, **callbacks)
        # aiormq finds the message of a Basic.Return in it. So one table serves both: what is in flight, and that.
        self.in_flight = channel.message_id_delivery_tag
        self._frame_max = connection.frame_max

    def send(self, entries: Sequence[Entry], now: float) -> None:
        """See `Lane`. The caller waits for `drained` before it sends again, so the queue has room."""
        channel = self.channel
        tags, confirms, frame_max = self.in_flight, channel.confirmations, self._frame_max
        tag: int = channel.delivery_tag
        parts: list[bytes] = []
        for delivery, message_id, head, body in entries:
            tag += 1
            tags[message_id] = tag
            confirms[tag] = Confirm(self, delivery, message_id, now)
            parts.append(head)
            body_frames(body, frame_max, parts)
        channel.delivery_tag = tag
        drained = channel.loop.create_future()
        drained.add_done_callback(self._drained)
        frame = ChannelFrame(payload=b"".join(parts), should_close=False, drain_future=drained)
        channel.write_queue.put_nowait(frame)

    def _drained(self, _: object) -> None:
        self.drained(self)

    def oldest(self) -> Confirm | None:
        """See `Lane`."""
        return next((one for one in self.channel.confirmations.values() if isinstance(one, Confirm)), None)

    def take_in_flight(self) -> list[Delivery]:
        """See `Lane`."""
        confirms = self.channel.confirmations
        taken = [one.delivery for one in confirms.values() if isinstance(one, Confirm)]
        confirms.clear()
        self.in_flight.clear()
        return taken


class PlainLane(Lane):
    """The way back to what aiormq documents: a task and a `basic_publish` per message."""

    def __init__(self, connection: Connection, channel: Any, **callbacks: Any) -> None:
        super().__init__(connection, channel, **callbacks)
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, entries: Sequence[Entry], now: float) -> None:
        """See `Lane`. Tasks start in the order in which they were made, and aiormq's lock is fair."""
        loop = asyncio.get_running_loop()
        for delivery, message_id, head, body in entries:
            confirm = self.in_flight[message_id] = Confirm(self, delivery, message_id, now)
            task = loop.create_task(self._publish(confirm, head, body))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        loop.call_soon(self.drained, self)

    async def _publish(self, confirm: Confirm, head: bytes, body: bytes) -> None:
        read, _, publish = pamqp.frame.unmarshal(head)
        _, _, header = pamqp.frame.unmarshal(head[read:])
        assert isinstance(publish, commands.Basic.Publish)
        assert isinstance(header, ContentHeader)
        try:
            answer = await self.channel.basic_publish(
                body,
                exchange=publish.exchange,
                routing_key=publish.routing_key,
                properties=header.properties,
                mandatory=True,
            )
        except aiormq.exceptions.DeliveryError as error:
            confirm.set_exception(error)
        except (Exception, asyncio.CancelledError):  # the channel is gone: whoever notices that takes what is in flight
            return
        else:
            if isinstance(answer, commands.Basic.Ack):
                confirm.set_result(answer)

    def oldest(self) -> Confirm | None:
        """See `Lane`."""
        return next(iter(self.in_flight.values()), None)

    def take_in_flight(self) -> list[Delivery]:
        """See `Lane`."""
        taken = [confirm.delivery for confirm in self.in_flight.values()]
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
        (channel, "confirmations", Mapping),
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
    missing = {"payload", "should_close", "drain_future"} - set(getattr(ChannelFrame, "__dataclass_fields__", ()))
    return f"aiormq's ChannelFrame has no {', '.join(sorted(missing))}" if missing else None
