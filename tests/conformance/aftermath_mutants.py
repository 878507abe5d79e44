"""Broken variations of the driver of `unordered_driver` that tell the truth until something has happened before.

A message was late, lost or refused, the connection was idle, the same message is sent again: what they do
then is a lie, or never ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any

from cqrs_brokers.driver import Delivery, Message
from cqrs_brokers.exceptions import ConnectError, RejectedError, UnreachableError
from cqrs_brokers.pipeline import Pipeline
from cqrs_brokers.url import Host
from tests.conformance.later_mutants import Batch, ConnectedResender, Hasty, deliveries_of, unanswered
from tests.conformance.unordered_driver import Streams, UnorderedSound

# -- the same message again --------------------------------------------------------------------------------------------


class ConfirmsWhatIsRepeated(UnorderedSound):
    """Takes a message that its caller sends again, in doubt, for sent: it wrote that very message before."""

    caught_by = ("delivery.repeated-in-doubt-arrives",)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.written: set[str] = set()

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        for delivery in deliveries:
            told = self.render(delivery.message)["dedup"]
            if told in self.written and delivery.handed_over():
                delivery.confirm()
            else:
                self.written.add(told)
                super().submit((delivery,))


class DropsWhatIsEqual(UnorderedSound):
    """Takes two messages with equal content for one, although they have ids of their own."""

    caught_by = ("delivery.equal-ids-are-not-equal-messages",)

    def render(self, message: Message) -> dict[str, Any]:
        told = [message.topic, message.key, sorted(message.headers.items()), message.message_name, message.body]
        return {**super().render(message), "dedup": hashlib.sha256(repr(told).encode()).hexdigest()}


class RememberingPipeline(Pipeline[bytes]):
    """Remembers what had no answer when the connection broke."""

    lost_ones: Sequence[Delivery] = ()

    def broken(self, error: Exception) -> None:
        if self.is_open:
            self.lost_ones = deliveries_of(self)
        super().broken(error)


class ResendsUnderAnotherId(ConnectedResender):
    """Sends what had no answer again after a reconnect, as a message of its own."""

    pipeline_type = RememberingPipeline
    caught_by = ("delivery.lost-answer-is-not-resent",)

    async def connect(self) -> None:
        assert isinstance(self.pipeline, RememberingPipeline)
        self.again, self.pipeline.lost_ones = self.pipeline.lost_ones, ()
        await super().connect()

    def line_anew(self, delivery: Delivery) -> bytes:
        word, token, text = super().line_anew(delivery).split(b" ", 2)
        record = json.loads(text)
        record["message_id"] = record["dedup"]
        return b"%s %s %s\n" % (word, token, json.dumps(record).encode())


class ResendsOnTheThird(ResendsUnderAnotherId):
    """Sends what had no answer again, from the third connection on."""

    caught_by = ("delivery.lost-answer-is-not-resent",)
    connections = 0

    async def dial(self, host: Host) -> Streams:
        self.connections += 1
        return await super().dial(host)

    def line_anew(self, delivery: Delivery) -> bytes:
        return super(ResendsUnderAnotherId, self).line_anew(delivery) if self.connections > 2 else b""


# -- confirmed when it was written -------------------------------------------------------------------------------------


class AcksAfterATimeout(Hasty):
    """Trusts its writes once a message had no answer until its deadline."""

    caught_by = ("delivery.no-receipt-before-any-answer",)
    late = False

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        super().submit(deliveries)
        for delivery in deliveries:
            asyncio.get_running_loop().call_at(delivery.deadline, self.expire, delivery)

    def expire(self, delivery: Delivery) -> None:
        self.late = self.late or any(each is delivery for each in unanswered(self))

    def is_hasty(self, batch: Batch) -> bool:
        return self.late


class AcksAfterIdle(Hasty):
    """Confirms the first message after ten seconds of silence when it is written."""

    caught_by = ("lifecycle.idle-connection-stays",)
    written = 0.0

    def is_hasty(self, batch: Batch) -> bool:
        before, self.written = self.written, asyncio.get_running_loop().time()
        return bool(before) and self.written - before > 10


class AcksInAHurry(UnorderedSound):
    """Confirms messages that have less than a second when they are written."""

    caught_by = ("delivery.memory-is-bounded",)

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        super().submit(deliveries)
        for delivery in deliveries:
            if delivery.deadline - asyncio.get_running_loop().time() < 1:
                asyncio.get_running_loop().call_later(0.05, self.hurry, delivery)

    def hurry(self, delivery: Delivery) -> None:
        token = self.pipeline.oldest(lambda other: other is delivery)
        if token is not None and self.pipeline.answered(token) is not None:
            delivery.confirm()


class AcksWhatHasTime(Hasty):
    """Confirms messages whose deadline is far away when they are written."""

    caught_by = ("delivery.no-receipt-before-any-answer",)

    def is_hasty(self, batch: Batch) -> bool:
        now = asyncio.get_running_loop().time()
        return any(each.deadline - now > 25 for each in unanswered(self))


# -- what is kept, and never given back --------------------------------------------------------------------------------


class LosesPlacesPipeline(Pipeline[bytes]):
    """Counts what was lost with a connection as unanswered on the next one."""

    def open(self, *arguments: Any, **settings: Any) -> None:
        before = self._in_window
        super().open(*arguments, **settings)
        self._in_window = before


class LosesPlacesWhenLost(UnorderedSound):
    """Never gives the places back of what was lost with a connection."""

    pipeline_type = LosesPlacesPipeline
    caught_by = ("delivery.reset-leaves-the-truth",)


class LosesPlacesWhenRefused(UnorderedSound):
    """Never gives the place back of a message that was refused."""

    caught_by = ("delivery.forbidden-spares-its-neighbours",)

    def forbidden(self, topic: str) -> None:
        super().forbidden(topic)
        self.pipeline._in_window += 1


class KeepsTheLost(UnorderedSound):
    """Keeps what was lost with a connection."""

    caught_by = ("delivery.nothing-is-kept-after-trouble",)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.kept: list[Delivery] = []

    async def read(self, reader: asyncio.StreamReader) -> None:
        try:
            await super().read(reader)
        finally:
            self.kept += unanswered(self)


class KeepsTheOverduePipeline(Pipeline[bytes]):
    """Keeps what it let go."""

    overdue: list[Any]

    def _let_go(self) -> None:
        self.overdue = [*getattr(self, "overdue", []), *self._unanswered.values(), *self._waiting]
        super()._let_go()


class KeepsTheOverdue(UnorderedSound):
    """Keeps what was late, after it has let it go."""

    pipeline_type = KeepsTheOverduePipeline
    caught_by = ("delivery.nothing-is-kept-after-trouble",)


class RemembersRefusals(UnorderedSound):
    """Refuses by itself what goes to a topic of which a message was refused."""

    caught_by = ("delivery.refusal-is-about-one-message",)
    topics: frozenset[str] = frozenset()

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        if word in (b"BUSY", b"FULL"):
            found = self.pipeline._unanswered.get(token)
            self.topics |= {getattr(found, "topic", "")}
        super().answered(word, token, offset)

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        for delivery in deliveries:
            if delivery.topic in self.topics:
                delivery.fail(RejectedError("the broker is busy"))
            else:
                super().submit((delivery,))


# -- connections and what is told of them ------------------------------------------------------------------------------


class TellsTwiceThatItLost(UnorderedSound):
    """Says once more that its connection was lost when the next one is there."""

    caught_by = ("lifecycle.reconnects-after-a-reset",)

    def lost(self, error: ConnectError) -> None:
        super().lost(error)
        assert self._link is not None
        asyncio.get_running_loop().call_later(0.4, self._link.lost, UnreachableError("it was lost"))


class KeepsHalfAnswers(UnorderedSound):
    """Puts the beginning of an answer, after which the connection ended, before the first answer of the next one."""

    caught_by = ("delivery.cut-answers-prove-nothing",)
    half = b""

    def is_whole(self, line: bytes) -> bool:
        if line and not line.endswith(b"\n"):
            self.half = line
        return super().is_whole(line)

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        half, self.half = self.half, b""
        super().answered(half + word, token, offset)


class KeepsItsLogin(UnorderedSound):
    """Keeps its login in an attribute once it has logged in."""

    caught_by = ("lifecycle.nothing-confidential-is-logged",)
    last = b""

    def login(self) -> bytes:
        self.last = super().login()
        return self.last


class LogsTheLoginWhenBackAgain(UnorderedSound):
    """Logs with what it logged in when it is connected again."""

    caught_by = ("lifecycle.nothing-confidential-is-told-of-a-later-login",)
    connections = 0

    async def dial(self, host: Host) -> Streams:
        made = await super().dial(host)
        self.connections += 1
        if self.connections > 1:
            logging.getLogger("unordered").info("again at %s as %s", host, self.login().decode())
        return made
