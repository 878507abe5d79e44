"""A sound plugin over a tiny TCP broker, and variations that break on a bad wire; installed like `mutants`.

The protocol: the client greets with "HELLO", the server with "WELCOME"; then each request is one line with a number and
a message in JSON, and each answer is "OK <number>".
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from cqrs_brokers.driver import Capabilities, Delivery, Link, PipelinedDriver, content_type_of
from cqrs_brokers.exceptions import ConnectionLostError, NotDeliveredError, ProtocolError, UnreachableError
from cqrs_brokers.hooks import hookimpl
from cqrs_brokers.options import BrokerOptions
from cqrs_brokers.pipeline import connect_to_any
from cqrs_brokers.tasks import drop_task, drop_transport
from cqrs_brokers.url import BrokerURL, Host


class WireOptions(BrokerOptions):
    """Only where it is."""

    url_parts: ClassVar[frozenset[str]] = frozenset({"hosts"})


class WireSound(PipelinedDriver):
    """Keeps every rule on a bad wire, too."""

    def __init__(self, url: BrokerURL) -> None:
        self._hosts = url.hosts
        self._link: Link | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._queue: list[tuple[Delivery, bytes]] = []
        self._in_flight: dict[int, Delivery] = {}
        self._timers: set[asyncio.TimerHandle] = set()
        self._watching: asyncio.Task[None] | None = None
        self._heard = 0.0
        self._pong: asyncio.Future[None] | None = None
        self._number = 0

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(confirms=True)

    def bind(self, link: Link) -> None:
        self._link = link

    async def connect(self) -> None:
        await self.drop()
        reader, writer = await connect_to_any(
            self._hosts, self.dial, 1.9, drop=lambda made: drop_transport(made[1].transport)
        )
        writer.transport.set_write_buffer_limits(64 * 1024)
        self._writer = writer
        self._reading = asyncio.create_task(self._read(reader))
        self._heard = asyncio.get_running_loop().time()
        self._watching = asyncio.create_task(self._watch())
        self.flush()

    async def dial(self, host: Host) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            reader, writer = await asyncio.open_connection(host.host, host.port)
        except OSError as error:
            raise UnreachableError("nobody listens") from error
        try:
            await self.greet(reader, writer)
        except BaseException:
            writer.transport.abort()
            raise
        return reader, writer

    async def _watch(self) -> None:
        """Asks a silent server for a sign of life."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(0.5)
            if loop.time() - self._heard < 2.0:
                continue
            try:
                await asyncio.wait_for(self.ping(), 2.0)
            except (TimeoutError, UnreachableError):
                self.ended("it is silent")
                return

    async def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HELLO\n")
        try:
            answer = await reader.readline()
        except (OSError, ValueError) as error:
            raise UnreachableError("the connection was lost at once") from error
        if not answer:
            raise UnreachableError("the connection was closed at once")
        if answer != b"WELCOME\n":
            raise ProtocolError("this is no wire broker")

    async def ping(self) -> None:
        if self._writer is None:
            raise UnreachableError("not connected")
        self._pong = asyncio.get_running_loop().create_future()
        self._writer.write(b"PING\n")
        await self._pong

    # -- sending

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        for delivery in deliveries:
            message = delivery.message
            record = {
                "topic": message.topic,
                "message_id": str(message.message_id),
                "name": message.message_name,
                "body": base64.b64encode(message.body or b"").decode(),
                "content_type": content_type_of(message),
                "timestamp": message.timestamp.isoformat(),
            }
            self._queue.append((delivery, json.dumps(record).encode()))
        asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        while self._queue and self.has_room():
            delivery, record = self._queue.pop(0)
            if delivery.handed_over():
                self._number += 1
                self._in_flight[self._number] = delivery
                self._at(delivery.deadline + 0.05, self._let_go, self._number)
                assert self._writer is not None
                self._writer.write(b"%d %s\n" % (self._number, record))
        for delivery, _ in self._queue:
            if delivery.done:
                delivery.release()
        self._queue = [entry for entry in self._queue if not entry[0].done]
        if self._queue and self._writer is not None:
            self._at(asyncio.get_running_loop().time() + 0.01, self.flush)

    def _at(self, when: float, action: Callable[..., None], *arguments: int) -> None:
        """Does it at that time, unless the driver was closed before."""
        timer = asyncio.get_running_loop().call_at(when, lambda: (self._timers.discard(timer), action(*arguments)))
        self._timers.add(timer)

    def _cancel_timers(self) -> None:
        while self._timers:
            self._timers.pop().cancel()

    def _let_go(self, number: int) -> None:
        delivery = self._in_flight.get(number)
        if delivery is not None and delivery.done:
            self._in_flight.pop(number).release()

    def has_room(self) -> bool:
        if self._writer is None or self._writer.transport.is_closing():  # a broken transport has an empty buffer
            return False
        return self._writer.transport.get_write_buffer_size() < 64 * 1024

    async def _read(self, reader: asyncio.StreamReader) -> None:
        text = "the server closed the connection"
        try:
            while (line := await reader.readline()).endswith(b"\n"):
                if not self.understood(line):
                    text = "the server speaks nonsense"
                    break
        except (OSError, ValueError):
            text = "the connection was reset"
        self.ended(text)

    def understood(self, line: bytes) -> bool:
        self._heard = asyncio.get_running_loop().time()
        word, _, number = line.strip().partition(b" ")
        if word == b"PONG":
            if self._pong is not None and not self._pong.done():
                self._pong.set_result(None)
        elif word == b"OK" and number.isdigit():
            delivery = self._in_flight.pop(int(number), None)
            if delivery is not None:
                delivery.confirm()
        else:
            return False
        return True

    def ended(self, text: str) -> None:
        self._writer_gone()
        in_flight, self._in_flight = self._in_flight, {}
        for delivery in in_flight.values():
            self.unanswered(delivery)
        assert self._link is not None
        self._link.lost(UnreachableError(text))

    def unanswered(self, delivery: Delivery) -> None:
        delivery.fail(ConnectionLostError("the connection was lost"))

    # -- closing

    def _writer_gone(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.transport.abort()

    async def drop(self) -> None:
        tasks = [task for task in (self._reading, self._watching) if task is not None]
        self._reading = self._watching = None
        self._writer_gone()
        for task in tasks:
            if task is not asyncio.current_task():
                task.cancel()
                await asyncio.wait([task], timeout=0.5)

    async def close(self, grace: float) -> None:
        self._queue.clear()
        self._in_flight.clear()
        self._cancel_timers()
        await self.drop()
        await asyncio.sleep(0)

    def abort(self) -> None:
        self._queue.clear()
        self._in_flight.clear()
        self._cancel_timers()
        drop_task(self._reading)
        drop_task(self._watching)
        self._reading = self._watching = None
        if self._writer is not None:
            drop_transport(self._writer.transport)
        self._writer = None


class DeafToTheEnd(WireSound):
    """Does not notice that the server's side of the connection is finished."""

    caught_by = ("faults.half-open",)

    async def _watch(self) -> None:
        await asyncio.Event().wait()

    def ended(self, text: str) -> None:
        if "closed" not in text:
            super().ended(text)


class OneAtATime(WireSound):
    """Waits for each answer before it sends the next message."""

    caught_by = ("faults.latency",)

    def has_room(self) -> bool:
        return super().has_room() and not self._in_flight


class NoBackpressure(WireSound):
    """Writes as fast as it is given messages, whatever its buffer still holds."""

    caught_by = ("faults.slow-link",)

    async def _watch(self) -> None:
        await asyncio.Event().wait()

    def has_room(self) -> bool:
        return self._writer is not None


class CutIsNotDelivered(WireSound):
    """Takes a connection that was cut for a proof that nothing arrived."""

    caught_by = ("faults.partial-frame",)

    def unanswered(self, delivery: Delivery) -> None:
        delivery.fail(NotDeliveredError("the connection was lost"))


class AnyAnswerIsYes(WireSound):
    """Takes whatever the server answers for a confirm of all that is in flight."""

    caught_by = ("faults.garbage",)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while await reader.read(65_536):
                for number in list(self._in_flight):
                    self._in_flight.pop(number).confirm()
        except OSError:
            pass
        self.ended("the server closed the connection")


class RawSilence(WireSound):
    """Has a timeout of its own when connecting, and lets its exception out."""

    caught_by = ("faults.silent-peer",)

    async def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await asyncio.wait_for(super().greet(reader, writer), 0.5)
        except TimeoutError:
            raise ValueError("no greeting") from None


class AnyPeerWillDo(WireSound):
    """Does not look at what the peer answers to its greeting."""

    caught_by = ("faults.other-protocol",)

    async def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HELLO\n")
        await reader.readline()


class BlocksOnTheWire(WireSound):
    """Closes its connection in a way that stops the event loop."""

    caught_by = (
        "faults.close-while-half-open",
        "faults.close-on-a-slow-link",
        "faults.close-with-garbage",
        "faults.close-with-a-silent-peer",
    )

    async def close(self, grace: float) -> None:
        import time

        time.sleep(4)
        await super().close(grace)


class WritesInTheAttempt(WireSound):
    """Writes what waits before the server's welcome, and takes answers in order, also those of the next attempt."""

    caught_by = ("delivery.failed-attempt-confirms-nothing",)

    async def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        asyncio.get_running_loop().call_soon(self.flush)
        await super().greet(reader, writer)

    def understood(self, line: bytes) -> bool:
        if line.startswith(b"OK") and self._in_flight:
            self._in_flight.pop(next(iter(self._in_flight))).confirm()
            return True
        return super().understood(line)


class ForgetsTheLate(WireSound):
    """Takes answers in order, and does not wait for those of messages that it has let go."""

    caught_by = ("delivery.late-answers-confirm-nothing-new",)

    def understood(self, line: bytes) -> bool:
        word = line.partition(b" ")[0]
        oldest = next(iter(self._in_flight), None)
        return super().understood(b"OK %d\n" % oldest if word == b"OK" and oldest is not None else line)


class ConfirmsWhenItsTableIsFull(WireSound):
    """Has room for 128 messages without an answer, and takes the oldest for confirmed when it needs more."""

    caught_by = ("delivery.no-receipt-before-any-answer",)

    def flush(self) -> None:
        super().flush()
        while len(self._in_flight) > 128:
            self._in_flight.pop(next(iter(self._in_flight))).confirm()


WIRE_MUTANTS: dict[str, type[WireSound]] = {
    "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in driver.__name__).lstrip("-"): driver
    for driver in WireSound.__subclasses__()
}


class WireServer:
    """The TCP broker. Keeps messages by topic; lives in the caller's loop."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []
        self.port = 0

    async def start(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**24)
        self.port = server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (line := await reader.readline()).endswith(b"\n"):
                if line == b"HELLO\n":
                    writer.write(b"WELCOME\n")
                elif line == b"PING\n":
                    writer.write(b"PONG\n")
                else:
                    number, _, record = line.partition(b" ")
                    self.kept.append(json.loads(record))
                    writer.write(b"OK %s\n" % number)
        except (OSError, ValueError):
            pass
        writer.transport.abort()


@hookimpl
def broker_options() -> type[BrokerOptions]:
    """The options of `wiremutant://`."""
    return WireOptions


@hookimpl
def open_message_broker(url: BrokerURL, options: BrokerOptions) -> PipelinedDriver:
    """The driver of `wiremutant://`."""
    name = os.environ.get("CQRS_MUTANT", "")
    return (WIRE_MUTANTS[name] if name else WireSound)(url)
