"""What every refused connection must show, whatever the broker and whatever the reason."""

import asyncio
import contextlib
import time
from collections.abc import Iterator

import pytest

from cqrs_brokers import Broker, ConnectError, Message, NotConnectedError
from cqrs_brokers_testkit.leaks import no_leaks
from cqrs_brokers_testkit.proxy import FaultProxy

WITHIN = 2.0
"""Seconds that `connect()` may take to say no."""

TLS_HANDSHAKE = 0x16
"""The first byte of a TLS connection: content type "handshake" (RFC 8446, 5.1)."""


async def refused(broker: Broker, *, topic: str = "t") -> ConnectError:
    """Why `connect()` fails: within two seconds, and leaving nothing. A permanent reason also ends a send at once."""
    async with no_leaks():
        started = time.monotonic()
        try:
            with pytest.raises(ConnectError) as caught:
                await broker.connect()
            error = caught.value
            assert time.monotonic() - started < WITHIN
            assert error.broker == broker.url
            if error.permanent:
                started = time.monotonic()
                with pytest.raises(NotConnectedError) as failed:
                    await broker.send_message(Message("Happened", topic, {}))
                assert time.monotonic() - started < WITHIN
                assert type(failed.value.__cause__) is type(error)
                assert not failed.value.retryable
        finally:
            await broker.close()
        await asyncio.sleep(0)
    assert error.retryable is not error.permanent
    return error


@contextlib.contextmanager
def wiretap(host: str, port: int) -> Iterator[tuple[FaultProxy, list[bytes]]]:
    """A proxy in front of a server, and all that clients say through it, chunk by chunk."""
    said: list[bytes] = []

    def record(data: bytes) -> bytes:
        said.append(data)
        return data

    with FaultProxy((host, port)) as proxy:
        proxy.rewrite(record, "up")
        yield proxy, said
