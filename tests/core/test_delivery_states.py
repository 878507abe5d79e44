"""The delivery contract: every call in every state, first as a table, then as a model that is driven at random."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from cqrs_brokers._delivery.breaches import ContractBreaches
from cqrs_brokers._delivery.in_flight import InFlight
from cqrs_brokers._delivery.outcomes import AwaitedDelivery
from cqrs_brokers._delivery.window import Window
from cqrs_brokers.driver import Delivery, confirm_all
from cqrs_brokers.exceptions import (
    BackpressureError,
    BrokerClosedError,
    ClosedWhilePendingError,
    DeliveryError,
    DeliveryTimeoutError,
    DeliveryUnknownError,
    NackedError,
    NotDeliveredError,
    UnroutableError,
)
from cqrs_brokers.protocol import Receipt

from .drivers import message


class OwnWindow(Window):
    """A window with places of its own, open for messages."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        submitted: list[Delivery],
        max_count: int = 8,
        observe: Callable[[Any, Any], None] | None = None,
    ) -> None:
        self.breaches = ContractBreaches("test://")
        self.places = InFlight(
            name="test",
            address="test://",
            confirms=True,
            max_count=max_count,
            max_bytes=10_000,
            breaches=self.breaches,
            observe=observe,
        )
        super().__init__(
            self.places,
            submit=submitted.extend,
            copies=True,
            why_not_taken=lambda: None,
            why_late=lambda delivery, handed: None,
            destination=lambda message: message.topic,
            timeout=30.0,
        )
        self.loop = loop
        self.bind(loop)
        self.accepting = True

    def expire(self) -> None:
        """Every deadline has passed."""
        for delivery in (*self.places.pending, *self._waiting):
            delivery.deadline = 0
        self._deadlines.expire()


class Told(AwaitedDelivery):
    """A delivery that a task awaits; it shows what the task will get."""

    def __init__(self, window: OwnWindow, size: int = 2) -> None:
        now = window.loop.time()
        super().__init__(message(), now, now + 60, size, window.places, window.wakeups)
        self.add_done_callback(lambda _: None, context=copy_context())

    @property
    def was_cancelled(self) -> bool:
        return self.cancelled is not None


OPERATIONS: dict[str, Callable[[OwnWindow, Any], Any]] = {
    "handed_over": lambda window, delivery: delivery.handed_over(),
    "returned": lambda window, delivery: delivery.returned(),
    "confirm": lambda window, delivery: delivery.confirm(partition=1, offset=7),
    "confirm_all": lambda window, delivery: confirm_all([delivery], partition=1, offset=7),
    "unroutable": lambda window, delivery: delivery.fail(UnroutableError("no queue")),
    "nack": lambda window, delivery: delivery.fail(NackedError("nack")),
    "deadline": lambda window, delivery: window.expire(),
    "cancel": lambda window, delivery: cancel(window, delivery),
    "close": lambda window, delivery: window.settle(ClosedWhilePendingError("closed"), BrokerClosedError("closed")),
}


def cancel(window: OwnWindow, delivery: Told) -> None:
    """As a task that is cancelled while it awaits the delivery."""
    delivery.cancel()
    window.give_up(delivery)


# What was done before → operation → (outcome afterwards, places taken, breach of contract logged).
# Outcomes: None = no outcome yet; "gone" = the caller was cancelled, and there is an outcome that only observers get.
TABLE: list[tuple[list[str], str, tuple[Any, int, bool]]] = [
    ([], "handed_over", (None, 1, False)),
    ([], "returned", (None, 1, True)),
    ([], "confirm", (None, 1, True)),
    ([], "unroutable", (UnroutableError, 0, False)),
    ([], "nack", (NackedError, 0, False)),
    ([], "deadline", (BackpressureError, 1, False)),
    ([], "cancel", ("gone", 1, False)),
    ([], "close", (BrokerClosedError, 0, False)),
    (["handed_over"], "handed_over", (None, 1, True)),
    (["handed_over"], "returned", (None, 1, False)),
    (["handed_over"], "confirm", (Receipt, 0, False)),
    (["handed_over"], "unroutable", (UnroutableError, 0, False)),
    (["handed_over"], "nack", (NackedError, 0, False)),
    (["handed_over"], "deadline", (DeliveryTimeoutError, 1, False)),
    (["handed_over"], "cancel", (None, 1, False)),
    (["handed_over"], "close", (ClosedWhilePendingError, 0, False)),
    (["handed_over", "returned"], "deadline", (BackpressureError, 1, False)),
    (["handed_over", "returned"], "handed_over", (None, 1, False)),
    (["handed_over", "returned"], "confirm", (None, 1, True)),
    (["handed_over", "returned"], "close", (BrokerClosedError, 0, False)),
    (["deadline"], "handed_over", (BackpressureError, 0, False)),
    (["deadline"], "unroutable", (BackpressureError, 0, False)),
    (["deadline"], "confirm", (BackpressureError, 1, True)),
    (["deadline"], "close", (BackpressureError, 0, False)),
    (["handed_over", "deadline"], "confirm", (DeliveryTimeoutError, 0, False)),
    (["handed_over", "deadline"], "nack", (DeliveryTimeoutError, 0, False)),
    (["handed_over", "deadline"], "returned", (DeliveryTimeoutError, 1, False)),
    (["handed_over", "deadline", "returned"], "handed_over", (DeliveryTimeoutError, 0, False)),
    (["handed_over", "deadline"], "close", (DeliveryTimeoutError, 0, False)),
    (["cancel"], "handed_over", ("gone", 0, False)),
    (["handed_over", "cancel"], "confirm", ("gone", 0, False)),
    (["handed_over", "cancel"], "unroutable", ("gone", 0, False)),
    (["handed_over", "cancel"], "deadline", ("gone", 1, False)),
    (["handed_over", "cancel", "deadline"], "confirm", ("gone", 0, False)),
    (["handed_over", "cancel"], "close", ("gone", 0, False)),
    (["handed_over", "cancel"], "returned", ("gone", 1, False)),
    (["handed_over", "cancel", "returned"], "handed_over", ("gone", 0, False)),
    (["handed_over", "cancel", "returned"], "close", ("gone", 0, False)),
    (["handed_over", "returned"], "cancel", ("gone", 1, False)),
    (["handed_over", "confirm"], "confirm", (Receipt, 0, True)),
    (["handed_over", "confirm"], "nack", (Receipt, 0, True)),
    (["handed_over", "confirm"], "handed_over", (Receipt, 0, False)),
    (["handed_over", "confirm"], "returned", (Receipt, 0, False)),
    (["handed_over", "confirm"], "deadline", (Receipt, 0, False)),
    (["handed_over", "confirm"], "cancel", (Receipt, 0, False)),
    (["handed_over", "nack"], "confirm", (NackedError, 0, True)),
    (["close"], "handed_over", (BrokerClosedError, 0, False)),
    (["close"], "confirm", (BrokerClosedError, 0, False)),
    (["handed_over", "close"], "confirm", (ClosedWhilePendingError, 0, False)),
    (["handed_over", "close"], "nack", (ClosedWhilePendingError, 0, False)),
    (["handed_over", "close"], "returned", (ClosedWhilePendingError, 0, False)),
]


# A batch that is confirmed as one is confirmed as each of its messages would be.
TABLE += [
    (
        ["confirm_all" if step == "confirm" else step for step in before],
        operation.replace("confirm", "confirm_all"),
        expected,
    )
    for before, operation, expected in TABLE
    if "confirm" in (*before, operation)
]


@pytest.mark.parametrize(
    ("before", "operation", "expected"), TABLE, ids=[f"{'-'.join(b) or 'waiting'}:{o}" for b, o, _ in TABLE]
)
async def test_each_call_in_each_state(
    before: list[str], operation: str, expected: tuple[Any, int, bool], caplog: pytest.LogCaptureFixture
) -> None:
    """A call in a state gives the outcome, frees or keeps the place, and is a logged breach of contract or not."""
    loop = asyncio.get_running_loop()
    window = OwnWindow(loop, [])
    delivery = Told(window)
    assert window.admit(delivery)
    for step in before:
        OPERATIONS[step](window, delivery)
    caplog.clear()
    window.breaches.kept.clear()
    OPERATIONS[operation](window, delivery)
    outcome, places, breach = expected
    assert window.places.count == places
    assert window.places.bytes == 2 * places
    assert ("broke its contract" in caplog.text) is breach
    assert bool(window.breaches.kept) is breach
    found = delivery.outcome
    assert delivery.done is (outcome is not None)
    if outcome is None or outcome == "gone":
        assert found is None
    elif outcome is Receipt:
        assert found == Receipt(delivery.message.message_id, "orders", "test", True, 1, 7)
    else:
        assert isinstance(found, DeliveryError)
        assert type(found) is outcome
        assert (found.message_id, found.topic, found.broker) == (delivery.message.message_id, "orders", "test://")
    window.stop()


async def test_a_batch_confirmed_as_one() -> None:
    """Each message has the next offset, whatever became of those before it; watchers hear of each; room is refilled."""
    loop = asyncio.get_running_loop()
    submitted: list[Delivery] = []
    window = OwnWindow(loop, submitted)
    sent = [Told(window) for _ in range(5)]
    for delivery in sent:
        window.admit(delivery)
    watched: list[Delivery] = []

    def watcher(delivery: Delivery, _: object) -> None:
        watched.append(delivery)

    window.places.watchers += (watcher,)
    batch = list(submitted)
    assert len(batch) == 3
    assert all(delivery.handed_over() for delivery in batch)
    cancel(window, sent[1])
    assert not watched
    confirm_all(batch, partition=4, offset=10)
    await asyncio.sleep(0)
    assert watched == batch
    receipts = [delivery.outcome for delivery in sent]
    assert [receipt and receipt.offset for receipt in receipts] == [10, None, 12, None, None]
    assert receipts[1] is None
    assert len(submitted) == 5
    window.places.watchers = ()
    for delivery in submitted[3:]:
        delivery.handed_over()
    confirm_all(submitted[3:])
    for delivery in sent[3:]:
        assert isinstance(delivery.outcome, Receipt)
        assert (delivery.outcome.partition, delivery.outcome.offset) == (None, None)
    assert not window.places.pending
    assert not window.places.bytes
    window.stop()


class DeliveryModel(RuleBasedStateMachine):
    """Random calls by caller, driver and clock against a plain model of outcomes and places."""

    deliveries = Bundle("deliveries")
    MAX = 3

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.driver: list[Delivery] = []
        self.told = defaultdict[Delivery, list[Any]](list)
        self.window = OwnWindow(
            self.loop, self.driver, self.MAX, lambda delivery, outcome: self.told[delivery].append(outcome)
        )
        self.handed: set[Delivery] = set()
        self.let_go: set[Delivery] = set()
        self.confirmed: set[Delivery] = set()
        self.order: list[Told] = []

    def teardown(self) -> None:
        self.window.stop()
        self.loop.close()

    @rule(target=deliveries)
    def send(self) -> Any:
        delivery = Told(self.window, 10)
        self.window.admit(delivery)
        self.order.append(delivery)
        return delivery

    @rule(delivery=deliveries)
    def hand_over(self, delivery: Delivery) -> None:
        if delivery in self.driver and delivery not in self.let_go and delivery not in self.handed:
            finished = delivery.done
            assert delivery.handed_over() is not finished
            (self.let_go if finished else self.handed).add(delivery)

    @rule(delivery=deliveries)
    def give_back(self, delivery: Told) -> None:
        if delivery in self.handed and delivery not in self.let_go:
            delivery.returned()
            self.handed.discard(delivery)
            assert delivery.done or not delivery.was_cancelled

    @rule(delivery=deliveries)
    def confirm(self, delivery: Delivery) -> None:
        if delivery in self.handed and delivery not in self.let_go:
            if not delivery.done:
                self.confirmed.add(delivery)
            delivery.confirm()
            self.let_go.add(delivery)

    @rule(delivery=deliveries, error=st.sampled_from([NackedError("n"), UnroutableError("u"), ValueError("bug")]))
    def fail(self, delivery: Told, error: Any) -> None:
        if delivery in self.driver and delivery not in self.let_go:
            done, handed = delivery.done, delivery in self.handed
            delivery.fail(error)
            self.let_go.add(delivery)
            if not done and isinstance(error, ValueError):
                (raised,) = self.told[delivery]
                assert isinstance(raised, DeliveryError)
                assert type(raised) is (DeliveryUnknownError if handed else NotDeliveredError)
                assert raised.__cause__ is error

    @rule(delivery=deliveries)
    def cancel(self, delivery: Told) -> None:
        if not delivery.done:
            delivery.cancel()
            self.window.give_up(delivery)

    @rule()
    def deadline(self) -> None:
        late = [d for d in self.order if not d.done]
        handed = {d for d in late if d in self.handed}
        self.window.expire()
        for delivery in late:
            error = delivery.outcome
            if delivery.was_cancelled:
                assert error is None
            else:
                assert isinstance(error, DeliveryUnknownError if delivery in handed else NotDeliveredError)

    @rule()
    def turn_of_the_loop(self) -> None:
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    @rule(is_open=st.booleans())
    def gate(self, is_open: bool) -> None:
        self.window.open(is_open)

    @invariant()
    def places_are_those_the_driver_has_not_let_go(self) -> None:
        held = [d for d in self.driver if d not in self.let_go]
        assert {*self.window.places.pending, *self.window.places.ended} == set(held)
        assert not set(self.window.places.pending) & set(self.window.places.ended)
        assert len(held) <= self.MAX
        assert self.window.places.bytes == 10 * len(held)

    @invariant()
    def the_driver_gets_them_in_the_order_of_calls(self) -> None:
        assert self.driver == [d for d in self.order if d in set(self.driver)]

    @invariant()
    def outcomes_are_true(self) -> None:
        for delivery in self.order:
            cancelled, outcome = delivery.was_cancelled, delivery.outcome
            assert not (cancelled and outcome is not None)
            told = self.told[delivery]
            assert len(told) == delivery.done  # observers are told of every outcome, once
            assert delivery.done or outcome is None
            assert delivery.done or not cancelled or delivery in self.handed
            if outcome is not None:
                assert told == [outcome]
            for known in told:
                assert isinstance(known, Receipt) is (delivery in self.confirmed)
                assert isinstance(known, Receipt | DeliveryError)


DeliveryModel.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestDeliveryModel = DeliveryModel.TestCase
