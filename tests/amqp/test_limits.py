"""Limits of the server: message size, disk, queue length, bandwidth, hash exchanges, frames that it cannot read."""

import asyncio
import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pika
import pytest

from cqrs_brokers import (
    BackpressureError,
    BrokerBlockedError,
    ConnectionLostError,
    DeliveryTimeoutError,
    Message,
    MessageTooLargeError,
    NotConnectedError,
    NotDeliveredError,
    PublishForbiddenError,
    Receipt,
    UnreachableError,
    open_broker,
)
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.readers import bind_queue, drain_queue
from cqrs_brokers_testkit.servers import RabbitMQNode

from .nodes import private_node
from .outcomes import Sent, check

pytestmark = pytest.mark.fault

Name = Callable[[str], str]
LIMIT = 100_000


@pytest.fixture(scope="module")
def node() -> Iterator[RabbitMQNode]:
    """A node that takes messages of at most 100 kB."""
    with private_node(settings={"max_message_size": str(LIMIT)}) as node:
        yield node


async def test_larger_than_the_server_takes(node: RabbitMQNode, exchange: str) -> None:
    """Alone, a message over RabbitMQ's max_message_size is MessageTooLargeError, and the next one works."""
    bind_queue(node.url, exchange)
    async with open_broker(f"{node.url}?exchange={exchange}") as broker:
        for number in range(2):  # the first on a new channel and a later one
            assert (await broker.send_message(Message("n", "t", number))).confirmed
            with pytest.raises(MessageTooLargeError, match="max_message_size") as caught:
                await broker.send_message(Message("n", "t", b"x" * (LIMIT + 1)))
            assert not caught.value.retryable
        assert (await broker.send_message(Message("n", "t", b"x" * (LIMIT - 1000)))).confirmed


@pytest.mark.parametrize("reason", ["403", "406"])
async def test_neighbours_of_a_message_that_closes_the_channel(
    node: RabbitMQNode, exchange: str, unique_name: Name, reason: str
) -> None:
    """One bad among good ones is told why; what came after it goes again, in order; what came before may be unknown."""
    queue, user = bind_queue(node.url, exchange), unique_name("user")
    await asyncio.to_thread(node.add_user, user, "pass-word")
    await asyncio.to_thread(node.ctl, "set_topic_permissions", "-p", "/", user, exchange, "^good", ".*")
    sent: list[Sent] = []
    bad_ones: list[Sent] = []
    async with open_broker(node.url_for(user, "pass-word", exchange=exchange)) as broker:

        async def alone() -> None:
            """Proves that the next good send works."""
            message = Message("n", "good", len(sent), key="k")
            sent.append((message, await broker.send_message(message)))

        await alone()
        for count, place in [*((6, place) for place in range(7)), (400, 200), (400, 399)]:
            messages = [Message("n", "good", [place, number], key="k") for number in range(count)]
            bad = Message("n", "bad", 0) if reason == "403" else Message("n", "good", b"x" * (LIMIT + 1))
            messages.insert(place, bad)
            outcomes = await asyncio.gather(*map(broker.send_message, messages), return_exceptions=True)
            told = list(zip(messages, outcomes, strict=True))
            bad_ones.append(told.pop(place))
            assert {type(outcome) for _, outcome in told[:place]} <= {Receipt, ConnectionLostError}
            assert {type(outcome) for _, outcome in told[place:]} <= {Receipt}
            sent += told
            await alone()
    own_error = PublishForbiddenError if reason == "403" else MessageTooLargeError
    assert {type(outcome) for _, outcome in bad_ones} == {own_error}
    await check(node.url, queue, sent)  # and so none of the bad ones is there


async def test_disk_alarm(node: RabbitMQNode, exchange: str) -> None:
    """A disk alarm blocks like a memory alarm: sends say so at their deadline, and sending resumes by itself."""
    queue = bind_queue(node.url, exchange)
    async with open_broker(f"{node.url}?exchange={exchange}&delivery_timeout=2s") as broker:
        await broker.send_message(Message("n", "t", "before"))
        await asyncio.to_thread(node.ctl, "set_disk_free_limit", "1000GB")
        try:
            with pytest.raises(DeliveryTimeoutError, match=r"RabbitMQ has an alarm: .*disk"):
                await broker.send_message(Message("n", "t", "handed over"))
            with pytest.raises(BrokerBlockedError, match="disk"):
                await broker.send_message(Message("n", "t", "not handed over"))
            health = await broker.health()
            assert health.blocked
            assert "alarm" in health.reason
            assert "disk" in health.reason
        finally:
            await asyncio.to_thread(node.ctl, "set_disk_free_limit", "1MB")
        waited = asyncio.get_running_loop().time()
        while (await broker.health()).blocked:
            assert asyncio.get_running_loop().time() - waited < 20  # RabbitMQ looks at the disk every few seconds
            await asyncio.sleep(0.1)
        assert (await broker.send_message(Message("n", "t", "after"))).confirmed
    bodies = [record.json() for record in await asyncio.to_thread(drain_queue, node.url, queue, 3)]
    assert bodies == ["before", "handed over", "after"]


async def test_a_full_queue_that_drops_its_head(node: RabbitMQNode, exchange: str) -> None:
    """With x-overflow=drop-head RabbitMQ confirms and throws old messages away: receipts, and a queue of one."""
    limits: dict[str, Any] = {"x-max-length": 1, "x-overflow": "drop-head"}
    queue = bind_queue(node.url, exchange, **limits)
    async with open_broker(f"{node.url}?exchange={exchange}") as broker:
        outcomes = await broker.send_messages([Message("n", "t", number) for number in range(20)])
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    records = await asyncio.to_thread(drain_queue, node.url, queue, 1)
    assert [record.json() for record in records] == [19]


async def test_consistent_hash_by_the_ordering_key(node: RabbitMQNode, exchange: str) -> None:
    """A consistent-hash exchange over the header `ordering-key` brings all messages of a key to one queue, in order."""
    enabled = Path(node.folder, "enabled_plugins")
    enabled.write_text("[rabbitmq_consistent_hash_exchange].\n")
    await asyncio.to_thread(node.ctl, "eval", f'rabbit_plugins:ensure("{enabled}").')
    connection = pika.BlockingConnection(pika.URLParameters(node.url))
    channel = connection.channel()
    arguments = {"hash-header": "ordering-key"}
    channel.exchange_declare(exchange, "x-consistent-hash", durable=True, arguments=arguments)
    connection.close()
    queues = [bind_queue(node.url, exchange, "1", exchange_type=None) for _ in range(3)]
    async with open_broker(f"{node.url}?exchange={exchange}&declare=passive") as broker:
        messages = [Message("n", "t", [number % 40, number], key=f"key-{number % 40}") for number in range(800)]
        outcomes = await broker.send_messages(messages)
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    found = [[record.json() for record in await asyncio.to_thread(drain_queue, node.url, queue)] for queue in queues]
    assert sum(map(len, found)) == 800
    keys = [{key for key, _ in bodies} for bodies in found]
    assert sum(map(len, keys)) == 40, "a key is in two queues"
    assert sum(map(bool, keys)) >= 2, "all keys in one queue: the header was not used"
    for bodies in found:
        for key in {key for key, _ in bodies}:
            numbers = [number for one, number in bodies if one == key]
            assert numbers == sorted(numbers)


async def test_a_frame_that_the_server_cannot_read(
    node: RabbitMQNode, exchange: str, caplog: pytest.LogCaptureFixture
) -> None:
    """RabbitMQ closes the connection and quotes the frame; what we raise and log says why without a byte of it."""
    bind_queue(node.url, exchange)
    canary = b"c4nary-" * 20

    def damage(data: bytes) -> bytes:
        # The end of the frame with the body: RabbitMQ's text then quotes what is there instead, and the body before.
        return data.replace(canary + b"\xce", canary + canary[:1])

    with caplog.at_level(logging.DEBUG):
        async with FaultProxy((node.host, node.port)) as proxy:
            async with open_broker(node.url_for(port=proxy.port, exchange=exchange)) as broker:
                assert (await broker.send_message(Message("n", "t", 0))).confirmed
                proxy.rewrite(damage, "up")
                with pytest.raises(ConnectionLostError) as caught:
                    await broker.send_message(Message("n", "t", canary))
                proxy.heal()
                assert (await broker.send_message(Message("n", "t", 1))).confirmed
                shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.__cause__)
    assert "FRAME_ERROR" in shown
    assert "c4nary" not in shown
    assert str(list(canary[:6]))[1:-1].replace(" ", "") not in shown.replace(" ", "")
    assert "c4nary" not in caplog.text
    assert str(list(canary[:6]))[1:-1].replace(" ", "") not in caplog.text.replace(" ", "")


async def test_slow_to_open_another_channel(node: RabbitMQNode, exchange: str) -> None:
    """A send that waits for a closed channel to be opened again says so at its deadline; later ones work."""
    bind_queue(node.url, exchange)
    async with FaultProxy((node.host, node.port)) as proxy:
        url = node.url_for(port=proxy.port, exchange=exchange, delivery_timeout="3s")
        async with open_broker(url) as broker:
            assert (await broker.send_message(Message("n", "t", 0))).confirmed
            proxy.delay(1.2, way="down")
            with pytest.raises(MessageTooLargeError):
                await broker.send_message(Message("n", "t", b"x" * (LIMIT + 1)))
            with pytest.raises(NotConnectedError, match="closed the channel") as caught:
                await broker.send_message(Message("n", "t", 1))
            assert caught.value.retryable
            proxy.heal()
            assert (await broker.send_message(Message("n", "t", 2))).confirmed
            assert proxy.accepted == 1
            assert (await broker.health()).ok


async def test_a_slow_line(node: RabbitMQNode, exchange: str) -> None:
    """With 200 ms, jitter and 1 kB/s nothing fails before its deadline, and little more than the window is held."""
    bind_queue(node.url, exchange)
    async with FaultProxy((node.host, node.port)) as proxy:
        url = node.url_for(port=proxy.port, exchange=exchange, delivery_timeout="60s", max_in_flight=125)
        async with open_broker(url) as broker:
            assert (await broker.send_message(Message("n", "t", 0))).confirmed
            proxy.delay(0.2, jitter=0.1)
            outcomes = await broker.send_messages([Message("n", "t", number) for number in range(500)])
            assert all(isinstance(outcome, Receipt) for outcome in outcomes)
            proxy.throttle(1000, way="up")
            sends = [asyncio.ensure_future(broker.send_message(Message("n", "t", number))) for number in range(500)]
            await asyncio.sleep(4)
            assert not [send for send in sends if send.done() and send.exception()]
            assert [send for send in sends if send.done()]
            assert (await broker.health()).in_flight <= 50
            proxy.heal()
            assert all(receipt.confirmed for receipt in await asyncio.gather(*sends))


async def test_a_slow_line_past_the_deadline(node: RabbitMQNode, exchange: str) -> None:
    """What a line of 1 kB/s does not take by the deadline is not delivered or unknown, and none of it is a lie."""
    queue = bind_queue(node.url, exchange)
    async with FaultProxy((node.host, node.port)) as proxy:
        url = node.url_for(port=proxy.port, exchange=exchange, delivery_timeout="3s", max_in_flight=250)
        async with open_broker(url) as broker:
            assert (await broker.send_message(Message("n", "t", 0))).confirmed
            proxy.throttle(1000, way="up")
            messages = [Message("n", "t", b"x" * 20_000) for _ in range(300)]
            started = asyncio.get_running_loop().time()
            outcomes = await broker.send_messages(messages)
            assert asyncio.get_running_loop().time() - started < 4
            proxy.heal()
            assert (await broker.send_message(Message("n", "t", 1))).confirmed
    arrived = {record.message_id for record in await asyncio.to_thread(drain_queue, node.url, queue)}
    for message, outcome in zip(messages, outcomes, strict=True):
        assert not isinstance(outcome, Receipt) or str(message.message_id) in arrived
        assert not isinstance(outcome, NotDeliveredError) or str(message.message_id) not in arrived
    assert any(isinstance(outcome, NotDeliveredError) for outcome in outcomes)


@pytest.mark.parametrize("declare", ["exchange", "queue"])
async def test_a_server_that_declares_nothing_for_now(node: RabbitMQNode, exchange: str, declare: str) -> None:
    """As in a cluster without a majority: the text says which step had no answer, not that the server is silent."""
    frozen = (
        "spawn(fun() -> register(freezer, self()), [erlang:suspend_process(P) || N <- [mnesia_locker, "
        "rabbitmq_metadata], (P = whereis(N)) =/= undefined], timer:sleep(60000) end), timer:sleep(200)."
    )
    url = f"{node.url}?exchange={exchange}&declare={declare}&connect_timeout=2s&delivery_timeout=5s"
    async with open_broker(url) as broker:
        await asyncio.to_thread(node.ctl, "eval", frozen)
        try:
            if declare == "queue":
                with pytest.raises(BackpressureError, match=r"the declaration of queue 'new'.* majority of its nodes"):
                    await broker.send_message(Message("n", "new", 1))
            else:
                other = open_broker(url.replace(exchange, f"{exchange}-2"))
                with pytest.raises(UnreachableError, match=r"answers, but declaring.*majority of its nodes") as caught:
                    await other.connect()
                assert caught.value.retryable
                await other.close()
        finally:
            await asyncio.to_thread(node.ctl, "eval", "exit(whereis(freezer), kill).")
