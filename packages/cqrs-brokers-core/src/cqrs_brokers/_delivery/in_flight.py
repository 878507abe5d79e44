"""The places that messages take in flight, and the functions that are told of outcomes.

A place is taken when a message is submitted to the driver. It is free when the *driver* lets go of the message, which
may be later than the caller's outcome. So the memory that a stalled client holds is bounded.
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
    """The places of one broker. Deliveries take and leave them; the window looks for room.

    Args:
        name: The broker's name, for receipts.
        address: The broker's redacted URL, for errors.
        confirms: Whether the driver's `confirm()` means that the broker has confirmed the message.
        max_count: The most messages the driver holds at any time.
        max_bytes: The most bytes that the driver holds. A larger message is taken when the driver holds nothing else.
        breaches: What the driver did against its contract.
        observe: Called with every outcome, also for cancelled callers. None: no observer wants outcomes.
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
        """How much the driver may hold before the window looks at the destinations of messages; see `stuck`."""
        self.breaches = breaches
        self.pending: dict[Any, bool] = {}
        """The deliveries without an outcome, in the order in which they were submitted. The value: whether the caller
        was cancelled."""
        self.ended: dict[Any, None] = {}
        """The deliveries whose callers have their outcome and that the driver still holds."""
        self.bytes = 0
        self.confirmed = False
        """Whether the broker has confirmed a message since `take_confirmed`."""
        self.room_is_wanted = False
        """Whether `on_room` is to be called when a place becomes free."""
        self.on_room: Callable[[], None]
        self._observers = () if observe is None else (observe,)
        self.watchers: tuple[Watcher, ...] = self._observers
        """Called for each outcome."""

    @property
    def count(self) -> int:
        """How many messages the driver holds."""
        return len(self.pending) + len(self.ended)

    def take_confirmed(self) -> bool:
        """Whether the broker has confirmed a message since the last call."""
        confirmed, self.confirmed = self.confirmed, False
        return confirmed

    def clear(self) -> None:
        """Forgets every delivery and every watcher, because the driver will not be used any more."""
        self.pending.clear()
        self.ended.clear()
        self.bytes = 0
        self.room_is_wanted = False
        self.watchers = self._observers
