"""Broken variations of `mutant_broker.Sound`: outcomes that are not true, and what a connection is refused for."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import ClassVar

from cqrs_brokers import Receipt
from cqrs_brokers.driver import Delivery, Driver, Message
from cqrs_brokers.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ConnectError,
    DeliveryUnknownError,
    NotDeliveredError,
    TLSError,
    UnreachableError,
)
from cqrs_brokers.options import BrokerOptions
from cqrs_brokers.url import BrokerURL
from tests.conformance.mutant_broker import (
    Entry,
    Kept,
    MutantOptions,
    Sound,
    mutant,
    server,
)

# delivery


@mutant(
    "delivery.receipt-means-it-is-there",
    "delivery.no-receipt-before-the-answer",
    "delivery.lost-answer-is-unknown",
    "delivery.stall-ends-at-the-deadline",
    "lifecycle.close-flushes",
)
class AcksBeforeSending(Sound):
    """Confirms first and sends half a second later."""

    def hand_over(self, entry: Entry) -> None:
        delivery, record = entry
        if delivery.handed_over():
            delivery.confirm()
            asyncio.get_running_loop().call_later(0.5, self.send_later, record)

    def send_later(self, record: Kept) -> None:
        if self._session is not None:
            self._session.publish(record, lambda _: None)


@mutant("delivery.lost-answer-is-unknown", "delivery.no-receipt-before-the-answer")
class TiresOfWaiting(Sound):
    """Takes a broker that says nothing for half a second for one that agrees."""

    def hand_over(self, entry: Entry) -> None:
        super().hand_over(entry)
        asyncio.get_running_loop().call_later(0.5, self.answered, self._token, "ack")


@mutant("delivery.unconfirmed-is-said")
class BoastsOfConfirms(Driver):
    """Declares no confirms and returns confirmed receipts."""

    options: ClassVar[type[BrokerOptions]] = MutantOptions

    def __init__(self, url: BrokerURL, options: BrokerOptions) -> None:
        self._server = server(url.hosts[0].host if url.hosts else "default")

    async def send_message(self, message: Message) -> Receipt:
        self._server.keep(Sound.render(self, message))  # type: ignore[arg-type]
        return Receipt(message.message_id, message.topic, "mutant", confirmed=True)


@mutant("delivery.receipt-names-the-message")
class OneOffsetForAll(Sound):
    """Says the same offset for every message."""

    def settle(self, delivery: Delivery, verdict: str) -> None:
        if verdict == "ack":
            delivery.confirm(partition=0, offset=0)
        else:
            super().settle(delivery, verdict)


@mutant("delivery.every-message-is-answered")
class DropsWithoutAnswer(Sound):
    """Forgets every tenth message that it was given."""

    def hand_over(self, entry: Entry) -> None:
        self._dropped = getattr(self, "_dropped", 0) + 1
        if self._dropped % 10:
            super().hand_over(entry)


@mutant("delivery.nack-is-not-success")
class SwallowsNack(Sound):
    """Takes a nack for an ack."""

    def settle(self, delivery: Delivery, verdict: str) -> None:
        super().settle(delivery, "ack" if verdict == "nack" else verdict)


@mutant("delivery.nack-is-not-success")
class RetriesNack(Sound):
    """Sends a nacked message again."""

    def answered(self, token: int, verdict: str) -> None:
        entry = self._in_flight.get(token)
        if verdict == "nack" and entry is not None and self._session is not None and not getattr(self, "_again", False):
            self._again = True
            self._session.publish(entry[1], lambda again: self.answered(token, again))
        else:
            super().answered(token, verdict)


@mutant("delivery.refused-is-not-delivered")
class RefusedIsConfirmed(Sound):
    """Takes a refusal for an ack."""

    def settle(self, delivery: Delivery, verdict: str) -> None:
        super().settle(delivery, "ack" if verdict == "refused" else verdict)


@mutant("delivery.refused-spares-its-neighbours")
class RefusalHitsNeighbours(Sound):
    """Fails everything in flight when one message is refused."""

    def settle(self, delivery: Delivery, verdict: str) -> None:
        super().settle(delivery, verdict)
        if verdict == "refused":
            for token in list(self._in_flight):
                super().settle(self._in_flight.pop(token)[0], verdict)


@mutant("delivery.unroutable-is-reported")
class ConfirmsUnroutable(Sound):
    """Takes a returned message for delivered."""

    def settle(self, delivery: Delivery, verdict: str) -> None:
        super().settle(delivery, "ack" if verdict == "returned" else verdict)


@mutant("delivery.unroutable-is-reported")
class ConfirmsUnroutableAmongOthers(Sound):
    """Takes a returned message for delivered when others are in flight."""

    def settle(self, delivery: Delivery, verdict: str) -> None:
        super().settle(delivery, "ack" if verdict == "returned" and len(self._in_flight) > 1 else verdict)


@mutant("delivery.unroutable-twin-is-told-apart")
class FindsReturnsById(Sound):
    """Finds the message of an answer by its id, of which there may be two in flight."""

    def answered(self, token: int, verdict: str) -> None:
        entry = self._in_flight.get(token)
        if entry is not None and verdict == "returned":
            twins = [t for t, other in self._in_flight.items() if other[1].message_id == entry[1].message_id]
            token = next((t for t in twins if t != token), token)
        super().answered(token, verdict)


@mutant("delivery.missing-destination")
class MissingIsUnknown(Sound):
    """Does not classify a missing destination."""

    def settle(self, delivery: Delivery, verdict: str) -> None:
        if verdict == "missing":
            delivery.fail(DeliveryUnknownError("error 404"))
        else:
            super().settle(delivery, verdict)


@mutant("delivery.forbidden-destination")
class ForbiddenIsRejected(Sound):
    """Reports a missing permission as something that may pass."""

    def settle(self, delivery: Delivery, verdict: str) -> None:
        super().settle(delivery, "refused" if verdict == "forbidden" else verdict)


@mutant("delivery.blocked-is-waited-out")
class NeverUnblocks(Sound):
    """Passes on that the broker takes no messages, and not that it takes them again."""

    def blocked(self, is_blocked: bool) -> None:
        if is_blocked:
            super().blocked(True)


@mutant("delivery.blocked-is-waited-out")
class BlockedForGood(Sound):
    """Takes the next connection for blocked, too, when the last one was."""

    was_blocked = False

    def blocked(self, is_blocked: bool) -> None:
        self.was_blocked = self.was_blocked or is_blocked
        super().blocked(is_blocked)

    async def connect(self) -> None:
        await super().connect()
        if self.was_blocked:
            super().blocked(True)


@mutant("delivery.blocked-is-waited-out")
class DeafToBlocking(Sound):
    """Does not pass on that the broker takes no messages."""

    def blocked(self, is_blocked: bool) -> None:
        return


@mutant("delivery.lost-answer-is-not-resent", "delivery.reset-leaves-the-truth")
class BlindResend(Sound):
    """Sends again after a reconnect what had no answer."""

    def lost_in_flight(self, entry: Entry) -> None:
        entry[0].returned()
        self._outbox.append(entry)


@mutant("delivery.reset-leaves-the-truth")
class LostIsNotDelivered(Sound):
    """Reports what was sent and not answered as not delivered."""

    def lost_in_flight(self, entry: Entry) -> None:
        entry[0].fail(NotDeliveredError("the connection was lost"))


@mutant("delivery.reset-leaves-the-truth", "delivery.lost-answer-is-not-resent")
class LostIsConfirmed(Sound):
    """Reports what was in flight when the connection was lost as confirmed, and sends the rest twice."""

    def lost_in_flight(self, entry: Entry) -> None:
        self._server.keep(entry[1])
        entry[0].confirm()


@mutant("delivery.stall-ends-at-the-deadline", "lifecycle.health-when-stalled", "faults.close-while-stalled")
class BlocksTheLoop(Sound):
    """Waits for the broker in a way that stops the event loop."""

    def hand_over(self, entry: Entry) -> None:
        super().hand_over(entry)
        self._wait()

    async def ping(self) -> None:
        self._wait()

    def _wait(self) -> None:
        give_up = time.monotonic() + 4
        while self._server.stalled and time.monotonic() < give_up:
            time.sleep(0.05)


@mutant("delivery.memory-is-bounded")
class UnboundedBuffer(Sound):
    """Lets go of what has expired, and still keeps it for later."""

    def hand_over(self, entry: Entry) -> None:
        super().hand_over(entry)
        delivery = entry[0]

        def expire() -> None:
            if delivery.done and self._in_flight:
                delivery.fail(DeliveryUnknownError("expired"))
                self._in_flight[-id(entry)] = entry

        asyncio.get_running_loop().call_at(delivery.deadline + 0.05, expire)

    def flush(self) -> None:
        while self._outbox and self._session is not None:
            self.hand_over(self._outbox.popleft())


@mutant("delivery.unreachable-is-not-delivered", "lifecycle.async-with-fails-early", "lifecycle.health-when-down")
class RawConnectErrors(Sound):
    """Lets its client's own exceptions out of `connect()`."""

    def check_credentials(self) -> None:
        try:
            super().check_credentials()
        except UnreachableError:
            raise ConnectionRefusedError(111, "refused") from None


@mutant("delivery.wrong-password")
class AuthIsUnreachable(Sound):
    """Reports a wrong password as a server that is not there, and so tries for ever."""

    def check_credentials(self) -> None:
        try:
            super().check_credentials()
        except AuthenticationError as error:
            raise UnreachableError(error.text) from None


@mutant("delivery.wrong-permission")
class PermissionIsAuthentication(Sound):
    """Reports a missing permission as a wrong password."""

    def check_credentials(self) -> None:
        try:
            super().check_credentials()
        except AuthorizationError as error:
            raise AuthenticationError(error.text) from None


@mutant("delivery.tls-failure")
class TlsIsProtocol(Sound):
    """Does not classify a certificate that is not trusted."""

    def check_credentials(self) -> None:
        try:
            super().check_credentials()
        except TLSError as error:
            raise ConnectError(error.text) from None


@mutant("faults.restart-at-half")
class NotDurableAfterReconnect(Sound):
    """Sends messages that the broker keeps only in memory once it has had to connect again."""

    connections = 0

    async def connect(self) -> None:
        await super().connect()
        self.connections += 1

    def render(self, message: Message) -> Kept:
        return replace(super().render(message), persistent=self.connections < 2)


@mutant("ordering.order-survives-a-refusal")
class ReversesAfterRefusal(Sound):
    """Puts what waits into another order when the broker refuses a message."""

    def settle(self, delivery: Delivery, verdict: str) -> None:
        if verdict == "refused":
            self._outbox.reverse()
        super().settle(delivery, verdict)
