"""Contract tests for each undocumented thing of aiokafka that we use: red here means aiokafka has changed."""

import ast
import asyncio
import io
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka.conn import AIOKafkaConnection

from cqrs_broker_kafka import KafkaOptions, _client
from cqrs_broker_kafka._client import PRIVATE, AwaitedAnswer, Connection, batch_builder, why_unsupported
from cqrs_broker_kafka._produce import Answer, read_answers, request_head, request_of
from cqrs_broker_kafka._settings import KafkaSettings
from cqrs_brokers import ProtocolError, open_broker
from cqrs_brokers.url import BrokerURL
from cqrs_brokers_testkit.leaks import no_leaks
from cqrs_brokers_testkit.servers import KafkaServer

PLUGIN = Path(_client.__file__).parent


def settings_for(servers: str, **options: Any) -> KafkaSettings:
    return KafkaSettings(BrokerURL.build("kafka", hosts=servers.split(",")), KafkaOptions(**options))


@pytest.fixture
async def connection(kafka: KafkaServer) -> AsyncIterator[Connection]:
    settings = settings_for(kafka.bootstrap_servers)
    made = await Connection.open(settings, settings.hosts[0])
    yield made
    made.drop()
    await made.ended()


def test_aiokafka_is_touched_in_one_module() -> None:
    """Only `_client` imports aiokafka (and `options` the class of a token provider, when there is one)."""
    importing = {
        path.name
        for path in PLUGIN.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom | ast.Import)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        if name.split(".")[0] == "aiokafka"
    }
    assert importing <= {"_client.py", "_options.py"}


def test_private_names_are_in_the_table() -> None:
    """The module uses no private name of aiokafka but the ten of its table."""
    own = {"_settings", "_logged_in", "_sent", "_provider", "_timeout", "_loop", "_arrived", "_tell", "_Header"}
    tree = ast.parse((PLUGIN / "_client.py").read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("_")}
    assert {name for name in used if not name.startswith("__")} - own == set(PRIVATE)
    assert len(PRIVATE) <= 10
    assert all(f"`{name}`" in (_client.__doc__ or "") for name in PRIVATE)


def test_this_aiokafka_is_supported() -> None:
    """The installed aiokafka has all of them."""
    assert why_unsupported() is None


async def test_another_aiokafka_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing name fails the first connect() before any I/O, with a sentence and the versions that work."""

    class Changed:
        def close(self) -> None:
            """As if it had been rewritten."""

    text = why_unsupported(Changed)
    assert text is not None
    assert "_requests" in text
    monkeypatch.setattr("cqrs_broker_kafka._cluster.why_unsupported", lambda: text)
    broker = open_broker("kafka://127.0.0.1:1")
    with pytest.raises(ProtocolError, match=r"0\.13 and 0\.14"):
        await broker.connect()
    await broker.close()


def test_opening_a_broker_does_not_import_aiokafka() -> None:
    """`open_broker` and `describe` work without it; it is imported when the broker connects."""
    program = (
        "import sys; from cqrs_brokers import open_broker\n"
        "broker = open_broker('kafka://h'); broker.describe()\n"
        "assert 'aiokafka' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# -- requests and answers ---------------------------------------------------------------------------------------------


def test_a_request_is_what_the_protocol_says() -> None:
    """Header, body and records of a request, against the classes that aiokafka has for the same schema (version 8)."""
    from aiokafka.protocol.produce import ProduceRequest_v8

    parts = [("tøpic".encode(), 0, b"records"), ("tøpic".encode(), 3, b""), (b"b", 1, b"x" * 1000)]
    struct_of = ProduceRequest_v8(None, -1, 40_000, [("tøpic", [(0, b"records"), (3, b"")]), ("b", [(1, b"x" * 1000)])])
    header = struct_of.build_request_header(correlation_id=7, client_id="me").encode()
    body = header + struct_of.encode()
    assert request_of(7, request_head(b"me", -1, 40_000), parts) == struct.pack(">i", len(body)) + body


def test_an_answer_is_what_the_protocol_says() -> None:
    """Codes, offsets, named records and the throttle of an answer that aiokafka's class for version 8 encodes."""
    from aiokafka.protocol.produce import ProduceResponse_v8

    topics = [
        ("tøpic", [(0, 0, 17, -1, 0, [], None), (1, 87, -1, -1, -1, [(3, "no key"), (5, None)], "some")]),
        ("b", [(2, 6, 40, -1, -1, [], None)]),
    ]
    answers, throttle = read_answers(ProduceResponse_v8(topics, 250).encode())
    name = "tøpic".encode()
    assert answers == [Answer(name, 0, 0, 17), Answer(name, 1, 87, -1, (3, 5)), Answer(b"b", 2, 6, 40)]
    assert throttle == 250


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_an_answer_that_is_cut_off(cut: int) -> None:
    """It is an error, and no made-up outcome."""
    from aiokafka.protocol.produce import ProduceResponse_v8

    whole = ProduceResponse_v8([("topic", [(0, 0, 17, -1, 0, [], None), (1, 0, 17, -1, 0, [], None)])], 0).encode()
    with pytest.raises((struct.error, IndexError)):
        read_answers(whole[:-cut])


async def test_an_awaited_answer_only_keeps_what_it_is_given() -> None:
    """In the turn in which aiokafka calls it nothing else happens; the callback comes in a later one, once."""
    arrived: list[AwaitedAnswer] = []
    answer = AwaitedAnswer(asyncio.get_running_loop(), arrived.append)
    assert not answer.done()
    answer.set_result(answer.RESPONSE_TYPE.decode(io.BytesIO(b"frame")))
    answer.set_exception(RuntimeError())
    assert answer.done()
    assert arrived == []
    await asyncio.sleep(0)
    assert arrived == [answer]
    assert (answer.frame, AwaitedAnswer.parse_response_header(io.BytesIO(b"x")).correlation_id) == (b"frame", -1)


def test_a_batch_has_its_numbers() -> None:
    """Producer id, epoch and first sequence number are in the batch, and a full one takes no more."""
    from aiokafka.record.default_records import DefaultRecordBatch

    builder = batch_builder("none", 4711, 3, 99, 200)
    assert builder.append(0, 1, b"k", b"v" * 100, [("h", b"v")]) is not None
    assert builder.append(1, 1, b"k", b"v" * 100, []) is None
    batch = DefaultRecordBatch(bytes(builder.build()))
    assert (batch.producer_id, batch.producer_epoch, batch.base_sequence) == (4711, 3, 99)
    assert [(record.key, record.value, record.headers) for record in batch] == [(b"k", b"v" * 100, [("h", b"v")])]


# -- connections ----------------------------------------------------------------------------------------------------


@pytest.mark.live
async def test_a_connection_answers(connection: Connection) -> None:
    """Versions, metadata and a producer id, over a socket of our own."""
    connection.check_version()
    assert (await connection.metadata([])).brokers
    async with asyncio.timeout(10):
        while (answer := await connection.producer_id())[0]:
            await asyncio.sleep(0.1)  # the coordinator of a node that has just started is loading
    _, producer_id, epoch = answer
    assert epoch == 0
    assert producer_id >= 0


@pytest.mark.live
async def test_requests_of_ours_stand_in_its_queue(connection: Connection) -> None:
    """Answers come to ours and to aiokafka's own requests in turn, each to its own."""
    arrived: list[AwaitedAnswer] = []
    metadata = asyncio.ensure_future(connection.metadata([]))
    await asyncio.sleep(0)
    number = connection.next_correlation_id()
    answer = AwaitedAnswer(asyncio.get_running_loop(), arrived.append)
    connection.write(request_of(number, request_head(b"x", -1, 1000), [(b"no-such", 0, b"")]), number, answer)
    assert len(connection._requests) == 2
    again = asyncio.ensure_future(connection.metadata([]))
    await asyncio.gather(metadata, again)
    await asyncio.sleep(0)
    assert arrived == [answer]
    assert answer.frame is not None
    assert [found.code for found in read_answers(answer.frame)[0]] != [0]


@pytest.mark.live
async def test_a_dropped_connection_leaves_nothing(kafka: KafkaServer) -> None:
    """drop() closes socket and reader, tells `closed` once, and fails who waits; a second time does nothing."""
    settings = settings_for(kafka.bootstrap_servers)
    closed: list[Connection] = []
    arrived: list[AwaitedAnswer] = []
    async with no_leaks():
        connection = await Connection.open(settings, settings.hosts[0], closed.append)
        answer = AwaitedAnswer(asyncio.get_running_loop(), arrived.append)
        connection.write(b"", connection.next_correlation_id(), answer)
        connection.drop()
        connection.drop()
        await connection.ended()
        await asyncio.sleep(0)
    assert (closed, arrived) == ([connection], [answer])
    assert answer.error is not None
    assert not connection.connected()


@pytest.mark.live
def test_a_connection_whose_loop_is_closed(kafka: KafkaServer, recwarn: pytest.WarningsRecorder) -> None:
    """drop() closes its socket without a word, also after its event loop has gone."""
    settings = settings_for(kafka.bootstrap_servers)
    loop = asyncio.new_event_loop()
    connection = loop.run_until_complete(Connection.open(settings, settings.hosts[0]))
    loop.close()
    connection.drop()
    del connection
    assert not recwarn.list


def test_its_base_has_what_we_override() -> None:
    """`connect`, `send`, `close`, `connected` and `authenticator_oauth` are where we expect them."""
    for name in ("connect", "send", "close", "connected", "authenticator_oauth"):
        assert callable(getattr(AIOKafkaConnection, name))
