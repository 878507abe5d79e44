"""Broken variations of the driver of `unordered_driver`, thought of by a second hostile reader of the contract.

They are about outcomes, and break the contract only in some state: on the second connection or the second host, over
TLS, for what is large, in a batch, when the connection is stuck. `value_mutants` has those about what arrives,
`connection_mutants` those about connections.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Sequence

from cqrs_brokers.driver import Delivery
from cqrs_brokers.exceptions import NotDeliveredError, UnreachableError
from cqrs_brokers.pipeline import Pipeline
from cqrs_brokers.url import Host
from tests.conformance.unordered_driver import Streams, UnorderedSound

Batch = Sequence[tuple[int, bytes]]

# -- receipts that come too early --------------------------------------------------------------------------------------


class Hasty(UnorderedSound):
    """Confirms what it has written, in some state that a variation names."""

    host: Host | None = None
    connections = 0

    def is_hasty(self, batch: Batch) -> bool:
        raise NotImplementedError

    async def dial(self, host: Host) -> Streams:
        made = await super().dial(host)
        self.host = host
        self.connections += 1
        return made

    def writer_of(self, writer: asyncio.StreamWriter) -> Callable[[Batch], Awaitable[None]]:
        write = super().writer_of(writer)

        async def write_and_confirm(batch: Batch) -> None:
            await write(batch)
            for token, _ in batch if self.is_hasty(batch) else ():
                delivery = self.pipeline.answered(token)
                if delivery is not None:
                    delivery.confirm()

        return write_and_confirm


class AcksAfterReconnect(Hasty):
    """Waits for the broker's confirms on its first connection only."""

    caught_by = ("delivery.no-receipt-before-any-answer",)

    def is_hasty(self, batch: Batch) -> bool:
        return self.connections > 1


class AcksWhatIsLarge(Hasty):
    """Confirms messages of more than 200 kB when they are written."""

    caught_by = ("delivery.no-receipt-before-any-answer",)

    def is_hasty(self, batch: Batch) -> bool:
        return any(len(line) > 200_000 for _, line in batch)


class AcksBatches(Hasty):
    """Confirms messages that are written together when they are written."""

    caught_by = ("delivery.no-receipt-before-any-answer",)

    def is_hasty(self, batch: Batch) -> bool:
        return len(batch) >= 20


class AcksWhatHasHeaders(Hasty):
    """Confirms messages with headers when they are written."""

    caught_by = ("delivery.no-receipt-before-any-answer",)

    def is_hasty(self, batch: Batch) -> bool:
        return any(b'"headers": {"' in line for _, line in batch)


class AcksWhenStuck(UnorderedSound):
    """Confirms what it writes while its client's buffer is not empty."""

    caught_by = ("delivery.denied-never-arrives",)

    def writer_of(self, writer: asyncio.StreamWriter) -> Callable[[Batch], Awaitable[None]]:
        async def write(batch: Batch) -> None:
            writer.writelines([b"PUB %d %s\n" % each for each in batch])
            for token, _ in batch if writer.transport.get_write_buffer_size() else ():
                delivery = self.pipeline.answered(token)
                if delivery is not None:
                    delivery.confirm()
            await writer.drain()

        return write


class AcksOverTLS(Hasty):
    """Takes a write over TLS for a confirm."""

    caught_by = ("delivery.tls-is-as-true",)

    def is_hasty(self, batch: Batch) -> bool:
        return self._options.tls


class AcksOnTheSecondHost(Hasty):
    """Waits for confirms only on the first host of the config string."""

    caught_by = ("lifecycle.fails-over-to-another-host",)

    def is_hasty(self, batch: Batch) -> bool:
        return self.host != self._url.hosts[0]


# -- what is said of a connection that ends, or is silent --------------------------------------------------------------


class Concluding(UnorderedSound):
    """Believes that it knows what became of the messages on their way when the broker ends the connection."""

    async def read(self, reader: asyncio.StreamReader) -> None:
        await super().read(reader)
        while (token := self.pipeline.oldest(lambda _: True)) is not None:
            delivery = self.pipeline.answered(token)
            if delivery is not None:
                self.conclude(delivery)

    def conclude(self, delivery: Delivery) -> None:
        raise NotImplementedError


class EndIsNotDelivered(Concluding):
    """Takes a connection that the broker closed in good order for a proof that nothing was stored."""

    caught_by = ("delivery.ended-connection-leaves-the-truth",)

    def conclude(self, delivery: Delivery) -> None:
        delivery.fail(NotDeliveredError("the broker closed the connection"))


def deliveries_of(pipeline: Pipeline[bytes]) -> list[Delivery]:
    """What is written and has no answer."""
    found = pipeline._unanswered.values()
    return [each for each in found if each is not None and not isinstance(each, asyncio.Future)]


def unanswered(driver: UnorderedSound) -> list[Delivery]:
    """What is written and has no answer."""
    return deliveries_of(driver.pipeline)


class Resender(UnorderedSound):
    """Can send a message once more, so that the broker does not see that it is the same one."""

    def line_anew(self, delivery: Delivery) -> bytes:
        return b"PUB 0 %s\n" % json.dumps({**self.render(delivery.message), "dedup": uuid.uuid4().hex}).encode()


class ConnectedResender(Resender):
    """Sends what it kept in `again` once more when it is connected the next time."""

    again: Sequence[Delivery] = ()

    async def connect(self) -> None:
        await super().connect()
        assert self._writer is not None
        self._writer.writelines(map(self.line_anew, self.again))
        self.again = ()


class EndIsConfirm(Concluding):
    """Takes a connection that was closed in good order for a confirm of what was on its way."""

    caught_by = ("delivery.ended-connection-leaves-the-truth",)

    def conclude(self, delivery: Delivery) -> None:
        delivery.confirm()


class TiresOfALongWait(UnorderedSound):
    """Takes a message that had no answer for a few seconds for confirmed."""

    caught_by = ("faults.dead-connection-is-noticed",)

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        super().submit(deliveries)
        for delivery in deliveries:
            asyncio.get_running_loop().call_later(3.5, self.tire, delivery)

    def tire(self, delivery: Delivery) -> None:
        token = self.pipeline.oldest(lambda other: other is delivery)
        if token is not None and self.pipeline.answered(token) is not None:
            delivery.confirm()


class Impatient(Resender):
    """Does something of its own when a ping is not answered."""

    def gave_up(self) -> None:
        raise NotImplementedError

    def pinger(self) -> Callable[[], Awaitable[None]] | None:
        async def ask() -> None:
            try:
                await asyncio.wait_for(self.ping(), self._options.ping_after * 0.9)
            except TimeoutError:
                self.gave_up()
                raise UnreachableError("no answer to a ping") from None

        return ask


class SilenceIsNotDelivered(Impatient):
    """Takes a ping without an answer for a proof that nothing before it was stored."""

    caught_by = ("faults.dead-connection-is-noticed",)

    def gave_up(self) -> None:
        while (token := self.pipeline.oldest(lambda _: True)) is not None:
            delivery = self.pipeline.answered(token)
            if delivery is not None:
                delivery.fail(NotDeliveredError("the broker is silent"))


class ResendsAfterSilence(Impatient, ConnectedResender):
    """Sends what had no answer again when a ping had none either."""

    caught_by = ("faults.dead-connection-is-noticed",)

    def gave_up(self) -> None:
        self.again = unanswered(self)


class ResendsOnFailOver(Resender):
    """Sends what had no answer again when it comes to another host."""

    caught_by = ("lifecycle.fails-over-to-another-host",)
    host: Host | None = None
    again: Sequence[Delivery] = ()

    async def dial(self, host: Host) -> Streams:
        reader, writer = await super().dial(host)
        if self.host not in (host, None):
            writer.writelines(map(self.line_anew, self.again))
        self.host, self.again = host, ()
        return reader, writer

    async def read(self, reader: asyncio.StreamReader) -> None:
        try:
            await super().read(reader)
        finally:
            self.again = unanswered(self)


class ResendsAtClose(Resender):
    """Sends what had no answer again when it is closed."""

    caught_by = ("lifecycle.pending-at-close-is-no-success",)

    async def close(self, grace: float) -> None:
        if self._writer is not None:
            self._writer.writelines(map(self.line_anew, unanswered(self)))
            await asyncio.sleep(0.05)
        await super().close(grace)
