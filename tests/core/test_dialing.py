"""From a name to a socket: dead addresses, name servers that do not answer."""

import asyncio
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cqrs_brokers import dialing
from cqrs_brokers.dialing import Address, BufferedReads, dial, look_up, open_socket, open_streams, other_addresses
from cqrs_brokers_testkit.certificates import make_certificates
from tests.dead_address import DEAD, dead_address

WELL = "127.0.0.1"


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server((WELL, 0)) as listener:
        yield listener.getsockname()[1]


async def test_the_second_address_is_tried_while_the_first_is_silent(
    port: int, names: dict[str, Callable[[], list[str]]]
) -> None:
    """A name whose first address drops packets connects through the second within a second."""
    names["two.test"] = lambda: [DEAD, WELL]
    with dead_address(port):
        started = time.monotonic()
        with await dial("two.test", port) as raw:
            assert raw.getpeername() == (WELL, port)
            assert not raw.getblocking()
        assert time.monotonic() - started < 1


async def test_a_refusal_does_not_wait(port: int, names: dict[str, Callable[[], list[str]]]) -> None:
    """An address that refuses is followed by the next one at once."""
    names["two.test"] = lambda: [DEAD, WELL]
    with await dial("two.test", port) as raw:
        assert raw.getpeername() == (WELL, port)


async def test_nobody_answers(port: int, names: dict[str, Callable[[], list[str]]]) -> None:
    """When no address answers the time-out says so; refused addresses give the operating system's error."""
    names["dead.test"] = lambda: [DEAD]
    with dead_address(port):
        with pytest.raises(TimeoutError, match="none of its addresses answers"):
            await dial("dead.test", port, timeout=0.3)
    with pytest.raises(ConnectionRefusedError):
        await dial("dead.test", port, timeout=5)
    with pytest.raises(OSError, match="no address"):
        await open_socket([])


async def test_the_addresses_that_are_left(port: int) -> None:
    """Without the one that connected, in their order: it may turn out to be of no use."""
    first, well, last = (Address(socket.AF_INET, (host, port)) for host in (DEAD, WELL, "127.0.0.8"))
    with await open_socket([first, well, last]) as raw:
        assert other_addresses([first, well, last], raw) == [first, last]


async def test_the_addresses_that_are_left_after_a_reset() -> None:
    """The host resets the connection before it is asked for: that is no error here, the next read shows it."""
    with socket.create_server((WELL, 0)) as listener:
        address = Address(socket.AF_INET, listener.getsockname())
        with await open_socket([address]) as raw:
            accepted, _ = listener.accept()
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.close()
            while raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                await asyncio.sleep(0.01)
            assert other_addresses([address, Address(socket.AF_INET, (DEAD, 1))], raw) == []


async def test_addresses_need_no_look_up(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address, IPv4 or IPv6, is used as it is, without a thread."""
    monkeypatch.setattr(dialing, "_running_look_up", None)
    assert await look_up("::1", 5) == [Address(socket.AF_INET6, ("::1", 5, 0, 0))]
    with await dial(WELL, port) as raw:
        assert raw.getpeername() == (WELL, port)


async def test_families_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses of the two families alternate, beginning with the resolver's first; doubles are left out."""
    six = [(socket.AF_INET6, 1, 6, "", (f"::{number}", 1, 0, 0)) for number in (1, 2, 2, 3)]
    four = [(socket.AF_INET, 1, 6, "", ("127.0.0.1", 1))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [*six, *four])
    assert [one.sockaddr[0] for one in await look_up("both.test", 1)] == ["::1", "127.0.0.1", "::2", "::3"]


async def test_a_silent_name_server_costs_one_thread(names: dict[str, Callable[[], list[str]]]) -> None:
    """While DNS is silent each name is looked up once, whoever asks, outside the loop's thread pool."""
    asked: list[str] = []
    answer = threading.Event()

    def silent() -> list[str]:
        asked.append("slow.test")
        answer.wait(10)
        return [WELL]

    names["slow.test"] = silent
    for _ in range(3):
        with pytest.raises(socket.gaierror, match=r"the name server has not answered within 0\.05 s") as caught:
            await look_up("slow.test", 1, timeout=0.05)
        assert caught.value.errno == socket.EAI_AGAIN
    waiting = [asyncio.create_task(look_up("slow.test", 1)) for _ in range(5)]
    await asyncio.sleep(0)  # they ask before the answer comes: a thread may end before the loop's next turn
    assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 2) == "free"
    assert len(asked) == 1
    answer.set()
    assert [found[0].sockaddr for found in await asyncio.gather(*waiting)] == [(WELL, 1)] * 5
    assert len(asked) == 1
    await look_up("slow.test", 1)
    assert len(asked) == 2, "an old answer is not kept"


def test_the_process_does_not_wait_for_a_look_up(names: dict[str, Callable[[], list[str]]]) -> None:
    """asyncio.run() ends although a look-up still runs, and its late answer disturbs nobody."""
    answer = threading.Event()
    names["slow.test"] = lambda: [WELL] if answer.wait(10) else []

    async def ask() -> None:
        with pytest.raises(socket.gaierror):
            await look_up("slow.test", 1, timeout=0.05)

    started = time.monotonic()
    asyncio.run(ask())
    assert time.monotonic() - started < 5
    answer.set()
    for thread in threading.enumerate():
        if thread.name == "look-up of slow.test":
            thread.join(5)
            assert not thread.is_alive()


FORKED_AS_A_LOOK_UP_BEGINS = """
import asyncio, os, signal, socket, threading, warnings
from cqrs_brokers.dialing import look_up

warnings.simplefilter("ignore", DeprecationWarning)  # the process has threads when it is forked
socket.getaddrinfo = lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1))]
begins, forked = threading.Event(), threading.Event()

def ask():
    return asyncio.run(look_up("a.test", 1, timeout=5))

class Slow(threading.Thread):
    def start(self):
        begins.set()
        forked.wait(10)
        super().start()

other = threading.Thread(target=ask)
usual, threading.Thread = threading.Thread, Slow
other.start()
begins.wait(10)
pid = os.fork()
if pid == 0:
    threading.Thread = usual
    signal.alarm(5)
    print("child", ask()[0].sockaddr[0], flush=True)
    os._exit(0)
os.waitpid(pid, 0)
forked.set()
other.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_looks_up_names_although_a_look_up_began_at_the_fork() -> None:
    """What another thread of the parent was doing at that moment does not hold up the child."""
    program = [sys.executable, "-c", FORKED_AS_A_LOOK_UP_BEGINS]
    done = subprocess.run(program, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "child 127.0.0.1\n", done.stderr


async def test_a_look_up_whose_thread_does_not_start_is_not_waited_for(
    names: dict[str, Callable[[], list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call says why, and the next one begins a look-up of its own."""

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    names["a.test"] = lambda: [WELL]
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        for _ in range(2):
            with pytest.raises(socket.gaierror, match="can't start new thread") as caught:
                await look_up("a.test", 1, timeout=1.0)
            assert caught.value.errno == socket.EAI_MEMORY
    assert [found.sockaddr for found in await look_up("a.test", 1, timeout=5.0)] == [(WELL, 1)]


async def test_what_is_no_name(names: dict[str, Callable[[], list[str]]]) -> None:
    """Every way in which a name cannot be resolved is a gaierror."""

    def missing() -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    names["missing.test"] = missing
    with pytest.raises(socket.gaierror):
        await look_up("missing.test", 1)
    with pytest.raises(socket.gaierror, match="no host name"):
        await look_up("x" * 70 + ".test", 1)


class Kept(asyncio.StreamReaderProtocol, BufferedReads):
    """Notes how the loop reads."""

    buffers: list[memoryview]

    def get_buffer(self, sizehint: int) -> memoryview:
        buffer = super().get_buffer(sizehint)
        self.buffers.append(buffer)
        return buffer


SENT = b"".join(struct.pack(">i", number) for number in range(100_000))


async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends pieces of all sizes. With TLS each piece is a record."""
    at = 0
    while at < len(SENT):
        size = (1, 5, 700, 16_000, 3, 40_000)[at % 6]
        writer.write(SENT[at : at + size])
        at += size
    await writer.drain()
    writer.close()


async def test_buffered_reads_use_one_buffer() -> None:
    """All reads of a connection go into one buffer, and the stream gets every byte in order."""
    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(serve, WELL, 0)
    async with server:
        reader = asyncio.StreamReader(limit=2**20)
        protocol = Kept(reader)
        protocol.buffers = []
        raw = await dial(WELL, server.sockets[0].getsockname()[1])
        transport, _ = await loop.create_connection(lambda: protocol, sock=raw)
        assert await reader.read(-1) == SENT
        transport.close()
    assert len({id(buffer) for buffer in protocol.buffers}) == 1
    assert len(protocol.buffers) > 1


@pytest.mark.parametrize("tls", [False, True])
async def test_streams_give_every_byte_in_order(tls: bool, tmp_path: Path) -> None:
    """Also when one read brings several TLS records."""
    ours = theirs = None
    if tls:
        made = make_certificates(tmp_path)
        theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        theirs.load_cert_chain(made.server, made.server_key)
        ours = ssl.create_default_context(cafile=made.ca)
    server = await asyncio.start_server(serve, WELL, 0, ssl=theirs)
    async with server:
        raw = await dial(WELL, server.sockets[0].getsockname()[1])
        reader, writer = await open_streams(raw, ssl=ours, server_hostname="localhost" if tls else None)
        assert await reader.read(-1) == SENT
        writer.close()
