"""Broken variations of the driver of `unordered_driver` that do something at the wrong moment: before the login is
answered, after the close, when a number comes again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from cqrs_brokers.driver import Delivery, Message
from cqrs_brokers.url import Host
from tests.conformance.later_mutants import Batch, Resender, unanswered
from tests.conformance.unordered_driver import UnorderedSound

LEFT: set[asyncio.Future[Any]] = set()


class ComesBackAfterClose(Resender):
    """Does something some seconds after it was closed."""

    def close_later(self) -> Coroutine[Any, Any, None]:
        raise NotImplementedError

    async def close(self, grace: float) -> None:
        later = self.close_later()
        await super().close(grace)
        loop = asyncio.get_running_loop()
        loop.call_later(3.0, lambda: LEFT.add(loop.create_task(later)))


class ConnectsAfterClose(ComesBackAfterClose):
    """Has a timer for its next attempt to connect, and forgets it when it is closed."""

    caught_by = ("lifecycle.stays-closed",)

    async def close_later(self) -> None:
        await super().dial(self._url.hosts[0])


class ResendsAfterClose(ComesBackAfterClose):
    """Sends what had no answer again, some seconds after it was closed."""

    caught_by = ("lifecycle.stays-closed",)

    def close_later(self) -> Coroutine[Any, Any, None]:
        lines = list(map(self.line_anew, self.lost_ones))

        async def send() -> None:
            if lines:
                _, writer = await self.dial(self._url.hosts[0])
                writer.writelines(lines)
                await asyncio.sleep(0.2)
                writer.close()

        return send()

    lost_ones: Sequence[Delivery] = ()

    async def read(self, reader: asyncio.StreamReader) -> None:
        try:
            await super().read(reader)
        finally:
            self.lost_ones = unanswered(self)


class WritesBeforeItIsWelcome(Resender):
    """Writes what waits together with its login, and again when the answer to that came too late."""

    caught_by = ("ordering.queued-messages-keep-their-order",)

    async def greet(self, host: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting = [entry[0] for entry in self.pipeline._waiting]
        try:
            await super().greet(host, reader, writer)
        except asyncio.CancelledError:
            writer.writelines(map(self.line_anew, waiting))
            await writer.drain()
            raise


class SixteenTopics(UnorderedSound):
    """Has numbers from 0 to 15 for topics, and gives a number anew without saying so."""

    caught_by = ("messages.topics-are-kept-apart",)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.numbers: dict[str, int] = {}

    def render(self, message: Message) -> dict[str, Any]:
        number = self.numbers.setdefault(message.topic, len(self.numbers)) % 16
        first = next(topic for topic, known in self.numbers.items() if known % 16 == number)
        return {**super().render(message), "topic": first}


class KeysItsTableById(UnorderedSound):
    """Finds the message of an answer by its id, and forgets one of two with the same id."""

    caught_by = ("delivery.equal-ids-are-not-equal-messages",)

    def writer_of(self, writer: asyncio.StreamWriter) -> Callable[[Batch], Awaitable[None]]:
        write = super().writer_of(writer)
        self.tokens: dict[str, int] = {}
        self.ids: dict[int, str] = {}

        async def write_and_note(batch: Batch) -> None:
            for token, line in batch:
                self.ids[token] = json.loads(line)["message_id"]
                self.tokens[self.ids[token]] = token
            await write(batch)

        return write_and_note

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        found = self.tokens.pop(self.ids.pop(token, ""), None)
        if found is not None:
            super().answered(word, found, offset)


class ConfirmsTheAbortedBatch(UnorderedSound):
    """Sends what comes together as one transaction, and does not see that a refusal ended all of it."""

    caught_by = ("delivery.forbidden-spares-its-neighbours",)

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        if not any(delivery.topic.startswith("forbidden-") for delivery in deliveries):
            super().submit(deliveries)
            return
        for delivery in deliveries:
            if delivery.topic.startswith("forbidden-"):
                super().submit((delivery,))
            elif delivery.handed_over():
                delivery.confirm()


class ShowsItsQueue(UnorderedSound):
    """Shows in its repr what has no answer."""

    caught_by = ("lifecycle.nothing-confidential-is-told-in-trouble",)

    def __repr__(self) -> str:
        return f"<Driver with {[each.message.body for each in unanswered(self)]}>"


class TakesStaleNumbers(UnorderedSound):
    """Has a number for each topic, and takes those of the first connection for those of the next one."""

    caught_by = ("messages.topics-are-kept-apart",)
    connections = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.topics: list[str] = []

    async def connect(self) -> None:
        await super().connect()
        self.connections += 1

    def render(self, message: Message) -> dict[str, Any]:
        if message.topic not in self.topics:
            self.topics.append(message.topic)
        number = self.topics.index(message.topic)
        if self.connections > 1:
            number = (number + 1) % len(self.topics)
        return {**super().render(message), "topic": self.topics[number]}


class CachesItsHealth(UnorderedSound):
    """Takes a connection for alive that answered a ping a few seconds ago."""

    caught_by = ("lifecycle.health-when-stalled",)
    answered_at = float("-inf")

    async def ping(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self.answered_at > 5:
            await super().ping()
            self.answered_at = now


class LeavesAPing(UnorderedSound):
    """Leaves the task of a ping that has no answer when it is closed."""

    caught_by = ("faults.close-while-stalled",)

    async def ping(self) -> None:
        asking = asyncio.ensure_future(super().ping())
        LEFT.add(asking)
        await asyncio.shield(asking)
