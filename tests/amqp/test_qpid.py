"""Apache Qpid Broker-J: no capabilities, no PLAIN without TLS, a nack before each return, reply codes of its own."""

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import aiormq
import pytest
from pamqp import commands

from cqrs_broker_amqp import _channels
from cqrs_brokers import (
    AuthenticationError,
    AuthorizationError,
    ConnectError,
    DestinationNotFoundError,
    Message,
    PublishForbiddenError,
    Receipt,
    TopologyError,
    UnroutableError,
    open_broker,
)
from cqrs_brokers_testkit.pytest_plugin import available
from cqrs_brokers_testkit.readers import bind_queue, drain_queue
from cqrs_brokers_testkit.servers import QpidServer, qpid

from .outcomes import check

Name = Callable[[str], str]


@pytest.fixture(scope="module")
def server() -> Iterator[QpidServer]:
    with available(qpid()) as server:
        yield server


@pytest.mark.fault
@pytest.mark.timeout(120)
class TestServer:
    """On a private server."""

    async def test_publishing(self, server: QpidServer, exchange: str, unique_name: Name) -> None:
        """SCRAM-SHA-256, confirms, queues that are declared, headers of all types, large bodies, health."""
        topic = unique_name("topic")
        headers: dict[str, Any] = {"text": "é", "int": 7, "bool": True, "none": None, "bytes": b"\x00\xff"}
        messages = [Message("n", topic, {"i": number}, key=str(number % 3), headers=headers) for number in range(1000)]
        messages.append(Message("n", topic, b"x" * 900_000))
        async with open_broker(f"{server.url}?exchange={exchange}&declare=queue") as broker:
            outcomes = await broker.send_messages(messages)
            assert {type(one) for one in outcomes} == {Receipt}
            assert (await broker.health()).ok
        await check(server.reader_url, topic, list(zip(messages, outcomes, strict=True)))

    async def test_a_nack_that_comes_before_its_return(
        self, server: QpidServer, exchange: str, unique_name: Name
    ) -> None:
        """An unroutable message is UnroutableError, and a neighbour with a queue has its receipt."""
        topic = unique_name("topic")
        async with open_broker(f"{server.url}?exchange={exchange}&declare=queue") as broker:
            assert (await broker.send_message(Message("n", topic, 0))).confirmed
        async with open_broker(f"{server.url}?exchange={exchange}") as broker:
            messages = [Message("n", topic if number % 2 else "nowhere", number) for number in range(100)]
            outcomes = await asyncio.gather(*map(broker.send_message, messages), return_exceptions=True)
            assert [type(one) for one in outcomes] == [UnroutableError, Receipt] * 50
            message = messages[0]
            for _ in range(3):
                with pytest.raises(UnroutableError):
                    await broker.send_message(message)

    async def test_the_same_id_again_after_a_return(self, server: QpidServer, exchange: str, unique_name: Name) -> None:
        """A message that was returned is sent again as soon as it has a queue: a receipt, and it is there once."""
        topic = unique_name("topic")
        message = Message("n", topic, 1)
        async with open_broker(f"{server.url}?exchange={exchange}") as broker:
            with pytest.raises(UnroutableError):
                await broker.send_message(message)
            async with open_broker(f"{server.url}?exchange={exchange}&declare=queue") as other:
                assert (await other.send_message(Message("n", topic, 0))).confirmed
            assert (await broker.send_message(message)).confirmed
        records = await asyncio.to_thread(drain_queue, server.reader_url, topic)
        assert [record.json() for record in records] == [0, 1]

    async def test_a_deleted_queue_is_declared_again(
        self, server: QpidServer, exchange: str, unique_name: Name
    ) -> None:
        """declare=queue finds its queue again here too."""
        topic = unique_name("topic")
        async with open_broker(f"{server.url}?exchange={exchange}&declare=queue") as broker:
            assert (await broker.send_message(Message("n", topic, 1))).confirmed
            connection = await aiormq_plain(server)
            await (await connection.channel(publisher_confirms=False)).queue_delete(topic)
            await connection.close()
            assert (await broker.send_message(Message("n", topic, 2))).confirmed
        records = await asyncio.to_thread(drain_queue, server.reader_url, topic)
        assert [record.json() for record in records] == [2]

    @pytest.mark.parametrize(
        ("change", "expected", "says"),
        [
            (lambda url: url.replace("guest:guest", "guest:wrong"), AuthenticationError, "check user and password"),
            (lambda url: url.rpartition("/")[0] + "/missing", AuthorizationError, "no such virtual host"),
            (lambda url: f"{url}?exchange=amq.topic&exchange_type=direct", TopologyError, "declare=passive"),
            (lambda url: f"{url}?exchange=missing&declare=passive", TopologyError, "there is no exchange"),
        ],
    )
    async def test_refusals(
        self, server: QpidServer, change: Callable[[str], str], expected: type[ConnectError], says: str
    ) -> None:
        """Each refusal has the class of its kind, quotes Qpid, and is not tried again."""
        broker = open_broker(change(server.url))
        with pytest.raises(expected, match=says) as caught:
            await broker.connect()
        assert caught.value.permanent
        await broker.close()

    async def test_a_missing_exchange(self, server: QpidServer, unique_name: Name) -> None:
        """Without a look at the exchange each send says that it is missing."""
        async with open_broker(f"{server.url}?exchange={unique_name('missing')}&declare=never") as broker:
            outcomes = await broker.send_messages([Message("n", "t", number) for number in range(50)])
        assert {type(one) for one in outcomes} == {DestinationNotFoundError}


@pytest.fixture(scope="module")
def strict_server() -> Iterator[QpidServer]:
    """A server that denies one user to publish, and the other the virtual host."""
    rule = {"identity": "app", "outcome": "DENY"}
    rules = [
        {**rule, "objectType": "EXCHANGE", "operation": "PUBLISH"},
        {**rule, "objectType": "VIRTUALHOST", "operation": "ACCESS", "identity": "stranger"},
    ]
    with available(qpid(users={"app": "app", "stranger": "stranger"}, rules=rules)) as server:
        yield server


@pytest.mark.fault
@pytest.mark.timeout(120)
async def test_an_exchange_that_is_closed_to_the_user(strict_server: QpidServer) -> None:
    """All that waits is PublishForbiddenError at once, over few connections, and nothing is unknown."""
    bind_queue(strict_server.reader_url, "closed", "t", "closed")
    url = strict_server.url.replace("guest:guest", "app:app")
    async with open_broker(f"{url}?exchange=closed&declare=never&delivery_timeout=10s") as broker:
        messages = [Message("n", "t", number) for number in range(50)]
        outcomes = await broker.send_messages(messages)
    assert {type(one) for one in outcomes} == {PublishForbiddenError}
    assert "publish" in str(outcomes[0])
    assert not await asyncio.to_thread(drain_queue, strict_server.reader_url, "closed")


@pytest.mark.fault
@pytest.mark.timeout(120)
async def test_a_virtual_host_that_is_closed_to_the_user(strict_server: QpidServer) -> None:
    """The user is known, so it is no matter of the password."""
    broker = open_broker(strict_server.url.replace("guest:guest", "stranger:stranger"))
    with pytest.raises(AuthorizationError, match="may not use the virtual host") as caught:
        await broker.connect()
    assert caught.value.permanent
    await broker.close()


async def aiormq_plain(server: QpidServer) -> Any:
    """An independent client; the table of capabilities that it asks for is not there."""

    class Connection(aiormq.Connection):
        publisher_confirms = False  # type: ignore[assignment]
        server_capabilities: ClassVar[Any] = {}

    connection = Connection(server.reader_url)
    await connection.connect()
    return connection


class FakeDelivery:
    """Notes what it is told."""

    def __init__(self, topic: str = "t") -> None:
        self.topic = topic
        self.told: list[str] = []


def channel_of_qpid() -> tuple[_channels.FastChannel, list[FakeDelivery]]:
    """A channel whose server nacks before it returns, with three messages in flight."""
    raw: Any = SimpleNamespace(delivery_tag=0, number=1, loop=asyncio.get_running_loop(), frames=asyncio.Queue())
    sockets = SimpleNamespace(open_for_writing=True, write=lambda frames: True)
    connection: Any = SimpleNamespace(frame_max=65_536, channels={1: raw}, sockets=sockets, names_capabilities=False)
    channel = _channels.FastChannel(
        connection,
        raw,
        failed=lambda _, entry, error: entry[0].told.append(type(error).__name__),
        answered=lambda *_: None,
    )
    sent = [FakeDelivery() for _ in range(3)]
    entries: list[Any] = [(delivery, str(n).encode(), b"x", b"", None, False) for n, delivery in enumerate(sent)]
    channel.send(entries, 0.0)
    return channel, sent


async def test_a_nack_and_nothing_more() -> None:
    """A server that nacks and says nothing more: the nack counts after 0.2 s, and the id is not used again there."""
    channel, sent = channel_of_qpid()
    await channel._confirmed(commands.Basic.Nack(delivery_tag=2))
    assert not sent[1].told
    await asyncio.sleep(_channels.NACK_HOLD + 0.1)
    assert sent[1].told == ["DeliveryError"]
    assert channel.spent == {b"1"}
    assert [entry[0] for entry in channel.entries()] == [sent[0], sent[2]]


async def test_a_nack_and_another_answer() -> None:
    """Any other frame of the channel says that no return follows."""
    channel, sent = channel_of_qpid()
    await channel._confirmed(commands.Basic.Nack(delivery_tag=1, multiple=False))
    await channel._confirmed(commands.Basic.Nack(delivery_tag=3))
    assert [delivery.told for delivery in sent] == [["DeliveryError"], [], []]
    assert channel.spent == {b"0"}


async def test_a_nack_and_its_return() -> None:
    """The return that follows is the answer, and the id can be used again."""
    channel, sent = channel_of_qpid()
    await channel._confirmed(commands.Basic.Nack(delivery_tag=2))
    channel._returned(2, RuntimeError())
    assert [delivery.told for delivery in sent] == [[], ["RuntimeError"], []]
    assert not channel.spent
    await asyncio.sleep(_channels.NACK_HOLD + 0.1)
    assert [delivery.told for delivery in sent] == [[], ["RuntimeError"], []]
