"""A sound plugin for `unordered`'s broker, on the kit (`cqrs_brokers.pipeline`), and broken variations of it.

More variations are in `reader_mutants`; `unordered_plugin` is the plugin.
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
    NotDeliveredError,
    ProtocolError,
    PublishForbiddenError,
    TLSError,
    UnreachableError,
)
from cqrs_brokers.options import BrokerOptions, option
from cqrs_brokers.pipeline import Pipeline, connect_to_any
from cqrs_brokers.tasks import drop_transport
from cqrs_brokers.url import BrokerURL, Host

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class UnorderedOptions(BrokerOptions):
    """Where it is, and TLS."""

    url_parts: ClassVar[frozenset[str]] = frozenset({"userinfo", "hosts"})
    tls: bool = option(False, description="Encrypt.")
    cafile: str | None = option(None, description="The authority; none: the system's.")
    ping_after: float = option(2.0, gt=0, description="Seconds of silence before a ping, and for its answer.")


class UnorderedSound(PipelinedDriver):
    """Keeps every rule."""

    pipeline_type: ClassVar[type[Pipeline[bytes]]] = Pipeline

    def __init__(self, url: BrokerURL, options: UnorderedOptions) -> None:
        self._url, self._options = url, options
        self._link: Link | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._pongs: deque[asyncio.Future[None]] = deque()
        self.pipeline = self.pipeline_type(self.lost, ping_after=options.ping_after, ping_timeout=options.ping_after)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(confirms=True, ordering_key=True)

    def bind(self, link: Link) -> None:
        self._link = link

    async def connect(self) -> None:
        await self.pipeline.end()
        self.drop()
        reader, writer = await self.pass_over_hosts(self._url.hosts)
        self._writer = writer
        self._pongs.clear()
        self.pipeline.open(self.writer_of(writer), read=self.read(reader), ping=self.pinger())

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

    def context(self) -> ssl.SSLContext | None:
        return ssl.create_default_context(cafile=self._options.cafile) if self._options.tls else None

    async def dial(self, host: Host) -> Streams:
        try:
            reader, writer = await asyncio.open_connection(host.host, host.port, limit=2**24, ssl=self.context())
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
        password = self._url.password.reveal() if self._url.password else ""
        writer.write(f"HELLO {self._url.username or ''}:{password}\n".encode())
        try:
            answer = await reader.readline()
        except (OSError, ValueError) as error:
            raise UnreachableError(f"{host}: the connection was lost at once") from error
        if not answer:
            raise UnreachableError(f"{host}: the connection was closed at once")
        if answer == b"DENIED\n":
            raise AuthenticationError(f"{host}: the password is wrong")
        if answer != b"WELCOME\n":
            raise ProtocolError(f"{host}: this is no unordered broker")

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
            line = json.dumps(self.render(delivery.message)).encode()
            self.pipeline.put(delivery, line, len(line))

    def render(self, message: Message) -> dict[str, Any]:
        digest = hashlib.sha256(message.body or b"").hexdigest()
        return {
            "topic": message.topic,
            "message_id": str(message.message_id),
            "name": message.message_name,
            "key": message.key,
            "body": base64.b64encode(message.body or b"").decode(),
            "content_type": content_type_of(message),
            "timestamp": message.timestamp.isoformat(),
            "dedup": f"{message.message_id} {digest}",
        }

    async def read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            self.pipeline.heard()
            word, _, rest = line.rstrip(b"\n").partition(b" ")
            if word == b"PONG":
                pong = self._pongs.popleft()
                if not pong.done():
                    pong.set_result(None)
            elif word == b"NO":
                self.forbidden(rest.decode())
            else:
                token, _, offset = rest.partition(b" ")
                self.answered(word, int(token), offset)

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        if word not in (b"OK", b"DUP", b"SEEN"):
            raise ProtocolError("an answer that is none")
        delivery = self.pipeline.answered(token)
        if delivery is None:
            return
        if word == b"SEEN":
            delivery.fail(DeliveryUnknownError("somebody else than the broker answered"))
        else:  # DUP: the deduplication id has the body's digest in it, so this very message is stored
            delivery.confirm(offset=int(offset))

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


# -- the mutants: the first case is the one that names the defect -----------------------------------------------------


class DuplicateIsConfirm(UnorderedSound):
    """Takes "a message with this id is stored" for a confirm, although it may be another message."""

    caught_by = ("delivery.equal-ids-are-not-equal-messages",)

    def render(self, message: Message) -> dict[str, Any]:
        return {**super().render(message), "dedup": str(message.message_id)}


class OffsetIsWrong(UnorderedSound):
    """Says an offset that is a thousand too high."""

    caught_by = ("delivery.offset-is-the-brokers",)

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        super().answered(word, token, str(int(offset or b"0") + 1000).encode() if word != b"SEEN" else offset)


class ReordersItsQueue(UnorderedSound):
    """Puts what waits in its own queue behind what comes later when the connection breaks."""

    caught_by = ("ordering.queued-messages-keep-their-order",)

    def lost(self, error: ConnectError) -> None:
        waiting: deque[Any] = self.pipeline._waiting
        waiting.rotate(len(waiting) // 2)
        super().lost(error)


class DropsItsQueue(UnorderedSound):
    """Fails what waits in its own queue when the connection breaks, instead of keeping it for the next one."""

    caught_by = ("ordering.queued-messages-keep-their-order",)

    def lost(self, error: ConnectError) -> None:
        while self.pipeline._waiting:
            self.pipeline._waiting.popleft()[0].fail(NotDeliveredError("the connection was lost"))
        super().lost(error)


class LatePipeline(Pipeline[bytes]):
    """Says handed over only after the client's drain."""

    def _next_batch(self) -> list[tuple[int, bytes]]:
        batch: list[tuple[int, bytes]] = []
        size = 0
        self.written: list[Delivery] = []
        while self._waiting and size < self._batch_bytes:
            delivery, item, its_size = self._waiting.popleft()
            if not delivery.done:
                self.written.append(delivery)
                batch.append((self._number(delivery), item))
                size += its_size
        return batch

    async def _write(self, write: Any) -> None:
        async def drained(batch: Any) -> None:
            written = self.written
            await write(batch)
            for delivery in written:
                delivery.handed_over()

        await super()._write(drained)


class HandsOverLate(UnorderedSound):
    """Says that a message is handed over only when the client's buffer is empty again."""

    pipeline_type = LatePipeline
    caught_by = ("delivery.denied-never-arrives",)


class HeedlessPipeline(Pipeline[bytes]):
    """Writes what `handed_over()` says must not be written."""

    def _next_batch(self) -> list[tuple[int, bytes]]:
        batch: list[tuple[int, bytes]] = []
        size = 0
        while self._waiting and size < self._batch_bytes:
            delivery, item, its_size = self._waiting.popleft()
            self._token += 1
            if delivery.handed_over():
                self._unanswered[self._token] = delivery
            batch.append((self._token, item))
            size += its_size
        return batch

    def _let_go(self) -> None:
        return


class WritesWhatIsOver(UnorderedSound):
    """Writes messages although `handed_over()` says that they are over."""

    pipeline_type = HeedlessPipeline
    caught_by = ("delivery.denied-never-arrives",)


class RefusalHitsTheOldest(UnorderedSound):
    """Gives a refusal that names no message to the oldest in flight, wherever that goes."""

    caught_by = ("delivery.forbidden-spares-its-neighbours",)

    def forbidden(self, topic: str) -> None:
        token = self.pipeline.oldest(lambda _: True)
        delivery = None if token is None else self.pipeline.answered(token)
        if delivery is not None:
            delivery.fail(PublishForbiddenError("the user must not publish there"))


class RefusalHitsAll(UnorderedSound):
    """Takes a refusal that names no message for one of everything in flight."""

    caught_by = ("delivery.forbidden-spares-its-neighbours",)

    def forbidden(self, topic: str) -> None:
        while (token := self.pipeline.oldest(lambda _: True)) is not None:
            delivery = self.pipeline.answered(token)
            assert delivery is not None
            delivery.fail(PublishForbiddenError("the user must not publish there"))


class AnyWordConfirms(UnorderedSound):
    """Takes any answer that is not an error for a confirm."""

    caught_by = ("delivery.only-the-broker-confirms",)

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        super().answered(b"OK", token, offset or b"0")


class HoldingPipeline(Pipeline[bytes]):
    """Keeps what is never answered."""

    def _let_go(self) -> None:
        return


class NeverLetsGo(UnorderedSound):
    """Waits for ever for an answer that never comes."""

    pipeline_type = HoldingPipeline
    caught_by = ("delivery.unanswered-is-let-go",)


class TrustsSilence(UnorderedSound):
    """Never asks whether a silent connection is alive."""

    caught_by = ("faults.dead-connection-is-noticed",)

    def pinger(self) -> Callable[[], Awaitable[None]] | None:
        return None


class FirstHostOnly(UnorderedSound):
    """Uses only the first of several hosts."""

    caught_by = ("lifecycle.dead-host-is-passed-over", "lifecycle.silent-host-leaves-time")

    async def pass_over_hosts(self, hosts: Sequence[Host]) -> Streams:
        return await super().pass_over_hosts(hosts[:1])


class SilentHostEatsAll(UnorderedSound):
    """Lets a silent host have all of `connect_timeout`."""

    caught_by = ("lifecycle.silent-host-leaves-time",)

    async def pass_over_hosts(self, hosts: Sequence[Host]) -> Streams:
        for host in hosts[:-1]:
            try:
                return await self.dial(host)
            except UnreachableError:
                continue
        return await self.dial(hosts[-1])


class FallsBackToPlain(UnorderedSound):
    """Goes on without TLS when the server offers none."""

    caught_by = ("delivery.tls-is-never-given-up",)
    plain = False

    def context(self) -> ssl.SSLContext | None:
        return None if self.plain else super().context()

    async def dial(self, host: Host) -> Streams:
        try:
            return await super().dial(host)
        except TLSError:
            self.plain = True
            return await super().dial(host)


class LogsInBeforeTLS(UnorderedSound):
    """Sends the login before it begins with TLS, and fails only then."""

    caught_by = ("delivery.tls-is-never-given-up",)

    async def dial(self, host: Host) -> Streams:
        if self._options.tls:
            _, writer = await asyncio.open_connection(host.host, host.port)
            password = self._url.password.reveal() if self._url.password else ""
            writer.write(f"HELLO {self._url.username}:{password}\n".encode())
            await asyncio.sleep(0.05)
            writer.transport.abort()
        return await super().dial(host)


class TLSNeverWorks(UnorderedSound):
    """Trusts no certificate."""

    caught_by = ("delivery.tls-works",)

    def context(self) -> ssl.SSLContext | None:
        return ssl.create_default_context() if self._options.tls else None


class TidiesTopics(UnorderedSound):
    """Sends to a tidier topic than the one that was meant: without blanks at the ends and double dots."""

    caught_by = ("refusals.odd-topics-arrive-or-are-refused",)

    def render(self, message: Message) -> dict[str, Any]:
        return {**super().render(message), "topic": message.topic.strip().replace("..", ".")}


class GivesUpEarly(UnorderedSound):
    """Gives up half a second after handing over, long before the deadline."""

    caught_by = ("delivery.no-receipt-before-the-answer",)

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        super().submit(deliveries)
        for delivery in deliveries:
            asyncio.get_running_loop().call_later(0.5, self.give_up, delivery)

    def give_up(self, delivery: Delivery) -> None:
        token = self.pipeline.oldest(lambda other: other is delivery)
        if token is not None and self.pipeline.answered(token) is not None:
            delivery.fail(DeliveryUnknownError("no answer"))


class AnswersOutOfTurn(UnorderedSound):
    """Takes each answer for that to the oldest message, from a broker that answers in any order."""

    caught_by = ("delivery.offset-is-the-brokers",)

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        super().answered(word, self.pipeline.oldest(lambda _: True) or token, offset)
