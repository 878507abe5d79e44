"""Gives a fault proxy of its own to a case that runs beside others, so that its faults are not faults of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from cqrs_brokers import Message, Receipt, open_broker
from cqrs_brokers.url import Host
from cqrs_brokers_testkit.conformance._harness import Harness
from cqrs_brokers_testkit.proxy import FaultProxy

_BODY = bytes(5_000)
"""More than what a driver writes to a server that only names the addresses of other servers."""
_WITHIN = 3.0


class OwnWire(NamedTuple):
    """A way to the harness' server that only one case uses.

    Attributes:
        proxy: The fault proxy on the way.
        url: The config string that leads through the proxy.
    """

    proxy: FaultProxy
    url: str


@contextmanager
def own_wire(harness: Harness) -> Iterator[OwnWire]:
    """Makes such a way. The proxy ends with the block."""
    assert harness.proxy is not None  # `has_own_wires` has looked
    with FaultProxy(harness.proxy.target) as proxy:
        yield OwnWire(proxy, harness.hosts_url([Host(proxy.host, proxy.port)]))


def has_own_wires(harness: Harness) -> bool:
    """Returns whether the driver writes its messages to the hosts of the config string.

    A cluster may name other addresses to the driver. Then its messages go through the proxy whose address the cluster
    names, and only one case at a time may use that proxy.
    """
    if harness.proxy is None or harness.lacks("hosts_url") is not None:
        return False
    try:
        topic = harness.new_topic_name()
        harness.create_topic(topic)
        with own_wire(harness) as wire:
            return asyncio.run(_goes_through(harness, wire, topic))
    except Exception:
        return False  # each case says for itself what is wrong


async def _goes_through(harness: Harness, wire: OwnWire, topic: str) -> bool:
    options = {**harness.options, "delivery_timeout": _WITHIN}
    async with open_broker(wire.url, distribution=harness.distribution, **options) as broker:
        outcome = await broker.send_message(Message("ConformanceEvent", topic, _BODY))
        written = sum(connection.bytes_up for connection in wire.proxy.connections)
        return isinstance(outcome, Receipt) and written >= len(_BODY)
