"""Broken variations of the driver of `unordered_driver`: values at the edge of what is allowed, and receipts."""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
from datetime import UTC, datetime
from typing import Any, ClassVar

from cqrs_brokers.driver import Message
from cqrs_brokers.tls import TLSContext
from cqrs_brokers.url import Host
from tests.conformance.further_mutants import composed
from tests.conformance.unordered_driver import Streams, UnorderedSound

# -- what arrives ------------------------------------------------------------------------------------------------------


class EpochIsNow(UnorderedSound):
    """Takes the first second of 1970 for no time, and puts that of sending in its place."""

    caught_by = ("messages.timestamp-arrives",)

    def render(self, message: Message) -> dict[str, Any]:
        at = message.timestamp if int(message.timestamp.timestamp()) else datetime.now(UTC)
        return {**super().render(message), "timestamp": at.isoformat()}


class StripsKeys(UnorderedSound):
    """Takes blanks at the ends of a key away."""

    caught_by = ("messages.key-arrives",)

    def render(self, message: Message) -> dict[str, Any]:
        return {**super().render(message), "key": None if message.key is None else message.key.strip(" ")}


class ComposesTopics(UnorderedSound):
    """Normalises the characters of a topic: two topics may become one."""

    caught_by = ("refusals.odd-topics-arrive-or-are-refused",)

    def render(self, message: Message) -> dict[str, Any]:
        return {**super().render(message), "topic": composed(message.topic)}


class ComposesNames(UnorderedSound):
    """Normalises the characters of a message's name."""

    caught_by = ("messages.identity-arrives",)

    def render(self, message: Message) -> dict[str, Any]:
        return {**super().render(message), "name": composed(message.message_name)}


class LowerCasesTypes(UnorderedSound):
    """Writes content types in lower case."""

    caught_by = ("messages.content-type-arrives",)

    def render(self, message: Message) -> dict[str, Any]:
        rendered = super().render(message)
        return {**rendered, "content_type": rendered["content_type"].lower()}


class CutsLongTypes(UnorderedSound):
    """Writes at most 127 characters of a content type."""

    caught_by = ("messages.content-type-arrives",)

    def render(self, message: Message) -> dict[str, Any]:
        rendered = super().render(message)
        return {**rendered, "content_type": rendered["content_type"][:127]}


class CutsLongHeaderNames(UnorderedSound):
    """Writes at most 64 characters of a header's name."""

    caught_by = ("messages.headers-arrive",)

    def render(self, message: Message) -> dict[str, Any]:
        headers = {name[:64]: str(value) for name, value in message.headers.items()}
        return {**super().render(message), "headers": headers}


class CutsHeaderBlocks(UnorderedSound):
    """Leaves out headers when all together have more than 64 KiB."""

    caught_by = ("messages.longest-values-arrive-or-are-refused",)

    def render(self, message: Message) -> dict[str, Any]:
        left, headers = 65_535, dict[str, str]()
        for name, value in message.headers.items():
            left -= len(name.encode()) + len(str(value).encode())
            if left >= 0:
                headers[name] = str(value)
        return {**super().render(message), "headers": headers}


class CutsTheLargest(UnorderedSound):
    """Writes at most 950 000 bytes of a body."""

    caught_by = ("messages.body-is-untouched",)

    def render(self, message: Message) -> dict[str, Any]:
        return {**super().render(message), "body": base64.b64encode((message.body or b"")[:950_000]).decode()}


# -- which message an answer is about ----------------------------------------------------------------------------------


def digest(rendered: dict[str, Any]) -> str:
    """A text for what is rendered."""
    return hashlib.sha256(json.dumps(rendered, sort_keys=True).encode()).hexdigest()


class DigestsWithoutTheKey(UnorderedSound):
    """Takes a message with the id of an earlier one, and another key, for that one."""

    caught_by = ("delivery.equal-ids-are-not-equal-messages",)

    def render(self, message: Message) -> dict[str, Any]:
        rendered = super().render(message)
        return {**rendered, "dedup": digest({**rendered, "key": None, "dedup": None})}


class DigestsWithoutTheName(UnorderedSound):
    """Takes a message with the id of an earlier one, and another name, for that one."""

    caught_by = ("delivery.equal-ids-are-not-equal-messages",)

    def render(self, message: Message) -> dict[str, Any]:
        rendered = super().render(message)
        return {**rendered, "dedup": digest({**rendered, "name": None, "dedup": None})}


class WrapsOffsets(UnorderedSound):
    """Has one byte for an offset."""

    caught_by = ("ordering.many-tasks-lose-nothing",)

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        super().answered(word, token, b"%d" % (int(offset) % 256) if offset.isdigit() else offset)


class ShiftsOffsetsAfterARefusal(UnorderedSound):
    """Counts a refused message as one that has an offset."""

    caught_by = ("delivery.forbidden-spares-its-neighbours",)
    refused = 0

    def forbidden(self, topic: str) -> None:
        self.refused += 1
        super().forbidden(topic)

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        super().answered(word, token, b"%d" % (int(offset) + self.refused) if offset.isdigit() else offset)


class InventsAPartition(UnorderedSound):
    """Says partition 0 for a broker that has none."""

    caught_by = ("delivery.offset-is-the-brokers",)

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        delivery = self.pipeline.answered(token) if word in (b"OK", b"DUP") else None
        if delivery is None:
            super().answered(word, token, offset)
        else:
            delivery.confirm(partition=0, offset=int(offset))


# -- TLS ---------------------------------------------------------------------------------------------------------------


class SharesItsTLSContext(UnorderedSound):
    """Takes for a host the TLS context with which any broker of the process came through to it."""

    caught_by = ("delivery.tls-reads-new-certificates",)
    contexts: ClassVar[dict[str, ssl.SSLContext]] = {}

    def context(self, host: Host) -> ssl.SSLContext | None:
        made = super().context(host)
        return None if made is None else self.contexts.get(str(host), made)

    async def dial(self, host: Host) -> Streams:
        streams = await super().dial(host)
        if self._options.tls and str(host) not in self.contexts:
            self.contexts[str(host)] = TLSContext(self._options, []).current()
        return streams
