"""What a real Kafka does only at a moment that no test can choose: a node of our own does it on demand."""

import asyncio
import itertools
import struct
from types import SimpleNamespace

import pytest
from aiokafka.abc import AbstractTokenProvider

from cqrs_broker_kafka import _cluster
from cqrs_broker_kafka._client import Connection
from cqrs_broker_kafka._settings import KafkaSettings
from cqrs_broker_kafka._topic import Topic
from cqrs_brokers import (
    AuthenticationError,
    BackpressureError,
    DeliveryError,
    DeliveryUnknownError,
    DestinationNotFoundError,
    Message,
    UnreachableError,
    open_broker,
)
from cqrs_brokers.url import Host
from tests.kafka.stub import (
    METADATA,
    PRODUCE,
    PRODUCER_ID,
    SASL_AUTHENTICATE,
    SASL_HANDSHAKE,
    VERSIONS,
    produced,
    stub_kafka,
    text,
)
from tests.kafka.test_requests import node_of

UNKNOWN_TOPIC, REQUEST_TIMED_OUT, INVALID_PRODUCER_EPOCH = 3, 7, 47
LOGIN = "&security_protocol=SASL_PLAINTEXT&sasl_plain_username=u&sasl_plain_password=p"


@pytest.mark.parametrize(
    ("step", "options"), [(SASL_AUTHENTICATE, LOGIN), (VERSIONS, "")], ids=["the log-in", "the versions"]
)
async def test_a_node_that_hangs_up_after_its_last_answer(step: int, options: str) -> None:
    """A connection that ends while it is made is made again: when the node is well, it is used without a connect()."""
    async with stub_kafka() as node:
        async with open_broker(f"{node.url}?delivery_timeout=2s{options}") as broker:
            assert (await broker.send_message(Message("n", "t", 1, key="k"))).offset == 5
            node.hangs_up_after = step
            node.hang_up()
            await asyncio.sleep(0.05)  # or the message would be written to a connection that is closed already
            with pytest.raises(DeliveryError, match="cannot be reached"):
                await broker.send_message(Message("n", "t", 1, key="k"))
            node.hangs_up_after = None
            assert (await broker.send_message(Message("n", "t", 1, key="k"))).offset == 5


async def test_no_producer_id_within_the_time_of_a_request() -> None:
    """The text names the time for which we have waited, also when a request may take less than the whole connect()."""
    async with stub_kafka() as node:
        node.answers[PRODUCER_ID] = lambda: None
        broker = open_broker(f"{node.url}?request_timeout_ms=1000")
        with pytest.raises(UnreachableError, match=r"node 1 .* gave no producer id within 1(\.\d)? s"):
            await broker.connect()
        await broker.close()


async def test_a_node_that_refuses_the_password_that_the_bootstrap_server_takes() -> None:
    """Trying again would not help, so it is told at once, and not as an address that cannot be reached."""
    answers = itertools.chain([struct.pack(">hhi", 0, -1, 0)], itertools.repeat(struct.pack(">hhi", 58, -1, 0)))
    async with stub_kafka() as node:
        node.answers[SASL_AUTHENTICATE] = lambda: next(answers)
        broker = open_broker(f"{node.url}?connect_timeout=5s{LOGIN}")
        async with asyncio.timeout(2):
            with pytest.raises(AuthenticationError, match="refuses the user or the password"):
                await broker.connect()
        await broker.close()


class OneToken(AbstractTokenProvider):  # type: ignore[misc]
    """Gives one token only."""

    def __init__(self) -> None:
        self.tokens = ["token"]

    async def token(self) -> str:
        return self.tokens.pop()


async def test_no_token_for_the_node_after_one_for_the_bootstrap_server() -> None:
    """It is told as that, at once."""
    async with stub_kafka() as node:
        node.answers[SASL_HANDSHAKE] = lambda: struct.pack(">hi", 0, 1) + text("OAUTHBEARER")
        url = f"{node.url}?connect_timeout=5s&security_protocol=SASL_PLAINTEXT&sasl_mechanism=OAUTHBEARER"
        broker = open_broker(url, sasl_oauth_token_provider=OneToken())
        async with asyncio.timeout(2):
            with pytest.raises(UnreachableError, match=r"there is no token .* token provider raised IndexError"):
                await broker.connect()
        await broker.close()


async def test_a_log_in_that_breaks_while_a_producer_id_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """aiokafka's SCRAM code raises a ValueError for a wrong answer: the question is put again."""
    connect = Connection.open
    asked = 0

    async def wrong_once(settings: KafkaSettings, host: Host) -> Connection:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise ValueError("Server sent wrong signature!")
        return await connect(settings, host)

    monkeypatch.setattr(_cluster, "Connection", SimpleNamespace(open=wrong_once))
    async with stub_kafka() as node:
        async with open_broker(f"{node.url}?delivery_timeout=2s") as broker:
            node.answers[PRODUCE] = lambda: produced(INVALID_PRODUCER_EPOCH)
            with pytest.raises(DeliveryUnknownError):
                await broker.send_message(Message("n", "t", 1, key="k"))
            node.answers[PRODUCE] = produced
            node.answers[PRODUCER_ID] = lambda: struct.pack(">ihqh", 0, 0, 8, 0)
            assert (await broker.send_message(Message("n", "t", 1, key="k"))).offset == 5
    assert asked == 2


async def test_a_connection_without_answers_that_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """With acks=0 the end of the old connection is noticed late: the new one stays, and its messages are confirmed."""
    noticed = asyncio.Event()

    async def written() -> None:
        await noticed.wait()
        raise ConnectionResetError

    async with stub_kafka() as node:
        node.answers[PRODUCE] = lambda: None
        async with open_broker(f"{node.url}?acks=0&enable_idempotence=false&allow_unsafe=true") as broker:
            await broker.send_message(Message("n", "t", 1, key="k"))
            ours = node_of(broker)
            assert ours.connection is not None
            monkeypatch.setattr(ours.connection, "written", written)
            first = asyncio.create_task(broker.send_message(Message("n", "t", 1, key="k")))
            await asyncio.sleep(0.01)
            node.hang_up()
            with pytest.raises(DeliveryUnknownError):
                await first
            second = asyncio.create_task(broker.send_message(Message("n", "t", 1, key="k")))
            async with asyncio.timeout(2):
                while ours.idle:
                    await asyncio.sleep(0.001)
                new = ours.connection
                noticed.set()
                assert not (await second).confirmed
            assert ours.connection is new


async def test_a_node_that_moves_while_it_is_connected_to() -> None:
    """The attempt at its old address, which does not answer any more, is not waited for."""
    async with stub_kafka() as node:
        async with open_broker(f"{node.url}?delivery_timeout=2s") as broker:
            await broker.send_message(Message("n", "t", 1, key="k"))
            ours, old = node_of(broker), node.advertised
            new = await node.listen()

            def silent() -> None:
                node.answers[VERSIONS] = versions
                asyncio.get_running_loop().call_soon(ours.moved, Host("127.0.0.1", new))

            versions, node.answers[VERSIONS] = node.answers[VERSIONS], silent
            node.asked.clear()
            node.hang_up()
            await asyncio.sleep(0.05)  # or the message would be written to a connection that is closed already
            await broker.send_message(Message("n", "t", 1, key="k"))
            assert (VERSIONS, old) in node.asked
            assert {port for key, port in node.asked if key == PRODUCE} == {new}


async def test_a_fault_of_ours_while_metadata_are_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged as what it is, and the next answer is read."""
    learn, faults = Topic.found, iter([RuntimeError("a fault of ours")])

    def found(topic: Topic, count: int) -> None:
        for fault in faults:
            raise fault
        learn(topic, count)

    monkeypatch.setattr(Topic, "found", found)
    async with stub_kafka() as node:
        async with open_broker(f"{node.url}?delivery_timeout=2s") as broker:
            await broker.send_message(Message("n", "t", 1, key="k"))
    (logged,) = [record for record in caplog.records if record.name == "cqrs_broker_kafka.metadata"]
    assert logged.getMessage() == "an answer with metadata cannot be used"
    assert logged.exc_info is not None
    assert logged.exc_info[0] is RuntimeError


@pytest.mark.parametrize("code", [UNKNOWN_TOPIC, REQUEST_TIMED_OUT])
async def test_a_topic_about_which_the_cluster_says_nothing(code: int) -> None:
    """Only an answer that the topic is not there ends its messages. After another they wait until the deadline."""
    async with stub_kafka() as node:
        node.answers[METADATA] = lambda: node.metadata(code)
        async with open_broker(f"{node.url}?delivery_timeout=4s") as broker:
            with pytest.raises(DestinationNotFoundError if code == UNKNOWN_TOPIC else BackpressureError):
                await broker.send_message(Message("n", "t", 1, key="k"))
