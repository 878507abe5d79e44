"""Broken variations of the driver of `unordered_driver`, by an author of a plugin for a broker that we had not tried.

They keep the contract for one message at a time, and break it for its neighbours, in other forms of the same text, on a
later host, or while nothing happens.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from cqrs_brokers.driver import Delivery, Message
from cqrs_brokers.exceptions import AuthenticationError, RejectedError, UnreachableError
from cqrs_brokers.url import Host
from tests.conformance.later_mutants import Batch, Hasty
from tests.conformance.unordered_driver import Streams, UnorderedSound

# -- text that has another form, too -----------------------------------------------------------------------------------


def composed(text: str) -> str:
    """The text in Unicode's composed form."""
    return unicodedata.normalize("NFC", text)


class ComposesBodies(UnorderedSound):
    """Normalises the characters of a body that is text."""

    caught_by = ("messages.payload-bytes-go-first",)

    def render(self, message: Message) -> dict[str, Any]:
        body = message.body or b""
        if (message.content_type or "").startswith("text/"):
            body = composed(body.decode()).encode()
        return {**super().render(message), "body": base64.b64encode(body).decode()}


class ComposesKeys(UnorderedSound):
    """Normalises the characters of a key: two keys may become one."""

    caught_by = ("messages.key-arrives",)

    def render(self, message: Message) -> dict[str, Any]:
        return {**super().render(message), "key": None if message.key is None else composed(message.key)}


class ComposesHeaders(UnorderedSound):
    """Normalises the characters of headers."""

    caught_by = ("messages.headers-arrive",)

    def render(self, message: Message) -> dict[str, Any]:
        headers = {composed(name): composed(str(value)) for name, value in message.headers.items()}
        return {**super().render(message), "headers": headers}


# -- among others, and later -------------------------------------------------------------------------------------------


class ExpiresInACrowd(UnorderedSound):
    """Lets messages that come together expire after an hour."""

    caught_by = ("messages.carry-nothing-else",)
    together = False

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        self.together = len(deliveries) > 1
        super().submit(deliveries)

    def render(self, message: Message) -> dict[str, Any]:
        return {**super().render(message), "flags": {"expires": 3_600} if self.together else {}}


class ExpiresAfterReconnect(UnorderedSound):
    """Lets messages expire after an hour once it has had to connect again."""

    caught_by = ("messages.carry-nothing-else",)
    connections = 0

    async def connect(self) -> None:
        await super().connect()
        self.connections += 1

    def render(self, message: Message) -> dict[str, Any]:
        return {**super().render(message), "flags": {"expires": 3_600} if self.connections > 1 else {}}


# -- answers -----------------------------------------------------------------------------------------------------------


class TakesHalfAnswers(UnorderedSound):
    """Takes what came of an answer for all of it when the connection ends."""

    caught_by = ("delivery.cut-answers-prove-nothing",)

    def is_whole(self, line: bytes) -> bool:
        return bool(line)


class RefusalConfirmsEarlier(UnorderedSound):
    """Takes a refusal for a confirm of everything that was written before: the broker has come so far, it thinks."""

    caught_by = ("delivery.refusal-is-about-one-message",)

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        if word in (b"BUSY", b"FULL"):
            while (older := self.pipeline.oldest(lambda _: True)) is not None and older < token:
                delivery = self.pipeline.answered(older)
                if delivery is not None:
                    delivery.confirm()
        super().answered(word, token, offset)


class RefusalDeniesLater(UnorderedSound):
    """Takes a refusal for one of everything that was written behind it: the broker reads no further, it thinks."""

    caught_by = ("delivery.refusal-is-about-one-message",)

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        super().answered(word, token, offset)
        while word in (b"BUSY", b"FULL") and (later := self.pipeline.oldest(lambda _: True)) is not None:
            delivery = self.pipeline.answered(later)
            if delivery is not None:
                delivery.fail(RejectedError("it came after a message that was refused"))


# -- hosts, log-ins, silence -------------------------------------------------------------------------------------------


class EndsAtTheFirstAnswer(UnorderedSound):
    """Passes over hosts that do not answer, and gives up at the first that answers wrongly."""

    caught_by = ("lifecycle.odd-host-is-passed-over",)

    async def pass_over_hosts(self, hosts: Sequence[Host]) -> Streams:
        timeout = self._options.connect_timeout / len(hosts)
        for host in hosts[:-1]:
            with contextlib.suppress(UnreachableError, TimeoutError):
                return await asyncio.wait_for(self.dial(host), timeout)
        return await asyncio.wait_for(self.dial(hosts[-1]), timeout)


class LogsInThrice(UnorderedSound):
    """Tries a wrong password three times."""

    caught_by = ("delivery.wrong-password-is-tried-once",)

    async def dial(self, host: Host) -> Streams:
        for _ in range(2):
            with contextlib.suppress(AuthenticationError):
                return await super().dial(host)
        return await super().dial(host)


class LooksUpNamesBlocking(UnorderedSound):
    """Looks host names up in the event loop's thread."""

    caught_by = ("lifecycle.names-are-looked-up-beside-the-loop",)

    async def dial(self, host: Host) -> Streams:
        socket.getaddrinfo(host.host, host.port)
        return await super().dial(host)


class AsksAllTheTime(UnorderedSound):
    """Looks in every turn of the event loop whether there is something to do."""

    caught_by = ("lifecycle.idle-is-idle",)

    async def connect(self) -> None:
        await super().connect()
        self.asking = asyncio.ensure_future(self.ask(self._writer))

    async def ask(self, writer: asyncio.StreamWriter | None) -> None:
        while self._writer is writer:
            await asyncio.sleep(0)


class ReconnectsWhenIdle(UnorderedSound):
    """Promises heart-beats and sends none: after some seconds of silence the connection is gone."""

    caught_by = ("lifecycle.idle-connection-stays",)
    SILENCE = 8.0

    async def connect(self) -> None:
        await super().connect()
        self.used = asyncio.get_running_loop().time()
        self.promise(self._writer)

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        self.used = asyncio.get_running_loop().time()
        super().submit(deliveries)

    def promise(self, writer: asyncio.StreamWriter | None) -> None:
        loop = asyncio.get_running_loop()
        if writer is not None and self._writer is writer:
            if loop.time() - self.used < self.SILENCE:
                loop.call_later(0.5, self.promise, writer)
            else:
                self.pipeline.broken(UnreachableError("the broker heard nothing, and ended the connection"))


class WritesInPieces(UnorderedSound):
    """Waits for room in the middle of a message, where a ping may come between."""

    caught_by = ("delivery.pings-break-nothing",)

    def writer_of(self, writer: asyncio.StreamWriter) -> Callable[[Sequence[tuple[int, bytes]]], Awaitable[None]]:
        async def write(batch: Sequence[tuple[int, bytes]]) -> None:
            for token, line in batch:
                most = len(line) * 9 // 10
                writer.write(b"PUB %d %s" % (token, line[:most]))
                await writer.drain()
                writer.write(line[most:] + b"\n")
            await writer.drain()

        return write


class AcksOwnTypes(Hasty):
    """Confirms messages of an unusual content type when they are written."""

    caught_by = ("delivery.no-receipt-before-any-answer",)

    def is_hasty(self, batch: Batch) -> bool:
        usual = ("application/json", "application/octet-stream")
        return any(json.loads(line)["content_type"] not in usual for _, line in batch)


class RetriesWhenRefused(UnorderedSound):
    """Writes a message again when the broker says that it is busy."""

    caught_by = ("delivery.refusal-is-about-one-message",)

    def writer_of(self, writer: asyncio.StreamWriter) -> Callable[[Batch], Awaitable[None]]:
        write, self.lines = super().writer_of(writer), dict[int, bytes]()

        async def write_and_remember(batch: Batch) -> None:
            self.lines |= batch
            await write(batch)

        return write_and_remember

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        if word == b"BUSY" and self._writer is not None:
            self._writer.write(b"PUB %d %s\n" % (token, self.lines[token]))
        else:
            super().answered(word, token, offset)


class TellsThePasswordLater(UnorderedSound):
    """Says the password when it cannot log in again; the first time it does not."""

    caught_by = ("lifecycle.nothing-confidential-is-told-of-a-later-login",)
    was_connected = False

    async def connect(self) -> None:
        await super().connect()
        self.was_connected = True

    async def greet(self, host: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await super().greet(host, reader, writer)
        except UnreachableError as error:
            if not self.was_connected or self._url.password is None:
                raise
            raise UnreachableError(f"{host}: {self._url.password.reveal()} is no longer taken") from error
