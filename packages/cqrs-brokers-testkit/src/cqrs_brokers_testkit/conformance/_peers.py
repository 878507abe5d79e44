"""A peer on loopback that is no broker: it says nothing, or something else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass


@dataclass
class Peer:
    """Where it listens, and how many connections it has taken so far."""

    port: int
    accepted: int = 0


@contextlib.asynccontextmanager
async def peer(answer: bytes = b"") -> AsyncIterator[Peer]:
    """A server that gives every connection this answer, once it was written to, and then nothing more."""
    here = Peer(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        here.accepted += 1
        with contextlib.suppress(OSError):
            if answer:
                await reader.read(1)
                writer.write(answer)
            while await reader.read(65_536):
                pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    here.port = server.sockets[0].getsockname()[1]
    try:
        yield here
    finally:
        server.close()
