"""`SyncBroker`: a broker for code without an event loop."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cqrs_brokers import (
    Broker,
    BrokerClosedError,
    BrokerStateError,
    DeliveryError,
    DeliveryTimeoutError,
    InvalidMessageError,
    Message,
    NotConnectedError,
    Observer,
    Receipt,
    SyncBroker,
    WrongLoopError,
)
from cqrs_brokers.driver import Delivery
from tests.core.drivers import Scripted


class Silent(Scripted):
    """Hands over, and never answers."""

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        super().submit(deliveries)
        self.hand_over_all()


class Reacts(Observer):
    """Calls something when a call has its outcome, once, and keeps what that raised."""

    def __init__(self) -> None:
        self.react: Callable[[], object] | None = None
        self.raised: BaseException | None = None

    def sent(self, message: Message, outcome: Receipt | DeliveryError, elapsed: float) -> None:
        react, self.react = self.react, None
        if react is not None:
            try:
                react()
            except Exception as error:
                self.raised = error


def within_seconds(call: Callable[[], object]) -> object:
    """What the call returns or raises, in a thread of its own, which may hang."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert results, "it hangs"
    return results[0]


def test_a_thread_sends_and_gets_a_receipt() -> None:
    """The receipt is the one of the broker's send."""
    with SyncBroker(Broker(Scripted(automatic=True))) as broker:
        message = Message("A", "orders", {"n": 1})
        receipt = broker.send(message)
    assert receipt.message_id == message.message_id
    assert receipt.confirmed


def test_many_threads_send_at_the_same_time() -> None:
    """Each gets its own receipt."""
    broker = SyncBroker(Broker(Scripted(automatic=True)))
    messages = [Message("A", "orders", {"n": n}) for n in range(200)]
    receipts: dict[int, Receipt] = {}

    def send(first: int) -> None:
        for n in range(first, 200, 8):
            receipts[n] = broker.send(messages[n])

    threads = [threading.Thread(target=send, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    broker.close()
    assert [receipts[n].message_id for n in range(200)] == [message.message_id for message in messages]


def test_an_error_is_raised_in_the_thread_that_sent() -> None:
    """And the next send works."""
    with SyncBroker(Broker(Scripted(automatic=True))) as broker:
        with pytest.raises(InvalidMessageError):
            broker.send(Message("A", "", {}))
        assert broker.send(Message("A", "orders", {})).confirmed


def test_a_timeout_is_one_of_the_outcomes() -> None:
    """A message that was handed over is unknown then."""
    broker = SyncBroker(Broker(Silent(), close_timeout=0.1))
    began = time.monotonic()
    with pytest.raises(DeliveryTimeoutError):
        broker.send(Message("A", "orders", {}), timeout=0.1)
    assert time.monotonic() - began < 1.1
    broker.close()


def test_nothing_is_left_after_close() -> None:
    """The thread ends, a second close does nothing, and a send says that the broker is closed."""
    broker = SyncBroker(Broker(Scripted(automatic=True)))
    broker.send(Message("A", "orders", {}))
    broker.close()
    broker.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "cqrs-brokers"]
    with pytest.raises(BrokerClosedError):
        broker.send(Message("A", "orders", {}))


def test_a_broker_that_never_sent_has_no_thread() -> None:
    """So it can be made before a fork."""
    broker = SyncBroker(Broker(Scripted(automatic=True)))
    assert not [thread for thread in threading.enumerate() if thread.name == "cqrs-brokers"]
    broker.close()


def test_it_works_beside_a_running_loop_in_another_thread() -> None:
    """As in an ASGI server's thread pool."""

    async def main() -> Receipt:
        with SyncBroker(Broker(Scripted(automatic=True))) as broker:
            return await asyncio.to_thread(broker.send, Message("A", "orders", {}))

    assert asyncio.run(main()).confirmed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told_so() -> None:
    """It gets a WrongLoopError; the parent sends on; a broker that has not sent yet works in the child."""
    used, unused = SyncBroker(Broker(Scripted(automatic=True))), SyncBroker(Broker(Scripted(automatic=True)))
    used.send(Message("A", "orders", {}))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            used.send(Message("A", "orders", {}))
        except WrongLoopError as error:
            used.close()
            code = 0 if "after the fork" in str(error) and unused.send(Message("A", "orders", {})).confirmed else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert used.send(Message("A", "orders", {})).confirmed
    used.close()
    unused.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_that_is_forked_during_the_first_send_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while the sending thread of the parent holds the lock, which nobody in the child ever gives back."""
    broker = SyncBroker(Broker(Scripted(automatic=True)))
    begins, forked = threading.Event(), threading.Event()
    start = threading.Thread.start

    def slow(thread: threading.Thread) -> None:
        begins.set()
        forked.wait(10)
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", slow)
        sending = threading.Thread(target=broker.send, args=(Message("A", "orders", {}),))
        start(sending)
        assert begins.wait(10)
        child = os.fork()
        if child == 0:
            signal.alarm(5)
            code = 1
            try:
                broker.send(Message("A", "orders", {}))
            except WrongLoopError as error:
                code = 0 if "after the fork" in str(error) else 2
            finally:
                os._exit(code)
        forked.set()
    assert os.waitpid(child, 0)[1] == 0
    sending.join(10)
    broker.close()


def test_a_send_in_its_own_thread_is_refused() -> None:
    """An observer that sends gets a WrongLoopError at once; it would wait for itself otherwise."""
    observer = Reacts()
    broker = SyncBroker(Broker(Scripted(automatic=True), observers=[observer]))
    observer.react = lambda: broker.send(Message("B", "orders", {}))
    assert isinstance(within_seconds(lambda: broker.send(Message("A", "orders", {}))), Receipt)
    assert isinstance(observer.raised, WrongLoopError)
    assert "another thread" in str(observer.raised)
    assert isinstance(within_seconds(lambda: broker.send(Message("A", "orders", {}))), Receipt)
    broker.close()


def test_a_close_in_its_own_thread_is_refused() -> None:
    """An observer that closes gets a BrokerStateError at once, and the broker stays open."""
    observer = Reacts()
    broker = SyncBroker(Broker(Scripted(automatic=True), observers=[observer]))
    observer.react = broker.close
    assert isinstance(within_seconds(lambda: broker.send(Message("A", "orders", {}))), Receipt)
    assert isinstance(observer.raised, BrokerStateError)
    assert "another thread" in str(observer.raised)
    assert isinstance(within_seconds(lambda: broker.send(Message("A", "orders", {}))), Receipt)
    broker.close()


def test_an_observer_that_always_sends_ends() -> None:
    """Its refused sends are observed, too, and do not go on for ever."""

    class Audits(Observer):
        def sent(self, message: Message, outcome: Receipt | DeliveryError, elapsed: float) -> None:
            broker.send(Message("Audit", "audit", {}))

    broker = SyncBroker(Broker(Scripted(automatic=True), observers=[Audits()]))
    assert isinstance(within_seconds(lambda: broker.send(Message("A", "orders", {}))), Receipt)
    broker.close()


def test_an_observer_of_a_refusal_may_use_the_broker() -> None:
    """It is told in the caller's thread, and it may close the broker or send."""
    observer = Reacts()
    broker = SyncBroker(Broker(Scripted(automatic=True), observers=[observer]))
    broker.close()
    for react in (broker.close, lambda: broker.send(Message("B", "orders", {}))):
        observer.react = react
        refused = within_seconds(lambda: broker.send(Message("A", "orders", {})))
        assert isinstance(refused, BrokerClosedError)
    assert isinstance(observer.raised, BrokerClosedError)


def test_a_thread_that_cannot_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The send is a NotConnectedError, and the next one tries again."""
    broker = SyncBroker(Broker(Scripted(automatic=True)))

    def cannot(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", cannot)
        with pytest.raises(NotConnectedError, match="can't start new thread"):
            broker.send(Message("A", "orders", {}))
    assert isinstance(within_seconds(lambda: broker.send(Message("A", "orders", {}))), Receipt)
    within_seconds(broker.close)


def test_an_event_loop_that_cannot_be_made_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the process has no file descriptors left."""
    broker = SyncBroker(Broker(Scripted(automatic=True)))

    def cannot() -> asyncio.AbstractEventLoop:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "new_event_loop", cannot)
        with pytest.raises(NotConnectedError, match="Too many open files"):
            broker.send(Message("A", "orders", {}))
    assert isinstance(within_seconds(lambda: broker.send(Message("A", "orders", {}))), Receipt)
    within_seconds(broker.close)


@pytest.mark.parametrize(("timeout", "kind"), [("1", TypeError), (True, TypeError), (float("nan"), ValueError)])
def test_a_wrong_timeout_of_close_closes_nothing(timeout: float, kind: type[Exception]) -> None:
    """It is refused in the caller's thread; the broker still sends, and can be closed."""
    broker = SyncBroker(Broker(Scripted(automatic=True)))
    broker.send(Message("A", "orders", {}))
    with pytest.raises(kind, match="nothing was closed"):
        broker.close(timeout)
    assert broker.send(Message("A", "orders", {})).confirmed
    broker.close()


def test_a_broker_that_nobody_closed_warns_at_the_end() -> None:
    """A program that forgets close() ends, with a ResourceWarning."""
    program = (
        "from cqrs_brokers import Broker, Message, SyncBroker\n"
        "from tests.core.drivers import Scripted\n"
        "broker = SyncBroker(Broker(Scripted(automatic=True)))\n"
        "broker.send(Message('A', 'orders', {}))\n"
    )
    command = [sys.executable, "-W", "default", "-c"]

    def told(text: str) -> str:
        return subprocess.run([*command, text], capture_output=True, text=True, timeout=60, check=True).stderr

    forgets = told(program)
    assert "ResourceWarning" in forgets
    assert "call close()" in forgets
    assert "ResourceWarning" not in told(program + "broker.close()")


@pytest.mark.parametrize("broker", ["memory://x", None, Broker], ids=["a config string", "nothing", "the class"])
def test_what_is_no_broker_is_refused_when_it_is_given(broker: Any) -> None:
    """Not at the first send; the text says what to write."""
    with pytest.raises(TypeError, match=r"takes a Broker, not a \w+: SyncBroker\(open_broker\(url\)\)"):
        SyncBroker(broker)
