"""The bridge on real servers; what arrived is read back by pika and confluent-kafka."""

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import aio_pika.abc
import cqrs
import pytest
from aio_pika import pool
from cqrs.adapters import amqp as own_adapters
from cqrs.message_brokers import amqp as own_brokers
from cqrs.outbox.mock import MockOutboxedEventRepository

from cqrs_brokers import TopologyError
from cqrs_brokers_python_cqrs import message_broker
from cqrs_brokers_testkit.pytest_plugin import UniqueName
from cqrs_brokers_testkit.readers import Record, bind_queue, drain_queue, drain_topic
from cqrs_brokers_testkit.servers import KafkaServer, RabbitMQServer

from .application import CoreOrderPlaced, Emit, Order, OrderPlaced, OwnOrderPlaced, key_of, mediator

pytestmark = pytest.mark.live

Read = Callable[[int], list[Record]]


@pytest.fixture(params=["rabbitmq", "kafka"])
def live(request: pytest.FixtureRequest, unique_name: UniqueName) -> tuple[str, str, Read]:
    """A config string, a topic, and what reads at least so many messages of the topic."""
    topic = unique_name("orders")
    server = request.getfixturevalue(request.param)
    if isinstance(server, KafkaServer):
        server.create_topic(topic)
        read = functools.partial(drain_topic, server.reader_bootstrap_servers, topic)
        return server.url, topic, read
    exchange = unique_name("exchange")
    queue = bind_queue(server.url, exchange, topic)
    return f"{server.url}?exchange={exchange}", topic, functools.partial(drain_queue, server.url, queue)


async def test_a_handler_s_events_of_both_libraries_arrive_with_name_and_ordering_key(
    live: tuple[str, str, Read],
) -> None:
    """The bridge's under its `event_name`, python-cqrs' own under its class name, as its emitter has it."""
    url, topic, read = live
    ours = OrderPlaced(topic=topic, payload=Order(order_id="7", total=5))
    own = OwnOrderPlaced(topic=topic, payload={"order_id": "8"})
    async with message_broker(url, ordering_key=key_of) as adapter:
        await mediator(adapter).send(Emit(events=[ours, own]))
    records = await asyncio.to_thread(read, 2)
    assert [(record.name, record.key, record.message_id, record.topic) for record in records] == [
        ("OrderPlaced", "7", str(ours.event_id), topic),
        ("OwnOrderPlaced", "8", str(own.event_id), topic),
    ]
    assert [record.body for record in records] == [
        cqrs.JsonEventSerializer().serialize(ours),
        cqrs.JsonEventSerializer().serialize(own),
    ]
    assert {record.content_type for record in records} == {"application/json"}


async def test_event_producer_publishes_the_outbox(live: tuple[str, str, Read]) -> None:
    """python-cqrs' own relay, with core's own event class and python-cqrs'; it names both by `event_name`."""
    url, topic, read = live
    repository = MockOutboxedEventRepository(session_factory=dict)
    events: list[Any] = [
        CoreOrderPlaced(topic=topic, payload=Order(order_id="1")),
        OwnOrderPlaced(topic=topic, payload={"order_id": "2"}),
    ]
    for event in events:
        repository.add(event)
    async with message_broker(url, ordering_key=key_of) as adapter:
        producer = cqrs.EventProducer(adapter, repository)
        for row in await repository.get_many():
            await producer.send_message(row)
    assert await repository.get_many() == []
    records = await asyncio.to_thread(read, 2)
    assert [(record.name, record.key) for record in records] == [("CoreOrderPlaced", "1"), ("own.order_placed", "2")]


def test_one_broker_serves_an_event_loop_per_test(live: tuple[str, str, Read]) -> None:
    """Made once; each `asyncio.run` has a mediator of its own, and the last one closes the broker."""
    url, topic, read = live
    adapter = message_broker(url)

    async def one_test(number: int) -> None:
        await mediator(adapter).send(
            Emit(events=[OrderPlaced(topic=topic, payload=Order(order_id="same", total=number))])
        )
        if number == 2:
            await adapter.broker.close()

    for number in range(2):
        with pytest.warns(ResourceWarning, match="not closed"):
            asyncio.run(one_test(number))
    asyncio.run(one_test(2))
    assert [record.json()["payload"]["total"] for record in read(3)] == [0, 1, 2]


async def test_declare_never_publishes_to_python_cqrs_live_topology(
    rabbitmq: RabbitMQServer, unique_name: UniqueName
) -> None:
    """Beside its own publisher, into its transient queue on its auto-delete direct exchange, to its own consumer."""
    topic, exchange = unique_name("orders"), unique_name("events")
    bodies: asyncio.Queue[bytes] = asyncio.Queue()

    async def handle(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        async with message.process():
            bodies.put_nowait(message.body)

    # Its factories, with pools that this test can close.
    connections: pool.Pool[Any] = pool.Pool(
        functools.partial(own_adapters.connection_pool_factory, url=rabbitmq.url), max_size=2
    )
    channels: pool.Pool[Any] = pool.Pool(
        functools.partial(own_adapters.channel_pool_factory, connection_pool=connections), max_size=10
    )
    async with connections, channels:
        own = own_brokers.AMQPMessageBroker(own_adapters.AMQPPublisher(channels), exchange)
        first, second, third = (OrderPlaced(topic=topic, payload=Order(order_id=str(number))) for number in range(3))
        await mediator(own).send(Emit(events=[first]))  # creates the topology
        consuming = asyncio.create_task(own_adapters.AMQPConsumer(channels).consume(handle, topic))
        try:
            async with message_broker(f"{rabbitmq.url}?exchange={exchange}&declare=never") as adapter:
                await mediator(adapter).send(Emit(events=[second]))
            await mediator(own).send(Emit(events=[third]))
            async with asyncio.timeout(10):
                received = [await bodies.get() for _ in range(3)]
        finally:
            consuming.cancel()
            await asyncio.wait([consuming])
    assert received == [cqrs.JsonEventSerializer().serialize(event) for event in (first, second, third)]


async def test_any_other_declare_names_what_differs_from_python_cqrs_live_topology(
    rabbitmq: RabbitMQServer, unique_name: UniqueName
) -> None:
    """A transient direct exchange cannot become a durable topic exchange; nothing is published beside it silently."""
    topic, exchange = unique_name("orders"), unique_name("events")
    connections: pool.Pool[Any] = pool.Pool(
        functools.partial(own_adapters.connection_pool_factory, url=rabbitmq.url), max_size=1
    )
    channels: pool.Pool[Any] = pool.Pool(
        functools.partial(own_adapters.channel_pool_factory, connection_pool=connections), max_size=1
    )
    async with connections, channels:
        own = own_brokers.AMQPMessageBroker(own_adapters.AMQPPublisher(channels), exchange)
        await mediator(own).send(Emit(events=[OrderPlaced(topic=topic, payload=Order(order_id="1"))]))
        adapter = message_broker(f"{rabbitmq.url}?exchange={exchange}")
        with pytest.raises(TopologyError, match=exchange):
            await adapter.broker.connect()
        await adapter.broker.close()
