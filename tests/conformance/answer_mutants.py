"""Broken variations of the driver of `unordered_driver` that misread single answers, or wait for the wrong one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from cqrs_brokers.driver import Delivery
from cqrs_brokers.exceptions import RejectedError
from cqrs_brokers.pipeline import Pipeline
from tests.conformance.later_mutants import Batch, Hasty, deliveries_of
from tests.conformance.unordered_driver import UnorderedSound


class AnyTokenConfirms(UnorderedSound):
    """Takes an answer with a token that it does not know for that to the oldest message."""

    caught_by = ("delivery.unknown-answers-prove-nothing",)

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        super().answered(word, token, offset)
        oldest = self.pipeline.oldest(lambda _: True)
        if oldest is not None and token > oldest + self.WINDOW:
            super().answered(word, oldest, offset)


class UnknownWordIsARefusal(UnorderedSound):
    """Takes an answer that it does not know for a proof that nothing was stored."""

    caught_by = ("delivery.unknown-answers-prove-nothing",)

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        super().answered(word if word in (b"OK", b"DUP", b"SEEN", b"FULL") else b"BUSY", token, offset)


class BusyIsAConfirm(UnorderedSound):
    """Knows one of the words for a refusal, and takes the other one for a confirm."""

    caught_by = ("delivery.refusal-codes-are-no-confirms",)

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        super().answered(b"OK" if word == b"BUSY" else word, token, offset or b"0")


class QuotesWhatIsRefused(UnorderedSound):
    """Says which key a message has that was refused."""

    caught_by = ("delivery.refusal-codes-are-no-confirms",)

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        super().submit(deliveries)
        self.key = deliveries[-1].message.key

    key: str | None = None

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        delivery = self.pipeline.answered(token) if word == b"FULL" else None
        if delivery is not None:
            delivery.fail(RejectedError(f"the broker is full: no message of {self.key}"))
        else:
            super().answered(word, token, offset)


class NumbersComeAgain(UnorderedSound):
    """Counts messages from 0 to 2 047, and gives a number anew that an unanswered message has."""

    caught_by = ("delivery.late-answer-finds-its-message",)
    NUMBERS = 2_048

    def writer_of(self, writer: asyncio.StreamWriter) -> Callable[[Sequence[tuple[int, bytes]]], Awaitable[None]]:
        write = super().writer_of(writer)
        self.tokens: dict[int, int] = {}

        async def write_numbered(batch: Sequence[tuple[int, bytes]]) -> None:
            self.tokens |= {token % self.NUMBERS: token for token, _ in batch}
            await write([(token % self.NUMBERS, line) for token, line in batch])

        return write_numbered

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        super().answered(word, self.tokens.pop(token, 0), offset)


def confirm_all(driver: UnorderedSound) -> None:
    """Confirms what has no answer."""
    while (token := driver.pipeline.oldest(lambda _: True)) is not None:
        delivery = driver.pipeline.answered(token)
        if delivery is not None:
            delivery.confirm()


class PongConfirms(UnorderedSound):
    """Takes a sign of life for the answer to all that was written before."""

    caught_by = ("delivery.pings-confirm-nothing",)

    async def ping(self) -> None:
        await super().ping()
        confirm_all(self)


class FarewellConfirms(UnorderedSound):
    """Takes the server's farewell for a confirm of what was on its way."""

    caught_by = ("delivery.farewells-confirm-nothing",)

    def dismissed(self) -> None:
        confirm_all(self)


class LiesWithALabel(Hasty):
    """Takes a write for a confirm when it was given a label."""

    caught_by = ("delivery.options-change-no-truth",)

    def is_hasty(self, batch: Batch) -> bool:
        return bool(self._options.label)


class IgnoresTheLimit(UnorderedSound):
    """Writes as many messages without an answer as it has."""

    WINDOW = 10_000
    caught_by = ("delivery.most-unanswered-is-kept",)


class OneTopicAtATimePipeline(Pipeline[bytes]):
    """Writes nothing while messages of another topic have no answer."""

    def _next_batch(self) -> list[tuple[int, bytes]]:
        if not self._waiting:
            return []
        first = self._waiting.popleft()
        rest, self._waiting = self._waiting, deque([first])
        batch: list[tuple[int, bytes]] = []
        if all(each.topic == first[0].topic for each in deliveries_of(self)):
            batch = super()._next_batch()
        else:
            self._more.clear()
            asyncio.get_running_loop().call_later(0.01, self._more.set)
        self._waiting.extend(rest)
        return batch


class OneTopicAtATime(UnorderedSound):
    """Waits for the answers of one topic before it writes to another one."""

    pipeline_type = OneTopicAtATimePipeline
    caught_by = ("delivery.stuck-destination-holds-up-no-other",)


class NewestFirstWhenStuckPipeline(Pipeline[bytes]):
    """Writes what came last first while the oldest message has had no answer for a second."""

    oldest_one: tuple[int, float] = (0, 0.0)

    def _next_batch(self) -> list[tuple[int, bytes]]:
        now, token = asyncio.get_running_loop().time(), next(iter(self._unanswered), 0)
        if token != self.oldest_one[0]:
            self.oldest_one = token, now
        elif token and now - self.oldest_one[1] > 1:
            self._waiting.reverse()
        return super()._next_batch()


class NewestFirstWhenStuck(UnorderedSound):
    """Writes what came last first when a message has had no answer for a second."""

    pipeline_type = NewestFirstWhenStuckPipeline
    caught_by = ("delivery.stuck-destination-holds-up-no-other",)
