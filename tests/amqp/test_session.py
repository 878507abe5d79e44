"""A session that ends."""

import asyncio
import gc
from typing import Any
from unittest.mock import Mock

import pytest

from cqrs_broker_amqp import AMQPOptions, _connecting
from cqrs_broker_amqp._driver import AMQPDriver
from cqrs_broker_amqp._session import Session
from cqrs_broker_amqp._settings import AMQPSettings
from cqrs_brokers import Broker, ClosedWhilePendingError, Message, UnreachableError
from cqrs_brokers.options import resolve_options
from cqrs_brokers.url import BrokerURL


def settings(*hosts: str) -> AMQPSettings:
    """Settings for hosts where nobody listens."""
    resolved = resolve_options(AMQPOptions, url=BrokerURL.parse(f"amqp://{','.join(hosts)}"))
    assert resolved.url is not None
    return AMQPSettings.of(resolved.url, resolved.options)


def session() -> Session:
    """A session with a host where nobody listens."""
    return Session(settings("127.0.0.1:1"), ("127.0.0.1", 1), Mock(), None)


async def test_a_goodbye_that_fails_leaves_no_complaint(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection may break while it is closed: closing goes on, and asyncio has nothing to say."""

    async def breaks(error: object) -> None:
        await asyncio.sleep(0)
        raise ConnectionResetError("gone")

    closing = session()
    monkeypatch.setattr(type(closing.connection), "is_opened", True)
    monkeypatch.setattr(closing.connection, "close", breaks)
    await closing.close(1.0)
    del closing
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize("passes", [1, 2])
async def test_an_alarm_at_a_host_that_was_given_up_holds_for_no_other(
    passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for the next host, nor for the next pass."""
    hosts = ["127.0.0.1:1", "127.0.0.1:2"] if passes == 1 else ["127.0.0.1:1"]
    channel = Mock(in_flight=set(), spent=set(), alone=False, watched=True, open=True, take=list)
    channel.connection = Mock(frame_max=2**17, sockets=Mock(must_wait=lambda: False))
    sessions: list[Session] = []

    class Node(Session):
        @property
        def last_inbound(self) -> float:
            return asyncio.get_running_loop().time()

        async def run(self, work: Any, timeout: float, *, declaring: bool = False) -> Any:
            work.close()
            sessions.append(self)
            if len(sessions) > 1:
                return channel
            self.blocked("low on memory")
            self.abort()
            raise UnreachableError("it does not answer")

    monkeypatch.setattr(_connecting, "Session", Node)
    broker = Broker(AMQPDriver(settings(*hosts)), retry_delay=0.01)
    sending = asyncio.ensure_future(broker.send_message(Message("n", "t", {}), timeout=2.0))
    while not channel.send.called:
        assert not sending.done(), sending
        await asyncio.sleep(0.01)
    assert (len(sessions), broker.state) == (2, "connected")
    await broker.close(0)
    with pytest.raises(ClosedWhilePendingError):
        await sending
