"""What is declared, what is only checked, and what a difference is called."""

import asyncio
import time
from collections.abc import Callable, Iterator

import pika
import pytest
from aiormq.exceptions import ChannelPreconditionFailed

from cqrs_broker_amqp import AMQPOptions
from cqrs_broker_amqp._topology import declare_exchange
from cqrs_brokers import (
    ConnectionLostError,
    DeliveryError,
    DestinationNotFoundError,
    Message,
    NotDeliveredError,
    Receipt,
    TopologyError,
    UnroutableError,
    open_broker,
)
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.readers import bind_queue, drain_queue
from cqrs_brokers_testkit.servers import RabbitMQServer

from .outcomes import Sent, check, through

pytestmark = pytest.mark.live

Name = Callable[[str], str]


def on_channel(server: RabbitMQServer, action: Callable[[pika.channel.Channel], object]) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(server.url))
    try:
        action(connection.channel())
    finally:
        connection.close()


def read_methods(data: bytes) -> Iterator[object]:
    """The AMQP methods in what a client wrote, as pika reads them."""
    while data:
        size, frame = pika.frame.decode_frame(data)
        assert size, "the end of a frame is missing"
        if isinstance(frame, pika.frame.Method):
            yield frame.method
        data = data[size:]


def exists(server: RabbitMQServer, exchange: str) -> bool:
    try:
        on_channel(server, lambda channel: channel.exchange_declare(exchange, passive=True))
    except pika.exceptions.ChannelClosedByBroker:
        return False
    return True


async def test_exchange_is_created_durable_of_its_type(rabbitmq: RabbitMQServer, exchange: str) -> None:
    """declare=exchange makes a durable exchange of exchange_type."""
    async with open_broker(f"{rabbitmq.url}?exchange={exchange}&exchange_type=direct"):
        pass
    on_channel(rabbitmq, lambda channel: channel.exchange_declare(exchange, "direct", durable=True))


async def test_queue_per_topic(rabbitmq: RabbitMQServer, exchange: str, unique_name: Name) -> None:
    """declare=queue makes one durable queue per topic, bound, before the first message; order is kept."""
    topics = [unique_name("topic") for _ in range(12)]
    async with open_broker(f"{rabbitmq.url}?exchange={exchange}&declare=queue") as broker:
        messages = [Message("n", topics[number % 12], number, key="k") for number in range(600)]
        await asyncio.gather(*(broker.send_message(message) for message in messages))
    for index, topic in enumerate(topics):
        records = await asyncio.to_thread(drain_queue, rabbitmq.url, topic, 50)
        assert [int(record.body) for record in records] == list(range(index, 600, 12))
        on_channel(rabbitmq, lambda channel, topic=topic: channel.queue_declare(topic, durable=True))  # type: ignore[misc]


async def test_a_queue_that_differs(rabbitmq: RabbitMQServer, exchange: str, unique_name: Name) -> None:
    """declare=queue on a queue that differs says what differs; other topics go on."""
    odd, good = unique_name("odd"), unique_name("good")
    on_channel(rabbitmq, lambda channel: channel.queue_declare(odd, durable=True, arguments={"x-max-length": 7}))
    async with open_broker(f"{rabbitmq.url}?exchange={exchange}&declare=queue") as broker:
        first, second = await asyncio.gather(
            broker.send_message(Message("n", odd, 1)),
            broker.send_message(Message("n", good, 1)),
            return_exceptions=True,
        )
        assert isinstance(second, Receipt)
        assert isinstance(first, NotDeliveredError)
        assert f"queue '{odd}' has x-max-length=7, and x-max-length=none was declared" in str(first)
        assert isinstance(first.__cause__, TopologyError)
        assert (await broker.send_message(Message("n", good, 2))).confirmed


async def test_default_exchange(rabbitmq: RabbitMQServer, unique_name: Name) -> None:
    """An empty exchange is RabbitMQ's default one: the topic is the queue's name."""
    topic = unique_name("topic")
    async with open_broker(f"{rabbitmq.url}?exchange=&declare=queue") as broker:
        assert (await broker.send_message(Message("n", topic, 1))).confirmed
    assert len(await asyncio.to_thread(drain_queue, rabbitmq.url, topic, 1)) == 1


@pytest.mark.parametrize(
    ("kind", "durable", "says"),
    [
        (
            "fanout",
            True,
            ["has type=fanout, and type=topic was declared", "exchange_type=fanout", "declare=passive"],
        ),
        ("topic", False, ["has durable=false, and durable=true was declared", "declare=passive"]),
    ],
)
async def test_an_exchange_that_differs(
    rabbitmq: RabbitMQServer, exchange: str, kind: str, durable: bool, says: list[str]
) -> None:
    """A mismatch fails connect() and every send at once, and names argument, both values and the option to set."""
    on_channel(rabbitmq, lambda channel: channel.exchange_declare(exchange, kind, durable=durable))
    broker = open_broker(f"{rabbitmq.url}?exchange={exchange}")
    started = time.monotonic()
    with pytest.raises(TopologyError) as caught:
        await broker.connect()
    with pytest.raises(NotDeliveredError) as failed:
        await broker.send_message(Message("n", "t", 1))
    assert time.monotonic() - started < 2
    assert all(text in str(caught.value) for text in says), str(caught.value)
    assert isinstance(failed.value.__cause__, TopologyError)
    await broker.close()


async def test_an_exchange_of_a_plugin_s_type_is_named() -> None:
    """RabbitMQ quotes such a type twice; the text says the type, and not to use it as exchange_type."""

    class Channel:
        async def exchange_declare(self, *_: object, **__: object) -> None:
            raise ChannelPreconditionFailed(
                "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'events' in vhost '/': "
                "received 'topic' but current is ''x-recent-history''"
            )

    with pytest.raises(TopologyError, match="has type=x-recent-history, and type=topic was declared: set declare="):
        await declare_exchange(Channel(), AMQPOptions(exchange="events"))


async def test_passive_only_checks(rabbitmq: RabbitMQServer, exchange: str) -> None:
    """declare=passive takes any exchange that is there, and creates none."""
    broker = open_broker(f"{rabbitmq.url}?exchange={exchange}&declare=passive")
    with pytest.raises(TopologyError, match=f"there is no exchange '{exchange}'"):
        await broker.connect()
    assert not exists(rabbitmq, exchange)
    queue = bind_queue(rabbitmq.url, exchange, exchange_type="fanout")
    await broker.connect()
    assert (await broker.send_message(Message("n", "t", 1))).confirmed
    await broker.close()
    assert len(await asyncio.to_thread(drain_queue, rabbitmq.url, queue, 1)) == 1


async def test_never_declares(rabbitmq: RabbitMQServer, exchange: str) -> None:
    """declare=never connects without the exchange; every send says that it is missing, none is left unknown."""
    async with open_broker(f"{rabbitmq.url}?exchange={exchange}&declare=never") as broker:
        outcomes = await broker.send_messages([Message("n", "t", number) for number in range(300)])
        assert {type(outcome) for outcome in outcomes} == {DestinationNotFoundError}
        assert "declare=exchange" in str(outcomes[0])
        assert not exists(rabbitmq, exchange)
        bind_queue(rabbitmq.url, exchange)
        assert (await broker.send_message(Message("n", "t", 1))).confirmed


async def test_never_publishes_to_a_transient_topology(rabbitmq: RabbitMQServer, exchange: str) -> None:
    """declare=never publishes to an auto-delete, transient direct exchange."""
    connection = pika.BlockingConnection(pika.URLParameters(rabbitmq.url))
    channel = connection.channel()
    channel.exchange_declare(exchange, "direct", auto_delete=True)
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.queue_bind(queue, exchange, "t")
    async with open_broker(f"{rabbitmq.url}?exchange={exchange}&declare=never") as broker:
        assert (await broker.send_message(Message("n", "t", 1))).confirmed
    assert channel.basic_get(queue, auto_ack=True)[2] == b"1"
    connection.close()


@pytest.mark.parametrize("kind", ["topic", "direct", "fanout", "headers"])
async def test_exchanges_of_every_type(rabbitmq: RabbitMQServer, exchange: str, kind: str) -> None:
    """Messages reach the queues of every exchange type."""
    queue = bind_queue(rabbitmq.url, exchange, "t", exchange_type=kind)
    async with open_broker(f"{rabbitmq.url}?exchange={exchange}&exchange_type={kind}") as broker:
        assert (await broker.send_message(Message("n", "t", 1))).confirmed
    assert len(await asyncio.to_thread(drain_queue, rabbitmq.url, queue, 1)) == 1


async def test_quorum_queue(rabbitmq: RabbitMQServer, exchange: str, unique_name: Name) -> None:
    """A quorum queue confirms too."""
    queue = bind_queue(rabbitmq.url, exchange, "#", unique_name("quorum"), **{"x-queue-type": "quorum"})
    async with open_broker(f"{rabbitmq.url}?exchange={exchange}") as broker:
        outcomes = await broker.send_messages([Message("n", "t", number) for number in range(200)])
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    records = await asyncio.to_thread(drain_queue, rabbitmq.url, queue, 200)
    assert [int(record.body) for record in records] == list(range(200))


@pytest.mark.parametrize(
    ("declare", "while_reopening"),
    [
        ("exchange", UnroutableError),  # it is there again, and nothing is bound to it
        ("queue", Receipt),
        ("passive", DestinationNotFoundError),
        ("never", DestinationNotFoundError),
    ],
)
async def test_an_exchange_deleted_under_way(
    rabbitmq: RabbitMQServer, exchange: str, unique_name: Name, declare: str, while_reopening: type[object]
) -> None:
    """What was handed over is unknown, what was not gets what `declare` makes of it, and later sends go on."""
    topic = unique_name("topic")
    queue = bind_queue(rabbitmq.url, exchange, topic, topic)
    sent: list[Sent] = []
    async with open_broker(f"{rabbitmq.url}?exchange={exchange}&declare={declare}") as broker:

        async def send(count: int) -> list[Receipt | DeliveryError]:
            messages = [Message("n", topic, number, key="k") for number in range(count)]
            outcomes = await broker.send_messages(messages)
            sent.extend(zip(messages, outcomes, strict=True))
            return outcomes

        assert isinstance((await send(1))[0], Receipt)
        on_channel(rabbitmq, lambda channel: channel.exchange_delete(exchange))
        lost = await send(50)
        waiting = await send(50)  # the channel is being opened again
        assert {type(outcome) for outcome in lost} == {ConnectionLostError}
        assert "NOT_FOUND - no exchange" in str(lost[0])
        assert {type(outcome) for outcome in waiting} == {while_reopening}
        assert exists(rabbitmq, exchange) is (declare in ("exchange", "queue"))
        bind_queue(rabbitmq.url, exchange, topic, topic)
        assert isinstance((await send(1))[0], Receipt)
        assert {type(outcome) for outcome in await send(50)} == {Receipt}
    await check(rabbitmq.url, queue, sent)


async def test_declared_again_after_a_reconnect(
    rabbitmq: RabbitMQServer, exchange: str, unique_name: Name, fault_proxy: FaultProxy
) -> None:
    """declare=queue: exchange and queue that were deleted while the connection was lost are there for what waited."""
    topic = unique_name("topic")
    proxy = fault_proxy
    proxy.target = (rabbitmq.host, rabbitmq.port)
    async with open_broker(through(proxy, rabbitmq, exchange=exchange, declare="queue")) as broker:
        assert (await broker.send_message(Message("n", topic, "before"))).confirmed
        proxy.refuse()
        proxy.reset()
        on_channel(rabbitmq, lambda channel: (channel.queue_delete(topic), channel.exchange_delete(exchange)))
        while (await broker.health()).ok:  # else it might hand over to the connection that is gone
            await asyncio.sleep(0.01)
        messages = [Message("n", topic, number, key="k") for number in range(10)]
        sends = [asyncio.create_task(broker.send_message(message)) for message in messages]
        await asyncio.sleep(0.05)
        assert not any(send.done() for send in sends)
        proxy.accept()
        sent = list(zip(messages, await asyncio.gather(*sends, return_exceptions=True), strict=True))
    assert {type(outcome) for _, outcome in sent} == {Receipt}
    assert len(await check(rabbitmq.url, topic, sent)) == 10


async def test_declared_once(
    rabbitmq: RabbitMQServer, exchange: str, unique_name: Name, fault_proxy: FaultProxy
) -> None:
    """declare=queue: on one connection the exchange is declared once, and each topic's queue once."""
    topics = [unique_name("topic") for _ in range(2)]
    proxy = fault_proxy
    proxy.target = (rabbitmq.host, rabbitmq.port)
    written: list[bytes] = []

    def record(data: bytes) -> bytes:
        written.append(data)
        return data

    proxy.rewrite(record, "up")
    async with open_broker(through(proxy, rabbitmq, exchange=exchange, declare="queue")) as broker:
        for _ in range(2):  # at once, when nothing is declared and when all is; then one after the other
            outcomes = await broker.send_messages([Message("n", topics[number % 2], number) for number in range(80)])
            assert {type(outcome) for outcome in outcomes} == {Receipt}
        for number in range(40):
            assert (await broker.send_message(Message("n", topics[number % 2], number))).confirmed
    methods = list(read_methods(b"".join(written)))
    assert proxy.accepted == 1
    assert [one.exchange for one in methods if isinstance(one, pika.spec.Exchange.Declare)] == [exchange]
    assert sorted(one.queue for one in methods if isinstance(one, pika.spec.Queue.Declare)) == sorted(topics)
    assert sorted(one.queue for one in methods if isinstance(one, pika.spec.Queue.Bind)) == sorted(topics)
    assert sum(isinstance(one, pika.spec.Basic.Publish) for one in methods) == 200


async def test_alone_it_is_told_why(rabbitmq: RabbitMQServer, exchange: str) -> None:
    """The only message in flight when the exchange is gone gets DestinationNotFoundError, and the next send works."""
    async with open_broker(f"{rabbitmq.url}?exchange={exchange}") as broker:
        bind_queue(rabbitmq.url, exchange)
        assert (await broker.send_message(Message("n", "t", 0))).confirmed
        on_channel(rabbitmq, lambda channel: channel.exchange_delete(exchange))
        with pytest.raises(DestinationNotFoundError, match="there is no exchange"):
            await broker.send_message(Message("n", "t", 0))
        await asyncio.sleep(0.3)
        bind_queue(rabbitmq.url, exchange)
        assert (await broker.send_message(Message("n", "t", 0))).confirmed
