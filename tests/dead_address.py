"""Addresses that are of no use, as of a host that is gone, frozen, or a load balancer without a broker behind it: for
the tests of core and of drivers."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

DEAD = "127.0.0.7"


@contextlib.contextmanager
def dead_address(port: int) -> Iterator[None]:
    """Makes DEAD:port drop every connection attempt: its queue is full and nobody accepts."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((DEAD, port))
        listener.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect((DEAD, port))
        yield


@contextlib.asynccontextmanager
async def useless_address(port: int, *, hangs_up: bool) -> AsyncIterator[None]:
    """Makes DEAD:port take every connection, and say nothing or hang up."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not hangs_up:
            await reader.read()
        writer.transport.abort()

    async with await asyncio.start_server(answer, DEAD, port):
        yield
