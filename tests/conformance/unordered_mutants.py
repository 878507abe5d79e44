"""Broken variations of the driver of `unordered_driver`: each does one thing wrong.

The first case that a variation names is the one that is about its defect.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from cqrs_brokers.driver import Delivery, Message
from cqrs_brokers.exceptions import (
    ConnectError,
    DeliveryUnknownError,
    NotDeliveredError,
    PublishForbiddenError,
    TLSError,
    UnreachableError,
)
from cqrs_brokers.pipeline import Pipeline
from cqrs_brokers.url import Host
from tests.conformance.unordered_driver import Streams, UnorderedSound


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

    async def _write(self) -> None:
        write = self._write_to
        assert write is not None

        async def drained(batch: Any) -> None:
            written = self.written
            await write(batch)
            for delivery in written:
                delivery.handed_over()

        self._write_to = drained
        await super()._write()


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

    def context(self, host: Host) -> ssl.SSLContext | None:
        return None if self.plain else super().context(host)

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

    def context(self, host: Host) -> ssl.SSLContext | None:
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
