"""Broken variations of the driver of `unordered_driver` that tell the truth about one message, on one connection.

They lie among many messages, on a later connection, in a later event loop, or when something comes in pieces.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import ssl
from collections.abc import Sequence
from typing import Any

from cqrs_brokers.driver import Delivery, Message
from cqrs_brokers.exceptions import ConnectError, NotDeliveredError
from cqrs_brokers.pipeline import Pipeline
from cqrs_brokers.tasks import drop_transport
from cqrs_brokers.url import Host
from tests.conformance.later_mutants import Batch, ConnectedResender, Hasty, Resender, unanswered
from tests.conformance.unordered_driver import Streams, UnorderedSound

# -- in a crowd --------------------------------------------------------------------------------------------------------


class SwapsBodiesInACrowd(UnorderedSound):
    """Gives two messages that come together each other's body."""

    caught_by = ("messages.crowd-arrives-whole",)

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        self.bodies = [delivery.message.body for delivery in deliveries]
        if len(self.bodies) > 10:
            self.bodies[3], self.bodies[4] = self.bodies[4], self.bodies[3]
        self.turn = iter(self.bodies)
        super().submit(deliveries)

    def render(self, message: Message) -> dict[str, Any]:
        return {**super().render(message), "body": base64.b64encode(next(self.turn) or b"").decode()}


class TakesTheHeadersOfTheFirst(UnorderedSound):
    """Gives all messages that come together the headers of the first one."""

    caught_by = ("messages.crowd-arrives-whole",)

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        self.first = dict(deliveries[0].message.headers)
        super().submit(deliveries)

    def render(self, message: Message) -> dict[str, Any]:
        return {**super().render(message), "headers": self.first if message.headers else {}}


class CutsAt64K(UnorderedSound):
    """Loses the last byte of a body of exactly 64 KiB."""

    caught_by = ("messages.crowd-arrives-whole",)

    def render(self, message: Message) -> dict[str, Any]:
        body = message.body or b""
        return {
            **super().render(message),
            "body": base64.b64encode(body[: -1 if len(body) == 65_536 else None]).decode(),
        }


class WrapsTimes(UnorderedSound):
    """Has 32 bits for the seconds of a time."""

    caught_by = ("messages.timestamp-arrives",)

    def render(self, message: Message) -> dict[str, Any]:
        at = message.timestamp
        wrapped = (int(at.timestamp()) + 2**31) % 2**32 - 2**31
        return {**super().render(message), "timestamp": type(at).fromtimestamp(wrapped, at.tzinfo).isoformat()}


class AcksAfterHundreds(Hasty):
    """Waits for the broker's confirms of the first two hundred messages."""

    caught_by = ("delivery.no-receipt-before-any-answer",)

    def is_hasty(self, batch: Batch) -> bool:
        return batch[-1][0] > 200


class AcksTheFirstOfATopic(Hasty):
    """Takes the first message to a topic, by which that is made, for confirmed when it is written."""

    caught_by = ("delivery.no-receipt-before-any-answer",)
    known: frozenset[str] = frozenset()

    def is_hasty(self, batch: Batch) -> bool:
        topics = {json.loads(line)["topic"] for _, line in batch}
        new, self.known = topics - self.known, self.known | topics
        return bool(new) and self.connections > 1


class DigestsOnlyTheBody(UnorderedSound):
    """Takes a message with the id and the body of an earlier one, and other headers, for that one."""

    caught_by = ("delivery.equal-ids-are-not-equal-messages",)

    def render(self, message: Message) -> dict[str, Any]:
        digest = hashlib.sha256(message.body or b"").hexdigest()
        return {**super().render(message), "dedup": f"{message.message_id} {digest}"}


# -- on a later connection ---------------------------------------------------------------------------------------------


class OffsetsOfTheFirstConnection(UnorderedSound):
    """Counts offsets from where the connection began, and takes the first connection's beginning for that of each."""

    caught_by = ("delivery.offset-is-the-brokers",)
    connections = 0

    async def dial(self, host: Host) -> Streams:
        self.connections += 1
        return await super().dial(host)

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        behind = 7 if self.connections > 1 else 0
        super().answered(word, token, b"%d" % (int(offset) + behind) if offset else offset)


class RefusedIsConfirmedLater(UnorderedSound):
    """Knows a refusal on its first connection only."""

    caught_by = ("delivery.refusal-codes-are-no-confirms",)
    connections = 0

    async def dial(self, host: Host) -> Streams:
        self.connections += 1
        return await super().dial(host)

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        if word in (b"BUSY", b"FULL") and self.connections > 1:
            word, offset = b"OK", b"0"
        super().answered(word, token, offset)


def took(driver: UnorderedSound, delivery: Delivery) -> bool:
    """Takes out a message that has no answer; whether it was there."""
    token = driver.pipeline.oldest(lambda other: other is delivery)
    return token is not None and driver.pipeline.answered(token) is not None


class LostOverTLSIsConfirmed(UnorderedSound):
    """Takes the end of a connection with TLS for a confirm: nobody else could have ended it, it thinks."""

    caught_by = ("delivery.tls-is-as-true",)

    async def read(self, reader: asyncio.StreamReader) -> None:
        try:
            await super().read(reader)
        finally:
            for delivery in unanswered(self) if self._options.tls else ():
                if took(self, delivery):
                    delivery.confirm()


class FarewellIsNotDelivered(UnorderedSound):
    """Takes the broker's farewell for a proof that what has no answer is not stored."""

    caught_by = ("delivery.farewells-confirm-nothing",)

    def dismissed(self) -> None:
        for delivery in unanswered(self):
            if took(self, delivery):
                delivery.fail(NotDeliveredError("the broker is shut down"))


class LargeIsNotDelivered(UnorderedSound):
    """Takes a large message without an answer for cut, and so not delivered, when the connection breaks."""

    caught_by = ("delivery.ended-connection-leaves-the-truth",)

    async def read(self, reader: asyncio.StreamReader) -> None:
        try:
            await super().read(reader)
        finally:
            for delivery in unanswered(self):
                if len(delivery.message.body or b"") > 30_000 and took(self, delivery):
                    delivery.fail(NotDeliveredError("it was cut"))


class CountingAnew(Pipeline[bytes]):
    """Numbers the messages of each connection from 1."""

    def open(self, *arguments: Any, **settings: Any) -> None:
        self._token = 0
        super().open(*arguments, **settings)


class HearsTheDead(UnorderedSound):
    """Still listens to a connection that it gave up, and numbers the messages of each connection from 1."""

    caught_by = ("delivery.dead-connection-confirms-nothing-new",)
    pipeline_type = CountingAnew

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.heard: list[tuple[asyncio.StreamWriter, asyncio.Task[None]]] = []

    async def read(self, reader: asyncio.StreamReader) -> None:
        assert self._writer is not None
        self.heard.append((self._writer, asyncio.ensure_future(self.hear(reader))))  # not a task of the pipeline
        await asyncio.shield(self.heard[-1][1])

    async def hear(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            await super().read(reader)

    def lost(self, error: ConnectError) -> None:
        if "ping" in str(error.__cause__):
            self._writer = None
        super().lost(error)

    def drop(self) -> None:
        super().drop()
        if self._closing:
            for writer, hearing in self.heard:
                hearing.cancel()
                drop_transport(writer.transport)

    _closing = False

    async def close(self, grace: float) -> None:
        self._closing = True
        await super().close(grace)

    def abort(self) -> None:
        self._closing = True
        super().abort()


class KeepsItsContext(UnorderedSound):
    """Reads the certificates of authorities once."""

    caught_by = ("delivery.tls-reads-new-certificates",)
    known: ssl.SSLContext | None = None

    def context(self, host: Host) -> ssl.SSLContext | None:
        self.known = self.known or super().context(host)
        return self.known


# -- in a later event loop ---------------------------------------------------------------------------------------------


class ResendsInTheNextLoop(ConnectedResender):
    """Sends what had no answer in an event loop that is closed again in the next one."""

    caught_by = ("lifecycle.next-loop-sends-nothing-again",)

    def abort(self) -> None:
        self.again = unanswered(self)
        super().abort()


class ResendsAfterAWhile(Resender):
    """Sends a message that had no answer for 5 s again, on a connection that lives."""

    caught_by = ("delivery.time-sends-nothing-again",)

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        super().submit(deliveries)
        for delivery in deliveries:
            asyncio.get_running_loop().call_later(5.0, self.again, delivery)

    def again(self, delivery: Delivery) -> None:
        if delivery in unanswered(self) and self._writer is not None:
            self._writer.write(self.line_anew(delivery))


# -- in pieces ---------------------------------------------------------------------------------------------------------


class TakesPiecesForAnswers(UnorderedSound):
    """Takes what one read brings for whole answers."""

    caught_by = ("delivery.answers-may-come-in-pieces",)

    async def read(self, reader: asyncio.StreamReader) -> None:
        whole = asyncio.StreamReader(limit=2**24)
        reading = asyncio.ensure_future(super().read(whole))
        try:
            while data := await reader.read(65_536):
                whole.feed_data(data if data.endswith(b"\n") else data + b"\n")
            whole.feed_eof()
            await reading
        finally:
            reading.cancel()
