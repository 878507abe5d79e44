"""Keeps messages in the process, and plays the faults of a script."""

from __future__ import annotations

import asyncio

from cqrs_brokers import Receipt
from cqrs_brokers.driver import Capabilities, Driver, Message
from cqrs_brokers.exceptions import NotDeliveredError, RejectedError

from ._options import MemoryOptions
from ._records import Record, published
from ._script import Script

__all__ = ["MemoryDriver"]


class MemoryDriver(Driver):
    """Puts the messages into `published(name)`, except those that are not kept. Brokers of one process with the same
    name share this object.

    Args:
        name: The broker's name, as in `memory://name`.
        options: The size and the faults.
    """

    def __init__(self, name: str, options: MemoryOptions) -> None:
        self._published = published(name)
        self._options = options
        self._own_script = Script(options.faults)

    @property
    def _script(self) -> Script:
        return self._published.script or self._own_script

    @property
    def capabilities(self) -> Capabilities:
        """A confirm means that the message is kept in the process. Nothing is kept after the process has ended."""
        return Capabilities(
            confirms=True,
            ordering_key=True,
            headers=True,
            header_types=frozenset({str, bytes, int, float, bool, type(None)}),
            tombstones=True,
        )

    async def connect(self) -> None:
        """Succeeds, unless the script says otherwise.

        Raises:
            UnreachableError: The script says so.
        """
        self._script.connect()

    async def ping(self) -> None:
        """Succeeds, unless the script says otherwise.

        Raises:
            UnreachableError: The script says so.
        """
        self._script.ping()

    async def send_message(self, message: Message) -> Receipt:
        """Keeps and confirms the message, unless the script says otherwise.

        Raises:
            NotDeliveredError: The script says so, or the broker is full. The message is not kept.
            DeliveryUnknownError: The script says so. The message is kept, as when a real broker's confirm is lost.
        """
        script = self._script
        error = script.next_send()  # before any await: the script counts calls in their order
        record = Record.of(message)
        if script.faults.latency:
            await asyncio.sleep(script.faults.latency)
        if isinstance(error, NotDeliveredError):
            raise error
        if not self._published.keep(record, self._options.capacity):
            raise RejectedError(
                f"full: it keeps {self._options.capacity} messages: clear() what was published, or raise capacity="
            )
        if error is not None:
            raise error
        return Receipt(message.message_id, message.topic, "memory", confirmed=True)
