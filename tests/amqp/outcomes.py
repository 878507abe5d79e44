"""What senders were told, held against what an independent client reads back; and what was left behind."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import urlencode, urlsplit

from cqrs_brokers import Message, NotDeliveredError, Receipt
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.readers import Record, drain_queue
from cqrs_brokers_testkit.servers import RabbitMQNode, RabbitMQServer

Sent = tuple[Message, object]
"""A message and its outcome: a receipt or an error."""


def ids(sent: Iterable[Sent], kind: type[object]) -> list[str]:
    """The ids of the messages with an outcome of that class, in the order of the calls."""
    return [str(message.message_id) for message, outcome in sent if isinstance(outcome, kind)]


async def check(url: str, queue: str, sent: Sequence[Sent], *, per_key: bool = False) -> list[Record]:
    """Empties the queue: nothing confirmed is lost, doubled or out of order, nothing "not delivered" is there.

    Args:
        url: Where to read.
        queue: Where to read; all routable messages of `sent` go there.
        sent: In the order of the calls.
        per_key: The order holds for each key, and not for what has none.
    """
    confirmed = ids(sent, Receipt)
    records = await asyncio.to_thread(drain_queue, url, queue)  # what was confirmed need not be waited for
    arrived = [record.message_id or "" for record in records]
    assert set(arrived) <= set(ids(sent, object)), "somebody else's"
    assert not set(confirmed) - set(arrived), "lost"
    assert len(arrived) == len(set(arrived)), "duplicated"
    assert not set(ids(sent, NotDeliveredError)) & set(arrived), "wrongly not delivered"
    for key in {message.key for message, _ in sent if message.key is not None} if per_key else {None}:
        part = [one for one in sent if one[0].key == key or not per_key]
        told = ids(part, Receipt)
        known = set(told)
        assert [one for one in arrived if one in known] == told, f"out of order: {key}"
    return records


def through(proxy: FaultProxy, server: RabbitMQServer, **options: str) -> str:
    """The server's URL by way of a proxy."""
    parts = urlsplit(server.url)
    address = f"{parts.netloc.rpartition('@')[0]}@{proxy.address}"
    return parts._replace(netloc=address, query=urlencode(options)).geturl()


def not_the_proxys(proxy: FaultProxy, node: RabbitMQNode) -> Callable[[str], bool]:
    """Findings of `no_leaks` that are the proxy's own: its listener, what it accepted, its connections to the node.

    Ours go to the proxy: another local port, and the proxy's as the remote one.
    """
    return lambda line: f"local port {proxy.port}," in line or line.endswith(f"remote port {node.port}")
