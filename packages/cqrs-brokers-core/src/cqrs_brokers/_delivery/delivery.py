"""One message between the call and its outcome, as a state machine. `Window` submits messages (QUEUED to SUBMITTED).
Every other change of state is in this module.

    QUEUED ──submitted──▶ SUBMITTED ──handed_over──▶ HANDED ──confirm / fail / release──▶ RELEASED
       │                    ▲  │  └────fail / release / handed_over when done──────────────▲ │
       │                    └──┴──────── returned ──────┘                                  │ └──settle──▶ SETTLED
       └────────────────── end / abandon ──────────────────────────────────────────────────┘

Each message has an *outcome*: the receipt or the error that the caller gets. The message is `done` when it has its
outcome, or when its caller was cancelled and the message is not handed over. A message that the driver holds also takes
a *place* in flight (see `in_flight`). The driver may hold the message, and so the place, longer than the caller waits
for the outcome.

| call | who calls | outcome | place |
|---|---|---|---|
| `confirm`, `fail`, `accept` | the driver | the caller gets it, if it has none | free |
| `handed_over` when done, `release` | the driver | the caller has it already, or was cancelled | free |
| `end` | `Broker`: deadline, close, no connection | the caller gets it | taken while the driver holds the message |
| `abandon` | `Broker`: the caller was cancelled | observers get it when it is known | taken while the driver holds it |
| `settle` | `Broker`: it does not wait for the driver any more | the caller has it, or does not wait any more | free |
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final, Protocol, runtime_checkable
from uuid import UUID

from cqrs_brokers._message.ids import from_text
from cqrs_brokers.exceptions import DeliveryError, DeliveryUnknownError, NotDeliveredError
from cqrs_brokers.protocol import Message, Receipt, raw_id, with_body

from .in_flight import InFlight

__all__ = ["Delivery", "Sending", "confirm_all"]

logger = logging.getLogger("cqrs_brokers.delivery")

QUEUED: Final = 0
"""The message is in `Broker`'s own queue. The driver does not know it."""
SUBMITTED: Final = 1
"""The driver has the message and has not given it to its client library ("waiting" in the driver contract)."""
HANDED: Final = 2
"""The driver has given the message to its client library. From now on the message may be in the broker."""
RELEASED: Final = 3
"""The driver does not hold the message any more, or never held it."""
SETTLED: Final = 4
"""`Broker` has freed the place without waiting for the driver. If the driver still calls methods of the delivery, that
is no breach of its contract."""


@runtime_checkable
class Delivery(Protocol):
    """One message that was given to a driver.

    A driver calls `handed_over()` immediately before it gives the message to its client library. Then the driver calls
    `confirm()` or `fail()` once. If the message is over (`done`), the driver may call `release()` instead. The driver
    must end every delivery with `confirm()`, `fail()`, `release()`, or a `handed_over()` that returns False, even if
    the caller already has its outcome.
    """

    @property
    def message(self) -> Message:
        """The message to send. Read it before `submit` returns, or keep a snapshot, because the caller may change the
        message later."""

    @property
    def message_id(self) -> UUID:
        """The id that the message had when `submit` was called."""

    @property
    def topic(self) -> str:
        """The topic that the message had when `submit` was called."""

    @property
    def deadline(self) -> float:
        """When `Broker` ends the message if it still has no outcome (`loop.time()`, in seconds)."""

    @property
    def done(self) -> bool:
        """Whether the message is over. Either it has an outcome, for example because its deadline has passed or the
        broker was closed. Or its caller was cancelled, and the message is not handed over."""

    def handed_over(self) -> bool:
        """Says that the driver gives the message to its client library now.

        Returns:
            True: send the message. False: the message is over, so do not send it. Its place in flight is free again.
        """

    def release(self) -> None:
        """Says that the driver does not hold the message any more, because the message is over (`done`). The message
        may have been handed over or not. Its place in flight is free again."""

    def returned(self) -> None:
        """Undoes `handed_over()`, because it is proven that the message was not written. The message waits in the
        driver again. If its caller was cancelled, the message is then over (`done`)."""

    def confirm(self, *, partition: int | None = None, offset: int | None = None) -> None:
        """Says that the broker confirmed the message. A driver without the capability `confirms` calls this
        method when the driver has sent the message.

        Args:
            partition: The message's partition, if the broker has partitions.
            offset: The message's offset in the partition, if the broker reports offsets.
        """

    def fail(self, error: DeliveryError) -> None:
        """Says that the message ended without a confirm.

        Args:
            error: Give a `NotDeliveredError` only if it is proven that the broker does not have the message and will
                not get it. In every other case, give a `DeliveryUnknownError`. `Broker` adds the message's id and topic
                and the broker's URL to the error. The same error object may be given to many deliveries.
        """


def confirm_all(deliveries: Iterable[Delivery], *, partition: int | None = None, offset: int | None = None) -> None:
    """Says that the broker confirmed a batch.

    Args:
        deliveries: The batch, in its order in the partition.
        partition: The batch's partition, if the broker has partitions.
        offset: The offset of the batch's first message, if the broker reports offsets.
    """
    if partition is None and offset is None:
        for delivery in deliveries:
            delivery.confirm()
        return
    for delivery in deliveries:
        delivery.confirm(partition=partition, offset=offset)
        if offset is not None:
            offset += 1


class Sending:
    """Implements `Delivery`. The module `outcomes` has two subclasses, one for each way in which a caller waits for its
    outcome.

    Attributes:
        size: The message's size, in bytes.
        state: One of the five states, QUEUED to SETTLED.
    """

    __slots__ = ("message", "topic", "deadline", "done", "size", "state", "_id", "_in_flight")

    began: float
    """When the caller's call began (`loop.time()`, in seconds)."""

    def __init__(self, message: Message, deadline: float, size: int, in_flight: InFlight) -> None:
        self.message = message
        self.topic = message.topic
        self._id = raw_id(message)
        self.deadline = deadline
        self.done = False
        self.size = size
        self.state: int = QUEUED
        self._in_flight = in_flight

    @property
    def message_id(self) -> UUID:
        """See `Delivery`."""
        known = self._id
        return from_text(known) if type(known) is bytes else known

    # -- the driver's side --------------------------------------------------------------------------------------------

    def handed_over(self) -> bool:
        """See `Delivery`."""
        if self.state == SUBMITTED:
            if self.done:
                self._leave(self._in_flight.ended)
                return False
            self.state = HANDED
            return True
        if self.state == HANDED:
            self._breach("handed_over", "called twice")
        return False

    def release(self) -> None:
        """See `Delivery`."""
        if self.done and (self.state == SUBMITTED or self.state == HANDED):
            self._leave(self._in_flight.ended)
        else:
            self._breach("release", "of a message that is not over")

    def returned(self) -> None:
        """See `Delivery`."""
        if self.state == HANDED:
            self.state = SUBMITTED
            if self._in_flight.pending.get(self):  # its caller was cancelled: the message is not sent again
                self.abandon()
        elif self.state < RELEASED:
            self._breach("returned", "before handed_over()")

    def confirm(self, *, partition: int | None = None, offset: int | None = None) -> None:
        """See `Delivery`."""
        if self.state != HANDED:
            self._breach("confirm", "before handed_over()" if self.state == SUBMITTED else "after the end")
        elif self.done:
            logger.debug("message %s was confirmed after its caller had its outcome", self.message_id)
            self._leave(self._in_flight.ended)
        else:
            places = self._in_flight
            receipt = Receipt(self._id, self.topic, places.name, places.confirms, partition, offset)
            places.confirmed = True
            # These lines repeat `_finish`, because a call for each message takes time.
            self.done = True
            self.state = RELEASED
            del places.pending[self]
            places.bytes -= self.size
            if places.room_is_wanted:
                places.on_room()
            if places.watchers:  # a loop over nothing costs more
                for watch in places.watchers:
                    watch(self, receipt)
            self._resolve(receipt)

    def accept(self, receipt: Receipt | None) -> None:
        """Does the work of `confirm` for a driver that has only `send_message`. The receipt that `send_message`
        returned says whether the message is confirmed. None: the message is not confirmed."""
        if self.state != HANDED or self.done:
            self.confirm()
            return
        sure = receipt is not None and receipt.confirmed
        if sure:
            self._in_flight.confirmed = True
        partition, offset = (receipt.partition, receipt.offset) if receipt is not None else (None, None)
        self._finish(Receipt(self._id, self.topic, self._in_flight.name, sure, partition, offset))

    def fail(self, error: DeliveryError) -> None:
        """See `Delivery`."""
        if self.state >= RELEASED or self.state == QUEUED:
            self._breach("fail", "after the end")
        elif self.done:
            logger.debug(
                "message %s ended in %s after its caller had its outcome", self.message_id, type(error).__name__
            )
            self._leave(self._in_flight.ended)
        else:
            self._finish(self._classified(error))

    # -- Broker's side ------------------------------------------------------------------------------------------------

    def keep(self) -> None:
        """Copies the message, because the message has to wait and the caller may change the original meanwhile."""
        self.message = with_body(self.message, self.message.body)  # as `snapshot`, without its call

    def end(self, error: DeliveryError) -> None:
        """Ends the message with this error as its outcome. The place stays taken while the driver holds the message."""
        error = error.about(self.message_id, self.topic, self._in_flight.address)
        self._detach()
        for watch in self._in_flight.watchers:
            watch(self, error)
        self._resolve(error)

    def abandon(self) -> None:
        """Notes that the caller was cancelled. A message that was not handed over ends here. A message that was handed
        over may still reach the broker. The observers get the outcome of such a message when it is known, at the latest
        at the deadline."""
        places = self._in_flight
        if self.state == HANDED:
            logger.info(
                "the sender of message %s was cancelled after the message was handed over: it may be delivered",
                self.message_id,
            )
            places.pending[self] = True
            return
        self._detach()
        for watch in places.watchers:
            watch(self, self._unanswered("its caller was cancelled"))

    def settle(self) -> None:
        """Frees the place, because `Broker` does not wait for the driver any more.

        If the delivery has no outcome yet, its event loop was closed. Then its caller does not wait any more, and only
        observers get an outcome.
        """
        if self in self._in_flight.ended:
            self._leave(self._in_flight.ended)
        elif not self.done:
            for watch in self._in_flight.watchers:
                watch(self, self._unanswered("its event loop was closed"))
        self.done = True
        self.state = SETTLED

    # -- parts --------------------------------------------------------------------------------------------------------

    def _finish(self, outcome: Receipt | DeliveryError) -> None:
        """Gives the caller the outcome and frees the place, because the driver has ended the message."""
        self.done = True
        self._leave(self._in_flight.pending)
        for watch in self._in_flight.watchers:
            watch(self, outcome)
        self._resolve(outcome)

    def _detach(self) -> None:
        """Marks the message as done. If the driver still holds the message, the place stays taken."""
        self.done = True
        if self.state == QUEUED:
            self.state = RELEASED
        else:
            del self._in_flight.pending[self]
            self._in_flight.ended[self] = None

    def _leave(self, held: dict[Any, Any]) -> None:
        """Frees the place, because the driver does not hold the message any more. `held` is the dict that contains the
        message: `pending`, or `ended` if the message is done already."""
        self.state = RELEASED
        places = self._in_flight
        del held[self]
        places.bytes -= self.size
        if places.room_is_wanted:
            places.on_room()

    def _unanswered(self, why: str) -> DeliveryError:
        """The outcome of a message whose caller does not wait any more."""
        error: DeliveryError
        if self.state == HANDED:
            error = DeliveryUnknownError(f"{why} after the message was handed over, and the broker has not answered")
        else:
            error = NotDeliveredError(f"{why} before the message was handed over")
        return error.about(self.message_id, self.topic, self._in_flight.address)

    def _resolve(self, outcome: Receipt | DeliveryError) -> None:
        """Gives the caller the outcome, unless the caller was cancelled. This method is called at most once."""
        raise NotImplementedError

    def _classified(self, error: BaseException) -> DeliveryError:
        if not isinstance(error, DeliveryError):
            kind = DeliveryUnknownError if self.state == HANDED else NotDeliveredError
            wrapped = kind(f"the driver reported an unclassified {type(error).__name__}")
            wrapped.__cause__ = error
            error = wrapped
        return error.about(self.message_id, self.topic, self._in_flight.address)

    def _breach(self, method: str, what: str) -> None:
        if self.state != SETTLED:
            self._in_flight.breaches.add(method, what, self.message_id)

    def __repr__(self) -> str:
        state = ("queued", "waiting", "handed over", "released", "settled")[self.state]
        return f"<Delivery of {self.message!r}: {state}{', done' if self.done else ''}>"
