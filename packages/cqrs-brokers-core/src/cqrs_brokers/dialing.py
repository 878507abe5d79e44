"""For plugin authors: looks up the name of a host, and connects to one of its addresses even if other addresses are
dead.

A name may have several addresses, and the first may be dead. So if one address has failed, or has not connected after a
quarter of a second, the next address is tried, too. The first connection is used (RFC 8305, "Happy Eyeballs"). A name
server may be silent. So each look-up runs in a thread of its own, and the event loop's thread pool stays free for the
application. Calls for the same name and port share one look-up while it runs.

    raw = await dial("broker.example", 5672, timeout=10.0)
    reader, writer = await open_streams(raw)  # with TLS also: ssl=context, server_hostname=host

A server may accept the connection and then send nothing: for example a frozen node, or a load balancer without a broker
behind it. Another address of the host may work. To try the other address, a plugin calls `look_up` and `open_socket`
instead of `dial`. When a connected server sends nothing, the plugin calls `other_addresses` and gives the result to
`open_socket`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
import os
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from ssl import SSLContext
from typing import Any, NamedTuple

__all__ = ["Address", "BufferedReads", "dial", "look_up", "open_socket", "open_streams", "other_addresses"]

NEXT_ADDRESS = 0.25
"""If no address has connected after this many seconds, the next address is tried, too (RFC 8305, section 5)."""


READ_SIZE = 2**16
"""The size of the buffer of `BufferedReads`, in bytes. `open_streams` has the same default for `limit`."""


class BufferedReads(asyncio.BufferedProtocol):
    """A second base class for an asyncio protocol, which makes reads cheaper:
    `class P(asyncio.StreamReaderProtocol, BufferedReads)`.

    Without this class, asyncio makes an object of 256 KiB for each read and then shrinks the object. For an object of
    this size, the C library takes memory from the operating system and later gives the memory back. This costs three
    system calls and two page faults per read. With this class, asyncio uses one buffer for all reads of a connection.
    uvloop has a buffer of its own and does not use the buffer of this class.
    """

    _buffer: memoryview | None = None

    def get_buffer(self, sizehint: int) -> memoryview:
        """See `asyncio.BufferedProtocol`.

        A `bytearray` would lose bytes with TLS: for the second record of a read, asyncio takes a slice of the buffer,
        and the slice of a `bytearray` is a copy.
        """
        if self._buffer is None:
            self._buffer = memoryview(bytearray(READ_SIZE))
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """See `asyncio.BufferedProtocol`."""
        assert self._buffer is not None
        self.data_received(bytes(self._buffer[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        raise NotImplementedError


class Address(NamedTuple):
    """One address of a host, as `socket.getaddrinfo` returns it."""

    family: int
    sockaddr: tuple[str | int, ...]


async def dial(host: str, port: int, *, timeout: float | None = None) -> socket.socket:
    """Looks up the name of a host, and connects to the first of its addresses that accepts the connection.

    Args:
        host: Name or address.
        port: TCP port.
        timeout: The most seconds for the look-up and the connecting together. None: no limit.

    Returns:
        A connected, non-blocking socket, for `loop.create_connection(sock=…)`.

    Raises:
        socket.gaierror: The name cannot be resolved, or the name server did not answer in time.
        OSError: No connection to any address was possible. The error is a `TimeoutError` if the time was over first.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    addresses = await look_up(host, port, timeout=timeout)
    left = None if timeout is None else max(0.0, timeout - (loop.time() - began))
    return await open_socket(addresses, timeout=left)


async def look_up(host: str, port: int, *, timeout: float | None = None) -> list[Address]:
    """The addresses of a host, in the order in which they should be tried.

    If another call in this process is looking up the same name and port, this call waits for the same result.

    Args:
        host: Name or address.
        port: TCP port.
        timeout: The longest wait, in seconds. None: the call waits until the resolver gives up.

    Raises:
        socket.gaierror: The name cannot be resolved. The `errno` of the error is `EAI_AGAIN` if the name server did not
            answer in time, and `EAI_MEMORY` if the process cannot start one more thread.
    """
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host.partition("%")[0])
        return _in_order(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))  # no name server is asked
    loop = asyncio.get_running_loop()
    answer = _running_look_up(host, port)
    came = asyncio.Event()

    def wake(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop was closed meanwhile
            loop.call_soon_threadsafe(came.set)

    answer.add_done_callback(wake)
    try:
        async with asyncio.timeout(timeout):
            await came.wait()
    except TimeoutError:
        text = f"the name server has not answered within {timeout:g} s"
        raise socket.gaierror(socket.EAI_AGAIN, text) from None
    found = answer.result()
    if isinstance(found, Exception):
        # A new object: several waiters may share the error, and each raise would add its traceback to it.
        raise type(found)(*found.args)
    return found


async def open_socket(addresses: Sequence[Address], *, timeout: float | None = None) -> socket.socket:
    """Connects to the first address that accepts the connection. The next address is tried after 0.25 s, or as soon as
    an earlier attempt has failed.

    Args:
        addresses: The result of `look_up`.
        timeout: The longest wait, in seconds. None: the call waits until the operating system gives up.

    Returns:
        A connected, non-blocking socket.

    Raises:
        OSError: No connection to any address was possible. This is the error of the first attempt that failed.
        socket.gaierror: There is no address.
        TimeoutError: The time is over, and no address has accepted the connection.
    """
    loop = asyncio.get_running_loop()
    end = None if timeout is None else loop.time() + timeout
    left = list(addresses)
    running: dict[asyncio.Task[socket.socket], None] = {}
    errors: list[OSError] = []
    try:
        while left or running:
            if left:
                running[loop.create_task(_connect(left.pop(0)))] = None
            rest = None if end is None else max(0.0, end - loop.time())
            waits = [seconds for seconds in (NEXT_ADDRESS if left else None, rest) if seconds is not None]
            done, _ = await asyncio.wait(running, timeout=min(waits, default=None), return_when=asyncio.FIRST_COMPLETED)
            for attempt in done:
                del running[attempt]
                error = attempt.exception()
                if error is None:
                    return attempt.result()
                if not isinstance(error, OSError):
                    raise error
                errors.append(error)
            if end is not None and loop.time() >= end and not done:
                raise TimeoutError("none of its addresses answers")
    finally:
        for attempt in running:
            attempt.cancel()
            attempt.add_done_callback(_close_result)
    raise errors[0] if errors else socket.gaierror(socket.EAI_NONAME, "the name has no address")


def other_addresses(addresses: Sequence[Address], connected: socket.socket) -> list[Address]:
    """The addresses in the same order, without the address to which the socket is connected.

    Args:
        addresses: The result of `look_up`.
        connected: The socket that `open_socket` returned for these addresses. If the connection has ended already, its
            address is not known, and the result is empty.
    """
    try:
        peer = connected.getpeername()[:2]
    except OSError:
        return []
    return [address for address in addresses if address.sockaddr[:2] != peer]


async def open_streams(
    raw: socket.socket, *, ssl: SSLContext | None = None, server_hostname: str | None = None, limit: int = READ_SIZE
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Makes a reader and a writer for a connected socket, as `asyncio.open_connection` does, but with cheaper reads
    (`BufferedReads`).

    Args:
        raw: The socket that `dial` or `open_socket` returned.
        ssl: The TLS context; None: no TLS.
        server_hostname: The name that the server's certificate must have; with TLS only.
        limit: A number of bytes. When the reader holds more than twice as many bytes, it stops reading from the socket,
            until the plugin has read so much that at most `limit` bytes are left.

    Raises:
        OSError: The connection was lost, or the TLS handshake failed (`ssl.SSLError`).
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    protocol = _Streams(reader, loop=loop)
    transport, _ = await loop.create_connection(lambda: protocol, sock=raw, ssl=ssl, server_hostname=server_hostname)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


class _Streams(asyncio.StreamReaderProtocol, BufferedReads):
    """asyncio's protocol for streams, with `BufferedReads`."""


async def _connect(address: Address) -> socket.socket:
    raw = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, address.sockaddr)
    except BaseException:
        raw.close()
        raise
    return raw


def _close_result(attempt: asyncio.Task[socket.socket]) -> None:
    """Closes the socket of an attempt that connected too late, for example because another attempt connected in the
    same turn of the event loop."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


def _in_order(found: Sequence[tuple[Any, ...]]) -> list[Address]:
    """Returns the addresses without duplicates. Address families alternate; each family keeps the resolver's order (RFC
    8305, section 4)."""
    by_family: dict[int, dict[Address, None]] = {}
    for family, _, _, _, sockaddr in found:
        by_family.setdefault(family, {})[Address(family, sockaddr)] = None
    rows = itertools.zip_longest(*by_family.values())
    return [address for row in rows for address in row if address is not None]


_look_ups: dict[tuple[str, int, int], Future[list[Address] | Exception]] = {}
"""The look-ups that are running now, by name, port and process. The thread of a look-up does not exist in a forked
child process, so the child must start a look-up of its own."""


def _running_look_up(host: str, port: int) -> Future[list[Address] | Exception]:
    """The look-up of this name and port that is running in this process. If no such look-up is running, one is started.

    A look-up runs in a daemon thread, so that the process can exit while a name server does not answer.
    """
    key = (host, port, os.getpid())
    begun: Future[list[Address] | Exception] = Future()
    # One step, and no lock: a child that is forked while another thread holds a lock could never take it.
    answer = _look_ups.setdefault(key, begun)
    if answer is begun:
        try:
            threading.Thread(target=_answer, args=(key, answer), name=f"look-up of {host}", daemon=True).start()
        except RuntimeError as error:  # the process has too many threads; another call may wait for the answer already
            _end(key, answer, socket.gaierror(socket.EAI_MEMORY, str(error)))
    return answer


def _answer(key: tuple[str, int, int], answer: Future[list[Address] | Exception]) -> None:
    found: list[Address] | Exception
    try:
        found = _in_order(socket.getaddrinfo(*key[:2], type=socket.SOCK_STREAM))
    except UnicodeError:
        found = socket.gaierror(socket.EAI_NONAME, "this is no host name")
    except Exception as error:
        found = error
    _end(key, answer, found)


def _end(
    key: tuple[str, int, int], answer: Future[list[Address] | Exception], found: list[Address] | Exception
) -> None:
    del _look_ups[key]
    answer.set_result(found)
