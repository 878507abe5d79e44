"""A peer on loopback that is not a broker. It says nothing, or speaks another protocol."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

TLS_RECORD = b"\x16\x03"
"""The first bytes that a client with TLS sends."""


@dataclass
class Peer:
    """A peer: its port, the number of connections that it has taken (with TLS: handshakes), and the bytes that were
    written to it."""

    port: int
    accepted: int = 0
    received: bytearray = field(default_factory=bytearray)


@contextlib.asynccontextmanager
async def peer(
    answer: bytes = b"",
    *,
    tls: ssl.SSLContext | None = None,
    hangs_up: bool = False,
    resets: bool = False,
    at_once: bool = False,
    echoes: bool = False,
) -> AsyncIterator[Peer]:
    """Runs a server that answers once, whatever is written to the server. Then it says nothing more, or closes or
    resets the connection.

    Args:
        answer: The answer of the server.
        tls: The server speaks TLS with this context. None: no TLS.
        hangs_up: Whether the server closes the connection after its answer.
        resets: Whether the server resets the connection after its answer.
        at_once: Whether the server acts at once, and does not wait until something is written to it.
        echoes: Whether the server also writes back the bytes that are written to it.
    """
    here, ends = Peer(0), hangs_up or resets

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        here.accepted += 1
        with contextlib.suppress(OSError):
            if at_once:
                writer.write(answer)
            answered = at_once
            while not (at_once and ends) and (data := await reader.read(65_536)):
                here.received.extend(data)
                if echoes:
                    writer.write(data)
                if not answered:
                    writer.write(answer)
                    answered = True
                if ends:
                    break
        raw = writer.get_extra_info("socket")
        if resets and raw is not None:  # None: the client was faster
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    here.port = server.sockets[0].getsockname()[1]
    try:
        yield here
    finally:
        server.close()


@contextlib.asynccontextmanager
async def until_tls(server: tuple[str, int], port: int) -> AsyncIterator[int]:
    """Runs a forwarder to a server. When the client begins with TLS, the forwarder switches to another port of
    127.0.0.1.

    So a peer can take the server's place even if TLS begins after a greeting in plain text. Yields the forwarder's
    port.
    """

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
        writer.close()

    running: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running[task] = writer
        try:
            with contextlib.suppress(OSError):
                await relay(reader, writer)
        finally:
            writer.close()
            del running[task]

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, up = await asyncio.open_connection(*server)
        down, plain = asyncio.ensure_future(pump(answers, writer)), True
        try:
            while data := await reader.read(65_536):
                if plain and data.startswith(TLS_RECORD):
                    plain = False
                    down.cancel()
                    up.close()
                    answers, up = await asyncio.open_connection("127.0.0.1", port)
                    down = asyncio.ensure_future(pump(answers, writer))
                up.write(data)
        finally:
            up.close()
            down.cancel()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield int(listening.sockets[0].getsockname()[1])
    finally:
        listening.close()
        for writer in running.values():
            writer.transport.abort()
        if running:  # asyncio complains about those that it has to cancel
            await asyncio.wait(list(running), timeout=2.0)


@contextlib.asynccontextmanager
async def tls_server(context: ssl.SSLContext) -> AsyncIterator[Peer]:
    """Runs a peer that makes the handshake with this context and then says nothing.

    The peer tells the client why a handshake failed, as servers do. asyncio's own server does not.
    """
    here = Peer(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls, ends = context.wrap_bio(incoming, outgoing, server_side=True), False
        with contextlib.suppress(OSError):
            while not ends and (data := await reader.read(65_536)):
                incoming.write(data)
                try:
                    if not here.accepted:
                        tls.do_handshake()
                        here.accepted += 1
                    here.received.extend(tls.read(65_536))
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLError:
                    ends = True
                writer.write(outgoing.read())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    here.port = server.sockets[0].getsockname()[1]
    try:
        yield here
    finally:
        server.close()
