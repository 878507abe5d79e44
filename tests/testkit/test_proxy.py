"""The fault proxy, in front of a plain echo server."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable

import pytest

from cqrs_brokers_testkit.leaks import no_leaks, no_leaks_sync
from cqrs_brokers_testkit.proxy import FaultProxy

SHORT = 0.15


class Client:
    """One connection to the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def echo(self, data: bytes, timeout: float = 2.0) -> bytes:
        self.writer.write(data)
        return await asyncio.wait_for(self.reader.readexactly(len(data)), timeout)


class Echo:
    """A server that sends back what it gets, and remembers it."""

    def __init__(self) -> None:
        self.received = b""
        self.ends: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                self.received += data
                writer.write(data)
                await writer.drain()
            self.ends.append("eof")
        except ConnectionResetError:
            self.ends.append("reset")
        finally:
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Echo, tuple[str, int]]]:
    server = Echo()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    async with listener:
        yield server, listener.sockets[0].getsockname()[:2]


@pytest.fixture
async def proxy(echo: tuple[Echo, tuple[str, int]]) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(echo[1]) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: FaultProxy) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    client = Client(reader, writer)
    assert await client.echo(b"hello") == b"hello"
    yield client
    writer.close()


async def silent(reader: asyncio.StreamReader) -> bool:
    """Tell whether nothing arrives for a moment."""
    try:
        await asyncio.wait_for(reader.read(1), SHORT)
    except TimeoutError:
        return True
    return False


async def test_passes_everything_on_in_order_when_healthy(client: Client) -> None:
    """Two megabytes come back as they were sent."""
    data = bytes(range(256)) * 8192
    assert await client.echo(data, timeout=10) == data


async def test_a_stall_upwards_keeps_bytes_from_the_server(
    proxy: FaultProxy, client: Client, echo: tuple[Echo, tuple[str, int]]
) -> None:
    """With "up" stalled the server gets nothing until resume."""
    proxy.stall("up")
    client.writer.write(b"late")
    assert await silent(client.reader)
    assert echo[0].received == b"hello"
    proxy.resume("up")
    assert await asyncio.wait_for(client.reader.readexactly(4), 2) == b"late"


async def test_a_stall_downwards_lets_the_server_act(
    proxy: FaultProxy, client: Client, echo: tuple[Echo, tuple[str, int]]
) -> None:
    """With "down" stalled the server gets everything and the client nothing until resume."""
    proxy.stall("down")
    client.writer.write(b"late")
    assert await silent(client.reader)
    assert echo[0].received == b"hellolate"
    proxy.resume("down")
    assert await asyncio.wait_for(client.reader.readexactly(4), 2) == b"late"


async def test_a_stall_applies_to_connections_to_come(proxy: FaultProxy) -> None:
    """A connection made during a stall is accepted and silent."""
    proxy.stall()
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    writer.write(b"x")
    assert await silent(reader)
    proxy.heal()
    assert await asyncio.wait_for(reader.readexactly(1), 2) == b"x"
    writer.close()


async def test_reset_ends_both_sides_with_rst(
    proxy: FaultProxy, client: Client, echo: tuple[Echo, tuple[str, int]]
) -> None:
    """Client and server both see a reset, not an end of file."""
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(client.reader.read(1), 2)
    await asyncio.sleep(SHORT)
    assert echo[0].ends == ["reset"]
    assert proxy.connections == []


async def test_reset_ends_a_stalled_connection(proxy: FaultProxy, client: Client) -> None:
    """A stall does not hold back a reset."""
    proxy.stall()
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(client.reader.read(1), 2)


async def test_close_connections_ends_both_sides_with_fin(
    proxy: FaultProxy, client: Client, echo: tuple[Echo, tuple[str, int]]
) -> None:
    """Client and server both see an end of file."""
    proxy.close_connections()
    assert await asyncio.wait_for(client.reader.read(1), 2) == b""
    await asyncio.sleep(SHORT)
    assert echo[0].ends == ["eof"]


async def test_half_close_down_leaves_the_way_up_open(
    proxy: FaultProxy, client: Client, echo: tuple[Echo, tuple[str, int]]
) -> None:
    """The client sees an end of file, and the server still gets what the client sends."""
    proxy.half_close("down")
    assert await asyncio.wait_for(client.reader.read(1), 2) == b""
    client.writer.write(b"more")
    await asyncio.sleep(SHORT)
    assert echo[0].received == b"hellomore"
    assert echo[0].ends == []


async def test_the_end_of_one_side_reaches_the_other(client: Client, echo: tuple[Echo, tuple[str, int]]) -> None:
    """A client's FIN passes through, and so does the server's answer to it."""
    client.writer.write_eof()
    assert await asyncio.wait_for(client.reader.read(), 2) == b""
    assert echo[0].ends == ["eof"]


async def test_delay_makes_each_way_late_without_cutting_throughput(proxy: FaultProxy, client: Client) -> None:
    """A round trip takes two delays, and 100 writes in flight take about as long as one."""
    proxy.delay(0.1, jitter=0.02)
    began = time.monotonic()
    await client.echo(b"x")
    assert time.monotonic() - began >= 0.2
    began = time.monotonic()
    for _ in range(100):
        client.writer.write(b"y")
        await asyncio.sleep(0)
    assert await asyncio.wait_for(client.reader.readexactly(100), 5) == b"y" * 100
    assert time.monotonic() - began < 2


async def test_throttle_limits_the_rate(proxy: FaultProxy, client: Client) -> None:
    """5000 bytes at 10 000 bytes a second take at least half a second."""
    proxy.throttle(10_000, way="up")
    began = time.monotonic()
    assert await client.echo(b"z" * 5000, timeout=5) == b"z" * 5000
    assert time.monotonic() - began >= 0.45


@pytest.mark.parametrize("hold", [lambda proxy: proxy.throttle(10_000, way="up"), lambda proxy: proxy.stall("up")])
async def test_a_slow_connection_takes_in_little(proxy: FaultProxy, hold: Callable[[FaultProxy], None]) -> None:
    """Less than 1 MB of what a client writes to a throttled or stalled connection is taken in, whatever the kernel's
    settings allow."""
    hold(proxy)
    with socket.create_connection((proxy.host, proxy.port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
        client.setblocking(False)
        sent, loop = 0, asyncio.get_running_loop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHORT * 5):
                while sent < 64_000_000:
                    await loop.sock_sendall(client, bytes(16 * 1024))
                    sent += 16 * 1024
    assert 0 < sent < 1_000_000


async def test_swallow_drops_what_comes_back(
    proxy: FaultProxy, client: Client, echo: tuple[Echo, tuple[str, int]]
) -> None:
    """The server acts, the answer is gone for good, and later answers pass again."""
    proxy.swallow()
    client.writer.write(b"lost")
    assert await silent(client.reader)
    assert echo[0].received == b"hellolost"
    proxy.heal()
    assert await client.echo(b"kept") == b"kept"


async def test_corrupt_and_rewrite_change_what_comes_back(proxy: FaultProxy, client: Client) -> None:
    """corrupt() inverts bytes, rewrite() passes them through a function."""
    proxy.corrupt()
    assert await client.echo(b"\x00\x0f") == b"\xff\xf0"
    proxy.rewrite(bytes.upper)
    assert await client.echo(b"abc") == b"ABC"


@pytest.mark.parametrize("by", ["reset", "close"])
async def test_cut_after_lets_exactly_so_many_bytes_pass(
    proxy: FaultProxy, client: Client, by: str, echo: tuple[Echo, tuple[str, int]]
) -> None:
    """Of 100 bytes the server gets 10, then the connection ends as asked."""
    proxy.cut_after(10, "up", by="reset" if by == "reset" else "close")
    client.writer.write(b"a" * 100)
    got = b""
    try:
        while data := await asyncio.wait_for(client.reader.read(100), 2):
            got += data
        ended = "close"
    except ConnectionResetError:
        ended = "reset"
    await asyncio.sleep(SHORT)
    assert echo[0].received == b"hello" + b"a" * 10
    assert len(got) <= 10
    assert ended == by


async def test_cut_after_can_stall(proxy: FaultProxy, client: Client, echo: tuple[Echo, tuple[str, int]]) -> None:
    """The rest is held back until resume."""
    proxy.cut_after(3, "up", by="stall")
    client.writer.write(b"abcdef")
    assert await asyncio.wait_for(client.reader.readexactly(3), 2) == b"abc"
    assert await silent(client.reader)
    proxy.resume()
    assert await asyncio.wait_for(client.reader.readexactly(3), 2) == b"def"


async def test_it_knows_which_side_hung_up(echo: tuple[Echo, tuple[str, int]], proxy: FaultProxy) -> None:
    """What the server ended before the client did is counted; what the client ended is not."""
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    await Client(reader, writer).echo(b"1")
    writer.close()
    await asyncio.sleep(SHORT)
    assert proxy.hung_up == 0

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as rude:
        proxy.target = rude.sockets[0].getsockname()[:2]
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        assert await asyncio.wait_for(reader.read(), 2) == b""
        assert proxy.hung_up == 1
        writer.close()


async def test_what_is_inserted_comes_between_what_passes(proxy: FaultProxy, client: Client) -> None:
    """The client gets what nobody sent, and the connection works on."""
    assert await client.echo(b"1") == b"1"
    proxy.insert(b"bye")
    assert await asyncio.wait_for(client.reader.readexactly(3), 2) == b"bye"
    assert await client.echo(b"2") == b"2"


async def test_a_new_connection_may_have_its_own_fault_from_the_beginning(proxy: FaultProxy) -> None:
    """`on_connection` is called before anything passes."""
    proxy.on_connection = lambda connection: connection.rewrite(bytes.upper)
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    assert await Client(reader, writer).echo(b"abc") == b"ABC"
    writer.close()


async def test_refuse_turns_new_connections_away_and_keeps_old_ones(proxy: FaultProxy, client: Client) -> None:
    """New connections are refused; the open one works; after accept() new ones work at the same port."""
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(proxy.host, proxy.port)
    assert await client.echo(b"still") == b"still"
    proxy.accept()
    _, writer = await asyncio.open_connection(proxy.host, proxy.port)
    writer.close()


async def test_faults_of_one_connection_leave_the_others_alone(proxy: FaultProxy, client: Client) -> None:
    """Stalling and resetting the first connection does not touch the second."""
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    other = Client(reader, writer)
    assert await other.echo(b"2") == b"2"
    first = proxy.connections[0]
    first.stall()
    client.writer.write(b"x")
    assert await silent(client.reader)
    assert await other.echo(b"3") == b"3"
    first.reset()
    assert await other.echo(b"4") == b"4"
    assert proxy.connections[0].bytes_up == 3
    writer.close()


async def test_without_a_reachable_server_connections_are_reset() -> None:
    """A client of a proxy whose target is down sees a reset, and target may be set later."""
    async with FaultProxy() as proxy:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), 2)
        writer.close()


async def test_leaves_nothing_behind_with_connections_open(echo: tuple[Echo, tuple[str, int]]) -> None:
    """After the block no task and no socket is left, stalled connections with unsent bytes included."""
    async with no_leaks(settle=3):
        async with FaultProxy(echo[1]) as proxy:
            reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
            await Client(reader, writer).echo(b"1")
            proxy.stall()
            writer.write(b"x" * 1_000_000)
            await asyncio.sleep(0.05)
        writer.transport.abort()


def test_runs_in_a_thread_for_code_that_blocks() -> None:
    """The same proxy works for a blocking client, and leaves no thread or socket behind."""
    with no_leaks_sync():
        with socket.create_server(("127.0.0.1", 0)) as listener, FaultProxy(listener.getsockname()[:2]) as proxy:
            with socket.create_connection((proxy.host, proxy.port), timeout=2) as client:
                server, _ = listener.accept()
                with server:
                    client.sendall(b"ping")
                    assert server.recv(4) == b"ping"
                    proxy.stall("down")
                    server.sendall(b"pong")
                    client.settimeout(SHORT)
                    with pytest.raises(TimeoutError):
                        client.recv(4)
                    proxy.resume("down")
                    client.settimeout(2)
                    assert client.recv(4) == b"pong"
                    proxy.reset()
                    with pytest.raises(ConnectionResetError):
                        client.recv(1)
