"""Messages through a real RabbitMQ: what arrives, and what the sender is told."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from cqrs_broker_amqp import AMQPMessageBroker, AMQPPublisherAdapter
from cqrs_brokers import (
    Message,
    MessageTooLargeError,
    NackedError,
    Receipt,
    UnroutableError,
    open_broker,
)
from cqrs_brokers_testkit.leaks import no_leaks
from cqrs_brokers_testkit.readers import Record, bind_queue, drain_queue
from cqrs_brokers_testkit.servers import RabbitMQServer

from .outcomes import Sent, check, ids

pytestmark = pytest.mark.live


async def drain(server: RabbitMQServer, queue: str, count: int | None = None) -> list[Record]:
    return await asyncio.to_thread(drain_queue, server.url, queue, count)


async def test_every_field_arrives(rabbitmq: RabbitMQServer, exchange: str) -> None:
    """An independent client reads back every field, persistent, under the topic as routing key."""
    queue = bind_queue(rabbitmq.url, exchange, "orders.#")
    message = Message(
        "OrderPlaced",
        "orders.eu",
        {"ü": 1},
        key="kü-1",
        headers={"trace": "ä", "empty": ""},
    )
    async with open_broker(f"{rabbitmq.url}?exchange={exchange}") as broker:
        receipt = await broker.send_message(message)
    assert receipt == Receipt(message.message_id, "orders.eu", "amqp", True)
    (record,) = await drain(rabbitmq, queue, 1)
    assert (record.topic, record.key, record.name) == ("orders.eu", "kü-1", "OrderPlaced")
    assert record.message_id == str(message.message_id)
    assert record.headers == {"trace": "ä", "empty": ""}
    assert (record.body, record.content_type) == ('{"ü":1}'.encode(), "application/json")
    assert record.timestamp == message.timestamp.replace(microsecond=0)
    assert record.properties["delivery_mode"] == 2
    assert record.exchange == exchange


async def test_the_longest_names_arrive(rabbitmq: RabbitMQServer, exchange: str) -> None:
    """A topic and a name of 255 bytes, a header name of 128 and large values arrive whole."""
    queue = bind_queue(rabbitmq.url, exchange)
    topic, name, header, text = "ü" * 127 + "t", "n" * 255, "ä" * 64, "ö" * 16_383
    assert [len(one.encode()) for one in (topic, name, header)] == [255, 255, 128]
    messages = [Message(name, topic, number, key=text, headers={header: text, "h" * 128: ""}) for number in range(3)]
    async with open_broker(f"{rabbitmq.url}?exchange={exchange}") as broker:
        await asyncio.gather(*map(broker.send_message, messages))
    for record, message in zip(await drain(rabbitmq, queue, 3), messages, strict=True):
        assert (record.topic, record.name, record.key) == (topic, name, text)
        assert record.headers == {header: text, "h" * 128: ""}
        assert (record.message_id, record.json()) == (str(message.message_id), message.payload)


@pytest.mark.parametrize("size", [0, 1, 131_064, 131_065, 131_072, 400_000, 999_000])
async def test_bodies_of_every_size(rabbitmq: RabbitMQServer, exchange: str, size: int) -> None:
    """Empty bodies and bodies of several frames arrive as they were."""
    queue = bind_queue(rabbitmq.url, exchange)
    body = bytes(range(256)) * (size // 256) + b"z" * (size % 256)
    async with open_broker(f"{rabbitmq.url}?exchange={exchange}") as broker:
        await asyncio.gather(*(broker.send_message(Message("n", "t", body)) for _ in range(3)))
    assert [record.body for record in await drain(rabbitmq, queue, 3)] == [body] * 3


async def test_order_of_calls_is_order_in_the_queue(rabbitmq: RabbitMQServer, exchange: str) -> None:
    """Thousands in flight arrive once each, in the order of the calls."""
    queue = bind_queue(rabbitmq.url, exchange)
    messages = [Message("n", "t", number, key=f"k{number % 7}") for number in range(3000)]
    async with open_broker(f"{rabbitmq.url}?exchange={exchange}") as broker:
        await asyncio.gather(*(broker.send_message(message) for message in messages[:1500]))
        outcomes = await broker.send_messages(messages[1500:])
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    records = await drain(rabbitmq, queue, 3000)
    assert [int(record.body) for record in records] == list(range(3000))


async def test_unroutable(rabbitmq: RabbitMQServer, exchange: str) -> None:
    """A message without a queue is returned: its sender is told what to do, its neighbours get receipts."""
    bind_queue(rabbitmq.url, exchange, "there")
    async with open_broker(f"{rabbitmq.url}?exchange={exchange}") as broker:
        outcomes = await broker.send_messages(
            [Message("n", "there" if number % 7 else "nowhere", number) for number in range(700)]
        )
        for number, outcome in enumerate(outcomes):
            assert isinstance(outcome, Receipt if number % 7 else UnroutableError)
        with pytest.raises(
            UnroutableError, match=f"no queue is bound to exchange '{exchange}' for 'nowhere'"
        ) as caught:
            await broker.send_message(Message("n", "nowhere", 1))
    assert "use declare=queue" in str(caught.value)
    assert not caught.value.retryable


async def test_nack_is_unknown(rabbitmq: RabbitMQServer, exchange: str) -> None:
    """A full queue nacks although a free queue beside it holds every message: nacked means unknown."""
    limits: dict[str, Any] = {"x-max-length": 1, "x-overflow": "reject-publish"}
    full = bind_queue(rabbitmq.url, exchange, **limits)
    free = bind_queue(rabbitmq.url, exchange)
    async with open_broker(f"{rabbitmq.url}?exchange={exchange}") as broker:
        outcomes = [(await broker.send_messages([Message("n", "t", number)]))[0] for number in range(20)]
    nacked = [outcome for outcome in outcomes if isinstance(outcome, NackedError)]
    assert len(nacked) == 19
    assert nacked[0].retryable
    assert len(await drain(rabbitmq, free, 20)) == 20
    assert len(await drain(rabbitmq, full, 1)) == 1


async def test_a_burst_into_a_full_queue(rabbitmq: RabbitMQServer, exchange: str) -> None:
    """With 200 at once, a receipt means in both queues, a nack not in the full one, and the free one has them all."""
    limits: dict[str, Any] = {"x-max-length": 1, "x-overflow": "reject-publish"}
    full = bind_queue(rabbitmq.url, exchange, **limits)
    free = bind_queue(rabbitmq.url, exchange)
    messages = [Message("n", "t", number, key="k") for number in range(200)]
    async with open_broker(f"{rabbitmq.url}?exchange={exchange}") as broker:
        sent: list[Sent] = list(zip(messages, await broker.send_messages(messages), strict=True))
    assert {type(outcome) for _, outcome in sent} == {Receipt, NackedError}
    assert [record.message_id for record in await drain(rabbitmq, full)] == ids(sent, Receipt)
    assert [int(record.body) for record in await check(rabbitmq.url, free, sent)] == list(range(200))


async def test_equal_ids_in_flight_never_give_a_false_receipt(rabbitmq: RabbitMQServer, exchange: str) -> None:
    """200 pairs of one id, one routable and one not, in either order: each gets its own outcome."""
    queue = bind_queue(rabbitmq.url, exchange, "there")
    async with open_broker(f"{rabbitmq.url}?exchange={exchange}") as broker:
        sends, topics = [], []
        for pair in range(200):
            message_id = uuid4()
            for topic in ("there", "nowhere") if pair % 2 else ("nowhere", "there"):
                topics.append(topic)
                sends.append(broker.send_message(Message("n", topic, pair, message_id, key="k")))
        outcomes = await asyncio.gather(*sends, return_exceptions=True)
    for topic, outcome in zip(topics, outcomes, strict=True):
        assert isinstance(outcome, Receipt if topic == "there" else UnroutableError)
    assert [int(record.body) for record in await drain(rabbitmq, queue, 200)] == list(range(200))


async def test_one_id_many_times(rabbitmq: RabbitMQServer, exchange: str) -> None:
    """The same id fifty times at once: all arrive, in order."""
    queue = bind_queue(rabbitmq.url, exchange)
    message_id = uuid4()
    async with open_broker(f"{rabbitmq.url}?exchange={exchange}") as broker:
        await asyncio.gather(*(broker.send_message(Message("n", "t", number, message_id)) for number in range(50)))
    assert [int(record.body) for record in await drain(rabbitmq, queue, 50)] == list(range(50))


async def test_cancelled_senders_disturb_nobody(rabbitmq: RabbitMQServer, exchange: str) -> None:
    """A third of the senders is cancelled; the others get receipts, and each of those is in the queue once."""
    queue = bind_queue(rabbitmq.url, exchange)
    async with open_broker(f"{rabbitmq.url}?exchange={exchange}") as broker:
        messages = [Message("n", "t", number) for number in range(999)]
        tasks = [asyncio.create_task(broker.send_message(message)) for message in messages]
        await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await broker.flush()
    assert all(isinstance(outcome, Receipt) for index, outcome in enumerate(outcomes) if index % 3)
    arrived = [record.message_id for record in await drain(rabbitmq, queue, 666)]
    confirmed = {str(outcome.message_id) for outcome in outcomes if isinstance(outcome, Receipt)}
    assert len(arrived) == len(set(arrived))
    assert confirmed <= set(arrived)


async def test_too_large_for_the_broker(rabbitmq: RabbitMQServer, exchange: str) -> None:
    """Larger than max_message_bytes is refused here; the next message is not disturbed."""
    bind_queue(rabbitmq.url, exchange)
    async with open_broker(f"{rabbitmq.url}?exchange={exchange}&max_message_bytes=10kB") as broker:
        with pytest.raises(MessageTooLargeError):
            await broker.send_message(Message("n", "t", b"x" * 10_001))
        assert (await broker.send_message(Message("n", "t", b"x" * 9000))).confirmed


async def test_the_documented_classes_publish(rabbitmq: RabbitMQServer, exchange: str) -> None:
    """The adapter's broker publishes; value_serializer encodes payloads that come without bytes."""
    queue = bind_queue(rabbitmq.url, exchange)
    adapter = AMQPPublisherAdapter(dsn=rabbitmq.url, value_serializer=lambda payload: f"<{payload}>".encode())
    async with no_leaks():
        async with AMQPMessageBroker(publisher=adapter, exchange_name=exchange) as broker:
            await broker.send_message(Message("n", "t", "a"))
            await broker.send_message(Message("n", "t", "a", payload_bytes=b"verbatim"))
    assert [record.body for record in await drain(rabbitmq, queue, 2)] == [b"<a>", b"verbatim"]


async def test_health(rabbitmq: RabbitMQServer, exchange: str) -> None:
    """Health asks the broker, also concurrently with sends."""
    bind_queue(rabbitmq.url, exchange)
    async with open_broker(f"{rabbitmq.url}?exchange={exchange}") as broker:
        sends = [broker.send_message(Message("n", "t", number)) for number in range(100)]
        healths, _ = await asyncio.gather(asyncio.gather(broker.health(), broker.health()), asyncio.gather(*sends))
    assert [health.ok for health in healths] == [True, True]


async def test_a_loop_per_test(rabbitmq: RabbitMQServer, exchange: str) -> None:
    """One broker used in one event loop after the other connects anew, without noise from the client."""
    bind_queue(rabbitmq.url, exchange)
    broker = open_broker(f"{rabbitmq.url}?exchange={exchange}")

    def run() -> Receipt:
        async def send() -> Receipt:
            return await broker.send_message(Message("n", "t", 1))

        return asyncio.run(send())

    assert (await asyncio.to_thread(run)).confirmed
    assert (await asyncio.to_thread(run)).confirmed
