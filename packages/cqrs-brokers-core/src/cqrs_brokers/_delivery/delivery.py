"""One message on its way: the contract between `Broker` and a driver, as an explicit state machine.

    QUEUED ──admit──▶ SUBMITTED ──handed_over──▶ HANDED ──confirm / fail──▶ RELEASED
       │                 ▲  │  └──────fail / skip──────────────────────────────▲
       │                 └──┴────────────returned──────┘                       │
       └──────────────────────── deadline, cancel, close ──────────────────────┘

Two things end apart from each other. The *outcome* (`done`): the caller has a receipt or an error; the deadline, a
cancellation or `close()` may bring it about while the driver still holds the message. The *place* in the in-flight
window: free only when the driver lets go (`confirm`, `fail`, or `handed_over` returning False), so that what a stalled
client holds in memory stays bounded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

from cqrs_brokers._message.ids import from_text
from cqrs_brokers.exceptions import DeliveryError, DeliveryUnknownError, NotDeliveredError
from cqrs_brokers.protocol import Message, Receipt, snapshot

if TYPE_CHECKING:
    from .window import Window

__all__ = ["ContractBreach", "Delivery", "confirm_all"]

logger = logging.getLogger("cqrs_brokers.delivery")

QUEUED: Final = 0
"""In `Broker`'s own queue; the driver does not know it."""
SUBMITTED: Final = 1
"""The driver has it and has not given it to its client ("waiting" in the driver's contract)."""
HANDED: Final = 2
"""Given to the client: from here on only the broker's answer proves anything."""
RELEASED: Final = 3
"""The driver has let go, or never had it."""
SETTLED: Final = 4
"""`Broker` was closed and took the place back: what the driver still says is late, and no fault of its."""


class ContractBreach(NamedTuple):
    """Something that a driver did and that its contract forbids.

    Attributes:
        method: The method of the driver or of its `Delivery`.
        what: What was wrong with it.
        message_id: The message that it was about, or None.
    """

    method: str
    what: str
    message_id: UUID | None


class Delivery:
    """One message in a driver's hands. Made by `Broker` only (`outcomes` has the kinds, by who waits for it).

    A driver calls `handed_over()` immediately before it gives the message to its client, and then `confirm()` or
    `fail()` once. It owes one of the three to every delivery, also to one whose caller has long got its answer.

    Attributes:
        message: What to send. Read it before `submit` returns, or keep a snapshot: the caller may change it later.
        topic: The message's topic; whatever becomes of the message, it stays.
        deadline: When `Broker` ends it, in the event loop's time (`loop.time()`), in seconds.
        done: The caller has its outcome already (expired, cancelled, closed). `handed_over()` will say False.
    """

    __slots__ = ("message", "topic", "deadline", "done", "_id", "_window", "_size", "_state")

    timeout: float | None = None
    """The seconds that its call gave it; None: what `Broker` gives every message."""

    def __init__(self, message: Message, deadline: float, window: Window, size: int) -> None:
        self.message = message
        self.topic = message.topic
        self._id: Any = message._id
        self.deadline = deadline
        self.done = False
        self._window = window
        self._size = size
        self._state: int = QUEUED

    @property
    def message_id(self) -> UUID:
        """The message's id; whatever becomes of the message, it stays."""
        known = self._id
        return from_text(known) if type(known) is bytes else known

    def handed_over(self) -> bool:
        """Says that the message goes to the client now.

        Returns:
            True: write it. False: it is over (expired, cancelled, closed); do not write it. Its place is free again.
        """
        if self._state == SUBMITTED:
            if self.done:
                self._release()
                return False
            self._state = HANDED
            return True
        if self._state == HANDED:
            self._breach("handed_over() twice")
        return False

    def release(self) -> None:
        """Lets go of a message that is over (`done`), whether or not it was handed over. Its place is free again."""
        if self._state in (SUBMITTED, HANDED) and self.done:
            self._release()
        else:
            self._breach("release() of a message that is not over")

    def returned(self) -> None:
        """Says that a message that was handed over is proven not written; it waits in the driver again."""
        if self._state == HANDED:
            self._state = SUBMITTED
        elif self._state < RELEASED:
            self._breach("returned() before handed_over()")

    def confirm(self, *, partition: int | None = None, offset: int | None = None) -> None:
        """Says that the broker confirmed the message.

        Args:
            partition: The partition it is in, where the broker has partitions.
            offset: Its offset there, where the broker says it.
        """
        if self._state == HANDED and not self.done:
            window = self._window
            self._finish(Receipt(self._id, self.topic, window.name, window.confirms, partition, offset))
        elif self._state == HANDED:
            logger.debug("message %s was confirmed after its caller had its answer", self.message_id)
            self._release()
        else:
            self._breach("confirm() before handed_over()" if self._state == SUBMITTED else "confirm() after the end")

    def _settle(self) -> None:
        """Broker takes the place back from a driver that will not be asked any more."""
        self._release()
        self._state = SETTLED

    def accept(self, receipt: Receipt | None) -> None:
        """Says that a driver without confirms took the message: `Broker`'s own form of `confirm` for simple drivers."""
        if self._state == HANDED and not self.done:
            sure = receipt is not None and receipt.confirmed
            partition, offset = (receipt.partition, receipt.offset) if receipt is not None else (None, None)
            self._finish(Receipt(self._id, self.topic, self._window.name, sure, partition, offset))
        else:
            self.confirm()

    def fail(self, error: DeliveryError) -> None:
        """Says that the message ended without a confirm.

        Args:
            error: `NotDeliveredError` only when it is proven that the broker does not have the message and will not get
                it; in every other case a `DeliveryUnknownError`. `Broker` fills in message and broker. One object may
                fail many deliveries.
        """
        if self._state >= RELEASED or self._state == QUEUED:
            self._breach("fail() after the end")
        elif self.done:
            logger.debug(
                "message %s ended in %s after its caller had its answer", self.message_id, type(error).__name__
            )
            self._release()
        else:
            self._finish(self._classified(error))

    # -- Broker's side ------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """It has to wait: from here on the caller may change the message."""
        self.message = snapshot(self.message)

    def _classified(self, error: BaseException) -> DeliveryError:
        if not isinstance(error, DeliveryError):
            kind = DeliveryUnknownError if self._state == HANDED else NotDeliveredError
            wrapped = kind(f"the driver reported an unclassified {type(error).__name__}")
            wrapped.__cause__ = error
            error = wrapped
        return error.about(self.message_id, self.topic, self._window.address)

    def _finish(self, outcome: Receipt | DeliveryError) -> None:
        """The driver ends it: outcome and place at once."""
        self.done = True
        self._state = RELEASED
        window = self._window
        del window.in_flight[self]
        window.bytes -= self._size
        if window.waiting and not window.pumping:
            window.pump_soon()
        if window.attentive:
            window.attend(self, outcome)
        self._resolve(outcome)

    def _end(self, outcome: DeliveryError) -> None:
        """Broker ends it (deadline, close): the outcome only; the place stays taken while the driver has it."""
        self._detach()
        window = self._window
        if window.attentive:
            window.attend(self, outcome)
        self._resolve(outcome)

    def _detach(self) -> None:
        """The caller will not be told any more; the driver may still have it."""
        self.done = True
        if self._state == QUEUED:
            self._state = RELEASED
        else:
            window = self._window
            del window.in_flight[self]
            window.overdue[self] = None

    def _release(self) -> None:
        """The driver lets go of one whose caller has its answer: its place is free."""
        self._state = RELEASED
        window = self._window
        if window.overdue.pop(self, self) is None:
            window.bytes -= self._size
            if window.waiting and not window.pumping:
                window.pump_soon()
            if window.attentive:
                window.attend(self, None)

    def _resolve(self, outcome: Receipt | DeliveryError) -> None:
        """Tells the caller. Called once, unless the caller was cancelled."""
        raise NotImplementedError

    def _breach(self, what: str) -> None:
        if self._state == SETTLED:
            return
        self._window.breaches.append(ContractBreach(what.partition("(")[0], what, self.message_id))
        logger.error(
            "the driver of %s broke its contract for message %s: %s; ignored",
            self._window.address,
            self.message_id,
            what,
        )

    def __repr__(self) -> str:
        state = ("queued", "waiting", "handed over", "released", "settled")[self._state]
        return f"<Delivery of {self.message!r}: {state}{', done' if self.done else ''}>"


def confirm_all(deliveries: Iterable[Delivery], *, partition: int | None = None, offset: int | None = None) -> None:
    """Says that the broker confirmed a batch: `Delivery.confirm` for each, at half the cost.

    Args:
        deliveries: The batch, in its order in the partition.
        partition: The partition it is in, where the broker has partitions.
        offset: The offset of the first one there, where the broker says it.
    """
    for delivery in deliveries:
        window = delivery._window
        if delivery._state != HANDED or delivery.done or window.attentive:
            delivery.confirm(partition=partition, offset=offset)
        else:  # as `_finish`
            delivery.done = True
            delivery._state = RELEASED
            del window.in_flight[delivery]
            window.bytes -= delivery._size
            receipt = Receipt(delivery._id, delivery.topic, window.name, window.confirms, partition, offset)
            delivery._resolve(receipt)
            if window.waiting and not window.pumping:
                window.pump_soon()
        if offset is not None:
            offset += 1
