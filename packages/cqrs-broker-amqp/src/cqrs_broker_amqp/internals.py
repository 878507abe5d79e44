"""aiormq's connection from the inside. Only this module and `lanes` use what aiormq does not document.

What is used beyond its documentation, each with a test in tests/amqp/test_internals.py, so that a new aiormq turns a
test red and not a user:

    Connection._rpc                       to see with which code the server refuses a handshake
    Connection._on_reader_done            to learn of a lost connection at once, not after aiormq's own goodbyes
    Connection.__handle_connection_blocked / …_unblocked    no other event tells of them
    Connection._Base__future_store        aiormq's own tasks, to end them when they do not end
    Connection.channels, .connection_tune; Channel.write_queue, ChannelFrame
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Coroutine
from typing import Any, Protocol

import aiormq
import pamqp.frame
from aiormq.abc import ChannelFrame
from aiormq.connection import TransportFactory
from pamqp import commands
from yarl import URL

from .errors import HandshakeRefused, NotAMQPError

__all__ = ["Connection", "Sockets", "Watcher", "goodbye"]

DEFAULT_FRAME_MAX = 131_072
LARGEST_FRAME = 16 * 2**20
"""No server sends frames of this size: RabbitMQ's default limit is 128 KiB."""


class _Reader(asyncio.StreamReader):
    """Remembers when something last came in, and does not wait for frames that nobody sends."""

    last_inbound = 0.0

    def readexactly(self, n: int) -> Coroutine[Any, Any, bytes]:
        """As StreamReader's. Garbage on the wire reads as the size of a huge frame, for which aiormq would wait."""
        if n > LARGEST_FRAME:
            raise NotAMQPError(f"a frame of {n} bytes is announced: this is not AMQP")
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

    @property
    def open(self) -> bool:
        """Whether what is written now can still reach the server."""
        return self._transport is not None and not self._transport.is_closing()

    def write(self, frames: bytes) -> bool:
        """Writes whole frames, between those of aiormq's writer task: it too writes nothing but whole ones.

        Returns:
            Whether the operating system has taken all that was written.
        """
        assert self._transport is not None
        self._transport.write(frames)
        return not self._transport.get_write_buffer_size()

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


def _asked(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()


def goodbye(channel: Any) -> None:
    """Closes a channel without waiting for the answer."""
    if channel.connection.channels.get(channel.number) is channel:
        close = commands.Channel.Close(reply_code=200, class_id=0, method_id=0)
        frame = ChannelFrame.marshall(channel_number=channel.number, frames=[close])
        with contextlib.suppress(asyncio.QueueFull):  # then the channel stays open, and its number taken
            channel.write_queue.put_nowait(frame)


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
        self.sockets = sockets
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

    def create_task(self, coro: Any) -> Any:
        """As aiormq's, which never asks its writer task how it ended: asyncio would complain after every reset."""
        task = super().create_task(coro)
        task.add_done_callback(_asked)
        return task

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
