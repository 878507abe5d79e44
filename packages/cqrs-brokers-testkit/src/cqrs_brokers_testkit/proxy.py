"""A TCP proxy on loopback that breaks what passes through it.

Put the proxy between a client under test and a server. Then stall, cut, delay or garble the bytes. "up" is the way from
the client to the server, and "down" is the way back. The proxy does not depend on a protocol. A Kafka broker must
advertise the proxy's address:

    with FaultProxy() as proxy, kafka(advertised=(proxy.host, proxy.port)) as server:
        proxy.target = ("127.0.0.1", server.nodes[0].ports["PLAINTEXT"])
        proxy.stall("down")

`async with` runs the proxy in the caller's event loop. `with` runs the proxy in a thread of its own, for tests that
block. Every method may be called from any thread. When a method returns, it has taken effect.

This file is longer than 400 lines because all faults work on one state: the connections and their waiting bytes.
"""

import asyncio
import concurrent.futures
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Self

from cqrs_brokers_testkit.servers._processes import LOOPBACK, free_port

__all__ = ["FaultProxy", "ProxyConnection"]

Way = Literal["up", "down", "both"]
Ending = Literal["reset", "close", "stall"]

_CHUNK = 64 * 1024
_QUEUED_CHUNKS = 64  # what may be on its way while it is delayed
_RECEIVE_BUFFER = 256 * 1024
"""The size of a socket's receive buffer, in bytes. Without this limit the kernel may take in many megabytes for a
stalled connection."""


@dataclass
class _Faults:
    """The faults of one direction."""

    stalled: bool = False
    delay: float = 0.0
    jitter: float = 0.0
    rate: float | None = None
    rewrite: Callable[[bytes], bytes] | None = None
    cut_after: int | None = None
    cut_by: Ending = "reset"


class _Lane:
    """One direction of one connection. `take` reads from the sender, and `give` writes to the receiver."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, faults: _Faults, connection: "ProxyConnection"
    ) -> None:
        self.faults = faults
        self.bytes = 0
        self.flowing = asyncio.Event()
        self._finished = False
        self.held = 0
        """How many bytes were taken in and not passed on yet."""
        self._reader, self._writer, self._connection = reader, writer, connection
        self._queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUED_CHUNKS)
        writer.transport.set_write_buffer_limits(0)  # drain() then means: the kernel has it
        self.changed()

    def changed(self) -> None:
        (self.flowing.clear if self.faults.stalled else self.flowing.set)()

    def insert(self, data: bytes) -> None:
        if not self._finished:
            self._writer.write(data)

    def finish(self) -> None:
        """Send FIN. Bytes that come later in this direction are thrown away."""
        if not self._finished:
            self._finished = True
            with contextlib.suppress(OSError):
                self._writer.write_eof()

    async def take(self) -> None:
        loop, data = asyncio.get_running_loop(), b"-"
        while data:
            await self.flowing.wait()
            try:
                data = await self._reader.read(_CHUNK)
            except OSError:
                self._connection.ended_from(self)
                raise
            if not data:
                self._connection.ended_from(self)
            faults = self.faults
            self.held += len(data)
            await self._queue.put((loop.time() + faults.delay + random.random() * faults.jitter, data))  # noqa: S311
            if faults.rate is not None:  # a slow link has no room for what has not passed yet
                await self._queue.join()

    async def give(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await self._queue.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not data:
                await self.flowing.wait()
                self.finish()
                return
            while data:
                await self.flowing.wait()
                data = await self._pass_on(data)
            self._queue.task_done()

    async def _pass_on(self, data: bytes) -> bytes:
        """Write as much of `data` as the faults allow, and return the rest."""
        faults = self.faults
        self.held -= len(data)  # the rest is added again at the end
        size = len(data) if faults.rate is None else max(1, int(faults.rate / 50))
        if faults.cut_after is not None:
            size = min(size, faults.cut_after)
        piece, rest = data[:size], data[size:]
        written = piece if faults.rewrite is None else faults.rewrite(piece)
        if written and not self._finished:
            self._writer.write(written)
            await self._writer.drain()
            self.bytes += len(written)
        if faults.rate is not None:
            await asyncio.sleep(len(piece) / faults.rate)
        if faults.cut_after is not None:
            faults.cut_after -= len(piece)
            if faults.cut_after <= 0:
                faults.cut_after = None
                self._connection.end_by(faults.cut_by, self)
        self.held += len(rest)
        return rest


class _Breakable:
    """The methods that cause faults, for one connection or for all connections."""

    _proxy: "FaultProxy"

    def _change(self, way: Way, **changes: object) -> None:
        raise NotImplementedError

    def _chosen(self) -> "list[ProxyConnection]":
        raise NotImplementedError

    def _each(self, action: "Callable[[ProxyConnection], None]") -> None:
        for connection in self._chosen():
            action(connection)

    def stall(self, way: Way = "both") -> None:
        """Let no byte pass. Connections stay open, and the sockets and the proxy still take in as much as they can
        buffer."""
        self._change(way, stalled=True)

    def resume(self, way: Way = "both") -> None:
        """End a stall. Bytes that were held back are passed on, in order."""
        self._change(way, stalled=False)

    def delay(self, seconds: float, *, jitter: float = 0.0, way: Way = "both") -> None:
        """Delay every byte by `seconds`, plus up to `jitter` seconds at random. The order of bytes is kept."""
        self._change(way, delay=seconds, jitter=jitter)

    def throttle(self, bytes_per_second: float | None, *, way: Way = "both") -> None:
        """Let bytes pass at this rate, in each chosen direction of each connection. None: there is no limit.

        The proxy takes in further bytes only when the bytes before have passed. So the sender is held up.
        """
        self._change(way, rate=bytes_per_second)

    def swallow(self, way: Way = "down") -> None:
        """Take bytes in and throw them away. With "down" the server acts, but its answers never arrive."""
        self._change(way, rewrite=lambda _: b"")

    def corrupt(self, way: Way = "down") -> None:
        """Invert every bit that passes."""
        self._change(way, rewrite=lambda data: bytes(byte ^ 0xFF for byte in data))

    def rewrite(self, function: Callable[[bytes], bytes], way: Way = "down") -> None:
        """Pass every chunk of bytes through a function. TCP decides where chunks begin and end."""
        self._change(way, rewrite=function)

    def insert(self, data: bytes, way: Literal["up", "down"] = "down") -> None:
        """Write these bytes now, between the bytes that pass: for example an answer that the server never gave."""
        self._proxy._do(lambda: self._each(lambda connection: connection._lanes[way].insert(data)))

    def cut_after(self, count: int, way: Way = "down", *, by: Ending = "reset") -> None:
        """Let `count` more bytes pass in each connection, then reset, close or stall the connection.

        Args:
            count: At least 1.
            way: The direction that is counted.
            by: "reset" and "close" end the connection. "stall" holds back the rest of this direction.
        """
        if count < 1:
            raise ValueError("count must be at least 1: use reset() or stall() to cut at once")
        self._change(way, cut_after=count, cut_by=by)

    def heal(self) -> None:
        """Remove every fault. Bytes that were held back are passed on."""
        self._change("both", **vars(_Faults()))

    def reset(self) -> None:
        """End connections with RST on both sides, now."""
        self._proxy._do(lambda: self._each(ProxyConnection._reset))

    def close_connections(self) -> None:
        """End connections with FIN on both sides, now. Bytes that were held back are lost."""
        self._proxy._do(lambda: self._each(ProxyConnection._close))

    def half_close(self, way: Literal["up", "down"] = "down") -> None:
        """Send FIN in one direction, as if the sender had finished. The other direction goes on."""
        self._proxy._do(lambda: self._each(lambda connection: connection._half_close(way)))


class ProxyConnection(_Breakable):
    """One client's connection through the proxy, with its own faults."""

    def __init__(self, proxy: "FaultProxy") -> None:
        self._proxy = proxy
        self._task: asyncio.Task[None] | None = None
        self._ended = False
        self._lanes: dict[str, _Lane] = {}
        self._writers: dict[str, asyncio.StreamWriter] = {}

    @property
    def bytes_up(self) -> int:
        """The number of bytes that were passed on to the server."""
        return self._lanes["up"].bytes

    @property
    def bytes_down(self) -> int:
        """The number of bytes that were passed on to the client."""
        return self._lanes["down"].bytes

    def _change(self, way: Way, **changes: object) -> None:
        self._proxy._do(lambda: self._change_now(way, **changes))

    def _change_now(self, way: Way, **changes: object) -> None:
        for name, lane in self._lanes.items():
            if way in (name, "both"):
                vars(lane.faults).update(changes)
                lane.changed()

    def _chosen(self) -> "list[ProxyConnection]":
        return [self]

    def ended_from(self, lane: _Lane) -> None:
        """Called when one side has ended its direction. Counts the connection if the server was first."""
        if not self._ended:
            self._ended = True
            self._proxy.hung_up += lane is self._lanes["down"]

    def end_by(self, ending: Ending, lane: _Lane) -> None:
        """End the connection, or stall one of its lanes."""
        if ending == "stall":
            lane.faults.stalled = True
            lane.changed()
        elif ending == "reset":
            self._reset()
        else:
            self._close()

    def _reset(self) -> None:
        for writer in self._writers.values():
            _reset(writer)
        self._end()

    def _close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._end()

    def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _half_close(self, way: Literal["up", "down"]) -> None:
        self._lanes[way].finish()

    async def _run(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        faults: dict[str, _Faults],
    ) -> None:
        self._task = asyncio.current_task()
        self._writers = {"up": server[1], "down": client[1]}
        self._lanes = {
            "up": _Lane(client[0], server[1], replace(faults["up"]), self),
            "down": _Lane(server[0], client[1], replace(faults["down"]), self),
        }
        self._proxy.connections.append(self)
        self._proxy.accepted += 1
        if self._proxy.on_connection is not None:
            self._proxy.on_connection(self)
        try:
            async with asyncio.TaskGroup() as group:
                for lane in self._lanes.values():
                    group.create_task(lane.take())
                    group.create_task(lane.give())
        except* OSError:  # one peer has reset its connection: so do we with the other's
            for writer in self._writers.values():
                _reset(writer)
        finally:
            self._proxy.connections.remove(self)
            await _close(*self._writers.values())


class FaultProxy(_Breakable):
    """The proxy. Its faults apply to all connections, also to new ones, until `heal()`. `refuse()` holds until
    `accept()`.

    Args:
        target: Host and port of the server. None: connections are reset until `target` is set.

    Attributes:
        target: Host and port of the server. The target may be changed at any time, for new connections.
        host: 127.0.0.1.
        port: The proxy's port. It is known before the proxy starts, and never changes.
        connections: The open connections, oldest first.
        accepted: How many connections reached the server so far.
        hung_up: How many of these connections the server ended before the client did.
        on_connection: A function that is called with each new connection before any byte passes. It may set faults for
            this connection.
    """

    def __init__(self, target: tuple[str, int] | None = None) -> None:
        self.target = target
        self.host = LOOPBACK
        self.port = free_port()
        self.connections: list[ProxyConnection] = []
        self.accepted = self.hung_up = 0
        self.on_connection: Callable[[ProxyConnection], object] | None = None
        self._proxy = self
        self._faults = {"up": _Faults(), "down": _Faults()}
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def bytes_held(self) -> int:
        """How many bytes the proxy has taken in and not passed on yet. Tests that measure the memory of this process
        need this number."""
        return sum(lane.held for connection in self.connections for lane in connection._lanes.values())

    @property
    def listens(self) -> bool:
        """Whether the proxy takes new connections: it runs, and was not told to `refuse()`."""
        return self._listener is not None

    @property
    def address(self) -> str:
        """`host:port` of the proxy."""
        return f"{self.host}:{self.port}"

    def refuse(self) -> None:
        """Stop listening. New connections are refused; open connections go on."""
        self._do(self._stop_listening)

    def accept(self) -> None:
        """Listen again after `refuse()`."""
        self._do(self._listen)

    # --- running -------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop_listening()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._loop = None

    def __enter__(self) -> Self:
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._stopping: concurrent.futures.Future[None] = concurrent.futures.Future()

        async def live() -> None:
            try:
                await self.__aenter__()
            except BaseException as error:
                started.set_exception(error)
                return
            started.set_result(None)
            await asyncio.wrap_future(self._stopping)
            await self.__aexit__()

        self._thread = threading.Thread(target=lambda: asyncio.run(live()), name="fault-proxy", daemon=True)
        self._thread.start()
        started.result()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set_result(None)
        if self._thread is not None:
            self._thread.join()

    def _do(self, action: Callable[[], object]) -> None:
        """Run an action in the proxy's loop, and wait until the action has ended."""
        loop = self._loop
        if loop is None:  # before it runs nothing is shared yet
            action()
            return
        with contextlib.suppress(RuntimeError):
            if asyncio.get_running_loop() is loop:
                action()
                return
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def run() -> None:
            try:
                action()
                done.set_result(None)
            except BaseException as error:
                done.set_exception(error)

        loop.call_soon_threadsafe(run)
        done.result()

    # --- in the loop ---------------------------------------------------------------------------------------------

    def _change(self, way: Way, **changes: object) -> None:
        def change() -> None:
            for name, faults in self._faults.items():
                if way in (name, "both"):
                    vars(faults).update(changes)
            for connection in self.connections:
                connection._change_now(way, **changes)

        self._do(change)

    def _chosen(self) -> list[ProxyConnection]:
        return list(self.connections)

    def _listen(self) -> None:
        if self._listener is None and self._loop is not None:
            self._listener = socket.create_server((self.host, self.port), backlog=128)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            self._listener.setblocking(False)
            self._loop.add_reader(self._listener, self._on_connection)

    def _stop_listening(self) -> None:
        if self._listener is not None and self._loop is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _on_connection(self) -> None:
        if self._listener is None or self._loop is None:
            return
        try:
            client, _ = self._listener.accept()
        except OSError:  # it went away before we took it
            return
        task = self._loop.create_task(self._serve(client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=client)
        try:
            if self.target is None:
                raise ConnectionRefusedError("the proxy has no target yet")
            server = await asyncio.open_connection(*self.target)
            server[1].get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        except OSError:
            _reset(writer)
            await _close(writer)
            return
        except asyncio.CancelledError:
            _reset(writer)
            raise
        await ProxyConnection(self)._run((reader, writer), server, self._faults)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close at once, with RST instead of FIN. A linger time of zero has this effect."""
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _close(*writers: asyncio.StreamWriter) -> None:
    """Close with FIN. Bytes that are not sent after half a second are dropped."""
    for writer in writers:
        writer.close()
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)
    finally:
        for writer in writers:
            writer.transport.abort()
