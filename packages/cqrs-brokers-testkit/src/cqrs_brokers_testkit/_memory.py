"""pytest fixtures for an application's own tests: a `memory://` broker for each test, and the messages that were
published to it.

    async def test_an_order_is_announced(memory_broker_url, published):
        await place_order(open_broker(memory_broker_url), "order-1")

        published.assert_once(topic="orders", name="OrderPlaced", key="order-1")

Faults are options of the config string: `f"{memory_broker_url}?fail=2&unknown=1&latency=50ms"`. The fixtures need
cqrs-broker-memory. To test a plugin, use `conformance` instead.
"""

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from cqrs_brokers_testkit._optional import require

if TYPE_CHECKING:
    from cqrs_broker_memory import Published

__all__ = ["memory_broker_url", "published"]

_SCHEME = "memory://"


@pytest.fixture
def memory_broker_url() -> str:
    """The config string of a memory broker that no other test uses."""
    require("cqrs_broker_memory", extra="memory")
    return f"{_SCHEME}test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def published(memory_broker_url: str) -> "Iterator[Published]":
    """The messages that were published to `memory_broker_url`, by any number of brokers. They are forgotten after the
    test.

    Use `published.assert_once(topic=…, name=…, key=…, headers=…)`, `published.find(…)` and `len(published)`.
    """
    from cqrs_broker_memory import published as published_to

    messages = published_to(memory_broker_url.removeprefix(_SCHEME))
    yield messages
    messages.clear()
