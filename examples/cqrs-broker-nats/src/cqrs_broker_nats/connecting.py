"""One connection of nats-py. The only module that reaches into nats-py (2.16); the tests turn red when it changes."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from ssl import SSLContext
from typing import Any
from urllib.parse import ParseResult

from cqrs_brokers.dialing import dial, open_streams
from cqrs_brokers.exceptions import ProtocolError, TLSError, TopologyError, UnreachableError
from cqrs_brokers.tasks import Tasks, drop_task, drop_transport, retrieve_exception
from cqrs_brokers.url import BrokerURL, Host
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport
from nats.js.errors import APIError, NotFoundError

from .errors import connect_error
from .options import NatsOptions

__all__ = ["Session"]


class _Transport(TcpTransport):
    """Never goes on without TLS where it is demanded, as nats-py does; and can be written to and dropped."""

    def __init__(self, tls: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tls = tls
        self._greeted = False

    def __bool__(self) -> bool:
        return True  # not connected yet, nats-py's own is false, and would be replaced

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        raw = await dial(uri.hostname or "", uri.port or 4222)
        self._io_reader, self._io_writer = await open_streams(raw, limit=2**20)
        self._bare_io_reader, self._bare_io_writer = self._io_reader, self._io_writer

    async def readline(self) -> bytes:
        line: bytes = await super().readline()  # type: ignore[no-untyped-call]
        if self._greeted:
            return line
        self._greeted = True
        if not line:
            raise UnreachableError("the connection was closed at once: see the server's log")
        if not line.startswith(b"INFO {"):
            raise ProtocolError("the server there is not NATS: check host and port")
        info = json.loads(line[5:])
        if self._tls and not (info.get("tls_required") or info.get("tls_available")):
            raise TLSError("the server offers no TLS: use nats:// or another port")
        return b"INFO " + json.dumps({**info, "tls_required": self._tls or bool(info.get("tls_required"))}).encode()

    async def drain(self) -> None:
        """Also returns when the connection is gone: nats-py drains as it closes, and would end without `closed_cb`."""
        with suppress(OSError):
            await super().drain()  # type: ignore[no-untyped-call]

    def drop(self) -> None:
        for writer in {self._io_writer, self._bare_io_writer}:
            if writer is not None:
                drop_transport(writer.transport)


class Session:
    """A client that is connected to one host, and what it needs to publish.

    Args:
        answered: Called with each message that comes to the subject of answers: its last word, and the message.
        refused: Called with the subject of a publish that the server's permissions forbid.
        ended: Called when the connection is gone.
    """

    def __init__(
        self,
        answered: Callable[[str, Msg], None],
        refused: Callable[[str], None],
        ended: Callable[["Session", Exception], None],
    ) -> None:
        self._answered, self._refused, self._ended = answered, refused, ended
        self._client: Any = Client()
        self._pings = Tasks()
        self.inbox, self.max_payload = "", 0

    async def open(self, host: Host, url: BrokerURL, options: NatsOptions, tls: SSLContext | None) -> "Session":
        """Connects, logs in, and listens for answers.

        Raises:
            ConnectError: Why not.
        """
        self._client._transport = _Transport(tls is not None)
        address = f"nats://{f'[{host.host}]' if ':' in host.host else host.host}:{host.port or 4222}"
        try:
            await self._client.connect(
                address,
                allow_reconnect=False,  # connecting again is the Broker's
                pending_size=0,  # what is published is written by us; with a buffer it would be sent after a reconnect
                connect_timeout=3600,  # the time is bounded by whoever calls
                ping_interval=86_400,  # pings are the pipeline's
                user=url.username,
                password=None if url.password is None else url.password.reveal(),
                token=None if options.token is None else options.token.reveal(),
                user_credentials=options.creds_file,
                tls=tls,
                error_cb=self._on_error,
                closed_cb=self._on_closed,
            )
            self._client._reading_task.add_done_callback(self._on_deaf)
            self.inbox, self.max_payload = self._client.new_inbox(), self._client.max_payload
            unlimited = {"pending_msgs_limit": 0, "pending_bytes_limit": 0}
            await self._client.subscribe(f"{self.inbox}.*", cb=self._on_answer, **unlimited)
            if options.declare == "stream":
                await self._declare(options)
        except BaseException as error:
            self.drop()
            if isinstance(error, Exception):
                raise connect_error(error, host, options) from error
            raise
        return self

    async def _declare(self, options: NatsOptions) -> None:
        streams = self._client.jetstream()
        try:
            found = await streams.stream_info(options.stream)
            missing = set(options.subjects) - set(found.config.subjects or ())
            if missing:
                raise TopologyError(f"the stream is there and does not take {', '.join(sorted(missing))}")
        except NotFoundError:
            try:
                await streams.add_stream(name=options.stream, subjects=options.subjects)
            except APIError as error:
                raise TopologyError(f"the stream cannot be made ({error.description})") from error

    async def write(self, lines: list[bytes]) -> None:
        """Writes frames, and returns when the buffer has room again; nats-py's own buffer is passed by."""
        if not self._client.is_connected:
            raise ConnectionResetError("the connection was lost")
        self._client._transport.writelines(lines)
        await self._client._transport.drain()

    async def ping(self) -> None:
        """Asks the server for a PONG.

        Whoever waits may give up; nats-py must not. It would fail at the PONG that comes later, and read no more.
        """
        asking = self._pings.spawn(self._client.flush(timeout=3600))
        asking.add_done_callback(retrieve_exception)
        await asyncio.shield(asking)

    def drop(self) -> None:
        """Ends the connection at once, also when the event loop is closed."""
        self._ended = lambda session, error: None
        for task in self._tasks():
            drop_task(task)
        self._client._status = Client.CLOSED
        self._client._transport.drop()

    async def gone(self) -> None:
        """Waits, for a moment, until nats-py's tasks have ended after `drop()`."""
        tasks = [task for task in self._tasks() if not task.done()]
        if tasks:
            await asyncio.wait(tasks, timeout=0.4)

    def _tasks(self) -> list[asyncio.Task[Any]]:
        client = self._client
        tasks = [client._reading_task, client._ping_interval_task, client._flusher_task]
        tasks += [subscription._wait_for_msgs_task for subscription in client._subs.values()]
        return [*self._pings, *(task for task in tasks if task is not None)]

    # -- what nats-py says --------------------------------------------------------------------------------------------

    async def _on_answer(self, msg: Msg) -> None:
        self._answered(msg.subject.rpartition(".")[2], msg)

    async def _on_error(self, error: Exception) -> None:
        if not self.inbox:  # while it connects; else nats-py would try for ever
            raise error
        violation, _, subject = str(error).partition("permissions violation for publish to ")
        if subject:
            self._refused(subject.strip().strip('"'))

    async def _on_closed(self) -> None:
        self._ended(self, self._client.last_error or ConnectionResetError("the server closed the connection"))

    def _on_deaf(self, _: object) -> None:
        # nats-py tells nobody when its reading ends by an error that it does not expect.
        self._ended(self, self._client.last_error or ConnectionResetError("nats-py reads no more: see its log"))
