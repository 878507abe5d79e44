"""The places of the messages that the driver holds, and the functions that are called with each outcome.

A place is taken when a message is submitted to the driver. The place becomes free when the *driver* does not hold the
message any more, which may be later than the caller's outcome. So the driver never holds more messages than there are
places, even if its client library hangs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cqrs_brokers.exceptions import DeliveryError
from cqrs_brokers.protocol import Receipt

from .breaches import ContractBreaches

__all__ = ["InFlight"]

Watcher = Callable[[Any, "Receipt | DeliveryError"], None]


class InFlight:
    """The places of one broker. The window takes a place for each message that it submits. The delivery frees the
    place.

    Args:
        name: The broker's name, for receipts.
        address: The broker's redacted URL, for errors.
        confirms: Whether the driver's `confirm()` means that the broker has confirmed the message.
        max_count: The most messages that the driver may hold at a time.
        max_bytes: The most bytes that the driver may hold at a time. A message with more bytes is submitted when the
            driver holds nothing else.
        breaches: Collects the driver's breaches of its contract.
        observe: A function that is called with every delivery and its outcome, also if the caller was cancelled. None:
            no observer wants outcomes.
    """

    def __init__(
        self,
        *,
        name: str,
        address: str,
        confirms: bool,
        max_count: int,
        max_bytes: int,
        breaches: ContractBreaches,
        observe: Watcher | None = None,
    ) -> None:
        self.name = name
        self.address = address
        self.confirms = confirms
        self.max_count = max_count
        self.max_bytes = max_bytes
        self.limit = self.limit_bytes = 0
        """How many messages and bytes the driver may hold while no destination is stuck. Both are 0 while a destination
        is stuck, because then the destination of each message must be checked (see the module `stuck`)."""
        self.breaches = breaches
        self.pending: dict[Any, bool] = {}
        """The submitted deliveries without an outcome, in the order in which they were submitted. The value of each
        says whether its caller was cancelled."""
        self.ended: dict[Any, None] = {}
        """The deliveries that are done but that the driver still holds."""
        self.bytes = 0
        self.confirmed = False
        """Whether a message got a confirm as its outcome since the last call of `take_confirmed`."""
        self.room_is_wanted = False
        """Whether `on_room()` must be called when a place becomes free."""
        self.on_room: Callable[[], None]
        self._observers = () if observe is None else (observe,)
        self.watchers: tuple[Watcher, ...] = self._observers
        """The functions that are called with each delivery and its outcome."""

    @property
    def count(self) -> int:
        """How many messages the driver holds."""
        return len(self.pending) + len(self.ended)

    def take_confirmed(self) -> bool:
        """Whether a message got a confirm as its outcome since the last call."""
        confirmed, self.confirmed = self.confirmed, False
        return confirmed

    def clear(self) -> None:
        """Forgets every delivery and every watcher except observers, because the event loop of the deliveries is not
        used any more."""
        self.pending.clear()
        self.ended.clear()
        self.bytes = 0
        self.room_is_wanted = False
        self.watchers = self._observers
