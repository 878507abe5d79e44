"""Broken variations of `mutant_broker.Sound`: distributions, options, and what arrives of a message."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from cqrs_brokers.driver import Capabilities, Delivery, Message
from cqrs_brokers.options import BrokerOptions, option
from cqrs_brokers.pipeline import header_text, header_value
from cqrs_brokers.url import BrokerURL
from tests.conformance.mutant_broker import (
    Kept,
    MutantOptions,
    Sound,
    mutant,
)

# static


@mutant("static.entry-point-is-ready", url="stale://server")
class NeedsAnotherCore(Sound):
    """Its distribution requires a core that is not there."""


@mutant("static.scheme-is-the-distributions-name", url="othername://server")
class MisnamedScheme(Sound):
    """Its scheme has nothing to do with the name of its distribution."""


@mutant("static.import-is-quiet")
class LoudImport(Sound):
    """Importing it changes the level of a logger and starts a thread."""


class UndescribedOptions(MutantOptions):
    size: int = option(1, ge=0, description="")


@mutant("static.options-are-described")
class UndescribedOption(Sound):
    """An option has no description."""

    options = UndescribedOptions


class OutOfRangeOptions(MutantOptions):
    size: int = option(0, ge=1, description="How large.")


@mutant("static.defaults-are-valid")
class InvalidDefault(Sound):
    """An option has a default outside of its own range."""

    options = OutOfRangeOptions


@mutant("static.opening-does-no-io", "static.unknown-option-is-refused")
class ConnectsWhenOpened(Sound):
    """Looks a name up when its options are asked for and again in `open_broker`."""

    def __init__(self, url: BrokerURL, options: BrokerOptions) -> None:
        super().__init__(url, options)
        socket.getaddrinfo("localhost", 1)


@mutant("static.no-secret-is-shown")
class SecretInRepr(Sound):
    """Shows the password in its repr."""

    def __repr__(self) -> str:
        return f"<Driver {self._url.render(reveal=True)}>"


@mutant("static.no-secret-is-shown")
class SecretInAttribute(Sound):
    """Keeps the password as plain text in an attribute."""

    def __init__(self, url: BrokerURL, options: BrokerOptions) -> None:
        super().__init__(url, options)
        self.password = url.password.reveal() if url.password else None


@mutant("static.broker-is-true")
class FalseWhenEmpty(Sound):
    """Has a length, which is 0 at first, so that it is false."""

    def __len__(self) -> int:
        return len(self._outbox)


@mutant("static.capabilities-are-constant")
class CapabilitiesChange(Sound):
    """Declares something else each time it is asked."""

    asked = 0

    @property
    def capabilities(self) -> Capabilities:
        type(self).asked += 1
        return replace(super().capabilities, max_message_bytes=10_000_000 + self.asked)


# messages


@mutant("messages.body-is-untouched")
class TruncatesBody(Sound):
    """Cuts bodies at 64 KiB."""

    def render(self, message: Message) -> Kept:
        return replace(super().render(message), body=(message.body or b"")[:65_536])


@mutant("messages.payload-bytes-go-first", "messages.payloads-become-json")
class EncodesItself(Sound):
    """Encodes the payload itself instead of taking the message's body."""

    def render(self, message: Message) -> Kept:
        payload = message.payload
        body = payload if isinstance(payload, bytes) else json.dumps(payload, default=str).encode()
        return replace(super().render(message), body=body)


@mutant("messages.identity-arrives")
class NewMessageId(Sound):
    """Gives every message an id of its own."""

    def render(self, message: Message) -> Kept:
        return replace(super().render(message), message_id=os.urandom(16).hex())


@mutant("messages.content-type-arrives")
class WrongContentType(Sound):
    """Says JSON, whatever it is."""

    def render(self, message: Message) -> Kept:
        return replace(super().render(message), content_type="application/json")


@mutant("messages.timestamp-arrives")
class TimeOfSending(Sound):
    """Puts the time of sending in the place of the message's own."""

    def render(self, message: Message) -> Kept:
        return replace(super().render(message), timestamp=datetime.now(UTC))


@mutant("messages.key-arrives", "ordering.keys-keep-their-order")
class IgnoresKey(Sound):
    """Declares ordering keys and drops them."""

    def render(self, message: Message) -> Kept:
        return replace(super().render(message), key=None)


@mutant("messages.headers-arrive", "messages.hundred-headers-arrive")
class DropsHeaders(Sound):
    """Declares headers and drops them."""

    def render(self, message: Message) -> Kept:
        return replace(super().render(message), headers={})


@mutant("messages.hundred-headers-arrive")
class SixtyFourHeaders(Sound):
    """Carries at most 64 headers."""

    def render(self, message: Message) -> Kept:
        kept = super().render(message)
        return replace(kept, headers=dict(list(kept.headers.items())[:64]))


@mutant("messages.headers-arrive")
class HeaderTakesAField(Sound):
    """Writes headers beside the fields of the message, so that one called like a field takes its place."""

    def render(self, message: Message) -> Kept:
        record = super().render(message)
        fields = {name: str(value) for name, value in message.headers.items() if name in ("name", "message_id")}
        return replace(record, **fields)  # type: ignore[arg-type]


@mutant("messages.headers-arrive")
class CutsLongHeaders(Sound):
    """Writes at most 4 KiB of a header's value."""

    def render(self, message: Message) -> Kept:
        record = super().render(message)
        return replace(record, headers={name: value[:4096] for name, value in record.headers.items()})


@mutant("messages.longest-values-arrive-or-are-refused")
class CutsEscapedKeys(Sound):
    """Writes keys percent-encoded, and of each 64 KiB at most."""

    def render(self, message: Message) -> Kept:
        record = super().render(message)
        return replace(record, key=record.key and header_text(header_value(record.key)[: 2**16]))


@mutant("messages.headers-arrive")
class HeadersAsLines(Sound):
    """Writes headers as lines of text, as they are, so that a line break in a value begins another header."""

    def render(self, message: Message) -> Kept:
        kept = super().render(message)
        lines = "".join(f"{name}: {value}\r\n" for name, value in kept.headers.items()).split("\r\n")
        return replace(kept, headers=dict(line.split(": ", 1) for line in lines if ": " in line))


@mutant("messages.key-arrives")
class KeyAsALine(Sound):
    """Writes the key as a line of text, up to its first line break."""

    def render(self, message: Message) -> Kept:
        kept = super().render(message)
        return replace(kept, key=kept.key and kept.key.partition("\r\n")[0])


@mutant("messages.tombstone-is-no-value")
class TombstonesBecomeEmpty(Sound):
    """Declares tombstones, and writes an empty body for each."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, tombstones=True)


@mutant("messages.headers-keep-their-types")
class HeadersBecomeText(Sound):
    """Declares headers that are numbers, and writes them as text."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, header_types=frozenset({str, int}))


@mutant("messages.callers-message-is-unchanged")
class ChangesCallersMessage(Sound):
    """Puts its own header into the caller's message."""

    def render(self, message: Message) -> Kept:
        record = super().render(message)
        message.headers = {**message.headers, "sent-by": "mutant"}
        return record


@mutant("messages.snapshot-is-taken")
class ReadsLate(Sound):
    """Reads the message when it is handed over, long after `submit` returned."""

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        asyncio.get_running_loop().call_later(0.02, super().submit, deliveries)


@mutant("messages.topics-are-kept-apart")
class OneTopicPerBatch(Sound):
    """Sends a whole batch to the topic of its first message."""

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        topic = deliveries[0].message.topic
        self._outbox.extend((d, replace(self.render(d.message), topic=topic)) for d in deliveries)
        asyncio.get_running_loop().call_soon(self.flush)


# refusals


@mutant("refusals.illegal-topic")
class AcceptsEveryTopic(Sound):
    """Does not say which topics its broker cannot have."""

    def refuse_topic(self, topic: str) -> str | None:
        return None
