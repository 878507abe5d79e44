"""`SyncBroker`: a broker for code without an event loop."""

import asyncio
import os
import threading
import time
from collections.abc import Sequence

import pytest

from cqrs_brokers import (
    Broker,
    BrokerClosedError,
    DeliveryTimeoutError,
    InvalidMessageError,
    Message,
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
