"""Broken variations of the driver of `unordered_driver` that misplace messages while they wait in its own queue."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from cqrs_brokers.driver import Delivery
from cqrs_brokers.exceptions import ConnectError, NotDeliveredError
from cqrs_brokers.pipeline import Pipeline
from tests.conformance.unordered_driver import UnorderedSound

# -- another order -----------------------------------------------------------------------------------------------------


class EarliestDeadlinePipeline(Pipeline[bytes]):
    """Writes first what has the least time left."""

    def _next_batch(self) -> list[tuple[int, bytes]]:
        self._waiting = deque(sorted(self._waiting, key=lambda entry: entry[0].deadline))
        return super()._next_batch()


class EarliestDeadlineFirst(UnorderedSound):
    """Writes first what has the least time left, whatever its key is."""

    pipeline_type = EarliestDeadlinePipeline
    caught_by = ("ordering.keys-keep-their-order",)


class OldestFirst(UnorderedSound):
    """Writes messages that come together in the order of their timestamps."""

    caught_by = ("ordering.keys-keep-their-order",)

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        super().submit(sorted(deliveries, key=lambda delivery: delivery.message.timestamp))


class OwnTypesGoLater(UnorderedSound):
    """Writes messages of an unusual content type a moment later than the others."""

    caught_by = ("ordering.keys-keep-their-order",)

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        for delivery in deliveries:
            usual = delivery.message.content_type in (None, "application/json", "application/octet-stream")
            if usual:
                super().submit((delivery,))
            else:
                asyncio.get_running_loop().call_later(0.002, super().submit, (delivery,))


class EmptyKeyIsNoKey(UnorderedSound):
    """Writes messages with an empty key in any order, as those without one."""

    caught_by = ("ordering.keys-keep-their-order",)

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        keyed = [delivery for delivery in deliveries if delivery.message.key]
        super().submit([*keyed, *(each for each in reversed(deliveries) if not each.message.key)])


class SwapsTheCancelledPipeline(Pipeline[bytes]):
    """Takes out what is over by putting the last message that waits in its place."""

    def _next_batch(self) -> list[tuple[int, bytes]]:
        for number, (delivery, _, _) in enumerate(list(self._waiting)):
            if delivery.done and number < len(self._waiting) - 1:
                delivery.release()
                self._waiting[number] = self._waiting.pop()
        return super()._next_batch()


class SwapsTheCancelled(UnorderedSound):
    """Takes out what was cancelled by putting the last message that waits in its place."""

    pipeline_type = SwapsTheCancelledPipeline
    caught_by = ("ordering.order-survives-a-stall",)


class RotatesAtTheEnd(UnorderedSound):
    """Puts what waits in another order when the broker ends the connection in good order."""

    caught_by = ("delivery.half-written-leaves-the-truth",)

    async def read(self, reader: asyncio.StreamReader) -> None:
        await super().read(reader)
        self.pipeline._waiting.rotate(len(self.pipeline._waiting) // 2)


class DropsItsQueueAtTheEnd(UnorderedSound):
    """Fails what waits when the broker ends the connection in good order."""

    caught_by = ("delivery.half-written-leaves-the-truth",)

    async def read(self, reader: asyncio.StreamReader) -> None:
        await super().read(reader)
        while self.pipeline._waiting:
            self.pipeline._waiting.popleft()[0].fail(NotDeliveredError("the broker closed the connection"))


class ShiftsBodies(UnorderedSound):
    """Gives what waited for the next connection the bodies of its neighbours."""

    caught_by = ("ordering.queued-messages-keep-their-order",)

    def lost(self, error: ConnectError) -> None:
        waiting: deque[Any] = self.pipeline._waiting
        lines = [entry[1] for entry in waiting]
        bodies = [line.partition(b'"body": ')[2].partition(b", ")[0] for line in lines]
        bodies = [*bodies[1:], *bodies[:1]]
        for number, (delivery, line, size) in enumerate(list(waiting)):
            begin, _, rest = line.partition(b'"body": ')
            waiting[number] = (delivery, begin + b'"body": ' + bodies[number] + b", " + rest.partition(b", ")[2], size)
        super().lost(error)


# -- handed over -------------------------------------------------------------------------------------------------------


class EarlyPipeline(Pipeline[bytes]):
    """Says handed over before there is room."""

    def put(self, delivery: Delivery, item: bytes, size: int) -> None:
        if delivery.handed_over():
            super().put(delivery, item, size)

    def _next_batch(self) -> list[tuple[int, bytes]]:
        batch: list[tuple[int, bytes]] = []
        size = 0
        while self._waiting and size < self._batch_bytes and not self._is_full():
            delivery, item, its_size = self._waiting.popleft()
            batch.append((self._number(delivery), item))
            self._in_window += 1
            size += its_size
        return batch


class HandsOverAtOnce(UnorderedSound):
    """Says that a message is handed over when it gets it, and keeps it in its queue all the same."""

    pipeline_type = EarlyPipeline
    caught_by = ("delivery.denied-never-arrives",)


class ForgetfulPipeline(Pipeline[bytes]):
    """Asks for what waited for the next connection not whether it is over."""

    opened = 0

    def open(self, *arguments: Any, **settings: Any) -> None:
        self.opened += 1
        super().open(*arguments, **settings)

    def _next_batch(self) -> list[tuple[int, bytes]]:
        over = [(0, entry[1]) for entry in self._waiting if entry[0].done] if self.opened > 1 else []
        return [*over, *super()._next_batch()]


class WritesTheCancelled(UnorderedSound):
    """Writes what was cancelled while it waited for the next connection."""

    pipeline_type = ForgetfulPipeline
    caught_by = ("ordering.queued-messages-keep-their-order",)


class FirstOnlyPipeline(Pipeline[bytes]):
    """Says of the first message of a batch that it is handed over, of the others only when they have an answer."""

    def _next_batch(self) -> list[tuple[int, bytes]]:
        batch: list[tuple[int, bytes]] = []
        size = 0
        while self._waiting and size < self._batch_bytes and not self._is_full():
            delivery, item, its_size = self._waiting.popleft()
            if batch or delivery.handed_over():
                batch.append((self._number(delivery), item))
                self._in_window += 1
                size += its_size
        return batch

    def answered(self, token: int | None = None) -> Delivery | None:
        delivery = super().answered(token)
        if delivery is not None and getattr(delivery, "state", 2) < 2:
            delivery.handed_over()
        return delivery


class HandsOverTheFirst(UnorderedSound):
    """Says only of the first message of a batch that it is handed over."""

    pipeline_type = FirstOnlyPipeline
    caught_by = ("delivery.unanswered-is-let-go",)


class RequeuesWhatItWrites(UnorderedSound):
    """Writes a batch again when the connection broke while it waited for room: that was not written, it thinks."""

    WINDOW = 10_000
    caught_by = ("delivery.half-written-leaves-the-truth",)
    writing: Sequence[tuple[int, bytes]] = ()

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.pipeline._batch_bytes = 2**20

    def writer_of(self, writer: asyncio.StreamWriter) -> Callable[[Sequence[tuple[int, bytes]]], Awaitable[None]]:
        write = super().writer_of(writer)
        writer.transport.set_write_buffer_limits(0)  # `drain()` waits for all of a batch

        async def write_and_note(batch: Sequence[tuple[int, bytes]]) -> None:
            self.writing = batch
            await write(batch)
            self.writing = ()

        return write_and_note

    async def read(self, reader: asyncio.StreamReader) -> None:
        try:
            await super().read(reader)
        finally:
            for token, line in reversed(self.writing):
                delivery = self.pipeline.answered(token)
                if delivery is not None:
                    delivery.returned()
                    line = line.replace(b'"dedup": "', b'"dedup": "again ')
                    self.pipeline._waiting.appendleft((delivery, line, len(line)))
            self.writing = ()
