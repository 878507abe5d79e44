"""`declare=queue`: queues that are deleted, many at once, limits of channels and queues, types."""

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from cqrs_broker_amqp import AMQPOptions
from cqrs_broker_amqp._declaring import Declarations
from cqrs_brokers import (
    ConfigError,
    Message,
    NotDeliveredError,
    Receipt,
    TopologyError,
    UnroutableError,
    open_broker,
)
from cqrs_brokers.tasks import Tasks
from cqrs_brokers_testkit.readers import drain_queue
from cqrs_brokers_testkit.servers import RabbitMQNode

from .nodes import on_channel, private_node
from .outcomes import Sent, check

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]

Name = Callable[[str], str]


@pytest.fixture(scope="module")
def node() -> Iterator[RabbitMQNode]:
    """A node that allows 16 channels per connection."""
    with private_node(settings={"channel_max": "16"}) as node:
        yield node


@pytest.fixture
async def user(node: RabbitMQNode, unique_name: Name) -> str:
    """A user with all permissions and the password "pass-word"."""
    name = unique_name("user")
    await asyncio.to_thread(node.add_user, name, "pass-word")
    return name


async def open_channels(node: RabbitMQNode) -> list[int]:
    """How many channels each connection of ours has open."""
    told = await asyncio.to_thread(node.ctl, "list_connections", "channels", "client_properties")
    return [int(line.split("\t")[0]) for line in told.splitlines() if "aiormq" in line]


async def test_a_deleted_queue_is_declared_again(node: RabbitMQNode, exchange: str, unique_name: Name) -> None:
    """Whoever deletes the queue: the next message finds it again, once for each deletion."""
    topic = unique_name("topic")
    async with open_broker(f"{node.url}?exchange={exchange}&declare=queue") as broker:
        for number in range(4):
            message = Message("n", topic, number, key="k")
            assert (await broker.send_message(message)).confirmed
            records = await asyncio.to_thread(drain_queue, node.url, topic, 1)
            assert [record.json() for record in records] == [number]
            with on_channel(node) as channel:
                channel.queue_delete(topic)


async def test_deleted_under_load(node: RabbitMQNode, exchange: str, unique_name: Name) -> None:
    """A queue is deleted between sends of many keys: order per key holds; what failed is retryable and not there."""
    topic = unique_name("topic")
    sent: list[Sent] = []
    async with open_broker(f"{node.url}?exchange={exchange}&declare=queue") as broker:
        assert (await broker.send_message(Message("n", topic, 0))).confirmed
        for _ in range(5):
            messages = [Message("n", topic, number, key=str(number % 7)) for number in range(200)]
            keyless = [Message("n", topic, number) for number in range(100)]
            with on_channel(node) as channel:
                channel.queue_delete(topic)
            batch = [*messages[:100], *keyless, *messages[100:]]
            outcomes = await broker.send_messages(batch)
            sent = list(zip(batch, outcomes, strict=True))
            failed = [one for one in outcomes if not isinstance(one, Receipt)]
            assert {type(one) for one in failed} <= {UnroutableError}
            assert all(one.retryable for one in failed)
            assert {type(one) for one in outcomes[100:200]} == {Receipt}, "what has no key goes again"
            await check(node.url, topic, sent, per_key=True)


async def test_a_binding_that_is_gone_for_good(node: RabbitMQNode, exchange: str, unique_name: Name) -> None:
    """A message that is returned a second time is not tried a third time: UnroutableError, retryable."""
    topic = unique_name("topic")
    async with open_broker(f"{node.url}?exchange={exchange}&declare=queue") as broker:
        assert (await broker.send_message(Message("n", topic, 0))).confirmed
        driver = broker.driver

        async def unbound(*_: object) -> None:
            """Somebody deletes the queue again, faster than it is published to."""

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cqrs_broker_amqp._declaring.declare_queue", unbound)
            with on_channel(node) as channel:
                channel.queue_delete(topic)
            with pytest.raises(UnroutableError, match="deleted") as caught:
                await broker.send_message(Message("n", topic, 1))
        assert caught.value.retryable
        assert (await broker.send_message(Message("n", topic, 2))).confirmed
        assert broker.driver is driver


async def test_more_topics_than_channels(node: RabbitMQNode, exchange: str, unique_name: Name) -> None:
    """Forty new topics on a connection of 16 channels, all at once: receipts, one connection, five channels."""
    prefix = unique_name("topic")
    async with open_broker(f"{node.url}?exchange={exchange}&declare=queue") as broker:
        messages = [Message("n", f"{prefix}.{number % 40}", number) for number in range(400)]
        outcomes = await asyncio.gather(*map(broker.send_message, messages), return_exceptions=True)
        assert {type(one) for one in outcomes} == {Receipt}, outcomes
        assert max(await open_channels(node)) <= 5
    with on_channel(node) as channel:
        for number in range(40):
            channel.queue_delete(f"{prefix}.{number}")


@pytest.mark.parametrize("limit", [2, 3])
async def test_a_user_with_few_channels(
    node: RabbitMQNode, user: str, exchange: str, unique_name: Name, limit: int
) -> None:
    """RabbitMQ names a user's limit only when it is passed: it is kept from then on, and everything is delivered."""
    await asyncio.to_thread(node.ctl, "set_user_limits", user, f'{{"max-channels": {limit}}}')
    prefix = unique_name("topic")
    async with open_broker(node.url_for(user, "pass-word", exchange=exchange, declare="queue")) as broker:
        messages = [Message("n", f"{prefix}.{number % 8}", number) for number in range(80)]
        outcomes = await asyncio.gather(*map(broker.send_message, messages), return_exceptions=True)
        assert {type(one) for one in outcomes} == {Receipt}, outcomes
        assert (await broker.health()).ok


@pytest.mark.parametrize("declare", ["exchange", "passive", "never"])
async def test_a_user_with_one_channel(node: RabbitMQNode, user: str, unique_name: Name, declare: str) -> None:
    """A user who may open one channel connects, publishes and asks health(), time after time, on one connection."""
    await asyncio.to_thread(node.ctl, "set_user_limits", user, '{"max-channels": 1}')
    topic = unique_name("topic")
    with on_channel(node) as channel:
        channel.queue_declare(topic, durable=True)
        channel.queue_bind(topic, "amq.topic", topic)
    url = node.url_for(user, "pass-word", exchange="amq.topic", declare=declare)
    async with open_broker(url) as broker:
        for number in range(3):
            assert (await broker.send_message(Message("n", topic, number))).confirmed
            assert (await broker.health()).ok
        assert await open_channels(node) == [1]


async def test_one_channel_is_too_few(node: RabbitMQNode, user: str, exchange: str, unique_name: Name) -> None:
    """declare=queue for a user who may open one channel: the reason is named, and it is not tried for ever."""
    await asyncio.to_thread(node.ctl, "set_user_limits", user, '{"max-channels": 1}')
    async with open_broker(node.url_for(user, "pass-word", exchange=exchange, declare="queue")) as broker:
        with pytest.raises(NotDeliveredError, match="declare=queue needs two") as caught:
            await broker.send_message(Message("n", unique_name("topic"), 1))
        assert isinstance(caught.value.__cause__, TopologyError)


async def test_no_channel_at_all(node: RabbitMQNode, user: str, exchange: str) -> None:
    """A limit of zero channels is quoted, with what to do."""
    await asyncio.to_thread(node.ctl, "set_user_limits", user, '{"max-channels": 0}')
    broker = open_broker(node.url_for(user, "pass-word", exchange=exchange))
    with pytest.raises(Exception, match=r"maximum allowed user limit of .*raise the limit of channels"):
        await broker.connect()
    await broker.close()


async def test_no_queue_at_all(node: RabbitMQNode, exchange: str, unique_name: Name) -> None:
    """A limit of queues is quoted as that, and not as a difference."""
    vhost = unique_name("vhost")
    await asyncio.to_thread(node.add_vhost, vhost)
    await asyncio.to_thread(node.ctl, "set_vhost_limits", "-p", vhost, '{"max-queues": 0}')
    async with open_broker(node.url_for(vhost=vhost, exchange=exchange, declare="queue")) as broker:
        with pytest.raises(NotDeliveredError, match="is reached: raise the limit, or delete queues") as caught:
            await broker.send_message(Message("n", unique_name("topic"), 1))
    assert "differs" not in str(caught.value)


@pytest.mark.parametrize("kind", ["classic", "quorum", "stream"])
async def test_types_of_queues(node: RabbitMQNode, exchange: str, unique_name: Name, kind: str) -> None:
    """queue_type is the type of the queues that are declared; another one says what differs."""
    topic = unique_name("topic")
    async with open_broker(f"{node.url}?exchange={exchange}&declare=queue&queue_type={kind}") as broker:
        assert (await broker.send_message(Message("n", topic, 1))).confirmed
    told = await asyncio.to_thread(node.ctl, "list_queues", "name", "type")
    assert f"{topic}\t{'rabbit_stream_queue' if kind == 'stream' else kind}" in told or f"{topic}\t{kind}" in told
    other = "quorum" if kind == "classic" else "classic"
    async with open_broker(f"{node.url}?exchange={exchange}&declare=queue&queue_type={other}") as broker:
        with pytest.raises(NotDeliveredError, match="queue_type="):
            await broker.send_message(Message("n", topic, 1))


def test_a_type_without_queues() -> None:
    """queue_type without declare=queue would do nothing: an error."""
    with pytest.raises(ConfigError, match="queue_type needs declare=queue"):
        open_broker("amqp://localhost?queue_type=quorum")


async def test_a_queue_that_no_message_waits_for_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """All messages of a topic are over before a channel is free for its queue: the queue is not declared."""
    answer, declared, tasks = asyncio.Event(), list[str](), Tasks()

    async def declare(channel: object, options: object, topic: str) -> None:
        declared.append(topic)
        await answer.wait()

    async def raw_channel(**_: object) -> object:
        return object()

    def waiting(topic: str) -> Any:
        return (SimpleNamespace(topic=topic), topic.encode(), b"", b"", None, False)

    monkeypatch.setattr("cqrs_broker_amqp._declaring.declare_queue", declare)
    ready: list[Any] = []
    declarations = Declarations(AMQPOptions(), tasks, ready=ready.extend, failed=pytest.fail, lost=pytest.fail)
    session: Any = SimpleNamespace(raw_channel=raw_channel, channel_limit=2)  # one channel declares
    declarations.use(session, [])
    for topic in ("first", "over", "last"):
        declarations.takes(topic, waiting(topic))
    await asyncio.sleep(0.01)
    declarations.drop(lambda entry: entry[0].topic == "over")
    answer.set()
    while len(ready) < 2:
        await asyncio.sleep(0)
    assert [entry[0].topic for entry in ready] == declared == ["first", "last"]
    await tasks.end(1)
