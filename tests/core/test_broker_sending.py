"""Sending through `Broker`: outcomes, deadlines, the window, batches, cancellation, observers."""

import asyncio
import gc
import logging
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from cqrs_brokers import (
    BackpressureError,
    Broker,
    BrokerBlockedError,
    Capabilities,
    ClosedWhilePendingError,
    ConfigError,
    ConnectionLostError,
    DeliveryError,
    DeliveryTimeoutError,
    DeliveryUnknownError,
    FlushTimeoutError,
    InvalidMessageError,
    Message,
    MessageBroker,
    MessageTooLargeError,
    NackedError,
    NotDeliveredError,
    Receipt,
    UnreachableError,
    UnroutableError,
)

from .drivers import Scripted, Simple, message, settle


async def test_a_receipt_comes_only_with_the_drivers_confirm() -> None:
    """send_message returns when the driver confirms, not when it hands over."""
    driver = Scripted()
    async with Broker(driver) as broker:
        sending = asyncio.create_task(broker.send_message(message()))
        await settle()
        driver.hand_over_all()
        await settle()
        assert not sending.done()
        driver.held.pop().confirm(partition=3, offset=9)
        receipt = await sending
    assert (receipt.confirmed, receipt.partition, receipt.offset, receipt.broker) == (True, 3, 9, "Scripted")


async def test_each_caller_gets_its_own_error_from_one_error_object() -> None:
    """A driver may fail many messages with one error; each caller's names its own message, with the same cause."""
    driver = Scripted()
    async with Broker(driver) as broker:
        sendings = [asyncio.create_task(broker.send_message(message())) for _ in range(3)]
        await settle()
        error = NackedError("refused")
        error.__cause__ = ValueError("the client's own")
        for delivery in driver.held:
            delivery.handed_over()
            delivery.fail(error)
        results = await asyncio.gather(*sendings, return_exceptions=True)
    assert len({id(result) for result in results}) == 3
    assert [result.message_id for result in results] == [m.message_id for m in driver.seen]  # type: ignore[union-attr]
    assert all(isinstance(result.__cause__, ValueError) for result in results)  # type: ignore[union-attr]


@pytest.mark.parametrize(("handed", "kind"), [(True, DeliveryTimeoutError), (False, BackpressureError)])
async def test_the_deadline_tells_handed_over_from_not(handed: bool, kind: type[DeliveryError]) -> None:
    """At the deadline a message that was handed over is unknown, one that was not is not delivered."""
    driver = Scripted()
    broker = Broker(driver, delivery_timeout=0.05)
    await broker.connect()
    sending = asyncio.create_task(broker.send_message(message()))
    await settle()
    if handed:
        driver.hand_over_all()
    with pytest.raises(kind) as caught:
        await sending
    assert isinstance(caught.value, TimeoutError) is handed
    assert (await broker.health()).in_flight == 1, "the driver has not let go"
    await broker.close()


async def test_an_error_is_gone_when_its_caller_is_done_with_it() -> None:
    """A failed send leaves no reference cycle: during an outage memory would grow until the garbage collector runs."""
    driver = Scripted()
    gone = []

    def refuse() -> None:
        delivery = driver.held.pop()
        delivery.handed_over()
        delivery.fail(NackedError("refused"))

    async with Broker(driver) as broker:
        gc.disable()
        try:
            for _ in range(3):
                asyncio.get_running_loop().call_later(0.01, refuse)
                try:
                    await broker.send_message(message())
                except DeliveryError as error:
                    gone.append(weakref.ref(error))
            await settle()
            assert [reference() for reference in gone] == [None, None, None]
        finally:
            gc.enable()


async def test_why_a_message_was_not_taken() -> None:
    """Behind a full window, by count or by bytes, there was no room; in the driver's hands the broker took nothing."""
    for options in ({"max_in_flight": 1}, {"max_in_flight_bytes": 1}):
        broker = Broker(Scripted(), delivery_timeout=0.05, **options)  # type: ignore[arg-type]
        outcomes = await broker.send_messages([message() for _ in range(3)])
        assert all(type(outcome) is BackpressureError for outcome in outcomes)
        assert all("no room" in str(outcome) for outcome in outcomes)
    (outcome,) = await Broker(Scripted(), delivery_timeout=0.05).send_messages([message()])
    assert type(outcome) is BackpressureError
    assert "takes nothing for this topic" in str(outcome)


async def test_a_message_beyond_its_deadline_is_never_written() -> None:
    """handed_over() says False after the deadline, and frees the place."""
    driver = Scripted()
    broker = Broker(driver, delivery_timeout=0.05, max_in_flight=1)
    await broker.connect()
    with pytest.raises(BackpressureError):
        await broker.send_message(message())
    sending = asyncio.create_task(broker.send_message(message()))
    await settle()
    assert len(driver.held) == 1, "the window of one is still taken"
    assert driver.hand_over_all() == [False]
    await settle()
    assert len(driver.held) == 2
    driver.confirm_all()
    assert (await sending).confirmed
    await broker.close()


async def test_a_stalled_driver_holds_no_more_than_the_window() -> None:
    """Deadlines and new sends do not push more into a driver that lets nothing go: two fifths of the window."""
    driver = Scripted()
    broker = Broker(driver, delivery_timeout=0.02, max_in_flight=25)
    await broker.connect()
    outcomes: list[Any] = []
    for _ in range(5):
        sendings = [asyncio.create_task(broker.send_message(message())) for _ in range(20)]
        await settle()
        if not outcomes:
            assert driver.hand_over_all() == [True] * 10
        outcomes += await asyncio.gather(*sendings, return_exceptions=True)
    assert len(driver.seen) == 10
    kinds = [type(outcome) for outcome in outcomes]
    assert (kinds.count(DeliveryTimeoutError), kinds.count(BackpressureError)) == (10, 90)
    await broker.close(0)


async def test_the_window_counts_bytes() -> None:
    """The driver holds two fifths of max_in_flight_bytes while all goes on; one larger message goes alone."""
    driver = Scripted()
    async with Broker(driver, max_in_flight_bytes=2500) as broker:
        sendings = [
            asyncio.create_task(broker.send_message(Message("n", "t", b"x" * size)))
            for size in (400, 400, 400, 5000, 10)
        ]
        held = []
        for _ in range(4):
            await settle()
            held.append([len(m.body) for m in (d.message for d in driver.held)])
            driver.confirm_all()
        await asyncio.gather(*sendings)
    assert held == [[400, 400], [400], [5000], [10]]


async def test_messages_reach_the_driver_in_the_order_of_calls() -> None:
    """Order of calls is order of submission, also beyond the window and while connecting."""
    driver = Scripted(automatic=True)
    broker = Broker(driver, max_in_flight=18)
    first = [asyncio.create_task(broker.send_message(message(name=f"n{i}"))) for i in range(50)]
    await settle(1)
    second = asyncio.create_task(broker.send_messages([message(name=f"n{i}") for i in range(50, 100)]))
    await settle(1)
    third = [asyncio.create_task(broker.send_message(message(name=f"n{i}"))) for i in range(100, 150)]
    await asyncio.gather(*first, second, *third)
    assert [m.message_name for m in driver.seen] == [f"n{i}" for i in range(150)]
    await broker.close()


async def test_a_batch_has_one_outcome_per_message_in_order() -> None:
    """send_messages returns errors at the places of the bad messages and receipts at the others."""
    driver = Scripted(automatic=True)
    async with Broker(driver, max_in_flight=25) as broker:
        batch: list[Any] = [message(topic="" if i % 5 == 0 else "orders") for i in range(100)]
        batch[7] = object()
        outcomes = await broker.send_messages(batch)
    assert [type(outcome) for outcome in outcomes] == [
        InvalidMessageError if i % 5 == 0 or i == 7 else Receipt for i in range(100)
    ]
    assert [o.message_id for o in outcomes if isinstance(o, Receipt)] == [
        m.message_id for i, m in enumerate(batch) if i % 5 and i != 7
    ]


async def test_the_broker_works_on_a_batch_while_the_rest_is_made_ready() -> None:
    """send_messages hands on the first messages before it has looked at the last."""
    driver = Scripted(automatic=True)
    seen: list[int] = []

    def encoder(payload: object) -> bytes:
        seen.append(len(driver.seen))
        return b"{}"

    async with Broker(driver, encoder=encoder) as broker:
        outcomes = await broker.send_messages([Message("n", "t", {"number": number}) for number in range(1000)])
    assert [type(outcome) for outcome in outcomes] == [Receipt] * 1000
    assert seen[0] == 0
    assert 0 < seen[-1] < 1000


async def test_a_batch_that_cannot_be_read_is_not_sent_in_part() -> None:
    """An iterable that raises half way raises from send_messages, and none of its messages was sent."""
    driver = Scripted(automatic=True)

    def broken() -> Iterator[Message]:
        for _ in range(1000):
            yield message()
        raise LookupError("no more rows")

    async with Broker(driver) as broker:
        with pytest.raises(LookupError, match="no more rows"):
            await broker.send_messages(broken())
        await settle()
    assert driver.seen == []


async def test_an_empty_batch_needs_no_connection() -> None:
    """send_messages([]) is an empty list at once."""
    driver = Scripted()
    broker = Broker(driver)
    assert await broker.send_messages([]) == []
    assert driver.connects == 0


async def test_only_the_cancelled_caller_sees_the_cancellation() -> None:
    """A cancelled send raises CancelledError there only; its neighbours get their receipts."""
    driver = Scripted()
    async with Broker(driver) as broker:
        sendings = [asyncio.create_task(broker.send_message(message())) for _ in range(4)]
        await settle()
        driver.held[0].handed_over()
        sendings[0].cancel()  # handed over: may still arrive
        sendings[1].cancel()  # not handed over: never will
        await settle()
        driver.held[0].confirm()
        assert [delivery.handed_over() for delivery in driver.held[1:]] == [False, True, True]
        for delivery in driver.held[2:]:
            delivery.confirm()
        results = await asyncio.gather(*sendings, return_exceptions=True)
        assert broker._in_flight.bytes == 0
    assert [type(result) for result in results] == [asyncio.CancelledError] * 2 + [Receipt] * 2


async def test_a_cancelled_batch_leaves_nothing_behind() -> None:
    """Cancelling send_messages gives up every message of it."""
    driver = Scripted()
    async with Broker(driver, max_in_flight=13) as broker:
        batch = asyncio.create_task(broker.send_messages([message() for _ in range(20)]))
        await settle()
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch
        assert driver.hand_over_all() == [False] * 5
        await settle()
        assert len(driver.seen) == 5
        assert broker._in_flight.bytes == 0


async def test_a_task_cancelled_before_can_still_send_while_cleaning_up() -> None:
    """A send in a task that was cancelled earlier is told its own outcome."""
    driver = Scripted(automatic=True)
    receipts = []
    async with Broker(driver) as broker:

        async def work() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                receipts.append(await broker.send_message(message()))

        task = asyncio.create_task(work())
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert receipts[0].confirmed


async def test_a_driver_that_raises_in_submit_loses_nothing_silently() -> None:
    """What was handed over before submit raised is unknown, the rest is not delivered, both with the cause."""

    class Raising(Scripted):
        def submit(self, deliveries: Any, /) -> None:
            deliveries[0].handed_over()
            raise ValueError("bug")

    async with Broker(Raising(), max_in_flight=5) as broker:
        results = await broker.send_messages([message(), message()])
    assert [type(result) for result in results] == [DeliveryUnknownError, NotDeliveredError]
    assert all(isinstance(result.__cause__, ValueError) for result in results)  # type: ignore[union-attr]


async def test_blocked_is_named_and_passes() -> None:
    """While the broker is blocked nothing is submitted; the deadline says so; afterwards it goes on by itself."""
    driver = Scripted(automatic=True)
    async with Broker(driver, delivery_timeout=0.05) as broker:
        driver.link.blocked("memory alarm")
        with pytest.raises(BrokerBlockedError, match="memory alarm"):
            await broker.send_message(message())
        driver.connect_errors = [UnreachableError("a blocked connection answers no ping")]
        health = await broker.health()
        assert (health.ok, health.blocked, health.reason) == (False, True, "blocked: memory alarm")
        assert driver.connect_errors.pop(), "it was pinged"
        driver.link.unblocked()
        assert (await broker.send_message(message())).confirmed
        assert (await broker.health()).ok
    assert len(driver.seen) == 1


async def test_simple_drivers_send_one_at_a_time_per_key() -> None:
    """Same topic and key: one after the other. Other keys and no key: at once."""
    driver = Simple()
    async with Broker(driver) as broker:
        sent = [("a1", "a"), ("a2", "a"), ("b1", "b"), ("n1", None), ("n2", None)]
        sendings = [asyncio.create_task(broker.send_message(message(key=key, name=name))) for name, key in sent]
        await settle()
        assert [m.message_name for m in driver.started] == ["a1", "b1", "n1", "n2"]
        for name in ("a1", "b1", "n1", "n2"):
            driver.gates[name].set_result(None)
        await settle()
        assert driver.started[-1].message_name == "a2"
        driver.gates["a2"].set_result(Receipt(driver.started[-1].message_id, "orders", "x", True, 1, 2))
        receipts = await asyncio.gather(*sendings)
    assert [r.confirmed for r in receipts] == [False, True, False, False, False]


async def test_a_send_that_ends_after_the_connection_was_dropped_changes_no_order() -> None:
    """Later messages of its key still go one at a time."""
    driver = Simple()
    cleaned_up = asyncio.Event()
    usual = driver.send_message

    async def send(message: Message) -> Receipt | None:
        try:
            return await usual(message)
        except asyncio.CancelledError:
            await cleaned_up.wait()
            raise

    driver.send_message = send  # type: ignore[method-assign]
    async with Broker(driver) as broker:
        sendings = [asyncio.create_task(broker.send_message(message(key="a", name="first")))]
        await settle()
        for task in asyncio.all_tasks():
            if task.get_name().startswith("cqrs-brokers connection"):
                task.cancel()
        with pytest.raises(ConnectionLostError):
            await sendings[0]
        sendings.append(asyncio.create_task(broker.send_message(message(key="a", name="second"))))
        await settle()
        assert [m.message_name for m in driver.started] == ["first", "second"]
        cleaned_up.set()
        await settle()
        sendings.append(asyncio.create_task(broker.send_message(message(key="a", name="third"))))
        await settle()
        assert [m.message_name for m in driver.started] == ["first", "second"]
        driver.gates["second"].set_result(None)
        await settle()
        assert [m.message_name for m in driver.started] == ["first", "second", "third"]
        driver.gates["third"].set_result(None)
        await asyncio.gather(*sendings[1:])


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (UnroutableError("no queue"), UnroutableError),
        (ValueError("bug"), DeliveryUnknownError),
        (asyncio.CancelledError(), DeliveryUnknownError),
        (UnreachableError("gone"), DeliveryUnknownError),
    ],
)
async def test_what_a_simple_driver_raises_is_classified(raised: BaseException, kind: type[DeliveryError]) -> None:
    """Delivery errors pass; everything else, a stray cancellation too, is unknown, with its cause."""
    driver = Simple()
    async with Broker(driver) as broker:
        sending = asyncio.create_task(broker.send_message(message(name="n")))
        await settle()
        if isinstance(raised, asyncio.CancelledError):
            driver.gates["n"].cancel()
        else:
            driver.gates["n"].set_exception(raised)
        with pytest.raises(kind) as caught:
            await sending
    assert type(caught.value) is kind
    assert (kind is UnroutableError) is (caught.value.__cause__ is None)


async def test_a_simple_send_that_has_started_counts_as_handed_over() -> None:
    """Its deadline is an unknown outcome; one that waits for its turn is not delivered."""
    driver = Simple()
    broker = Broker(driver, delivery_timeout=0.05)
    results = await asyncio.gather(
        *(broker.send_message(message(key="a", name=name)) for name in "xy"), return_exceptions=True
    )
    assert [type(result) for result in results] == [DeliveryTimeoutError, BackpressureError]
    await broker.close(0.1)
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def test_any_message_broker_can_be_wrapped() -> None:
    """A plain MessageBroker gets the caller's own message; None means handed over, not confirmed."""
    seen = []

    class Custom(MessageBroker):
        async def send_message(self, message: Message) -> None:
            seen.append(message)

    async with Broker(Custom()) as broker:
        sent = Message("n", "t", {"a": 1}, headers={"h": "v"})
        receipt = await broker.send_message(sent)
        with pytest.raises(InvalidMessageError, match="does not say that it keeps the order of a key"):
            await broker.send_message(Message("n", "t", {"a": 1}, key="k"))
    assert seen == [sent]
    assert not receipt.confirmed
    assert broker.capabilities == Capabilities()


async def test_a_plain_message_broker_can_say_what_it_does() -> None:
    """With `capabilities` it gets keyed messages, one at a time for each key, and is held to what it declares."""
    running: list[str] = []
    most: dict[str, int] = {}

    class Declaring(MessageBroker):
        capabilities = Capabilities(ordering_key=True)

        async def send_message(self, message: Message) -> None:
            key = message.key or ""
            running.append(key)
            most[key] = max(most.get(key, 0), running.count(key))
            await asyncio.sleep(0.01)
            running.remove(key)

    async with Broker(Declaring()) as broker:
        await broker.send_messages([Message("n", "t", b"", key=key) for key in ("a", "a", "b", "a")])
        with pytest.raises(InvalidMessageError, match="carries no headers"):
            await broker.send_message(Message("n", "t", b"", headers={"h": "v"}))
    assert (most, broker.capabilities) == ({"a": 1, "b": 1}, Declaring.capabilities)


async def test_needs_that_the_driver_does_not_declare_are_refused() -> None:
    """A key or headers that the broker cannot carry are an error, not silently less."""
    broker = Broker(Scripted(capabilities=Capabilities(confirms=True)))
    for bad in (message(key="k"), Message("n", "t", b"", headers={"a": "b"})):
        with pytest.raises(InvalidMessageError):
            await broker.send_message(bad)


async def test_the_largest_message_is_said() -> None:
    """It is the option, or the broker's own limit if that is lower; a message of one byte more is refused."""
    for own, option, limit in ((None, 100, 100), (50, 100, 50), (200, 100, 100)):
        driver = Scripted(capabilities=Capabilities(confirms=True, max_message_bytes=own), automatic=True)
        async with Broker(driver, max_message_bytes=option) as broker:
            assert broker.max_message_bytes == limit
            assert (await broker.send_message(Message("n", "t", b"x" * limit))).confirmed
            with pytest.raises(MessageTooLargeError):
                await broker.send_message(Message("n", "t", b"x" * (limit + 1)))


async def test_bad_messages_are_refused_before_any_io() -> None:
    """Nothing connects for a message that cannot be sent, and a good one works afterwards."""
    driver = Scripted(automatic=True)
    broker = Broker(driver, max_message_bytes=100)
    with pytest.raises(InvalidMessageError):
        await broker.send_message(message(topic=""))
    with pytest.raises(MessageTooLargeError):
        await broker.send_message(Message("n", "t", b"x" * 101))
    assert driver.connects == 0
    assert (await broker.send_message(message())).confirmed
    await broker.close()


async def test_observers_see_every_outcome_and_cannot_break_a_send(caplog: pytest.LogCaptureFixture) -> None:
    """Each outcome is reported once, in time; an observer that raises is logged and changes nothing."""
    seen: list[tuple[str, str]] = []
    states: list[str] = []

    class Observer:
        def sent(self, message: Message, outcome: Receipt | DeliveryError, elapsed: float) -> None:
            assert 0 <= elapsed < 5
            seen.append((message.message_name, type(outcome).__name__))

        def connection_changed(self, state: str, reason: str) -> None:
            states.append(state)

    class Broken:
        def sent(self, *_: Any) -> None:
            raise ValueError("observer")

        connection_changed = sent

    driver = Scripted()
    with caplog.at_level(logging.ERROR):
        async with Broker(driver, observers=[Broken(), Observer()]) as broker:
            sendings = [asyncio.create_task(broker.send_message(message(name=name))) for name in "abc"]
            await settle()
            driver.hand_over_all()
            driver.held[0].confirm()
            driver.held[1].fail(UnroutableError("no queue"))
            sendings[2].cancel()
            await asyncio.gather(*sendings, return_exceptions=True)
    assert seen == [("a", "Receipt"), ("b", "UnroutableError"), ("c", "ClosedWhilePendingError")]
    assert states == ["connecting", "connected", "closed"]
    assert caplog.text.count("Broken raised ValueError in sent()") == 1  # at most once a minute


async def test_flush_waits_for_what_was_sent_before_it() -> None:
    """flush() returns when every earlier send has its outcome; later sends do not prolong it."""
    driver = Scripted()
    async with Broker(driver) as broker:
        first = asyncio.create_task(broker.send_message(message()))
        await settle()
        flushing = asyncio.create_task(broker.flush())
        await settle()
        second = asyncio.create_task(broker.send_message(message()))
        await settle()
        with pytest.raises(FlushTimeoutError):
            await broker.flush(0.01)
        driver.held[0].handed_over()
        driver.held[0].confirm()
        await flushing
        assert first.done()
        assert not second.done()
        driver.held.pop(0)
        driver.confirm_all()
        await second


async def test_late_answers_are_logged_without_content(caplog: pytest.LogCaptureFixture) -> None:
    """A confirm after the caller's answer frees the place and is a log line with the id."""
    driver = Scripted()
    broker = Broker(driver, delivery_timeout=0.02)
    await broker.connect()
    sending = asyncio.create_task(broker.send_message(message()))
    await settle()
    driver.hand_over_all()
    with pytest.raises(DeliveryTimeoutError):
        await sending
    with caplog.at_level(logging.DEBUG, logger="cqrs_brokers"):
        driver.held[0].confirm()
    assert str(driver.seen[0].message_id) in caplog.text
    assert (await broker.health()).in_flight == 0
    await broker.close()


def test_a_broker_of_a_broker_is_a_type_error() -> None:
    """A composite is a driver; a Broker of a Broker is refused."""
    with pytest.raises(TypeError):
        Broker(Broker(Scripted()))
    with pytest.raises(TypeError):
        Broker(object())  # type: ignore[arg-type]


def test_impossible_limits_are_reported_together() -> None:
    """Every number that is out of range is named in one ConfigError."""
    with pytest.raises(ConfigError) as caught:
        Broker(Scripted(), delivery_timeout=0, max_in_flight=-1, retry_count=0)
    assert len(caught.value.problems) == 3


def test_a_broker_is_truthy_and_has_no_pickle() -> None:
    """Frameworks test brokers for truth; a connection cannot be copied."""
    import copy
    import pickle

    broker = Broker(Scripted())
    assert broker
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="pickled or copied"):
            attempt(broker)


async def test_a_simple_driver_sends_the_message_as_it_was_at_the_call() -> None:
    """What the caller changes after the call does not reach the broker, also while the message waits for its turn."""
    driver = Simple()
    async with Broker(driver) as broker:
        sent = [Message(name, "orders", {"a": 1}, key="k", headers={"h": "v"}) for name in "xy"]
        sendings = [asyncio.create_task(broker.send_message(each)) for each in sent]
        await asyncio.sleep(0)
        for each in sent:
            each.payload, each.headers, each.topic = {"a": 2}, {}, "changed"
        for name in "xy":
            await settle()
            driver.gates[name].set_result(None)
        await asyncio.gather(*sendings)
    assert [(m.body, m.headers, m.topic) for m in driver.started] == [(b'{"a":1}', {"h": "v"}, "orders")] * 2


def spoil(each: Message) -> None:
    each.payload, each.headers, each.topic, each.key = object(), {"h": object()}, 7, 8  # type: ignore[assignment, dict-item]
    each.payload_bytes, each.message_id, each.message_name = b"after", None, ""  # type: ignore[assignment]


@pytest.mark.parametrize("waits", ["for a connection", "for room", "in the driver"])
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("failed", [False, True])
async def test_what_is_sent_is_the_message_of_the_call(waits: str, batch: bool, failed: bool) -> None:
    """What becomes of a message after the call changes nothing, on the wire, in the receipt or in the error."""
    driver = Scripted()
    broker = Broker(driver, max_in_flight=1 if waits == "for room" else 10)
    if waits != "for a connection":
        await broker.connect()
    first = asyncio.create_task(broker.send_message(message()))
    await asyncio.sleep(0)
    each = Message("E", "orders", {"a": 1}, key="k", headers={"h": "v"})
    identity = each.message_id
    send: Any = broker.send_messages([each]) if batch else broker.send_message(each)
    sending = asyncio.create_task(send)
    await asyncio.sleep(0)
    if waits != "in the driver":  # what it was given it has read
        spoil(each)
    await settle()
    for _ in range(2):
        for delivery in driver.held:
            read = delivery.message
            if read.message_name == "E":
                wire = read.body, read.headers, read.topic, read.key, read.message_id
                assert wire == (b'{"a":1}', {"h": "v"}, "orders", "k", identity)
                spoil(each)
                delivery.handed_over()
                if failed:
                    delivery.fail(NackedError("refused"))
                else:
                    delivery.confirm()
        driver.held = [delivery for delivery in driver.held if delivery.message.message_name == "OrderPlaced"]
        driver.confirm_all()
        await settle()
    await first
    (outcome,) = (await sending) if batch else await asyncio.gather(sending, return_exceptions=True)
    assert isinstance(outcome, NackedError if failed else Receipt)
    assert (outcome.message_id, outcome.topic) == (identity, "orders")
    await broker.close()


async def test_a_message_that_is_sent_again_is_encoded_again() -> None:
    """Each call sends the payload as it is then."""
    driver = Scripted(automatic=True)
    payload = {"a": 1}
    each = Message("E", "orders", payload)
    bodies = []
    async with Broker(driver) as broker:
        for number in (1, 2, 3):
            payload["a"] = number
            if number == 3:
                each.payload = [3]
            await broker.send_message(each)
            bodies.append(driver.seen[-1].body)
    assert bodies == [b'{"a":1}', b'{"a":2}', b"[3]"]


async def test_a_send_that_outlives_close_is_no_breach_of_the_driver(caplog: pytest.LogCaptureFixture) -> None:
    """A simple driver cannot know that Broker ended its messages: no complaint about it in the log."""
    driver = Simple()
    broker = Broker(driver)
    await broker.connect()
    sending = asyncio.create_task(broker.send_message(message(name="n")))
    await settle()
    await broker.close(0)
    with pytest.raises(ClosedWhilePendingError):
        await sending
    assert "broke its contract" not in caplog.text
