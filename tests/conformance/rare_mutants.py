"""Broken variations of `mutant_broker.Sound` that keep a rule for plain messages, one at a time, on one connection."""

from __future__ import annotations

from dataclasses import replace

from cqrs_brokers.driver import Delivery, Message
from tests.conformance.mutant_broker import Entry, Kept, Sound, mutant


@mutant("faults.restart-at-a-third")
class NotDurableWithAKey(Sound):
    """Sends messages with a key so that the broker keeps them only in memory."""

    def render(self, message: Message) -> Kept:
        return replace(super().render(message), persistent=message.key is None)


@mutant("faults.restart-at-a-third")
class NotDurableWhenLarge(Sound):
    """Sends messages of more than 4 kB so that the broker keeps them only in memory."""

    def render(self, message: Message) -> Kept:
        return replace(super().render(message), persistent=len(message.body or b"") < 4_000)


@mutant("delivery.unroutable-is-reported")
class ConfirmsUnroutableWithHeaders(Sound):
    """Takes a returned message for delivered when it has headers."""

    def settle(self, delivery: Delivery, verdict: str) -> None:
        mistaken = verdict == "returned" and bool(delivery.message.headers)
        super().settle(delivery, "ack" if mistaken else verdict)


@mutant("delivery.unroutable-is-reported")
class ConfirmsUnroutableLater(Sound):
    """Takes a returned message for delivered once it has had to connect again."""

    connections = 0

    async def connect(self) -> None:
        await super().connect()
        self.connections += 1

    def settle(self, delivery: Delivery, verdict: str) -> None:
        super().settle(delivery, "ack" if verdict == "returned" and self.connections > 1 else verdict)


@mutant("delivery.nack-is-not-success")
class SwallowsNacksInACrowd(Sound):
    """Takes a nack for an ack while other messages are in flight."""

    def settle(self, delivery: Delivery, verdict: str) -> None:
        super().settle(delivery, "ack" if verdict == "nack" and self._in_flight else verdict)


@mutant("delivery.nack-is-not-success")
class SwallowsNacksLater(Sound):
    """Takes a nack for an ack once it has had to connect again."""

    connections = 0

    async def connect(self) -> None:
        await super().connect()
        self.connections += 1

    def settle(self, delivery: Delivery, verdict: str) -> None:
        if verdict == "nack" and self.connections > 1:
            delivery.confirm()
        else:
            super().settle(delivery, verdict)


@mutant("delivery.blocked-is-waited-out")
class ReversesWhenUnblocked(Sound):
    """Sends what waited in its queue in the wrong order when the broker takes messages again."""

    def blocked(self, is_blocked: bool) -> None:
        if not is_blocked:
            self._outbox.reverse()
        super().blocked(is_blocked)


@mutant("delivery.blocked-is-waited-out")
class ResendsWhenUnblocked(Sound):
    """Sends what had no answer again when the broker takes messages again."""

    def blocked(self, is_blocked: bool) -> None:
        if not is_blocked and self._session is not None:
            for _, record in self._in_flight.values():
                self._session.publish(record, lambda _: None)
        super().blocked(is_blocked)


@mutant("delivery.nothing-is-kept-after-trouble")
class KeepsTheRefused(Sound):
    """Keeps what was refused."""

    def settle(self, delivery: Delivery, verdict: str) -> None:
        if verdict != "ack":
            self.refused: list[Delivery] = [*getattr(self, "refused", []), delivery]
        super().settle(delivery, verdict)


@mutant("delivery.reset-leaves-the-truth")
class LosesItsCredit(Sound):
    """Never gives the places back of what was lost with a connection."""

    lost_ones = 0

    def lost_in_flight(self, entry: Entry) -> None:
        super().lost_in_flight(entry)
        self.lost_ones += 1
        self.CREDIT = max(0, Sound.CREDIT - self.lost_ones)
