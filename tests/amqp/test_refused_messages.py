"""Messages that RabbitMQ returns, refuses, or would close the channel for: what each outcome proves."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import aiormq
import pytest

from cqrs_brokers import (
    ConnectionLostError,
    InvalidMessageError,
    Message,
    MessageTooLargeError,
    PublishForbiddenError,
    Receipt,
    ReturnedError,
    UnroutableError,
    open_broker,
)
from cqrs_brokers_testkit.readers import bind_queue, drain_queue
from cqrs_brokers_testkit.servers import RabbitMQNode

from .nodes import enable_plugin, on_channel, private_node
from .outcomes import Sent, check

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]

Name = Callable[[str], str]
LIMIT = 100_000


@pytest.fixture(scope="module")
def node() -> Iterator[RabbitMQNode]:
    """A node with small limits and with an exchange type that is not built in."""
    with private_node(settings={"max_message_size": str(LIMIT), "frame_max": "8192"}) as node:
        enable_plugin(node, "rabbitmq_recent_history_exchange")
        yield node


async def test_a_return_of_a_plugins_exchange_proves_nothing(node: RabbitMQNode, exchange: str) -> None:
    """An exchange that returns a message and keeps it: ReturnedError, and the message arrives later."""
    with on_channel(node) as channel:
        channel.exchange_declare(exchange, "x-recent-history", durable=True)
    message = Message("n", "t", "kept")
    async with open_broker(f"{node.url}?exchange={exchange}&declare=passive") as broker:
        with pytest.raises(ReturnedError, match="exchange_type=") as caught:
            await broker.send_message(message)
    assert not caught.value.retryable
    queue = bind_queue(node.url, exchange, "t", exchange_type=None)
    records = await asyncio.to_thread(drain_queue, node.url, queue, 1)
    assert [record.message_id for record in records] == [str(message.message_id)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("declare=exchange", UnroutableError),
        ("declare=passive&exchange_type=topic", UnroutableError),
        ("declare=never&exchange_type=topic", UnroutableError),
        ("declare=passive", ReturnedError),
        ("declare=never", ReturnedError),
    ],
)
async def test_a_return_is_a_proof_where_the_type_is_known(
    node: RabbitMQNode, exchange: str, options: str, expected: type[Exception]
) -> None:
    """A return is "not delivered" when RabbitMQ has checked the exchange's type, or the string names it."""
    with on_channel(node) as channel:
        channel.exchange_declare(exchange, "topic", durable=True)
    async with open_broker(f"{node.url}?exchange={exchange}&{options}") as broker:
        with pytest.raises(expected):
            await broker.send_message(Message("n", "nowhere", 1))


async def test_the_default_exchange_proves_it(node: RabbitMQNode, unique_name: Name) -> None:
    """RabbitMQ's default exchange is a direct one: a return is a proof whatever is declared."""
    async with open_broker(f"{node.url}?exchange=&declare=never") as broker:
        with pytest.raises(UnroutableError):
            await broker.send_message(Message("n", unique_name("nowhere"), 1))


@pytest.mark.parametrize(
    ("headers", "expected", "says"),
    [
        ({"CC": "audit"}, InvalidMessageError, "further routing keys"),
        ({"BCC": "audit"}, InvalidMessageError, "further routing keys"),
        ({"CC": 7}, InvalidMessageError, "further routing keys"),
        ({"h": "x" * 9000}, MessageTooLargeError, "a frame has at most 8192 bytes"),
        ({f"h{number}": "x" * 200 for number in range(60)}, MessageTooLargeError, "need a frame of"),
    ],
)
@pytest.mark.parametrize("place", [0, 150, 300])
async def test_headers_that_rabbitmq_would_close_the_channel_for(
    node: RabbitMQNode, exchange: str, headers: dict[str, Any], expected: type[Exception], says: str, place: int
) -> None:
    """They are refused before they are sent, and 300 neighbours have receipts, in order."""
    queue = bind_queue(node.url, exchange)
    messages = [Message("n", "t", number, key="k") for number in range(300)]
    poison = Message("n", "t", 0, headers=headers, key="k")
    batch = [*messages[:place], poison, *messages[place:]]
    async with open_broker(f"{node.url}?exchange={exchange}") as broker:
        outcomes = await asyncio.gather(*map(broker.send_message, batch), return_exceptions=True)
    sent: list[Sent] = list(zip(batch, outcomes, strict=True))
    _, told = sent.pop(place)
    assert type(told) is expected
    assert says in str(told)
    assert {type(outcome) for _, outcome in sent} == {Receipt}
    await check(node.url, queue, sent)


async def test_headers_that_just_fit(node: RabbitMQNode, exchange: str) -> None:
    """Headers that fill a frame to its last byte arrive; one byte more is refused."""
    queue = bind_queue(node.url, exchange)
    async with open_broker(f"{node.url}?exchange={exchange}") as broker:
        low, high = 1, 9000
        while high - low > 1:
            middle = (low + high) // 2
            try:
                await broker.send_message(Message("n", "t", 1, headers={"h": "x" * middle}))
                low = middle
            except MessageTooLargeError:
                high = middle
        assert (await broker.health()).ok
    records = await asyncio.to_thread(drain_queue, node.url, queue, 1)
    assert max(len(record.headers["h"]) for record in records) == low > 7900


async def test_one_too_large_among_many(node: RabbitMQNode, exchange: str) -> None:
    """One body over the server's limit among 200 is told why, those after it arrive, and the limit is known then."""
    queue = bind_queue(node.url, exchange)
    messages = [Message("n", "t", b"x" * (LIMIT + 1 if number == 100 else 5000), key="k") for number in range(201)]
    async with open_broker(f"{node.url}?exchange={exchange}") as broker:
        outcomes = await broker.send_messages(messages)
        assert isinstance(outcomes[100], MessageTooLargeError)
        assert {type(one) for one in outcomes[:100]} <= {Receipt, ConnectionLostError}
        assert {type(one) for one in outcomes[101:]} == {Receipt}
        later = [Message("n", "t", b"y" * size, key="k") for size in (10, LIMIT + 1, 10, LIMIT)]
        known = await broker.send_messages(later)
        assert [type(one) for one in known] == [Receipt, MessageTooLargeError, Receipt, Receipt]
        assert f"takes at most {LIMIT} bytes" in str(known[1])
    sent: list[Sent] = list(zip([*messages, *later], [*outcomes, *known], strict=True))
    await check(node.url, queue, sent)


async def test_two_that_are_too_large(node: RabbitMQNode, exchange: str) -> None:
    """Two bodies of one size over the limit: nobody knows which it was, so all is unknown and nothing goes again."""
    queue = bind_queue(node.url, exchange)
    large = {50, 150}
    messages = [Message("n", "t", b"x" * (LIMIT + 1 if number in large else 10)) for number in range(200)]
    async with open_broker(f"{node.url}?exchange={exchange}") as broker:
        first = Message("n", "t", 0)
        sent: list[Sent] = [(first, await broker.send_message(first))]
        outcomes = await asyncio.gather(*map(broker.send_message, messages), return_exceptions=True)
    assert {type(one) for one in outcomes} <= {Receipt, ConnectionLostError, MessageTooLargeError}
    await check(node.url, queue, [*sent, *zip(messages, outcomes, strict=True)])


async def test_a_forbidden_topic_among_many(node: RabbitMQNode, exchange: str, unique_name: Name) -> None:
    """RabbitMQ's text names the topic: the only message with it is told why, and those after it arrive."""
    queue, user = bind_queue(node.url, exchange), unique_name("user")
    await asyncio.to_thread(node.add_user, user, "pass-word")
    await asyncio.to_thread(node.ctl, "set_topic_permissions", "-p", "/", user, exchange, "^good", ".*")
    messages = [Message("n", "bad's" if number == 20 else "good", number, key="k") for number in range(60)]
    async with open_broker(node.url_for(user, "pass-word", exchange=exchange)) as broker:
        assert (await broker.send_message(Message("n", "good.first", 0))).confirmed
        outcomes = await asyncio.gather(*map(broker.send_message, messages), return_exceptions=True)
    assert isinstance(outcomes[20], PublishForbiddenError)
    assert {type(one) for one in outcomes[21:]} == {Receipt}
    records = await asyncio.to_thread(drain_queue, node.url, queue)
    numbers = [record.json() for record in records if record.topic == "good"]
    assert numbers == sorted(numbers)
    assert set(range(21, 60)) <= set(numbers)


async def test_an_internal_exchange(node: RabbitMQNode, exchange: str) -> None:
    """No permission helps with an internal exchange: the text says so, and all that waits fails together."""
    with on_channel(node) as channel:
        channel.exchange_declare(exchange, "topic", durable=True, internal=True)
    async with open_broker(f"{node.url}?exchange={exchange}&declare=passive") as broker:
        started = asyncio.get_running_loop().time()
        outcomes = await broker.send_messages([Message("n", "t", number) for number in range(500)])
        assert asyncio.get_running_loop().time() - started < 2
    assert {type(one) for one in outcomes} == {PublishForbiddenError}
    assert all("is internal" in str(one) and "set_permissions" not in str(one) for one in outcomes)


@pytest.mark.parametrize("unexpected", [None, "it is not what it was"], ids=["fast", "plain"])
@pytest.mark.parametrize("value", ["text", b"\x00\xff", 7, -(2**63), 2**63 - 1, 0.1, -1e300, True, False, None])
async def test_headers_arrive_with_their_type(
    node: RabbitMQNode, exchange: str, value: object, unexpected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An independent client reads each header value as it was, with its type. (pika reads doubles as integers.)"""
    monkeypatch.setattr("cqrs_broker_amqp._fallback.unexpected", lambda connection, channel: unexpected)
    queue = bind_queue(node.url, exchange)
    async with open_broker(f"{node.url}?exchange={exchange}&delivery_timeout=5s") as broker:
        await broker.send_message(Message("n", "t", 1, headers={"h": value, "other": "é"}))  # type: ignore[dict-item]
    connection = await aiormq.connect(node.url)
    got = await (await connection.channel()).basic_get(queue, no_ack=True)
    await connection.close()
    headers = got.header.properties.headers
    assert headers == {"h": value, "other": "é"}
    assert type(headers["h"]) is (bytearray if isinstance(value, bytes) else type(value))


async def test_a_headers_exchange_compares_numbers(node: RabbitMQNode, exchange: str) -> None:
    """A binding with a number matches a header with that number, and not its text."""
    with on_channel(node) as channel:
        channel.exchange_declare(exchange, "headers", durable=True)
        queue = channel.queue_declare(exchange, durable=True).method.queue
        channel.queue_bind(queue, exchange, arguments={"x-match": "all", "tenant": 7})
    async with open_broker(f"{node.url}?exchange={exchange}&exchange_type=headers") as broker:
        assert (await broker.send_message(Message("n", "t", 1, headers={"tenant": 7}))).confirmed
        with pytest.raises(UnroutableError):
            await broker.send_message(Message("n", "t", 1, headers={"tenant": "7"}))
