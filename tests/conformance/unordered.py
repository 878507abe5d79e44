"""A tiny TCP broker that answers in any order, sometimes never, and deduplicates; installed beside `mutants`.

The protocol, in lines: the client begins with `HELLO user:password`, the server answers `WELCOME` or `DENIED`. Then
`PUB <token> <record in JSON>` is answered by

* `OK <token> <offset>`: it is stored;
* `DUP <token> <offset>`: a record with the same deduplication id is stored already, in any topic;
* `SEEN <token>`: somebody else says that it has seen it (topics `seen-…`); nothing is stored;
* `BUSY <token>` or `FULL <token>`: it was not taken;
* `NO <topic>`: the user must not publish there (topics `forbidden-…`); it names no message;

and `PING` by `PONG`. What goes to topics `stuck-…` is neither stored nor answered. A client has at most 100 messages
without an answer. Before the server ends a connection it says `BYE`. There is a port with TLS beside the plain one,
also at 127.0.0.2, for which its certificate is not; and one where the server says `WELCOME <bytes>`: it ends the
connection when body, key and headers of a message have more together.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import ssl
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

LIMIT = 2**24
MOST_UNANSWERED = 100
SMALL = 60_000
"""The most bytes of a message at the limited port."""
FIRST_OFFSET = 2**53 + 1
"""More than 32 bits hold, and than a double holds exactly."""
LATEST_ANSWER = 0.01
"""Answers come after up to so many seconds, each for itself: in any order."""


def size_of(record: Mapping[str, Any]) -> int:
    """Bytes of what counts for the limit of a message's size."""
    texts = [record["key"] or "", *record["headers"].keys(), *record["headers"].values()]
    return len(base64.b64decode(record["body"])) + sum(len(str(text).encode()) for text in texts)


class UnorderedServer:
    """The broker, in an event loop in a thread of its own."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []
        self.port = self.tls_port = self.limited_port = 0
        self._by_id: dict[str, int] = {}
        self._loop = asyncio.new_event_loop()
        self._connections: set[asyncio.StreamWriter] = set()
        self._servers: list[asyncio.Server] = []

    def start(self) -> None:
        """Starts to listen."""
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.restart()

    def restart(self) -> None:
        """Listens again, at the same plain port."""
        self.port = self._listen("127.0.0.1", self.port, None)
        self.limited_port = self._listen("127.0.0.1", self.limited_port, None, SMALL)

    def start_tls(self, context: ssl.SSLContext) -> None:
        """Listens with TLS, too."""
        self.tls_port = self._listen("127.0.0.1", 0, context)
        self._listen("127.0.0.2", self.tls_port, context)

    def _listen(self, host: str, port: int, context: ssl.SSLContext | None, most: int | None = None) -> int:
        serve = partial(self._serve, most=most)
        listening = asyncio.start_server(serve, host, port, limit=LIMIT, ssl=context)
        server = asyncio.run_coroutine_threadsafe(listening, self._loop).result(5.0)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    def kill(self) -> None:
        """Stops to listen and ends all connections; what is stored stays."""

        async def end() -> None:
            for server in self._servers:
                server.close()
            self._servers.clear()
            for writer in list(self._connections):
                writer.transport.abort()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(5.0)

    def dismiss(self) -> None:
        """Ends all connections in good order."""

        async def end() -> None:
            for writer in list(self._connections):
                _tell(writer, b"BYE\n")
                writer.close()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(5.0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int | None) -> None:
        self._connections.add(writer)
        try:
            greeting = await reader.readline()
            if not greeting.startswith(b"HELLO ") or b":wrong" in greeting:
                writer.write(b"DENIED\n")
                await writer.drain()
                return
            writer.write(b"WELCOME\n" if most is None else b"WELCOME %d\n" % most)
            while (line := await reader.readline()).endswith(b"\n"):
                word, _, rest = line.partition(b" ")
                answer = b"PONG\n" if word == b"PING\n" else self._store(rest, most)
                if answer is None:
                    continue
                later = random.random() * LATEST_ANSWER if word == b"PUB" else 0
                self._loop.call_later(later, _tell, writer, answer)
        except (OSError, ValueError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()

    def _store(self, request: bytes, most: int | None) -> bytes | None:
        number, _, text = request.partition(b" ")
        record = json.loads(text)
        if most is not None and size_of(record) > most:
            raise ValueError("it is too large")
        topic = record["topic"]
        if topic.startswith("forbidden-"):
            return b"NO %s\n" % topic.encode()
        if topic.startswith("stuck-"):
            return None
        if topic.startswith("seen-"):
            return b"SEEN %s\n" % number
        known = self._by_id.get(record["dedup"])
        if known is not None:
            return b"DUP %s %d\n" % (number, known)
        offset = self._by_id[record["dedup"]] = FIRST_OFFSET + len(self.kept)
        self.kept.append({**record, "offset": offset})
        return b"OK %s %d\n" % (number, offset)


def _tell(writer: asyncio.StreamWriter, answer: bytes) -> None:
    if not writer.transport.is_closing():
        writer.write(answer)
