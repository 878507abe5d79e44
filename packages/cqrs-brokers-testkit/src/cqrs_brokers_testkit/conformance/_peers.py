"""A peer on loopback that is not a broker. It says nothing, or speaks another protocol."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field


@dataclass
class Peer:
    """A peer: where it listens, how many connections it has taken so far (with TLS: handshakes), and what was written
    to it."""

    port: int
    accepted: int = 0
    received: bytearray = field(default_factory=bytearray)


@contextlib.asynccontextmanager
async def peer(
    answer: bytes = b"", *, tls: ssl.SSLContext | None = None, hangs_up: bool = False, resets: bool = False
) -> AsyncIterator[Peer]:
    """A server that answers once, whatever is written to it. Then it says nothing more, or closes or resets the
    connection."""
    here = Peer(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        here.accepted += 1
        with contextlib.suppress(OSError):
            answered = not answer
            while data := await reader.read(65_536):
                here.received.extend(data)
                if not answered:
                    writer.write(answer)
                    answered = True
                if resets:
                    at_once = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
                if hangs_up or resets:
                    break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    here.port = server.sockets[0].getsockname()[1]
    try:
        yield here
    finally:
        server.close()
