"""Names with dead addresses, DNS that is silent, servers of another kind, slow ones, and processes that stood still."""

import asyncio
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cqrs_brokers import (
    Message,
    NotDeliveredError,
    ProtocolError,
    Receipt,
    TopologyError,
    UnreachableError,
    open_broker,
)
from cqrs_brokers_testkit.certificates import make_certificates
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.readers import bind_queue, drain_queue
from cqrs_brokers_testkit.servers import KafkaServer, RabbitMQServer
from tests.dead_address import DEAD, dead_address, useless_address
from tests.standstill import stand_still_after

from .nodes import private_node

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]


@pytest.mark.filterwarnings("ignore::cqrs_brokers.InsecureTransportWarning")
async def test_a_name_with_a_dead_address(
    rabbitmq: RabbitMQServer, exchange: str, names: dict[str, Callable[[], list[str]]]
) -> None:
    """The first address of a name drops packets: the next one is connected within a second."""
    names["two.test"] = lambda: [DEAD, rabbitmq.host]
    bind_queue(rabbitmq.url, exchange)
    url = f"amqp://guest:guest@two.test:{rabbitmq.port}/?exchange={exchange}"
    with dead_address(rabbitmq.port):
        started = time.monotonic()
        async with open_broker(url) as broker:
            assert time.monotonic() - started < 1.5
            assert (await broker.send_message(Message("n", "t", 1))).confirmed


@pytest.mark.filterwarnings("ignore::cqrs_brokers.InsecureTransportWarning")
@pytest.mark.parametrize("hangs_up", [False, True], ids=["says nothing", "hangs up"])
async def test_a_name_with_an_address_that_is_of_no_use(
    rabbitmq: RabbitMQServer, exchange: str, names: dict[str, Callable[[], list[str]]], hangs_up: bool
) -> None:
    """The first address takes the connection and is no broker: the same attempt goes on with the next address."""
    names["two.test"] = lambda: [DEAD, rabbitmq.host]
    bind_queue(rabbitmq.url, exchange)
    url = f"amqp://guest:guest@two.test:{rabbitmq.port}/?exchange={exchange}&connect_timeout=4s"
    async with useless_address(rabbitmq.port, hangs_up=hangs_up), open_broker(url) as broker:
        assert (await broker.send_message(Message("n", "t", 1))).confirmed


@pytest.mark.filterwarnings("ignore::cqrs_brokers.InsecureTransportWarning")
@pytest.mark.parametrize(("scheme", "step"), [("amqp", "logging in"), ("amqps", "the TLS handshake")])
async def test_a_name_whose_addresses_are_all_of_no_use(
    names: dict[str, Callable[[], list[str]]], unused_tcp_port: int, scheme: str, step: str
) -> None:
    """The text is about the first address: what the others say is of less interest."""
    names["two.test"] = lambda: [DEAD, "127.0.0.1"]
    broker = open_broker(f"{scheme}://guest:guest@two.test:{unused_tcp_port}/?connect_timeout=1s")
    async with useless_address(unused_tcp_port, hangs_up=False):
        with pytest.raises(UnreachableError, match=rf"does not answer within 0\.\d+ s \({step}\)"):
            await broker.connect()
        await broker.close()


@pytest.mark.filterwarnings("ignore::cqrs_brokers.InsecureTransportWarning")
@pytest.mark.parametrize(
    ("address", "says"),
    [
        ([], "cannot be resolved"),
        (["255.255.255.255"], "cannot be reached: Network is unreachable"),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), "was not resolved: the name server does not answer"),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), "cannot be resolved: check the host name and DNS"),
    ],
)
async def test_a_name_that_leads_nowhere(
    names: dict[str, Callable[[], list[str]]], address: list[str] | Exception, says: str
) -> None:
    """The text tells a name server that is silent from a name that is wrong, and an address that cannot be reached."""

    def resolve() -> list[str]:
        if isinstance(address, Exception):
            raise address
        return address

    names["nowhere.test"] = resolve
    broker = open_broker("amqp://guest:guest@nowhere.test/")
    with pytest.raises(UnreachableError, match=says):
        await broker.connect()
    await broker.close()


@pytest.mark.filterwarnings("ignore::cqrs_brokers.InsecureTransportWarning")
async def test_a_name_server_that_does_not_answer(names: dict[str, Callable[[], list[str]]]) -> None:
    """The text says that the name was not resolved, and the event loop's threads stay free."""
    answer = threading.Event()
    names["slow.test"] = lambda: ["127.0.0.1"] if answer.wait(20) else []
    broker = open_broker("amqp://u:p@slow.test/?connect_timeout=0.5s&delivery_timeout=3s")
    with pytest.raises(NotDeliveredError, match=r"slow\.test:5672 was not resolved within 0\.5 s"):
        await broker.send_message(Message("n", "t", 1))
    assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 1) == "free"
    await broker.close(1)
    answer.set()


async def test_a_kafka(kafka: KafkaServer) -> None:
    """An amqp:// string for a Kafka: it is named, and it is not tried for ever."""
    host, _, port = kafka.bootstrap_servers.partition(",")[0].rpartition(":")
    broker = open_broker(f"amqp://guest:guest@{host}:{port}/")
    with pytest.raises(ProtocolError, match="is a Kafka, not RabbitMQ: write kafka://") as caught:
        await broker.connect()
    assert caught.value.permanent
    await broker.close()


async def test_who_hangs_up_is_no_kafka() -> None:
    """A peer that closes every connection may be a proxy before a server that is down: it is tried again."""

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with await asyncio.start_server(hang_up, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        broker = open_broker(f"amqp://guest:guest@127.0.0.1:{port}/")
        with pytest.raises(UnreachableError) as caught:
            await broker.connect()
        assert caught.value.retryable
        await broker.close()


async def test_a_slow_server_is_not_called_silent(rabbitmq: RabbitMQServer) -> None:
    """A server that answers late: the text says which step was not done, and which option helps."""
    async with FaultProxy((rabbitmq.host, rabbitmq.port)) as proxy:
        proxy.delay(0.6, way="down")
        broker = open_broker(f"amqp://guest:guest@127.0.0.1:{proxy.port}/?connect_timeout=1.5s")
        with pytest.raises(UnreachableError, match=r"answers, but .* was not done within 1\.5 s.*connect_timeout"):
            await broker.connect()
        await broker.close()


@pytest.mark.parametrize("declare", ["exchange", "passive"])
async def test_names_that_rabbitmq_keeps_for_itself(rabbitmq: RabbitMQServer, declare: str) -> None:
    """An exchange amq.… that is not there can be created by nobody: that is what the error says."""
    broker = open_broker(f"{rabbitmq.url}?exchange=amq.new&declare={declare}")
    with pytest.raises(TopologyError, match=r"no exchange 'amq\.new'") as caught:
        await broker.connect()
    assert ("RabbitMQ's own" in str(caught.value)) is (declare == "exchange")
    await broker.close()


@pytest.mark.parametrize("standstill", [5, 8])
async def test_the_first_send_after_a_standstill(rabbitmq: RabbitMQServer, exchange: str, standstill: int) -> None:
    """RabbitMQ gave up on a frozen process: its first send has a receipt, over a new connection."""
    queue = bind_queue(rabbitmq.url, exchange)
    async with open_broker(f"{rabbitmq.url}?exchange={exchange}&heartbeat=2") as broker:
        assert (await broker.send_message(Message("n", "t", 0))).confirmed
        time.sleep(standstill)  # the process is frozen
        for number in (1, 2, 3):
            assert (await broker.send_message(Message("n", "t", number))).confirmed
    records = await asyncio.to_thread(drain_queue, rabbitmq.url, queue, 4)
    assert [record.json() for record in records] == [0, 1, 2, 3]


async def test_an_authority_that_is_replaced(exchange: str, tmp_path: Path) -> None:
    """The file in ssl_cafile and the server's certificate are replaced by those of a new authority: it reconnects."""
    old, new = make_certificates(tmp_path / "old"), make_certificates(tmp_path / "new")
    trusted = tmp_path / "trusted.pem"
    shutil.copy(old.ca, trusted)
    with private_node(certificates=old) as node:
        bind_queue(node.url, exchange)
        url = node.url_for(host="localhost", tls=True, exchange=exchange, ssl_cafile=trusted)
        async with open_broker(url) as broker:
            assert (await broker.send_message(Message("n", "t", 0))).confirmed
            for name in ("ca", "server", "server_key"):
                shutil.copy(getattr(new, name), getattr(old, name))
            shutil.copy(new.ca, trusted)
            await asyncio.to_thread(node.restart)
            assert (await broker.send_message(Message("n", "t", 1))).confirmed


@pytest.mark.parametrize("turns", range(0, 24, 3))
async def test_connecting_while_the_process_stands_still(turns: int, rabbitmq: RabbitMQServer) -> None:
    """connect() succeeds, at whichever step the process was frozen for longer than connect_timeout."""
    stand_still_after(turns)
    async with open_broker(rabbitmq.url, connect_timeout=1.0) as broker:
        assert (await broker.health()).ok


@pytest.mark.parametrize("turns", [1, 3, 8])
async def test_declaring_queues_while_the_process_stands_still(
    turns: int, rabbitmq: RabbitMQServer, exchange: str, unique_name: Callable[[str], str]
) -> None:
    """Every message gets its receipt, although RabbitMQ's answers were read late."""
    topics = [unique_name(f"late-{number}") for number in range(10)]
    async with open_broker(f"{rabbitmq.url}?exchange={exchange}&declare=queue", connect_timeout=1.0) as broker:
        await broker.send_message(Message("n", topics[0], 1))
        stand_still_after(turns)
        receipts = await broker.send_messages([Message("n", topic, 1) for topic in topics])
    assert [receipt.topic for receipt in receipts if isinstance(receipt, Receipt)] == topics
