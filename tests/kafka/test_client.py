"""Contract tests for each undocumented thing of aiokafka that we use: red here means aiokafka has changed."""

import ast
import asyncio
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError
from aiokafka.record.util import calc_crc32c

from cqrs_broker_kafka import KafkaOptions, _client
from cqrs_broker_kafka._client import PRIVATE, Connection, crc32c, why_unsupported
from cqrs_broker_kafka._produce import (
    Answer,
    correlation_id_of,
    read_answers,
    request_head,
    request_of,
    split_frames,
)
from cqrs_broker_kafka._settings import KafkaSettings
from cqrs_brokers import ProtocolError, open_broker
from cqrs_brokers.url import BrokerURL
from cqrs_brokers_testkit.leaks import no_leaks
from cqrs_brokers_testkit.proxy import FaultProxy
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
    """The module uses no private name of aiokafka but the eight of its table."""
    own = {"_settings", "_logged_in", "_sent", "_provider", "_timeout", "_protocol", "_partial", "_socket"}
    own |= {"_addresses", "_until"}
    tree = ast.parse((PLUGIN / "_client.py").read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("_")}
    assert {name for name in used if not name.startswith("__")} - own == set(PRIVATE)
    assert len(PRIVATE) == 8
    assert all(f"`{name}`" in (_client.__doc__ or "") for name in PRIVATE)


def test_both_checksums_are_the_same() -> None:
    """Without Google's extension, aiokafka's function gives the same checksum."""
    assert google_crc32c.implementation == "c"
    for data in (b"", b"123456789", bytes(range(256)) * 50):
        assert crc32c(data) == calc_crc32c(data)
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C


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
    assert "_do_version_lookup" in text
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
    answers, throttle = read_answers(b"\0\0\0\7" + ProduceResponse_v8(topics, 250).encode())
    name = "tøpic".encode()
    assert answers == [Answer(name, 0, 0, 17), Answer(name, 1, 87, -1, (3, 5)), Answer(b"b", 2, 6, 40)]
    assert throttle == 250


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_an_answer_that_is_cut_off(cut: int) -> None:
    """It is an error, and no made-up outcome."""
    from aiokafka.protocol.produce import ProduceResponse_v8

    topics: Any = [("topic", [(0, 0, 17, -1, 0, [], None), (1, 0, 17, -1, 0, [], None)])]
    whole = b"\0\0\0\7" + ProduceResponse_v8(topics, 0).encode()
    with pytest.raises((struct.error, IndexError)):
        read_answers(whole[:-cut])


@pytest.mark.parametrize("cut", range(0, 40, 3))
def test_responses_are_put_together(cut: int) -> None:
    """However what arrives is cut, the same responses come out, and what is left is kept."""
    data = struct.pack(">i", 7) + b"seven.." + struct.pack(">i", 4) + b"four" + struct.pack(">i", 20) + b"x" * 20
    first, rest = split_frames(data[:cut])
    second, rest = split_frames(rest + data[cut:])
    assert (first + second, rest) == ([b"seven..", b"four", b"x" * 20], b"")


@pytest.mark.parametrize("size", [-(2**31), -1, 0, 3, 2**31 - 1])
def test_an_impossible_size_ends_the_connection(size: int) -> None:
    """What follows a size that no response has is not looked at: an empty response stands for it."""
    data = struct.pack(">i", 4) + b"good" + struct.pack(">i", size) + b"whatever"
    assert split_frames(data) == ([b"good", b""], b"")
    assert correlation_id_of(b"") == -1


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
async def test_a_connection_becomes_ours(connection: Connection) -> None:
    """After aiokafka's own questions responses come to us, as they arrive, in the order of the requests."""
    await connection.metadata([])
    arrived: list[bytes] = []
    for number in (7, 8):
        request = request_of(number, request_head(b"x", -1, 1000), [(b"no-such", 0, b"")])
        connection.write(request, arrived.extend)
    async with asyncio.timeout(5):
        while len(arrived) < 2:
            await asyncio.sleep(0.01)
    assert [correlation_id_of(frame) for frame in arrived] == [7, 8]
    assert [found.code for found in read_answers(arrived[0])[0]] != [0]
    assert connection.connected()


@pytest.mark.live
async def test_a_connection_that_is_ours_notices_its_end(proxy: FaultProxy) -> None:
    """aiokafka's reader gets nothing any more, and still closes the connection when the broker does."""
    settings = settings_for(proxy.address)
    closed: list[Connection] = []
    connection = await Connection.open(settings, settings.hosts[0], closed.append)
    connection.write(b"", lambda _: None)
    proxy.close_connections()
    async with asyncio.timeout(5):
        while not closed:
            await asyncio.sleep(0.01)
    assert not connection.connected()
    with pytest.raises(KafkaConnectionError):
        connection.write(b"", lambda _: None)
    await connection.ended()


@pytest.mark.live
async def test_a_dropped_connection_leaves_nothing(kafka: KafkaServer) -> None:
    """drop() closes socket and reader, tells `closed` once, and fails who waits; a second time does nothing."""
    settings = settings_for(kafka.bootstrap_servers)
    closed: list[Connection] = []
    async with no_leaks():
        connection = await Connection.open(settings, settings.hosts[0], closed.append)
        asking = asyncio.ensure_future(connection.metadata([]))
        await asyncio.sleep(0)
        connection.drop()
        connection.drop()
        await connection.ended()
        with pytest.raises(KafkaConnectionError):
            await asking
    assert closed == [connection]
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
