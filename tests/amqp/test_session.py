"""A session that ends."""

import asyncio
import gc
from unittest.mock import Mock

import pytest

from cqrs_broker_amqp import AMQPOptions
from cqrs_broker_amqp._session import Session
from cqrs_broker_amqp._settings import AMQPSettings
from cqrs_brokers.options import resolve_options
from cqrs_brokers.url import BrokerURL


def session() -> Session:
    """A session with a host where nobody listens."""
    resolved = resolve_options(AMQPOptions, url=BrokerURL.parse("amqp://127.0.0.1:1"))
    assert resolved.url is not None
    return Session(AMQPSettings.of(resolved.url, resolved.options), ("127.0.0.1", 1), Mock(), None)


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
