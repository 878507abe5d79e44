"""A node of a Kafka that does not exist: what it answers, and when it hangs up, is for the test to say."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable

METADATA, SASL_HANDSHAKE, VERSIONS, PRODUCER_ID, SASL_AUTHENTICATE, PRODUCE = 3, 17, 18, 22, 36, 0
_KNOWN = ((PRODUCE, 8), (METADATA, 5), (SASL_HANDSHAKE, 1), (VERSIONS, 2), (PRODUCER_ID, 1), (SASL_AUTHENTICATE, 0))
"""The requests that the node knows, and the newest version of each."""

Body = Callable[[], bytes | None]
"""Makes the body of an answer. None: the node does not answer."""


def text(value: str) -> bytes:
    return struct.pack(">h", len(value)) + value.encode()


def produced(code: int = 0) -> bytes:
    """An answer for partition 0, as of version 8."""
    return struct.pack(">i", 1) + text("t") + struct.pack(">iihqqqihi", 1, 0, code, 5, -1, 0, 0, -1, 0)


class StubKafka:
    """Node 1, which leads the only partition of the topic `t`.

    Attributes:
        asked: The keys of the requests that came, and the port to which each came.
        answers: For each key of a request, what makes the body of its answer.
        hangs_up_after: The key of a request after whose answer the node closes the connection, in one go with it.
        advertised: The port at which the metadata say that the node is.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.hangs_up_after: int | None = None
        self.advertised = 0
        self.answers: dict[int, Body] = {
            VERSIONS: lambda: struct.pack(">hi", 0, 6) + b"".join(struct.pack(">hhh", key, 0, n) for key, n in _KNOWN),
            SASL_HANDSHAKE: lambda: struct.pack(">hi", 0, 1) + text("PLAIN"),
            SASL_AUTHENTICATE: lambda: struct.pack(">hhi", 0, -1, 0),
            METADATA: self.metadata,
            PRODUCER_ID: lambda: struct.pack(">ihqh", 0, 0, 7, 0),
            PRODUCE: produced,
        }
        self._writers: set[asyncio.StreamWriter] = set()
        self._servers: list[asyncio.Server] = []

    @property
    def url(self) -> str:
        return f"kafka://127.0.0.1:{self.ports[0]}"

    @property
    def ports(self) -> list[int]:
        return [server.sockets[0].getsockname()[1] for server in self._servers]

    def metadata(self, code: int = 0) -> bytes:
        """An answer about node and topic. With a code the topic has no partition."""
        node = struct.pack(">iii", 0, 1, 1) + text("127.0.0.1") + struct.pack(">ih", self.advertised, -1)
        partitions = struct.pack(">ihiiiiiii", 1, 0, 0, 1, 1, 1, 1, 1, 0) if code == 0 else struct.pack(">i", 0)
        return node + text("c") + struct.pack(">iih", 1, 1, code) + text("t") + b"\0" + partitions

    async def listen(self) -> int:
        """Begins to listen at one more port, and advertises it."""
        self._servers.append(await asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.advertised = self.ports[-1]
        return self.advertised

    def hang_up(self) -> None:
        """Resets every connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                (size,) = struct.unpack(">i", await reader.readexactly(4))
                key, _, number = struct.unpack_from(">hhi", await reader.readexactly(size))
                self.asked.append((key, writer.get_extra_info("sockname")[1]))
                body = self.answers[key]()
                if body is not None:
                    writer.write(struct.pack(">ii", len(body) + 4, number) + body)
                if key == self.hangs_up_after:
                    break
        self._writers.discard(writer)
        writer.close()

    async def close(self) -> None:
        self.hang_up()
        for server in self._servers:
            server.close()
            await server.wait_closed()


@contextlib.asynccontextmanager
async def stub_kafka() -> AsyncIterator[StubKafka]:
    """A stub that listens, until the end of the block."""
    stub = StubKafka()
    await stub.listen()
    try:
        yield stub
    finally:
        await stub.close()
