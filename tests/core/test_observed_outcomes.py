"""Every call that was made has one observed outcome, the true one: each sort of call, then calls at random."""

import asyncio
import os
import weakref
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from enum import StrEnum
from random import Random
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from cqrs_brokers import (
    Broker,
    BrokerClosedError,
    ClosedWhilePendingError,
    ConfigError,
    ConnectionLostError,
    DeliveryError,
    DeliveryTimeoutError,
    DeliveryUnknownError,
    InvalidMessageError,
    Message,
    MessageTooLargeError,
    NotDeliveredError,
    Observer,
    Receipt,
    SyncBroker,
    UnroutableError,
    WrongLoopError,
)
from cqrs_brokers._delivery.delivery import HANDED, Sending
from cqrs_brokers._delivery.window import Window
from cqrs_brokers.driver import Delivery
from cqrs_brokers.observers import Observers
from cqrs_brokers.protocol import Capabilities, snapshot

from .drivers import Scripted, message, settle, unreachable

Outcome = Receipt | DeliveryError


class Book(Observer):
    """Keeps what it is told and asked."""

    def __init__(self) -> None:
        self.told: list[tuple[Message, Outcome, float]] = []
        self.asked: list[Message] = []

    def before_send(self, message: Message) -> None:
        self.asked.append(message)

    def sent(self, message: Message, outcome: Outcome, elapsed: float) -> None:
        self.told.append((message, outcome, elapsed))

    @property
    def outcomes(self) -> list[Outcome]:
        return [outcome for _, outcome, _ in self.told]

    @property
    def kinds(self) -> list[type[Outcome]]:
        return [type(outcome) for outcome in self.outcomes]


# -- calls that are refused --------------------------------------------------------------------------------------------

REFUSED: list[tuple[Any, type[DeliveryError]]] = [
    (Message("n", "", b"{}"), InvalidMessageError),
    (Message("n", 5, b"{}"), InvalidMessageError),  # type: ignore[arg-type]
    (Message("n", "t", object()), InvalidMessageError),
    (Message("n", "t", b"x" * 101), MessageTooLargeError),
    (SimpleNamespace(message_name="n", topic="t", message_id=uuid4()), InvalidMessageError),
    (7, InvalidMessageError),
    (SimpleNamespace(message_name="n", topic="t", payload={}, message_id="no id"), InvalidMessageError),
]


@pytest.mark.parametrize(
    ("candidate", "kind"), REFUSED, ids=[f"{n}-{kind.__name__}" for n, (_, kind) in enumerate(REFUSED)]
)
async def test_a_refused_call_is_told_once(candidate: Any, kind: type[DeliveryError]) -> None:
    """By `send_message` and in `send_messages`, as the error that the caller gets, and it is not asked for headers."""
    book = Book()
    async with Broker(Scripted(automatic=True), observers=[book], max_message_bytes=100) as broker:
        with pytest.raises(kind) as raised:
            await broker.send_message(candidate)
        error, receipt = await broker.send_messages([candidate, message()])
    assert type(error) is kind
    assert book.outcomes == [raised.value, error, receipt]
    assert len(book.asked) == 1
    for told, _, elapsed in book.told[:2]:
        assert isinstance(told.topic, str)
        assert isinstance(told.message_name, str)
        assert isinstance(told.message_id, UUID)
        assert elapsed == 0
    known = getattr(candidate, "message_id", None)
    assert not isinstance(known, UUID) or book.told[0][0].message_id == known


async def test_what_is_told_of_a_message_whose_own_code_raises() -> None:
    """Its name, topic and id as far as they can be read, and not its payload."""

    class Odd:
        message_name, payload, message_id = "Odd", {"secret": 1}, uuid4()

        @property
        def topic(self) -> str:
            raise ValueError("odd")

    book = Book()
    async with Broker(Scripted(), observers=[book]) as broker:
        with pytest.raises(InvalidMessageError):
            await broker.send_message(Odd())
    ((told, _, _),) = book.told
    assert (told.message_name, told.topic, told.message_id, told.payload) == ("Odd", "", Odd.message_id, None)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "soon"])
async def test_no_time_as_timeout(timeout: Any) -> None:
    """A timeout that is none refuses the call: every message of a `send_messages` has its outcome."""
    book = Book()
    async with Broker(Scripted(), observers=[book]) as broker:
        with pytest.raises(InvalidMessageError) as raised:
            await broker.send_message(message(), timeout=timeout)
        with pytest.raises(InvalidMessageError):
            await broker.send_messages([message(), message()], timeout=timeout)
    assert book.kinds == [InvalidMessageError] * 3
    assert book.outcomes[0] is raised.value
    assert len({told.message_id for told, _, _ in book.told}) == 3


async def test_what_is_no_sequence_of_messages() -> None:
    """`send_messages` of one message is one refused call."""
    book, one = Book(), message()
    async with Broker(Scripted(), observers=[book]) as broker:
        with pytest.raises(InvalidMessageError):
            await broker.send_messages(one)  # type: ignore[arg-type]
    ((told, _, _),) = book.told
    assert told is one


async def test_an_event_that_is_none() -> None:
    """`publish` of what has no `to_message()`, or one that raises, is one refused call."""

    class Broken:
        def to_message(self) -> Message:
            raise ValueError("broken")

    book = Book()
    async with Broker(Scripted(), observers=[book]) as broker:
        for event in (message(), Broken()):
            with pytest.raises(InvalidMessageError):
                await broker.publish(event)  # type: ignore[arg-type]
    assert book.kinds == [InvalidMessageError] * 2


async def test_a_closed_broker() -> None:
    """Every call after `close()` is told, each message with an error of its own."""
    book = Book()
    broker = Broker(Scripted(), observers=[book])
    await broker.close()
    with pytest.raises(BrokerClosedError) as raised:
        await broker.send_message(message())
    errors = await broker.send_messages([message(), message()])
    assert book.outcomes == [raised.value, *errors]
    assert book.kinds == [BrokerClosedError] * 3
    assert [told.message_id for told, _, _ in book.told] == [error.message_id for error in (raised.value, *errors)]  # type: ignore[union-attr]


async def test_another_event_loop() -> None:
    """A call in a second loop, while the first one runs, is told; so is one without a loop."""
    book = Book()
    async with Broker(Scripted(automatic=True), observers=[book]) as broker:

        def elsewhere() -> None:
            with pytest.raises(WrongLoopError):
                asyncio.run(broker.send_message(message()))
            with pytest.raises(WrongLoopError):
                broker.send_message(message()).send(None)

        await asyncio.to_thread(elsewhere)
        await broker.send_message(message())
    assert book.kinds == [WrongLoopError, WrongLoopError, Receipt]


# -- calls that are cancelled ------------------------------------------------------------------------------------------


async def handed_and_cancelled(broker: Broker, driver: Scripted) -> Delivery:
    sending = asyncio.create_task(broker.send_message(message()))
    await settle()
    driver.hand_over_all()
    sending.cancel()
    await asyncio.wait([sending])
    assert sending.cancelled()
    return driver.held[-1]


async def test_cancelled_before_it_is_handed_over() -> None:
    """Not delivered, at once: while it waits for the connection, for a place, and in the driver."""
    book, driver = Book(), Scripted()
    driver.connect_delay = 0.01
    broker = Broker(driver, observers=[book], max_in_flight=1)
    for number in range(3):
        sending = asyncio.create_task(broker.send_message(message()))
        await settle()
        sending.cancel()
        await asyncio.wait([sending])
        assert book.kinds == [NotDeliveredError] * (number + 1)
        assert "cancelled before" in str(book.outcomes[number])
        await broker.connect()
    assert len(driver.held) == 1
    assert driver.hand_over_all() == [False]
    await broker.close()
    assert len(book.told) == 3


@pytest.mark.parametrize(
    ("then", "kind"),
    [
        (lambda delivery: delivery.confirm(partition=1), Receipt),
        (lambda delivery: delivery.fail(UnroutableError("no queue")), UnroutableError),
        (lambda delivery: delivery.fail(ValueError("a bug")), DeliveryUnknownError),
        (lambda delivery: delivery.returned(), NotDeliveredError),
    ],
)
async def test_cancelled_and_then_answered(then: Callable[[Any], None], kind: type[Outcome]) -> None:
    """The outcome that the caller would have got, when it is known. A message that was not written is not written."""
    book, driver = Book(), Scripted()
    async with Broker(driver, observers=[book]) as broker:
        delivery = await handed_and_cancelled(broker, driver)
        assert not book.told
        then(delivery)
        assert book.kinds == [kind]
        assert not delivery.handed_over()
    assert len(book.told) == 1


async def test_cancelled_and_never_answered() -> None:
    """Unknown at its deadline; a late confirm is not a second outcome."""
    book, driver = Book(), Scripted()
    async with Broker(driver, observers=[book], delivery_timeout=0.05) as broker:
        delivery = await handed_and_cancelled(broker, driver)
        await asyncio.sleep(0.1)
        assert book.kinds == [DeliveryTimeoutError]
        assert book.told[0][2] > 0.04
        delivery.confirm()
    assert len(book.told) == 1


async def test_close_waits_for_the_answers_to_cancelled_calls(caplog: pytest.LogCaptureFixture) -> None:
    """As for those of others: 500 cancelled requests whose messages arrive are 500 receipts."""
    book, driver = Book(), Scripted()
    broker = Broker(driver, observers=[book])
    sendings = [asyncio.create_task(broker.send_message(message())) for _ in range(500)]
    await settle()
    driver.hand_over_all()
    for sending in sendings:
        sending.cancel()
    await asyncio.wait(sendings)
    asyncio.get_running_loop().call_later(0.2, lambda: [delivery.confirm() for delivery in driver.held])
    await broker.close()
    assert book.kinds == [Receipt] * 500
    assert "unknown" not in caplog.text


async def test_close_does_not_wait_long_for_cancelled_calls(caplog: pytest.LogCaptureFixture) -> None:
    """One second, of the 10 that the others have; then they are unknown, and the log names them."""
    book, driver = Book(), Scripted()
    broker = Broker(driver, observers=[book])
    delivery = await handed_and_cancelled(broker, driver)
    loop = asyncio.get_running_loop()
    started = loop.time()
    await broker.close()
    assert 0.9 < loop.time() - started < 3
    assert book.kinds == [ClosedWhilePendingError]
    assert str(delivery.message_id) in caplog.text


async def test_a_cancelled_batch() -> None:
    """Every message of a cancelled `send_messages` has its own true outcome."""
    book, driver = Book(), Scripted()
    async with Broker(driver, observers=[book], max_in_flight=8) as broker:
        sending = asyncio.create_task(broker.send_messages([message(name=str(n)) for n in range(5)]))
        await settle()
        driver.held[0].handed_over()
        driver.held[0].confirm()
        driver.held[1].handed_over()
        sending.cancel()
        await asyncio.wait([sending])
        driver.held[1].confirm()
        found = {told.message_name: type(outcome) for told, outcome, _ in book.told}
    kinds = [Receipt, Receipt, NotDeliveredError, NotDeliveredError, NotDeliveredError]
    assert found == {str(n): kind for n, kind in enumerate(kinds)}
    assert len(book.told) == 5


# -- event loops and processes -----------------------------------------------------------------------------------------


def test_a_loop_that_ends_without_close() -> None:
    """`asyncio.run` ends with messages in flight: what was handed over is unknown, the rest is not delivered."""
    book, driver = Book(), Scripted()
    broker = Broker(driver, observers=[book])

    async def main() -> None:
        tasks = [asyncio.create_task(broker.send_message(message())) for _ in range(3)]
        await settle()
        driver.held[0].handed_over()
        assert len(tasks) == 3

    with pytest.warns(ResourceWarning, match="was not closed"):
        asyncio.run(main())
    # asyncio cancels its tasks in no fixed order: the sends before the connection's owner, or after it.
    assert sorted(issubclass(kind, NotDeliveredError) for kind in book.kinds) == [False, True, True]
    assert sum(kind is ConnectionLostError for kind in book.kinds) == 1


def test_a_loop_that_is_closed_by_force() -> None:
    """Told when the broker is used in the next loop: its callers are gone, and nobody is woken."""
    book, driver = Book(), Scripted()
    broker = Broker(driver, observers=[book], max_in_flight=5)
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(broker.send_message(message())) for _ in range(3)]
    flushing = loop.create_task(asyncio.sleep(0.01))
    loop.run_until_complete(flushing)
    driver.held[0].handed_over()
    loop.close()
    driver.held.clear()
    driver.automatic = True

    async def again() -> None:
        assert (await broker.send_message(message())).confirmed
        await broker.close()

    with pytest.warns(ResourceWarning, match="was not closed"):
        asyncio.run(again())
    assert book.kinds == [DeliveryUnknownError, NotDeliveredError, NotDeliveredError, Receipt]
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        task.get_coro().close()  # type: ignore[union-attr]


def test_a_sync_broker() -> None:
    """Its own refusals are told, and cancelled calls as those of a `Broker`."""
    book, driver = Book(), Scripted(automatic=True)
    broker = SyncBroker(Broker(driver, observers=[book]))
    receipt = broker.send(message())
    with pytest.raises(InvalidMessageError):
        broker.send(message(topic=""))
    driver.automatic = False
    with pytest.raises(NotDeliveredError):
        broker.send(message(), timeout=0.05)
    broker.close()
    with pytest.raises(BrokerClosedError) as closed:
        broker.send(message())
    assert book.outcomes[0] == receipt
    assert book.outcomes[-1] is closed.value
    assert len(book.told) == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("kind", ["Broker", "SyncBroker"])
def test_a_forked_child(kind: str) -> None:
    """A call in the child is told there; what the parent has in flight is told in the parent only."""
    read, write = os.pipe()
    book, driver = Book(), Scripted()
    broker = Broker(driver, observers=[book])

    def child(call: Callable[[], object]) -> None:
        pid = os.fork()
        if not pid:
            text = "no error"
            try:
                call()
            except WrongLoopError:
                text = " ".join(told.__name__ for told in book.kinds)
            finally:
                os.write(write, text.encode() or b"nothing told")
                os._exit(0)
        os.waitpid(pid, 0)

    if kind == "SyncBroker":
        sync = SyncBroker(broker)
        driver.automatic = True
        sync.send(message())
        book.told.clear()
        child(lambda: sync.send(message()))
        sync.close()
    else:

        async def main() -> None:
            sending = asyncio.create_task(broker.send_message(message()))
            await settle()
            child(lambda: broker.send_message(message()).send(None))
            driver.confirm_all()
            await sending
            await broker.close()

        asyncio.run(main())
        assert book.kinds == [Receipt]
    assert os.read(read, 1000).decode() == "WrongLoopError"
    os.close(read)
    os.close(write)


# -- headers -----------------------------------------------------------------------------------------------------------

tenant: ContextVar[str] = ContextVar("tenant", default="none")


class Tenant(Observer):
    def before_send(self, message: Message) -> Mapping[str, str]:
        return {"tenant": tenant.get()}


async def test_headers_for_every_way_of_sending() -> None:
    """The driver gets them, from the context of the call; the caller's message stays as it was."""
    driver = Scripted(automatic=True)

    class Event:
        def to_message(self) -> Message:
            return message(name="published")

    async with Broker(driver, observers=[Tenant()]) as broker:
        tenant.set("a")
        one = Message("sent", "t", b"{}", headers={"own": "1", "tenant": "before"})
        await broker.send_message(one)
        tenant.set("b")
        await broker.send_messages([message(name="batch"), SimpleNamespace(**{n: getattr(one, n) for n in NAMES})])
        tenant.set("c")
        await broker.publish(Event())  # type: ignore[arg-type]
    sent = {seen.message_name: dict(seen.headers) for seen in driver.seen}
    assert sent["batch"] == {"tenant": "b"}
    assert sent["published"] == {"tenant": "c"}
    assert [dict(seen.headers) for seen in driver.seen if seen.message_name == "sent"] == [
        {"own": "1", "tenant": "a"},
        {"own": "1", "tenant": "b"},
    ]
    assert dict(one.headers) == {"own": "1", "tenant": "before"}


NAMES = ("message_name", "topic", "payload", "message_id", "headers")


class Batches(Observer):
    """Numbers the batches, and adds what it found in the context when they began."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def before_send(self, message: Message) -> Mapping[str, str]:
        return {"batch": "none"}

    def before_batch(self, count: int) -> "Batch | None":
        self.events.append(f"begins with {count}")
        if count == 1:
            return None
        if count == 2:
            raise RuntimeError("a mistake")
        return Batch(self.events, tenant.get())

    def sent(self, message: Message, outcome: Outcome, elapsed: float) -> None:
        self.events.append(type(outcome).__name__)


class Batch:
    def __init__(self, events: list[str], tenant: str) -> None:
        self.events, self.tenant = events, tenant

    def before_send(self, message: Message) -> Mapping[str, str]:
        return {"batch": self.tenant}

    def complete(self) -> None:
        self.events.append("complete")
        raise RuntimeError("another mistake")


async def test_a_batch_can_be_asked_for_as_a_whole(caplog: pytest.LogCaptureFixture) -> None:
    """Its observer is asked for each valid message and told when there are no more; mistakes of it break nothing."""
    driver, observer = Scripted(automatic=True), Batches()
    tenant.set("acme")
    async with Broker(driver, observers=[observer]) as broker:
        await broker.send_messages([message(), message(topic=""), message()])
        assert observer.events[:2] == ["begins with 3", "InvalidMessageError"]
        assert sorted(observer.events[2:]) == ["Receipt", "Receipt", "complete"]
        await broker.send_messages([message()])
        await broker.send_messages([message(), message()])
        await broker.send_message(message())
    assert [seen.headers["batch"] for seen in driver.seen] == ["acme", "acme", "none", "none", "none", "none"]
    said = [record.getMessage() for record in caplog.records]
    assert [text for text in said if "before_batch" in text or "complete" in text] == [
        "observer Batches raised RuntimeError in complete()",
        "observer Batches raised RuntimeError in before_batch()",
    ]


async def test_an_empty_batch_is_none() -> None:
    """A call without messages has nothing to begin, and so nothing to complete."""
    observer = Batches()
    async with Broker(Scripted(automatic=True), observers=[observer]) as broker:
        assert await broker.send_messages([]) == []
    assert observer.events == []


async def test_an_observer_may_ask_for_batches_only() -> None:
    """A single message is not asked for then."""

    class Only(Observer):
        def before_batch(self, count: int) -> Batch:
            return Batch([], "only")

    driver = Scripted(automatic=True)
    async with Broker(driver, observers=[Only()]) as broker:
        await broker.send_messages([message()])
        await broker.send_message(message())
    assert [seen.headers.get("batch") for seen in driver.seen] == ["only", None]


def test_headers_from_the_context_of_a_thread() -> None:
    """With a `SyncBroker` too."""
    driver = Scripted(automatic=True)
    with SyncBroker(Broker(driver, observers=[Tenant()])) as broker:
        tenant.set("thread")
        broker.send(message())
    assert dict(driver.seen[0].headers) == {"tenant": "thread"}


class Adds(Observer):
    def __init__(self, added: Any) -> None:
        self.added = added

    def before_send(self, message: Message) -> Any:
        return self.added


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ({"": "x"}, "a header name is empty"),
        ({"Message-Id": "x"}, "reserved"),
        ({"n": 1.5}, "carries only str"),
        ({"n": object()}, "carries only str"),
        ({"n": "x" * 200}, "are allowed"),
        ({1: "x"}, "must be text"),
        (["n"], "it returned a list, not a mapping"),
        ({f"n{n}": "x" for n in range(101)}, "are allowed"),
    ],
)
async def test_headers_that_are_refused(added: Any, said: str, caplog: pytest.LogCaptureFixture) -> None:
    """They are logged without a value; the message goes without them and with those of the next observer."""
    driver = Scripted(automatic=True)
    broker = Broker(driver, observers=[Adds(added), Tenant()], max_message_bytes=100)
    async with broker:
        assert (await broker.send_message(Message("n", "t", b"{}", headers={"own": "1"}))).confirmed
    assert dict(driver.seen[0].headers) == {"own": "1", "tenant": tenant.get()}
    assert "the headers that observer Adds adds are refused" in caplog.text
    assert said in caplog.text
    assert "xx" not in caplog.text


class Text(StrEnum):
    ACME = "acme"


async def test_headers_that_repeat_are_what_they_were() -> None:
    """Each message has its own; equal values of other types are told apart; a limit counts for each message."""
    driver, adds = Scripted(automatic=True), Adds({"n": "acme"})
    async with Broker(driver, observers=[adds], max_message_bytes=9) as broker:
        await broker.send_message(message())
        driver.seen[0].headers["n"] = "changed"  # type: ignore[index] # a driver must not, and may
        await broker.send_message(message())
        adds.added = {"n": Text.ACME}
        await broker.send_message(message())
        adds.added = {"n": "acme"}
        await broker.send_message(Message("n", "t", b"too large"))
        adds.added["n"] = "other"
        await broker.send_message(message())
    assert [dict(seen.headers) for seen in driver.seen] == [
        {"n": "changed"},
        {"n": "acme"},
        {"n": "acme"},
        {},
        {"n": "other"},
    ]
    assert {type(value) for seen in driver.seen for value in seen.headers.values()} == {str}


async def test_headers_of_equal_values_of_other_types() -> None:
    """True, 1 and 1.0 are equal; a broker that carries only one of these types gets that one."""
    carries = Capabilities(headers=True, header_types=frozenset({str, bool}))
    driver, adds = Scripted(automatic=True, capabilities=carries), Adds({"n": True})
    async with Broker(driver, observers=[adds]) as broker:
        for value in (True, 1, 1.0, True):
            adds.added = {"n": value}
            await broker.send_message(Message("n", "t", b"{}"))
    assert [dict(seen.headers) for seen in driver.seen] == [{"n": True}, {}, {}, {"n": True}]


@pytest.mark.parametrize(
    ("before", "value", "size"), [(None, "acme", 4), ("é", "münchen", 8), (True, 1.5, 8), ("", True, 1)]
)
async def test_size_with_headers_that_replace_others(before: Any, value: Any, size: int) -> None:
    """The body, the headers that stay and those that replace others count, and those that are replaced do not."""
    carries = Capabilities(headers=True, header_types=frozenset({str, float, bool, type(None)}))
    own, replaced = {"own": "1", "tenant": before}, {"own": "1", "tenant": value}
    expected = len("{}") + len("own1") + len("tenant") + size
    for most, headers in ((expected, replaced), (expected - 1, own)):
        driver = Scripted(automatic=True, capabilities=carries)
        async with Broker(driver, observers=[Adds({"tenant": value})], max_message_bytes=most) as broker:
            for _ in range(2):  # the second time the headers are known
                await broker.send_message(Message("n", "t", b"{}", headers=own))
        assert [dict(seen.headers) for seen in driver.seen] == [headers] * 2


@pytest.mark.parametrize(("same", "fit"), [(20, True), (19, False)])
async def test_the_number_of_headers_counts_all(same: int, fit: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A message has at most 100, its own ones and those that are added together."""
    own = {f"n{n}": "own" for n in range(60)}
    added = {f"n{n}": "added" for n in range(60 - same, 120 - same)}
    driver = Scripted(automatic=True)
    async with Broker(driver, observers=[Adds(added)]) as broker:
        for _ in range(2):  # the second time the headers are known
            await broker.send_message(Message("n", "t", b"{}", headers=own))
    assert [dict(seen.headers) for seen in driver.seen] == [{**own, **added} if fit else own] * 2
    assert ("101 headers, and 100 are allowed" in caplog.text) is not fit


async def test_the_callers_message_is_not_kept() -> None:
    """With a hook the message in flight is a copy; the original is free before there is an outcome."""

    class Referable(Message):
        """Of a class that can be referred to weakly."""

    driver = Scripted()
    async with Broker(driver, observers=[Book()]) as broker:
        original = Referable("n", "t", b"{}")
        kept = weakref.ref(original)
        sending = asyncio.create_task(broker.send_message(original))
        del original
        await settle()
        assert broker.in_flight == 1
        assert kept() is None
        driver.confirm_all()
        assert (await sending).confirmed


async def test_headers_count_as_bytes_in_flight() -> None:
    """What observers add takes its place in the window."""
    driver = Scripted()
    async with Broker(
        driver, observers=[Adds({"n": "x" * 50}), Adds({"n": "y" * 60})], max_in_flight_bytes=100
    ) as broker:
        sendings = [asyncio.create_task(broker.send_message(message())) for _ in range(2)]
        await settle()
        assert (broker.in_flight, broker.waiting) == (1, 1)
        driver.confirm_all()
        await settle()
        driver.confirm_all()
        await asyncio.gather(*sendings)
    assert [dict(seen.headers) for seen in driver.seen] == [{"n": "y" * 60}] * 2


async def test_a_waiting_message_is_the_one_that_was_asked_for() -> None:
    """`sent` gets the object that `before_send` got, whatever the caller does with its own meanwhile."""
    book, driver, one = Book(), Scripted(), message()
    async with Broker(driver, observers=[book], max_in_flight=1) as broker:
        first = asyncio.create_task(broker.send_message(message()))
        second = asyncio.create_task(broker.send_message(one))
        await settle()
        one.topic = "changed"
        driver.confirm_all()
        await first
        await settle()
        driver.confirm_all()
        await second
    assert [told for told, _, _ in book.told] == book.asked
    assert all(told is asked for (told, _, _), asked in zip(book.told, book.asked, strict=True))
    assert book.asked[1].topic == "orders"


async def test_the_oldest_message_says_what_is_stuck() -> None:
    """Its destination and its age, while it is with the driver, waits for a place, or waits for a connection."""
    driver = Scripted()
    driver.connect_delay = 0.02
    broker = Broker(driver, max_in_flight=2)
    assert broker.oldest is None
    calls = [asyncio.create_task(broker.send_message(message(topic="first"), timeout=5))]
    await settle()
    calls += [asyncio.create_task(broker.send_message(message(topic=f"t{n}"))) for n in range(4)]
    await settle()
    assert broker.oldest is not None
    assert broker.oldest[0] == "first"
    await broker.connect()
    driver.hand_over_all()
    await asyncio.sleep(0.05)
    assert broker.oldest[0] == "first"
    assert 0.05 <= broker.oldest[1] < 5
    driver.held[0].confirm()
    await calls[0]
    assert broker.oldest[0] == "t0"
    driver.automatic = True
    driver.confirm_all()
    await asyncio.gather(*calls)
    assert broker.oldest is None
    await broker.close()


async def test_state_can_be_read_without_awaiting() -> None:
    """One word for how the connection is, and how many messages are in flight and wait."""
    driver = Scripted()

    class Attached(Observer):
        def attached(self, broker: Any) -> None:
            self.broker = broker

    observer = Attached()
    broker = Broker(driver, observers=[observer], name="one")
    assert observer.broker is broker
    assert (broker.state, broker.in_flight, broker.waiting) == ("idle", 0, 0)
    driver.connect_delay = 0.02
    connecting = asyncio.create_task(broker.connect())
    sending = asyncio.create_task(broker.send_message(message()))
    await settle()
    assert (broker.state, broker.in_flight, broker.waiting) == ("connecting", 0, 1)
    await connecting
    assert (broker.state, broker.in_flight, broker.waiting) == ("connected", 1, 0)
    driver.link.throttled("a quota")
    assert broker.state == "throttled"
    driver.link.blocked("an alarm")
    assert broker.state == "blocked"
    driver.link.unblocked()
    driver.link.throttled(None)
    driver.link.reconnecting(unreachable())
    assert broker.state == broker.describe()["state"] == "reconnecting"
    driver.link.reconnecting(None)
    assert broker.state == "connected"
    driver.confirm_all()
    await sending
    await broker.close()
    assert broker.state == "closed"


# -- at random ---------------------------------------------------------------------------------------------------------


class Answering(Scripted):
    """Does at random what a driver may do, and keeps what is true of each message."""

    def __init__(self, rng: Random) -> None:
        super().__init__()
        self.rng = rng
        self.written: set[UUID] = set()
        self.true: dict[UUID, type[Outcome]] = {}
        self.cancelled: Callable[[UUID], bool]
        self.written_for_nobody: list[UUID] = []

    def act(self) -> None:
        now = asyncio.get_running_loop().time()
        self.rng.shuffle(self.held)
        for delivery in self.held[: self.rng.randrange(1, 6)]:
            self.held.remove(delivery)
            name, done = delivery.message_id, delivery.done
            in_time = not done or now < delivery.deadline - 0.002  # a timer may be a millisecond early
            known: Any = delivery
            if known.state != HANDED:
                if self.rng.random() < 0.1:
                    delivery.fail(UnroutableError("no queue"))
                    if not done:
                        self.true[name] = UnroutableError
                elif delivery.handed_over():
                    self.written.add(name)
                    self.held.append(delivery)
                    if self.cancelled(name):
                        self.written_for_nobody.append(name)
                continue
            choice = self.rng.random()
            if choice < 0.25:
                delivery.returned()
                if not done:
                    self.written.discard(name)
                self.held.append(delivery)
            elif choice < 0.35:
                self.held.append(delivery)
            elif choice < 0.55:
                delivery.fail(DeliveryUnknownError("a nack"))
                if in_time:
                    self.true[name] = DeliveryUnknownError
            else:
                delivery.confirm()
                if in_time:
                    self.true[name] = Receipt
        if self.rng.random() < 0.02:
            self.link.lost(unreachable())
        if self.rng.random() < 0.05:
            self.link.blocked("an alarm")
        elif self.rng.random() < 0.5:
            self.link.unblocked()


async def calls_at_random(seed: int) -> None:
    """Sends in every way, cancels, closes; then compares what observers were told with what callers got and with what
    the driver did."""
    rng = Random(seed)
    driver, book = Answering(rng), Book()
    broker = Broker(
        driver,
        observers=[book],
        max_in_flight=rng.choice((1, 3, 100)),
        delivery_timeout=rng.choice((0.03, 5, 5)),
        close_timeout=rng.choice((0, 0.02)),
        max_message_bytes=100,
        retry_delay=0.001,
    )
    got = defaultdict[UUID, list[Outcome | None]](list)
    driver.cancelled = lambda name: None in got[name]

    def candidate() -> tuple[UUID, Any]:
        made = uuid4()
        choice = rng.random()
        if choice < 0.1:
            return made, Message("n", rng.choice(("", "t\n")), b"{}", made)
        if choice < 0.15:
            return made, Message("n", "t", b"x" * 200, made)
        if choice < 0.2:
            return made, SimpleNamespace(message_name="n", topic="t", message_id=made)
        return made, Message("n", rng.choice("ab"), b"{}", made, key=rng.choice(("k", None)))

    async def one(name: UUID, what: Any) -> None:
        timeout = rng.choice((None, None, 0.02, 0))
        try:
            got[name].append(await broker.send_message(what, timeout=timeout))
        except DeliveryError as error:
            got[name].append(error)
        except asyncio.CancelledError:
            got[name].append(None)
            raise

    async def many(items: list[tuple[UUID, Any]]) -> None:
        try:
            outcomes: list[Any] = await broker.send_messages(
                [what for _, what in items], timeout=rng.choice((None, 0.02))
            )
        except asyncio.CancelledError:
            outcomes = [None] * len(items)
        for (name, _), outcome in zip(items, outcomes, strict=True):
            got[name].append(outcome)

    tasks: list[asyncio.Task[None]] = []
    closing: asyncio.Task[None] | None = None
    for _ in range(60):
        choice = rng.random()
        if choice < 0.4:
            tasks.append(asyncio.create_task(one(*candidate())))
        elif choice < 0.5:
            tasks.append(asyncio.create_task(many([candidate() for _ in range(rng.randrange(1, 5))])))
        elif choice < 0.6 and tasks:
            rng.choice(tasks[-10:]).cancel()
        elif choice < 0.605 and closing is None:
            closing = asyncio.create_task(broker.close())
        else:
            driver.act()
        await asyncio.sleep(rng.choice((0, 0, 0, 0.001, 0.005)))
    tasks += [asyncio.create_task(one(*candidate())) for _ in range(10)]
    await settle()
    for _ in range(6):
        driver.act()
    for task in tasks:
        if rng.random() < 0.5:
            task.cancel()
    await settle()
    for _ in range(rng.randrange(40)):
        driver.act()
    await (closing or broker.close())
    _, left = await asyncio.wait(tasks, timeout=2)
    for task in left:
        task.cancel()
    assert not left, "a caller still waits"
    told = defaultdict[UUID, list[Outcome]](list)
    for seen, outcome, _ in book.told:
        told[seen.message_id].append(outcome)
    assert {name: len(outcomes) for name, outcomes in told.items()} == dict.fromkeys(got, 1)
    for name, (mine,) in got.items():
        (outcome,) = told[name]
        assert mine is None or outcome == mine, "observers are told what the caller got"
        if name in driver.true:
            assert type(outcome) is driver.true[name]
        elif isinstance(outcome, Receipt | DeliveryUnknownError):
            assert name in driver.written
        else:
            assert name not in driver.written
    assert not driver.written_for_nobody
    asked = {id(seen) for seen in book.asked}
    assert len(asked) == len(book.asked), "asked once"
    assert asked <= {id(seen) for seen, _, _ in book.told}, "whoever was asked is told, the same object"


@pytest.mark.parametrize("seed", range(25))
async def test_calls_at_random(seed: int) -> None:
    """As many outcomes as calls, each the caller's own, or of a cancelled call what the driver knows."""
    await calls_at_random(seed)


async def fails(run: Callable[[int], Awaitable[None]]) -> bool:
    for seed in range(100):
        try:
            await run(seed)
        except AssertionError:
            return True
    return False


def forgets_cancelled(self: Sending) -> None:
    self._detach()


def ends_all_cancelled(self: Sending) -> None:
    error = self._unanswered("cancelled")
    self._detach()
    for watch in self._in_flight.watchers:
        watch(self, error)


def goes_again(self: Sending) -> None:
    self.state = 1


def tells_twice(self: Observers, message: Message, outcome: Outcome, elapsed: float) -> None:
    for _, sent in self._sent * 2:
        sent(message, outcome, elapsed)


def leaves_cancelled(self: Window, handed: DeliveryError, not_handed: NotDeliveredError) -> list[Sending]:
    unknown = [d for d in self._in_flight.pending if d.state == HANDED and not self._in_flight.pending[d]]
    for delivery in unknown:
        delivery.end(handed)
    self.end_not_handed(not_handed)
    return unknown


def copies_again(self: Sending) -> None:
    self.message = snapshot(self.message)


def leaves_the_queue(self: Window, error: NotDeliveredError) -> None:
    for delivery in [d for d in self._in_flight.pending if d.state != HANDED]:
        delivery.end(error)
    self._waiting.clear()


MUTANTS: dict[str, tuple[type, str, Any]] = {
    "a cancelled call has no outcome": (Sending, "abandon", forgets_cancelled),
    "a cancelled call is unknown at once": (Sending, "abandon", ends_all_cancelled),
    "a cancelled message is written again": (Sending, "returned", goes_again),
    "refusals are not told": (Observers, "refused", lambda self, candidate, error: None),
    "the broker's own refusals are not told": (Broker, "refuse", lambda self, message, error: error),
    "outcomes are told twice": (Observers, "sent", tells_twice),
    "close forgets cancelled calls": (Window, "settle", leaves_cancelled),
    "close forgets the queue": (Window, "end_not_handed", leaves_the_queue),
    "asked for one object, told of another": (
        Observers,
        "sent",
        lambda self, message, outcome, elapsed: [
            sent(snapshot(message) if message.payload_bytes else message, outcome, elapsed) for _, sent in self._sent
        ],
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
async def test_the_random_calls_find(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker with this fault does not pass them."""
    owner, method, replacement = MUTANTS[name]
    monkeypatch.setattr(owner, method, replacement)
    assert await fails(calls_at_random)


@pytest.mark.parametrize("wrong", ["abc", {}, b"x", [None], [object()], [lambda: 1], [Observer]])
def test_what_is_no_observer_is_refused(wrong: Any) -> None:
    """A broker that would tell nobody is not made."""
    with pytest.raises(ConfigError, match="observer"):
        Broker(Scripted(), observers=wrong)
