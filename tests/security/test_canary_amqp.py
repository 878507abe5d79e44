"""No secret, body, key or header value shows anywhere (I10): on a real RabbitMQ, for every error it can give."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import pytest

from cqrs_broker_amqp import _fallback
from cqrs_broker_amqp._logs import LOGGERS
from cqrs_brokers import (
    AuthenticationError,
    AuthorizationError,
    BackpressureError,
    Broker,
    BrokerBlockedError,
    BrokerClosedError,
    BrokerError,
    ClosedWhilePendingError,
    ConnectionLostError,
    DeliveryTimeoutError,
    DestinationNotFoundError,
    MessageTooLargeError,
    NackedError,
    NotConnectedError,
    ProtocolError,
    PublishForbiddenError,
    Receipt,
    TLSError,
    TopologyError,
    UnreachableError,
    UnroutableError,
    open_broker,
)
from cqrs_brokers_testkit.canary import CanaryScanner
from cqrs_brokers_testkit.certificates import Certificates
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.readers import bind_queue
from cqrs_brokers_testkit.servers import RabbitMQNode
from cqrs_brokers_testkit.servers import rabbitmq as start_rabbitmq

from .planting import Planted

pytestmark = pytest.mark.fault


@dataclass
class Scene:
    """What a situation plays with."""

    node: RabbitMQNode
    certificates: Certificates
    proxy: FaultProxy
    planted: Planted
    exchange: str
    user: str

    def open(self, user: str | None = None, *, password: str | None = None, **query: object) -> Broker:
        """A broker whose user has the canary as password."""
        query = {"exchange": self.exchange, "delivery_timeout": "3s", **query}
        where = {name: query.pop(name) for name in ("port", "vhost", "tls") if name in query}
        text = self.node.url_for(user or self.user, password or self.planted.password.text, **where, **query)  # type: ignore[arg-type]
        return open_broker(text, observers=[self.planted.observer])

    async def ctl(self, *arguments: str) -> None:
        await asyncio.to_thread(self.node.ctl, *arguments)

    async def fails_to_connect(self, broker: Broker) -> None:
        await self.planted.look_at_broker(broker)
        await self.planted.outcome(broker.connect())
        await self.planted.outcome(broker.send_message(self.planted.message()))
        await broker.close()


@pytest.fixture(scope="module")
def node(certificates: Certificates, rabbitmq: object) -> Iterator[RabbitMQNode]:
    """`rabbitmq` is asked for only to skip where there is none."""
    with start_rabbitmq(certificates=certificates) as made:
        yield made


@pytest.fixture
def scene(
    node: RabbitMQNode,
    certificates: Certificates,
    fault_proxy: FaultProxy,
    planted: Planted,
    unique_name: Callable[[str], str],
) -> Scene:
    fault_proxy.target = ("127.0.0.1", node.port)
    user, exchange = unique_name("user"), unique_name("exchange")
    node.add_user(user, planted.password.text)
    bind_queue(node.url, exchange, "t")
    return Scene(node, certificates, fault_proxy, planted, exchange, user)


async def success(scene: Scene) -> None:
    """Confirmed by one and by many, over plain text and over TLS."""
    for query in ({}, {"tls": True, "ssl_cafile": scene.certificates.ca}):
        async with scene.open(**query) as broker:
            await scene.planted.outcomes(broker, [scene.planted.message() for _ in range(3)])
            for ended in await broker.send_messages([scene.planted.message() for _ in range(3)]):
                scene.planted.look_at(ended)
            await scene.planted.look_at_broker(broker)
    assert scene.planted.seen == {Receipt}


async def wrong_password(scene: Scene) -> None:
    await scene.fails_to_connect(scene.open(password=scene.planted.nasty.text))


async def wrong_vhost(scene: Scene) -> None:
    await scene.fails_to_connect(scene.open(vhost="nowhere"))


async def not_trusted(scene: Scene) -> None:
    await scene.fails_to_connect(scene.open(tls=True, ssl_cafile=scene.certificates.other_ca))
    await scene.fails_to_connect(scene.open(tls=True, port=scene.node.port, ssl_cafile=scene.certificates.ca))


async def unreachable(scene: Scene) -> None:
    """Refused, plain text to a TLS port, and reset."""
    scene.proxy.refuse()
    for port in (scene.proxy.port, scene.node.tls_port):
        await scene.fails_to_connect(scene.open(port=port, delivery_timeout="300ms"))


async def not_amqp(scene: Scene) -> None:
    """A server that repeats what it is told."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        await scene.fails_to_connect(scene.open(port=server.sockets[0].getsockname()[1]))


async def differing_exchange(scene: Scene) -> None:
    await scene.fails_to_connect(scene.open(exchange_type="fanout"))


async def unroutable(scene: Scene) -> None:
    """Alone and beside good neighbours."""
    async with scene.open() as broker:
        await scene.planted.outcomes(broker, [scene.planted.message(topic) for topic in ("nowhere", "t", "nowhere")])


async def nacked(scene: Scene) -> None:
    limits = {"x-max-length": 1, "x-overflow": "reject-publish"}
    bind_queue(scene.node.url, scene.exchange, "full", **limits)
    async with scene.open() as broker:
        for _ in range(3):
            await scene.planted.outcome(broker.send_message(scene.planted.message("full")))


async def missing_exchange(scene: Scene) -> None:
    """Alone, and several at once, which cannot be told apart; aiormq logs the closed channel."""
    async with scene.open(exchange="nowhere-at-all", declare="never") as broker:
        await scene.planted.outcome(broker.send_message(scene.planted.message()))
        await scene.planted.outcomes(broker, [scene.planted.message() for _ in range(5)])


async def forbidden(scene: Scene) -> None:
    await asyncio.to_thread(scene.node.set_permissions, scene.user, write="^$")
    async with scene.open() as broker:
        await scene.planted.outcome(broker.send_message(scene.planted.message()))


async def too_large(scene: Scene) -> None:
    async with scene.open(max_message_bytes="1kB") as broker:
        await scene.planted.outcome(broker.send_message(scene.planted.message(payload=scene.planted.body.text * 100)))


async def stalled(scene: Scene) -> None:
    """Handed over and never confirmed; the next has no room; closed with one pending and one waiting."""
    broker = scene.open(port=scene.proxy.port, max_in_flight=1, delivery_timeout="1s")
    await broker.connect()
    scene.proxy.stall()
    await scene.planted.outcomes(broker, [scene.planted.message() for _ in range(2)])
    await broker.close(0.2)


async def closed(scene: Scene) -> None:
    broker = scene.open(port=scene.proxy.port, max_in_flight=1)
    await broker.connect()
    scene.proxy.stall()
    sending = asyncio.create_task(scene.planted.outcomes(broker, [scene.planted.message() for _ in range(2)]))
    await asyncio.sleep(0.2)
    await broker.close(0.2)
    await sending


async def connection_lost(scene: Scene) -> None:
    """Reset with messages in flight; garbage instead of answers."""
    for fault in (scene.proxy.reset, scene.proxy.corrupt):
        async with scene.open(port=scene.proxy.port) as broker:
            await scene.planted.outcome(broker.send_message(scene.planted.message()))
            if fault == scene.proxy.reset:
                scene.proxy.stall("down")
            else:
                fault()
            sending = asyncio.create_task(scene.planted.outcomes(broker, [scene.planted.message() for _ in range(5)]))
            await asyncio.sleep(0.2)
            fault()
            scene.proxy.heal()
            await sending


async def blocked(scene: Scene) -> None:
    """A memory alarm."""
    async with scene.open(delivery_timeout="1500ms") as broker:
        await asyncio.to_thread(scene.node.set_memory_alarm, True)
        try:
            await scene.planted.outcome(broker.send_message(scene.planted.message()))
            await scene.planted.look_at_broker(broker)
            await scene.planted.outcome(broker.send_message(scene.planted.message()))
        finally:
            await asyncio.to_thread(scene.node.set_memory_alarm, False)


SITUATIONS: dict[Callable[[Scene], Awaitable[None]], set[type[BrokerError]]] = {
    success: set(),
    wrong_password: {AuthenticationError, NotConnectedError},
    wrong_vhost: {AuthorizationError, NotConnectedError},
    not_trusted: {TLSError, NotConnectedError},
    unreachable: {UnreachableError, NotConnectedError},
    not_amqp: {ProtocolError, NotConnectedError},
    differing_exchange: {TopologyError, NotConnectedError},
    unroutable: {UnroutableError},
    nacked: {NackedError},
    missing_exchange: {DestinationNotFoundError, ConnectionLostError},
    forbidden: {PublishForbiddenError},
    too_large: {MessageTooLargeError},
    stalled: {DeliveryTimeoutError, BackpressureError},
    closed: {ClosedWhilePendingError, BrokerClosedError},
    connection_lost: {ConnectionLostError},
    blocked: {DeliveryTimeoutError, BrokerBlockedError},
}
"""What happens, and the classes that must be seen, and no others."""


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.__name__)
async def test_nothing_shows(scene: Scene, situation: Callable[[Scene], Awaitable[None]]) -> None:
    """0 hits in errors, causes, receipts, brokers, observers, warnings and every log record at DEBUG."""
    await situation(scene)
    expected = SITUATIONS[situation]
    if situation is missing_exchange:  # whether five at once have become several or one after the other is a race
        assert DestinationNotFoundError in scene.planted.seen
        assert scene.planted.seen <= expected
    else:
        assert scene.planted.seen - {Receipt} == expected
    assert scene.planted.observer.told


async def test_the_clients_log_at_debug(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """aiormq's records come by; those of whole frames, when it writes any, show what is sent but for our filters."""
    seen: set[str] = set()
    record = scene.planted.scanner.record
    monkeypatch.setattr(scene.planted.scanner, "record", lambda it: (seen.add(it.name), record(it)))
    async with scene.open() as broker:
        await scene.planted.outcome(broker.send_message(scene.planted.message()))
    assert "aiormq.connection" in seen
    monkeypatch.setattr(_fallback, "unexpected", lambda connection, channel: "it is not what it was")  # aiormq writes
    unfiltered = CanaryScanner(scene.planted.body, scene.planted.key, scene.planted.header)
    with unfiltered.watching():
        for name in LOGGERS:
            monkeypatch.setattr(logging.getLogger(name), "filter", lambda record: True)
        async with scene.open() as broker:
            await broker.send_message(scene.planted.message())
    assert {hit.canary for hit in unfiltered.hits} == {"the body", "the key", "a header value"}
