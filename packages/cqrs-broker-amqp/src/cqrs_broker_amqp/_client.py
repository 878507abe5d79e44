"""The connection of aiormq. This module and `_channels` use undocumented parts of aiormq. `_session` and `_inspection`
read one attribute each, from the last line of the list below. `_fallback` checks the parts that `_channels` uses.

Each method of this list has a test in tests/amqp/test_channels.py, and the tests there use the other parts. So a test
fails if a new version of aiormq changes a part. The parts are:

    Connection._rpc                       to see the code with which the server refuses a handshake; to answer SCRAM
    Connection._credentials_class         to choose between the mechanisms that the server offers
    Connection._on_reader_done            to learn of a lost connection at once; aiormq would first try to close it
    Connection.__handle_connection_blocked / …_unblocked    to learn of an alarm; aiormq has no event for it
    Connection._Base__future_store        to find aiormq's own tasks, and to end those that do not end by themselves
    Connection.channels, .connection_tune, .server_properties; Channel.write_queue, ChannelFrame
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Coroutine, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

import aiormq
import pamqp.frame
from aiormq.abc import ChannelFrame
from aiormq.auth import AuthMechanism
from aiormq.connection import TransportFactory
from pamqp import commands
from pamqp.heartbeat import Heartbeat
from yarl import URL

from cqrs_brokers.dialing import Address, BufferedReads, look_up, open_socket, other_addresses
from cqrs_brokers.tasks import drop_task, drop_transport, retrieve_exception

from ._errors import HandshakeRefused, NotAMQPError
from ._scram import MECHANISM as SCRAM
from ._scram import Scram

__all__ = ["Connection", "ConnectionListener", "Sockets", "close_without_waiting"]

DEFAULT_FRAME_MAX = 131_072
LARGEST_FRAME = 16 * 2**20
"""A larger frame is refused, because it nearly always belongs to another protocol: RabbitMQ's default limit is 128
KiB."""
MOST_CHANNELS = 65_535
_HEARTBEAT = pamqp.frame.marshal(Heartbeat(), 0)


class _Reader(asyncio.StreamReader):
    """Remembers when the last data came in. Refuses frames that are larger than `LARGEST_FRAME`."""

    last_inbound = 0.0
    answers = 0
    """How many times data came in."""

    def readexactly(self, n: int) -> Coroutine[Any, Any, bytes]:
        """Reads as StreamReader's method does, but refuses a huge frame. The bytes of another protocol may look like
        the size of a huge frame, and aiormq would wait for that many bytes.

        Raises:
            NotAMQPError: More than `LARGEST_FRAME` bytes are wanted.
        """
        if n > LARGEST_FRAME:
            raise NotAMQPError(f"a frame of {n} bytes is announced: this is not AMQP")
        return super().readexactly(n)

    def feed_data(self, data: Any) -> None:
        self.last_inbound = asyncio.get_running_loop().time()
        self.answers += 1
        super().feed_data(data)


class _Protocol(asyncio.StreamReaderProtocol, BufferedReads):
    """Calls `drained` when the transport takes bytes again after it had paused the protocol."""

    drained: Callable[[], None] | None = None

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.drained is not None:
            self.drained()


class Sockets(TransportFactory):
    """Opens and keeps the socket of the connection, so that we can drop the socket without aiormq.

    Args:
        host: Name or address.
        port: Port.
        tls: The TLS context, or None.
        addresses: The addresses of the host that are left to try. None: the name is looked up.
    """

    def __init__(
        self, host: str, port: int, tls: ssl.SSLContext | None, addresses: Sequence[Address] | None = None
    ) -> None:
        self._host, self._port, self._tls = host, port, tls
        self._addresses = addresses
        self.other_addresses: list[Address] = []
        """The addresses that are left to try if the attempt with the connected address fails."""
        self._streams: tuple[_Reader, asyncio.StreamWriter] | None = None
        self._protocol: _Protocol | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._plain: asyncio.Transport | None = None
        """The transport of the TCP connection. Without TLS it is the same as `_transport`."""
        self._aborted = False
        self.step = ""
        """The current step. The error of a timeout names this step."""

    async def connect(self) -> None:
        """Looks up the name and connects. aiormq does not do this, because aiormq would log each failure."""
        loop = asyncio.get_running_loop()
        addresses = self._addresses
        if addresses is None:
            self.step = "resolving its name"
            addresses = await look_up(self._host, self._port)
        self.step = "connecting"
        raw = await open_socket(addresses)
        self.other_addresses = other_addresses(addresses, raw)
        reader = _Reader(loop=loop)
        reader.last_inbound = loop.time()
        self._protocol = protocol = _Protocol(reader, loop=loop)
        transport, _ = await loop.create_connection(lambda: protocol, sock=raw)
        # Bytes that the operating system does not take at once pause the transport's protocol, until none is left.
        transport.set_write_buffer_limits(high=0)
        self._transport = self._plain = transport
        self._streams = reader, asyncio.StreamWriter(transport, protocol, reader, loop)
        if self._aborted:
            transport.abort()

    async def start_tls(self) -> None:
        """Makes the TLS handshake, if there is TLS."""
        if self._tls is None:
            return
        assert self._streams is not None
        self.step = "the TLS handshake"
        writer = self._streams[1]
        await writer.start_tls(self._tls, server_hostname=self._host)
        self._transport = writer.transport
        self._transport.set_write_buffer_limits(high=1, low=0)  # asyncio's TLS transport pauses at `high`, not above

    async def create(self, url: URL, **_: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """See `TransportFactory`. Returns the streams of the open socket."""
        assert self._streams is not None
        return self._streams

    @property
    def last_inbound(self) -> float:
        """When data came in last, or when the socket was opened if no data came in yet (event loop's time)."""
        return self._streams[0].last_inbound if self._streams is not None else 0.0

    @property
    def answers(self) -> int:
        """How many times data came in."""
        return self._streams[0].answers if self._streams is not None else 0

    @property
    def open_for_writing(self) -> bool:
        """Whether the socket is open and not closing. Bytes that are written to a closing socket are dropped."""
        return self._transport is not None and not self._transport.is_closing()

    def on_drained(self, drained: Callable[[], None]) -> None:
        """Sets the function `drained`. If `must_wait` has returned True, `drained` is called when no written bytes wait
        any more."""
        if self._protocol is not None:
            self._protocol.drained = lambda: None if self.must_wait() else drained()

    def must_wait(self) -> bool:
        """Whether some written bytes still wait for the operating system.

        With TLS they may all wait in the plain transport, and asyncio does not tell when they are gone. But the TLS
        transport keeps further bytes until then. So this method writes a heartbeat, and asyncio tells when it is gone.
        """
        if self._transport is None or self._plain is None:
            return False
        if self._transport.get_write_buffer_size():
            return True
        if not self._plain.get_write_buffer_size():
            return False
        self._transport.write(_HEARTBEAT)
        return True

    def write(self, frames: bytes) -> None:
        """Writes whole frames. aiormq's writer task also writes only whole frames, so the frames are not mixed up."""
        assert self._transport is not None
        self._transport.write(frames)

    def abort(self) -> None:
        """Drops the socket, also when the event loop is closed."""
        self._aborted = True
        drop_transport(self._transport)


def close_without_waiting(channel: Any) -> None:
    """Sends Channel.Close and does not wait for the answer. When the answer comes, the channel's number is free again.
    If the server has closed the channel, nothing is sent.

    aiormq's own close() sends a second Channel.Close if the answer takes longer than a heartbeat, or if the wait is
    cancelled. After a second Channel.Close RabbitMQ closes the whole connection.
    """
    if channel.connection.channels.get(channel.number) is channel:
        close = commands.Channel.Close(reply_code=200, class_id=0, method_id=0)
        frame = ChannelFrame.marshall(channel_number=channel.number, frames=[close])
        with contextlib.suppress(asyncio.QueueFull):  # then the channel stays open and keeps its number
            channel.write_queue.put_nowait(frame)


class ConnectionListener(Protocol):
    """The methods that a connection calls when something happens to it."""

    def ended(self, error: BaseException | None) -> None:
        """Called when nothing more will come in."""

    def blocked(self, reason: str) -> None:
        """Called when the server stops reading from connections that publish."""

    def unblocked(self) -> None:
        """Called when the server reads again."""


class Connection(aiormq.Connection):
    """aiormq's connection. It calls a listener when something happens to the connection.

    Args:
        url: User, password, host, port, heartbeat and connection name, in the form that aiormq needs.
        vhost: The name of the virtual host, already decoded. aiormq would decode some names wrongly.
        sockets: The socket. It must be open before `connect()`.
        listener: Its methods are called when something happens to the connection.
    """

    def __init__(self, url: URL, *, vhost: str, sockets: Sockets, listener: ConnectionListener) -> None:
        super().__init__(url, transport_factory=sockets)
        self.vhost = vhost
        self.sockets = sockets
        self._listener: ConnectionListener | None = listener
        self._scram: Scram | None = None

    def _credentials_class(self, start_frame: Any) -> Any:
        """Chooses the log-in as aiormq's method does, but uses SCRAM-SHA-256 if the server offers it and does not offer
        PLAIN."""
        offered = start_frame.mechanisms.split()
        if AuthMechanism.PLAIN.name in offered or SCRAM not in offered:
            return super()._credentials_class(start_frame)
        self._scram = scram = Scram(self.url.user or "", self.url.password or "")
        return SimpleNamespace(name=SCRAM, value=lambda _: SimpleNamespace(marshal=lambda: scram.first))

    async def _rpc(  # type: ignore[override] # aiormq's is static and called on the instance
        self, request: Any, writer: asyncio.StreamWriter, frame_receiver: Any, wait_response: bool = True
    ) -> Any:
        """Does the same as aiormq's method, but keeps the code and text of a refusal, and answers SCRAM challenges."""
        frame = request
        while True:
            writer.write(pamqp.frame.marshal(frame, 0))
            await writer.drain()
            if not wait_response:
                return None
            _, _, frame = await frame_receiver.get_frame()
            if not isinstance(frame, commands.Connection.Secure) or self._scram is None:
                break
            frame = commands.Connection.SecureOk(response=self._scram.answer(frame.challenge or ""))
        if isinstance(frame, commands.Connection.Close):
            logged_in = not isinstance(request, commands.Connection.StartOk)
            raise HandshakeRefused(frame.reply_code or 0, frame.reply_text or "", logged_in=logged_in)
        if request.synchronous and frame.name not in request.valid_responses:
            raise aiormq.exceptions.InvalidFrameError(f"{frame.name} is no answer to {request.name}")
        return frame

    def create_task(self, coro: Any) -> Any:
        """Makes a task as aiormq's method does, and retrieves the exception of the task. Otherwise asyncio would log
        such exceptions after every reset of the connection."""
        task = super().create_task(coro)
        task.add_done_callback(retrieve_exception)
        return task

    def _on_reader_done(self, task: Any) -> None:
        """Replaces aiormq's method. That method tries to close a lost connection properly, which may take minutes. This
        method only calls the listener, which drops the socket and aiormq's tasks."""
        if self._listener is not None:
            self._listener.ended(asyncio.CancelledError() if task.cancelled() else task.exception())

    async def _Connection__handle_connection_blocked(self, frame: Any) -> None:  # noqa: N802
        await super()._Connection__handle_connection_blocked(frame)  # type: ignore[misc]
        if self._listener is not None:
            self._listener.blocked(str(frame.reason))

    async def _Connection__handle_connection_unblocked(self, frame: Any) -> None:  # noqa: N802
        await super()._Connection__handle_connection_unblocked(frame)  # type: ignore[misc]
        if self._listener is not None:
            self._listener.unblocked()

    def forget_listener(self) -> None:
        """Stops calling the listener."""
        self._listener = None

    @property
    def server(self) -> str:
        """The name and version that the server gives, such as "RabbitMQ 4.0.5"; "the server" if it gives neither."""
        known = self.server_properties or {}
        return " ".join(str(known[name]) for name in ("product", "version") if name in known) or "the server"

    @property
    def server_capabilities(self) -> dict[str, Any]:
        """The capabilities that the server names. Empty: the server names no capabilities (Apache Qpid)."""
        known = (self.server_properties or {}).get("capabilities")
        return dict(known) if isinstance(known, dict) else {}

    @property
    def names_capabilities(self) -> bool:
        """Whether the server names its capabilities. If not, only a try shows whether the server has a capability."""
        return isinstance((self.server_properties or {}).get("capabilities"), dict)

    @property
    def publisher_confirms(self) -> bool:
        """Whether the server has publisher confirms. Also true if the server does not name its capabilities."""
        return not self.names_capabilities or bool(self.server_capabilities.get("publisher_confirms"))

    @property
    def tasks(self) -> list[asyncio.Task[Any]]:
        """The tasks of aiormq for this connection and its channels, without those that have ended."""
        store = getattr(self, "_Base__future_store", None)
        wrapped = (getattr(item, "task", None) for item in tuple(getattr(store, "futures", ())))
        return [task for task in wrapped if isinstance(task, asyncio.Task) and not task.done()]

    @property
    def frame_max(self) -> int:
        """The size of the largest frame, in bytes. If the server sends 0 (no limit), this is `DEFAULT_FRAME_MAX`."""
        return self.connection_tune.frame_max or DEFAULT_FRAME_MAX

    @property
    def channel_max(self) -> int:
        """How many channels the server allows on this connection. If the server sends 0 (no limit), this is
        `MOST_CHANNELS`."""
        return self.connection_tune.channel_max or MOST_CHANNELS

    def free_number(self) -> int | None:
        """The lowest channel number that is free. None: all numbers are in use."""
        return next((number for number in range(1, self.channel_max + 1) if number not in self.channels), None)

    def drop_tasks(self) -> None:
        """Cancels aiormq's tasks without awaiting them. If their event loop is closed, the tasks are ended at once."""
        for task in self.tasks:
            drop_task(task)
