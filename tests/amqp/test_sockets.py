"""What the connection's socket says about writes that the operating system does not take at once."""

import asyncio
import contextlib
import random
import socket
import ssl
import threading
from collections.abc import Iterator

import pytest

from cqrs_broker_amqp._client import Sockets
from cqrs_brokers_testkit.certificates import Certificates

SIZE = 16_000_000
"""Bytes: more than the buffers of a socket hold."""


@contextlib.contextmanager
def slow_reader(tls: ssl.SSLContext | None, reads: threading.Event) -> Iterator[int]:
    """A server that takes, while `reads` is set, what one connection sends in pieces of random size. Gives its port."""
    rng = random.Random(7)

    def serve() -> None:
        raw, _ = listener.accept()
        with contextlib.suppress(OSError), tls.wrap_socket(raw, server_side=True) if tls else raw as taken:
            while reads.wait(10) and taken.recv(rng.randrange(1, 300_000)):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
async def test_drained_is_told_when_nothing_waits(certificates: Certificates, encrypted: bool) -> None:
    """What is not taken at once is followed by one call, and by then the socket has taken all, others' frames, too."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if encrypted else None
    if serving is not None:
        serving.load_cert_chain(certificates.server, certificates.server_key)
    trusting = ssl.create_default_context(cafile=certificates.ca) if encrypted else None
    reads = threading.Event()
    reads.set()
    with slow_reader(serving, reads) as port:
        sockets = Sockets("127.0.0.1", port, trusting)
        await sockets.connect()
        await sockets.start_tls()
        told: asyncio.Queue[bool] = asyncio.Queue()
        sockets.on_drained(lambda: told.put_nowait(sockets.must_wait()))
        for _ in range(5):
            reads.clear()
            sockets.write(b"x" * SIZE)
            assert sockets.must_wait()
            sockets.write(b"heartbeat")
            assert told.empty()
            reads.set()
            assert await asyncio.wait_for(told.get(), 10) is False
            assert told.empty()
        sockets.abort()
        await asyncio.sleep(0.01)
