"""The sound driver of `unordered`'s broker, on the kit (`cqrs_brokers.pipeline`).

`unordered_plugin` is the plugin. Broken variations are in the modules that end in `_mutants`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar

from cqrs_brokers.driver import Capabilities, Delivery, Link, Message, PipelinedDriver, content_type_of
from cqrs_brokers.exceptions import (
    AuthenticationError,
    ConnectError,
    DeliveryUnknownError,
    MessageTooLargeError,
    NotDeliveredError,
    ProtocolError,
    PublishForbiddenError,
    RejectedError,
    TLSError,
    UnreachableError,
)
from cqrs_brokers.options import option
from cqrs_brokers.pipeline import Pipeline, connect_to_any
from cqrs_brokers.tasks import drop_transport
from cqrs_brokers.tls import TLSContext, TLSOptions
from cqrs_brokers.url import BrokerURL, Host
from tests.conformance.unordered import MOST_UNANSWERED, size_of

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class UnorderedOptions(TLSOptions):
    """Where it is, and TLS."""

    url_parts: ClassVar[frozenset[str]] = frozenset({"userinfo", "hosts"})
    label: str = option("", description="What the server's log calls this client.")
    tls: bool = option(False, description="Encrypt.")
    ping_after: float = option(2.0, gt=0, description="Seconds of silence before a ping, and for its answer.")


class UnorderedSound(PipelinedDriver):
    """Keeps every rule."""

    WINDOW = MOST_UNANSWERED
    pipeline_type: ClassVar[type[Pipeline[bytes]]] = Pipeline
    keeps_require_tls: ClassVar[bool] = True

    def __init__(self, url: BrokerURL, options: UnorderedOptions) -> None:
        self._url, self._options = url, options
        self._link: Link | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._pongs: deque[asyncio.Future[None]] = deque()
        self._largest: int | None = None
        self.pipeline = self.pipeline_type(self.lost, ping_after=options.ping_after, ping_timeout=options.ping_after)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(confirms=True, ordering_key=True, headers=True)

    def bind(self, link: Link) -> None:
        self._link = link

    async def connect(self) -> None:
        await self.pipeline.end()
        self.drop()
        reader, writer = await self.pass_over_hosts(self._url.hosts)
        self._writer = writer
        self._pongs.clear()
        self.pipeline.open(self.writer_of(writer), read=self.read(reader), ping=self.pinger(), window=self.WINDOW)

    def writer_of(self, writer: asyncio.StreamWriter) -> Callable[[Sequence[tuple[int, bytes]]], Awaitable[None]]:
        async def write(batch: Sequence[tuple[int, bytes]]) -> None:
            writer.writelines([b"PUB %d %s\n" % each for each in batch])
            await writer.drain()

        return write

    def pinger(self) -> Callable[[], Awaitable[None]] | None:
        return self.ping

    async def pass_over_hosts(self, hosts: Sequence[Host]) -> Streams:
        timeout = self._options.connect_timeout
        return await connect_to_any(hosts, self.dial, timeout, drop=lambda made: drop_transport(made[1].transport))

    def context(self, host: Host) -> ssl.SSLContext | None:
        return TLSContext(self._options, []).current() if self._options.tls else None

    def name_to_verify(self, host: Host) -> str:
        return host.host

    async def dial(self, host: Host) -> Streams:
        try:
            context = self.context(host)
            name = None if context is None else self.name_to_verify(host)
            reader, writer = await asyncio.open_connection(
                host.host, host.port, limit=2**24, ssl=context, server_hostname=name
            )
        except ssl.SSLError as error:
            raise TLSError(f"{host}: the handshake failed") from error
        except OSError as error:
            raise UnreachableError(f"{host}: nobody listens") from error
        try:
            await self.greet(host, reader, writer)
        except BaseException:
            drop_transport(writer.transport)
            raise
        return reader, writer

    async def greet(self, host: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HELLO %s\n" % self.login())
        try:
            answer = await reader.readline()
        except (OSError, ValueError) as error:
            raise UnreachableError(f"{host}: the connection was lost at once") from error
        if not answer:
            raise UnreachableError(f"{host}: the connection was closed at once")
        if answer == b"DENIED\n":
            raise AuthenticationError(f"{host}: the password is wrong")
        word, _, largest = answer.rstrip(b"\n").partition(b" ")
        if word != b"WELCOME" or not answer.endswith(b"\n"):
            raise ProtocolError(f"{host}: this is no unordered broker")
        self._largest = int(largest) if largest else None

    def login(self) -> bytes:
        password = self._url.password.reveal() if self._url.password else ""
        return f"{self._url.username or ''}:{password}".encode()

    async def ping(self) -> None:
        if self._writer is None:
            raise UnreachableError("not connected")
        pong: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pongs.append(pong)  # `health()` and the pipeline may ask at the same time
        self._writer.write(b"PING\n")
        await pong

    # -- sending

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        for delivery in deliveries:
            record = self.render(delivery.message)
            if self._largest is not None and size_of(record) > self._largest:
                delivery.fail(self.too_large(delivery.message))
                continue
            line = json.dumps(record).encode()
            self.pipeline.put(delivery, line, len(line))

    def too_large(self, message: Message) -> NotDeliveredError:
        return MessageTooLargeError("the broker would end the connection")

    def render(self, message: Message) -> dict[str, Any]:
        rendered: dict[str, Any] = {
            "topic": message.topic,
            "message_id": str(message.message_id),
            "name": message.message_name,
            "key": message.key,
            "headers": dict(message.headers),
            "body": base64.b64encode(message.body or b"").decode(),
            "content_type": content_type_of(message),
            "timestamp": message.timestamp.isoformat(),
        }
        digest = hashlib.sha256(json.dumps(rendered, sort_keys=True).encode()).hexdigest()
        return {**rendered, "dedup": f"{message.message_id} {digest}"}

    async def read(self, reader: asyncio.StreamReader) -> None:
        while self.is_whole(line := await reader.readline()):
            self.pipeline.heard()
            word, _, rest = line.rstrip(b"\n").partition(b" ")
            if word == b"PONG":
                pong = self._pongs.popleft()
                if not pong.done():
                    pong.set_result(None)
            elif word == b"BYE":
                self.dismissed()
            elif word == b"NO":
                self.forbidden(rest.decode())
            else:
                token, _, offset = rest.partition(b" ")
                self.answered(word, int(token), offset)

    def is_whole(self, line: bytes) -> bool:
        return line.endswith(b"\n")  # before the end of a connection may come the beginning of an answer

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        if word not in (b"OK", b"DUP", b"SEEN", b"BUSY", b"FULL"):
            raise ProtocolError("an answer that is none")
        delivery = self.pipeline.answered(token)
        if delivery is None:
            return
        if word == b"SEEN":
            delivery.fail(DeliveryUnknownError("somebody else than the broker answered"))
        elif word in (b"BUSY", b"FULL"):
            delivery.fail(RejectedError("the broker does not take it now"))
        else:  # DUP: the deduplication id has the message's digest in it, so this very message is stored
            delivery.confirm(offset=int(offset))

    def dismissed(self) -> None:
        """The server will end the connection."""

    def forbidden(self, topic: str) -> None:
        token = self.pipeline.oldest(lambda delivery: delivery.topic == topic)
        delivery = None if token is None else self.pipeline.answered(token)
        if delivery is not None:
            delivery.fail(PublishForbiddenError("the user must not publish there"))

    # -- the end

    def lost(self, error: ConnectError) -> None:
        self.drop()
        assert self._link is not None
        self._link.lost(error)

    def drop(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            drop_transport(writer.transport)

    async def close(self, grace: float) -> None:
        self.drop()
        await self.pipeline.close()

    def abort(self) -> None:
        self.drop()
        self.pipeline.abort()
