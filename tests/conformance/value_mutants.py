"""Broken variations of the driver of `unordered_driver`: the order of messages, and what arrives of them.

Most break the contract only in some state: when much waits, with headers, for values that are long or odd.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Sequence
from datetime import UTC
from typing import Any, ClassVar
from urllib.parse import quote, unquote

from cqrs_brokers.driver import Delivery, Message
from cqrs_brokers.pipeline import Pipeline
from tests.conformance.later_mutants import unanswered
from tests.conformance.unordered_driver import UnorderedSound


class SmallFirstPipeline(Pipeline[bytes]):
    """Writes what is small first when much waits."""

    def _next_batch(self) -> list[tuple[int, bytes]]:
        if len(self._waiting) > 20:
            self._waiting = deque(sorted(self._waiting, key=lambda entry: entry[2] > 10_000))
        return super()._next_batch()


class SmallFirstWhenStuck(UnorderedSound):
    """Writes small messages first when the way to the broker is stuck."""

    pipeline_type = SmallFirstPipeline
    caught_by = ("ordering.order-survives-a-stall",)


class NeighboursSwap(UnorderedSound):
    """Writes one message after the next one when many are on their way."""

    caught_by = ("ordering.keys-keep-their-order",)
    held: Delivery | None = None

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        for delivery in deliveries:
            if self.held is None and len(unanswered(self)) + len(deliveries) > 40:
                self.held = delivery
                asyncio.get_running_loop().call_later(0.01, self.let_go)
            else:
                super().submit((delivery,))
                self.let_go()

    def let_go(self) -> None:
        held, self.held = self.held, None
        if held is not None:
            super().submit((held,))


class HeadersGoLater(UnorderedSound):
    """Writes messages with headers a moment later than the others."""

    caught_by = ("ordering.keys-keep-their-order",)

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        for delivery in deliveries:
            if delivery.message.headers:
                asyncio.get_running_loop().call_later(0.002, super().submit, (delivery,))
            else:
                super().submit((delivery,))


class NormalisesJSON(UnorderedSound):
    """Parses a body that is JSON, and writes it anew."""

    caught_by = ("messages.payload-bytes-go-first",)

    def render(self, message: Message) -> dict[str, Any]:
        copy = message
        if message.content_type == "application/json":
            with contextlib.suppress(ValueError):
                body = json.dumps(json.loads(message.body or b"")).encode()
                copy = Message(
                    message.message_name,
                    message.topic,
                    message.payload,
                    payload_bytes=body,
                    message_id=message.message_id,
                    key=message.key,
                    headers=message.headers,
                    content_type=message.content_type,
                    timestamp=message.timestamp,
                )
        return super().render(copy)


class CutsWhatIsEscaped(UnorderedSound):
    """Cuts a header whose escaped form is longer than 65 535 bytes."""

    caught_by = ("messages.headers-arrive",)

    def render(self, message: Message) -> dict[str, Any]:
        cut = {name: unquote(quote(str(value))[:65_535], errors="ignore") for name, value in message.headers.items()}
        return {**super().render(message), "headers": cut}


class MergesHeadersByCase(UnorderedSound):
    """Takes header names that differ only by case for one name."""

    caught_by = ("messages.headers-arrive",)

    def render(self, message: Message) -> dict[str, Any]:
        names = {name.lower(): name for name in message.headers}
        return {**super().render(message), "headers": {name: message.headers[name] for name in names.values()}}


class ForgetsTheZone(UnorderedSound):
    """Takes a time in any zone for one in UTC."""

    caught_by = ("messages.timestamp-arrives",)

    def render(self, message: Message) -> dict[str, Any]:
        return {**super().render(message), "timestamp": message.timestamp.replace(tzinfo=UTC).isoformat()}


class CutsLongNames(UnorderedSound):
    """Cuts a message's name after 100 characters."""

    caught_by = ("messages.identity-arrives",)

    def render(self, message: Message) -> dict[str, Any]:
        return {**super().render(message), "name": message.message_name[:100]}


class CountsOffsetsItself(UnorderedSound):
    """Asks for no offset but the first, and counts from there."""

    caught_by = ("delivery.offset-is-the-brokers",)
    following: int | None = None

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        if word != b"SEEN":
            self.following = int(offset) if self.following is None else self.following + 1
            offset = str(self.following).encode()
        super().answered(word, token, offset)


class SharedPipeline(Pipeline[bytes]):
    """One table of messages for all connections of the process."""

    table: ClassVar[dict[int, Any]] = {}

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._unanswered = self.table


class SharesItsTable(UnorderedSound):
    """Keeps the messages of all brokers of a process in one table."""

    pipeline_type = SharedPipeline
    caught_by = ("lifecycle.two-brokers-side-by-side",)


class KeepsTheLatePipeline(Pipeline[bytes]):
    """Lets go of what was written, never of what waits."""

    def _let_go(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        super()._let_go()
        self._waiting = waiting


class KeepsTheLate(UnorderedSound):
    """Lets go of a message that is late only when it was written; what waits in its queue stays until it moves on."""

    pipeline_type = KeepsTheLatePipeline
    caught_by = ("delivery.denied-never-arrives",)


class ExpiresWithAKey(UnorderedSound):
    """Lets messages with a key expire after an hour."""

    caught_by = ("messages.carry-nothing-else",)

    def render(self, message: Message) -> dict[str, Any]:
        expires = {} if message.key is None else {"expires": 3_600}
        return {**super().render(message), "flags": expires}
