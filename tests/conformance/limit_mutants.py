"""Broken variations of the driver of `unordered_driver` that show only when a buffer is full, or after a long wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from cqrs_brokers.driver import Delivery, Message
from cqrs_brokers.exceptions import MessageTooLargeError, NotDeliveredError, ProtocolError, UnreachableError
from cqrs_brokers.pipeline import Pipeline
from cqrs_brokers.url import BrokerURL, Host
from tests.conformance.later_mutants import unanswered
from tests.conformance.unordered_driver import UnorderedOptions, UnorderedSound


class ConfirmsWhatIsStuck(UnorderedSound):
    """Has few messages without an answer at a time, and confirms what the socket does not take at once."""

    caught_by = ("delivery.denied-never-arrives",)
    WINDOW = 8

    def writer_of(self, writer: asyncio.StreamWriter) -> Callable[[Sequence[tuple[int, bytes]]], Awaitable[None]]:
        write = super().writer_of(writer)

        async def write_in_the_window(batch: Sequence[tuple[int, bytes]]) -> None:
            writing = asyncio.ensure_future(write(batch))
            await asyncio.sleep(0)
            for token, _ in batch if writer.transport.get_write_buffer_size() else ():
                delivery = self.pipeline.answered(token)
                if delivery is not None:
                    delivery.confirm()
            await writing
            while len(unanswered(self)) >= self.WINDOW:
                await asyncio.sleep(0.001)

        return write_in_the_window


class LosesPatience(UnorderedSound):
    """Takes a message for delivered that had no answer for 12 s."""

    caught_by = ("delivery.time-confirms-nothing",)

    def __init__(self, url: BrokerURL, options: UnorderedOptions) -> None:
        super().__init__(url, options)
        self.pipeline = Pipeline(self.lost, ping_after=30.0)

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        super().submit(deliveries)
        for delivery in deliveries:
            asyncio.get_running_loop().call_later(12.0, self.confirm, delivery)

    def confirm(self, delivery: Delivery) -> None:
        token = self.pipeline.oldest(lambda other: other is delivery)
        if token is not None and self.pipeline.answered(token) is not None:
            delivery.confirm()


class HangsUpWithWhatIsTooLarge(UnorderedSound):
    """Writes what is larger than the broker takes, so that the broker ends the connection."""

    caught_by = ("delivery.too-large-for-this-broker",)

    async def greet(self, host: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await super().greet(host, reader, writer)
        self._largest = None


class QuotesWhatIsTooLarge(UnorderedSound):
    """Shows the beginning of each header of a message that is larger than the broker takes."""

    caught_by = ("delivery.too-large-for-this-broker",)

    def too_large(self, message: Message) -> NotDeliveredError:
        begin = {name: str(value)[:40] for name, value in message.headers.items()}
        return MessageTooLargeError(f"the broker does not take a message with {begin}")


class LimitsOnlyTheBody(UnorderedSound):
    """Compares the size of the body alone with what the broker takes."""

    caught_by = ("delivery.too-large-for-this-broker",)

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        largest = self._largest
        for delivery in deliveries:
            self._largest = None if largest is not None and len(delivery.message.body or b"") <= largest else largest
            super().submit((delivery,))
        self._largest = largest


class TellsTheLoginWhenReset(UnorderedSound):
    """Quotes what it wrote last when the connection is reset before its login was answered."""

    caught_by = ("lifecycle.nothing-confidential-is-told-of-a-login",)

    async def greet(self, host: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await super().greet(host, reader, writer)
        except UnreachableError as error:
            if isinstance(error.__cause__, ConnectionResetError):
                password = self._url.password.reveal() if self._url.password else ""
                error.text += f", after HELLO {self._url.username}:{password}"
            raise


class TellsTheLoginWhenCutShort(UnorderedSound):
    """Quotes its login beside an answer that is not whole."""

    caught_by = ("lifecycle.nothing-confidential-is-told-of-a-login",)

    async def greet(self, host: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await super().greet(host, reader, writer)
        except ProtocolError as error:
            if reader.at_eof():
                error.text += f": {self._url.render(reveal=True)} got half an answer"
            raise
