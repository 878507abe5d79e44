"""Broken variations of the driver of `unordered`, thought of by somebody who read the contract to find its gaps.

They are about the life of a connection, and about what a driver keeps and tells.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
from collections.abc import Sequence
from typing import Any

from cqrs_brokers.driver import Delivery, Link, Message
from cqrs_brokers.exceptions import PublishForbiddenError
from cqrs_brokers.url import Host
from tests.conformance.unordered_driver import Streams, UnorderedSound


class NoticesWhenItWrites(UnorderedSound):
    """Notices that its connection has ended only when it next writes."""

    caught_by = ("lifecycle.reconnects-after-a-reset",)

    async def read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            await super().read(reader)
        while not self.pipeline._unanswered and not self.pipeline._waiting:
            await asyncio.sleep(0.01)


class KeepsOldSockets(UnorderedSound):
    """Does not close the socket of a connection that was lost."""

    caught_by = ("lifecycle.nothing-is-left-by-reconnects",)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.kept: list[socket.socket] = []

    async def dial(self, host: Host) -> Streams:
        reader, writer = await super().dial(host)
        self.kept.append(writer.get_extra_info("socket").dup())
        return reader, writer

    async def close(self, grace: float) -> None:
        if self.kept:
            self.kept.pop().close()
        await super().close(grace)


class LeaksATaskPerReconnect(UnorderedSound):
    """Leaves a task of each connection but the last one."""

    caught_by = ("lifecycle.nothing-is-left-by-reconnects",)
    guard: asyncio.Task[None] | None = None
    kept: list[asyncio.Task[None]]

    async def connect(self) -> None:
        self.kept = [*getattr(self, "kept", []), asyncio.ensure_future(asyncio.sleep(3600))]
        await super().connect()

    async def close(self, grace: float) -> None:
        if getattr(self, "kept", []):
            self.kept.pop().cancel()
        await super().close(grace)


class LeaksWhenCancelled(UnorderedSound):
    """Leaves the socket open when an attempt to connect is cancelled."""

    caught_by = ("lifecycle.cancelled-connect-leaves-nothing",)

    async def greet(self, host: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await super().greet(host, reader, writer)
        except asyncio.CancelledError:
            LEFT.append(writer.get_extra_info("socket").dup())
            raise


LEFT: list[socket.socket] = []


class KeepsEveryMessage(UnorderedSound):
    """Keeps what it has sent."""

    caught_by = ("delivery.nothing-is-kept-after-the-answer",)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.sent: list[Delivery] = []

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        self.sent += deliveries
        super().submit(deliveries)


class LogsWhatIsLost(UnorderedSound):
    """Logs what had no answer when the connection broke, with its content."""

    caught_by = ("lifecycle.nothing-confidential-is-told-in-trouble",)

    def bind(self, link: Link) -> None:
        super().bind(link)
        self.taken: list[Delivery] = []

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        self.taken = [each for each in (*self.taken, *deliveries) if not each.done]
        super().submit(deliveries)

    def lost(self, error: Exception) -> None:
        bodies = [each.message.body for each in self.taken]
        logging.getLogger("unordered").debug("no answer: %s", bodies)
        super().lost(error)


class NamesTheKey(UnorderedSound):
    """Names the key of a refused message in the error."""

    caught_by = ("lifecycle.nothing-confidential-is-told-in-trouble",)

    def forbidden(self, topic: str) -> None:
        token = self.pipeline.oldest(lambda delivery: delivery.topic == topic)
        delivery = None if token is None else self.pipeline.answered(token)
        if delivery is not None:
            key = delivery.message.key
            delivery.fail(PublishForbiddenError(f"the user must not publish there (key {key})"))


class LowerCasesTopics(UnorderedSound):
    """Sends to the topic in lower case."""

    caught_by = ("refusals.odd-topics-arrive-or-are-refused",)

    def render(self, message: Message) -> dict[str, Any]:
        return {**super().render(message), "topic": message.topic.lower()}


class LowerCasesKeys(UnorderedSound):
    """Writes keys in lower case."""

    caught_by = ("messages.key-arrives",)

    def render(self, message: Message) -> dict[str, Any]:
        rendered = super().render(message)
        return {**rendered, "key": message.key and message.key.lower()}


class CutsLongKeys(UnorderedSound):
    """Writes at most 127 characters of a key."""

    caught_by = ("messages.key-arrives",)

    def render(self, message: Message) -> dict[str, Any]:
        rendered = super().render(message)
        return {**rendered, "key": message.key and message.key[:127]}


class CumulativeConfirm(UnorderedSound):
    """Takes an answer for one to everything that was written before it, too."""

    caught_by = ("delivery.offset-is-the-brokers",)

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        super().answered(word, token, offset)
        if word == b"OK":
            while True:
                older = self.pipeline.oldest(lambda delivery: not delivery.topic.startswith("forbidden-"))
                if older is None or older > token:
                    break
                delivery = self.pipeline.answered(older)
                if delivery is not None:
                    delivery.confirm()


class StaysWithItsHost(UnorderedSound):
    """Goes back to the host that it was connected to, and to no other."""

    caught_by = ("lifecycle.fails-over-to-another-host",)
    good: Host | None = None

    async def pass_over_hosts(self, hosts: Sequence[Host]) -> Streams:
        return await super().pass_over_hosts([self.good] if self.good is not None else hosts)

    async def dial(self, host: Host) -> Streams:
        streams = await super().dial(host)
        self.good = host
        return streams


class AnyHostName(UnorderedSound):
    """Does not look whether the certificate is for this host."""

    caught_by = ("delivery.tls-failure",)

    def context(self, host: Host) -> ssl.SSLContext | None:
        context = super().context(host)
        if context is not None:
            context.check_hostname = False
        return context


class LargeOnesGoAlone(UnorderedSound):
    """Writes large messages by another way than small ones, which overtake them."""

    caught_by = ("ordering.keys-keep-their-order",)

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        for delivery in deliveries:
            line = json.dumps(self.render(delivery.message)).encode()
            if len(line) < 10_000:
                self.pipeline.put(delivery, line, len(line))
            else:
                asyncio.get_running_loop().call_later(0.01, self.pipeline.put, delivery, line, len(line))


class ConfirmsUnderLoad(UnorderedSound):
    """Confirms as soon as it has handed over, while more than ten are in flight."""

    caught_by = ("delivery.reset-leaves-the-truth",)

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        super().submit(deliveries)
        asyncio.get_running_loop().call_later(0.05, self.tidy)

    def tidy(self) -> None:
        while len(self.pipeline._unanswered) > 10:
            token = self.pipeline.oldest(lambda delivery: not delivery.topic.startswith("forbidden-"))
            delivery = None if token is None else self.pipeline.answered(token)
            if delivery is None:
                return
            delivery.confirm()


class GreetsBlocking(UnorderedSound):
    """Stops the event loop while a host does not answer its greeting."""

    caught_by = ("faults.silent-peer",)

    async def greet(self, host: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), socket.create_connection((host.host, host.port), 0.9) as probe:
            if not self._options.tls:
                probe.settimeout(3.0)
                probe.sendall(b"HELLO probe:\n")
                probe.recv(1)
        await super().greet(host, reader, writer)


class RemembersIds(UnorderedSound):
    """Takes a message whose id it has sent before for sent, without sending it."""

    caught_by = ("delivery.equal-ids-are-not-equal-messages",)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.known: set[str] = set()

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        for delivery in deliveries:
            if str(delivery.message_id) in self.known:
                if delivery.handed_over():
                    delivery.confirm()
            else:
                self.known.add(str(delivery.message_id))
                super().submit([delivery])
