"""Keeps messages in the process, after playing the scripted faults."""

from __future__ import annotations

import asyncio

from cqrs_brokers import Receipt
from cqrs_brokers.driver import Capabilities, Driver, Message
from cqrs_brokers.exceptions import DeliveryUnknownError, RejectedError

from ._options import MemoryOptions
from ._records import Record, published

__all__ = ["MemoryDriver"]


class MemoryDriver(Driver):
    """Puts every message into `published(name)`; brokers of one process with the same name share it.

    Args:
        name: Which one, as in `memory://name`.
        options: Size and faults.
    """

    def __init__(self, name: str, options: MemoryOptions) -> None:
        self._published = published(name)
        self._options = options
        self._calls = 0

    @property
    def capabilities(self) -> Capabilities:
        """It confirms each message, once it is kept; nothing survives the process."""
        return Capabilities(
            confirms=True,
            ordering_key=True,
            headers=True,
            header_types=frozenset({str, bytes, int, float, bool, type(None)}),
            tombstones=True,
        )

    async def send_message(self, message: Message) -> Receipt:
        """Keeps it, unless the script says otherwise.

        Raises:
            RejectedError: The script says so, or the broker is full.
            DeliveryUnknownError: The script says so. The message is kept, as when a real broker's confirm is lost.
        """
        options = self._options
        call = self._calls = self._calls + 1  # before any await: the script counts calls in their order
        record = Record.of(message)
        if options.latency:
            await asyncio.sleep(options.latency)
        if call <= options.fail:
            raise RejectedError(f"rejected by the script: message {call} of fail={options.fail}")
        if not self._published.keep(record, options.capacity):
            raise RejectedError(
                f"full: it keeps {options.capacity} messages: clear() what was published, or raise capacity="
            )
        if call <= options.fail + options.unknown:
            raise DeliveryUnknownError(
                f"not confirmed by the script: message {call - options.fail} of unknown={options.unknown}"
            )
        return Receipt(message.message_id, message.topic, "memory", confirmed=True)
