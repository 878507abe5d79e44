"""Broken variations of the driver of `unordered_driver`: messages and values that look like others and are not."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from cqrs_brokers.driver import Delivery, Message
from cqrs_brokers.url import BrokerURL
from tests.conformance.content_mutants import digest
from tests.conformance.later_mutants import Batch, Hasty
from tests.conformance.unordered_driver import UnorderedOptions, UnorderedSound

# -- with the id of an earlier message ---------------------------------------------------------------------------------


class DigestsWithoutTheTopic(UnorderedSound):
    """Takes a message with the id of an earlier one, to another topic, for that one."""

    caught_by = ("delivery.equal-ids-are-not-equal-messages",)

    def render(self, message: Message) -> dict[str, Any]:
        rendered = super().render(message)
        return {**rendered, "dedup": digest({**rendered, "topic": None, "dedup": None})}


class DigestsWithoutTheType(UnorderedSound):
    """Takes a message with the id of an earlier one, and another content type, for that one."""

    caught_by = ("delivery.equal-ids-are-not-equal-messages",)

    def render(self, message: Message) -> dict[str, Any]:
        rendered = super().render(message)
        return {**rendered, "dedup": digest({**rendered, "content_type": None, "dedup": None})}


class DigestsWithoutTheTime(UnorderedSound):
    """Takes a message with the id of an earlier one, and another time, for that one."""

    caught_by = ("delivery.equal-ids-are-not-equal-messages",)

    def render(self, message: Message) -> dict[str, Any]:
        rendered = super().render(message)
        return {**rendered, "dedup": digest({**rendered, "timestamp": None, "dedup": None})}


class DigestsTheBeginning(UnorderedSound):
    """Takes a message with the id, the size and the first 4 KiB of an earlier one's body for that one."""

    caught_by = ("delivery.equal-ids-are-not-equal-messages",)

    def render(self, message: Message) -> dict[str, Any]:
        rendered, body = super().render(message), message.body or b""
        seen = [body[:4_096].hex(), len(body)]
        return {**rendered, "dedup": digest({**rendered, "body": seen, "dedup": None})}


class DigestsWithoutBounds(UnorderedSound):
    """Digests the fields one after the other, without their lengths: "k1" and "2" are "k" and "12"."""

    caught_by = ("delivery.equal-ids-are-not-equal-messages",)

    def render(self, message: Message) -> dict[str, Any]:
        rendered = super().render(message)
        fields = (rendered[name] or "" for name in ("topic", "message_id", "content_type", "timestamp", "name", "key"))
        headers = (name + value for name, value in sorted(rendered["headers"].items()))
        text = "".join([*fields, *headers]).encode() + (message.body or b"")
        return {**rendered, "dedup": hashlib.sha256(text).hexdigest()}


# -- values that look like others --------------------------------------------------------------------------------------


class ReadsKeysAsNumbers(UnorderedSound):
    """Writes a key that looks like a number as a number: 007 becomes 7."""

    caught_by = ("messages.key-arrives",)

    def render(self, message: Message) -> dict[str, Any]:
        key = message.key
        return {**super().render(message), "key": str(int(key)) if key is not None and key.isdecimal() else key}


class EndsKeysAtNul(UnorderedSound):
    """Takes NUL for the end of a key."""

    caught_by = ("messages.key-arrives",)

    def render(self, message: Message) -> dict[str, Any]:
        return {**super().render(message), "key": None if message.key is None else message.key.partition("\0")[0]}


class ReadsWordsInHeaders(UnorderedSound):
    """Takes the texts true, false and null in headers for values of a language, and writes them in its way."""

    caught_by = ("messages.headers-arrive",)

    def render(self, message: Message) -> dict[str, Any]:
        words = {"true": "True", "false": "False", "null": "None"}
        headers = {name: words.get(str(value), str(value)) for name, value in message.headers.items()}
        return {**super().render(message), "headers": headers}


class EndsLinesInKeys(UnorderedSound):
    """Takes the ends of lines that Unicode has besides those of ASCII out of a key."""

    caught_by = ("messages.key-arrives",)

    def render(self, message: Message) -> dict[str, Any]:
        ends = str.maketrans({"\x85": " ", "\u2028": " ", "\u2029": " "})
        return {**super().render(message), "key": None if message.key is None else message.key.translate(ends)}


class EndsLinesInHeaders(UnorderedSound):
    """Takes the ends of lines that Unicode has besides those of ASCII out of a header."""

    caught_by = ("messages.headers-arrive",)

    def render(self, message: Message) -> dict[str, Any]:
        ends = str.maketrans({"\x85": " ", "\u2028": " ", "\u2029": " "})
        headers = {name: str(value).translate(ends) for name, value in message.headers.items()}
        return {**super().render(message), "headers": headers}


class TakesMarksAway(UnorderedSound):
    """Takes a byte order mark at the beginning of a header away."""

    caught_by = ("messages.headers-arrive",)

    def render(self, message: Message) -> dict[str, Any]:
        headers = {name: str(value).removeprefix("\ufeff") for name, value in message.headers.items()}
        return {**super().render(message), "headers": headers}


class StripsNames(UnorderedSound):
    """Takes blanks at the ends of a message's name away."""

    caught_by = ("messages.identity-arrives",)

    def render(self, message: Message) -> dict[str, Any]:
        return {**super().render(message), "name": message.message_name.strip()}


class CutsAtAPage(UnorderedSound):
    """Loses the last byte of a body that fills one buffer of 4 KiB."""

    caught_by = ("messages.crowd-arrives-whole",)

    def render(self, message: Message) -> dict[str, Any]:
        body = message.body or b""
        whole = body[:-1] if len(body) == 4_096 else body
        return {**super().render(message), "body": base64.b64encode(whole).decode()}


# -- order -------------------------------------------------------------------------------------------------------------


class NamesGoApart(UnorderedSound):
    """Has a queue for each name of a message: the first name it has seen goes first."""

    caught_by = ("ordering.keys-keep-their-order", "ordering.batch-keeps-its-order")
    name = ""

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        for delivery in deliveries:
            self.name = self.name or delivery.message.message_name
            if delivery.message.message_name == self.name:
                super().submit((delivery,))
            else:
                asyncio.get_running_loop().call_later(0.005, super().submit, (delivery,))


class SinglesGoLater(UnorderedSound):
    """Collects messages that come alone for a moment, and writes those that come together at once."""

    caught_by = ("ordering.keys-keep-their-order",)

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        if len(deliveries) == 1:
            asyncio.get_running_loop().call_later(0.005, super().submit, (*deliveries,))
        else:
            super().submit(deliveries)


class KnownIdsGoLater(UnorderedSound):
    """Looks a moment longer at a message whose id it knows."""

    caught_by = ("ordering.keys-keep-their-order",)

    def __init__(self, url: BrokerURL, options: UnorderedOptions) -> None:
        super().__init__(url, options)
        self.known: set[str] = set()

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        for delivery in deliveries:
            known = str(delivery.message.message_id)
            if known in self.known:
                asyncio.get_running_loop().call_later(0.005, super().submit, (delivery,))
            else:
                self.known.add(known)
                super().submit((delivery,))


# -- receipts ----------------------------------------------------------------------------------------------------------


class ReadsOffsetsAsDoubles(UnorderedSound):
    """Reads an offset as a number of JSON: a double, which is exact up to 2**53."""

    caught_by = ("delivery.offset-is-the-brokers",)

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        super().answered(word, token, b"%d" % int(float(offset)) if offset.isdigit() else offset)


class WrapsOffsetsAt32Bits(UnorderedSound):
    """Has 32 bits for an offset."""

    caught_by = ("delivery.offset-is-the-brokers",)

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        super().answered(word, token, b"%d" % (int(offset) & 0xFFFFFFFF) if offset.isdigit() else offset)


# -- no receipt before the answer --------------------------------------------------------------------------------------


class AcksOnTheFourthConnection(Hasty):
    """Confirms messages when they are written, from the fourth connection on."""

    caught_by = ("delivery.no-receipt-before-any-answer",)

    def is_hasty(self, batch: Batch) -> bool:
        return self.connections > 3


class AcksWithManyTopics(Hasty):
    """Confirms messages when they are written, once it has seen twenty topics."""

    caught_by = ("delivery.no-receipt-before-any-answer",)

    def __init__(self, url: BrokerURL, options: UnorderedOptions) -> None:
        super().__init__(url, options)
        self.topics: set[str] = set()

    def render(self, message: Message) -> dict[str, Any]:
        self.topics.add(message.topic)
        return super().render(message)

    def is_hasty(self, batch: Batch) -> bool:
        return len(self.topics) > 20


class AcksALongTopic(Hasty):
    """Confirms messages to a topic with a long name when they are written."""

    caught_by = ("delivery.no-receipt-before-any-answer",)

    def is_hasty(self, batch: Batch) -> bool:
        return any(len(json.loads(line)["topic"]) > 100 for _, line in batch)


class AcksALongKey(Hasty):
    """Confirms messages with a long key when they are written."""

    caught_by = ("delivery.no-receipt-before-any-answer",)

    def is_hasty(self, batch: Batch) -> bool:
        return any(len(json.loads(line)["key"] or "") > 100 for _, line in batch)


class AcksAKnownId(Hasty):
    """Confirms a message when it is written whose id it knows from an earlier one."""

    caught_by = ("delivery.no-receipt-before-any-answer",)

    def __init__(self, url: BrokerURL, options: UnorderedOptions) -> None:
        super().__init__(url, options)
        self.known: set[str] = set()

    def is_hasty(self, batch: Batch) -> bool:
        ids = {json.loads(line)["message_id"] for _, line in batch}
        known = ids <= self.known
        self.known |= ids
        return known


class AcksAfterARefusal(Hasty):
    """Confirms messages when they are written, once one was refused."""

    caught_by = ("delivery.no-receipt-before-any-answer",)
    refused = False

    def forbidden(self, topic: str) -> None:
        self.refused = True
        super().forbidden(topic)

    def is_hasty(self, batch: Batch) -> bool:
        return self.refused


class AcksAnOldTime(Hasty):
    """Confirms messages with a time of long ago when they are written: they come from an archive, it thinks."""

    caught_by = ("delivery.no-receipt-before-any-answer",)

    def is_hasty(self, batch: Batch) -> bool:
        return any(json.loads(line)["timestamp"] < "2015" for _, line in batch)


class AcksInTheNextLoop(Hasty):
    """Confirms messages when they are written, in each event loop but the first."""

    caught_by = ("lifecycle.next-loop-sends-nothing-again",)
    loop: asyncio.AbstractEventLoop | None = None

    def is_hasty(self, batch: Batch) -> bool:
        self.loop = self.loop or asyncio.get_running_loop()
        return asyncio.get_running_loop() is not self.loop
