"""A reset is told, also while nats-py has something to write: nats-py alone would end without a word.

The peer is no nats-server, because none resets a connection on demand.
"""

import asyncio
import gc
import socket
import struct

import pytest
from cqrs_brokers.url import BrokerURL

from cqrs_broker_nats.connecting import Session
from cqrs_broker_nats.options import NatsOptions

INFO = b'INFO {"server_id":"x","version":"2.15.3","proto":1,"host":"127.0.0.1","port":4222,"max_payload":1048576}\r\n'


async def greet_and_reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(INFO)
    while not (await reader.readline()).startswith(b"PING"):
        pass
    writer.write(b"PONG\r\n")
    await asyncio.sleep(0.1)
    linger = struct.pack("ii", 1, 0)  # with it a close is a reset
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


@pytest.mark.parametrize("waits", [False, True])
def test_a_reset_is_told(waits: bool) -> None:
    """With something in nats-py's own buffer, as an answer to a ping is, and without."""

    async def run() -> None:
        told: list[Exception] = []
        logged: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: logged.append(context))
        server = await asyncio.start_server(greet_and_reset, "127.0.0.1", 0)
        url = BrokerURL.parse(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        session = Session(lambda token, msg: None, lambda subject: None, lambda session, error: told.append(error))
        await session.open(url.hosts[0], url, NatsOptions(), None)
        async with asyncio.timeout(5):
            while not told:
                if waits and session._client.is_connected:
                    await session._client.publish("subject", b"")
                await asyncio.sleep(0)
        session.drop()
        await session.gone()
        server.close()
        gc.collect()  # a task with an exception that nobody retrieved says so when it is collected
        assert not logged

    asyncio.run(run())
