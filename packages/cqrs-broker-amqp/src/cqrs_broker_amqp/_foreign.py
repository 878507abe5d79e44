"""Finds out whether a Kafka broker closed our connection, by sending a request that every Kafka broker answers on a
port without TLS."""

from __future__ import annotations

import asyncio
import contextlib

from cqrs_brokers.dialing import dial
from cqrs_brokers.exceptions import ConnectError, ProtocolError

__all__ = ["name_the_peer"]

_PATIENCE = 1.0
"""How long connecting to the peer and its answer may take together, in seconds."""
# ApiVersions, version 0, correlation id 77, without a client id: every Kafka answers it, before any log-in.
_KAFKAS_QUESTION = bytes.fromhex("0000000a 0012 0000 0000004d ffff")
_KAFKAS_ANSWER = bytes.fromhex("0000004d")


async def name_the_peer(error: ConnectError, host: tuple[str, int]) -> ConnectError:
    """Returns the error for a server that closed the connection without a reason while the connection was being made.
    If the server is a Kafka broker, the error is a `ProtocolError`. Otherwise the given error is returned.

    Args:
        error: The error of the failed attempt to connect.
        host: Name and port.
    """
    answer = b""
    with contextlib.suppress(OSError, EOFError, asyncio.IncompleteReadError):
        async with asyncio.timeout(_PATIENCE):
            reader, writer = await asyncio.open_connection(sock=await dial(*host))
            try:
                writer.write(_KAFKAS_QUESTION)
                answer = await reader.readexactly(8)
            finally:
                writer.transport.abort()
    if answer[4:] != _KAFKAS_ANSWER:
        return error
    remedy = "write kafka://, or check the port"
    found = ProtocolError(f"{host[0]}:{host[1]} is a Kafka, not RabbitMQ", remedy=remedy)
    found.__cause__ = error.__cause__
    return found
