"""Reads the lines of a file or of standard input, as they come, without blocking the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from codecs import BOM_UTF8
from typing import NamedTuple

__all__ = ["Line", "Lines"]

READ_SIZE = 65_536
AHEAD = 4
"""How many pieces are read ahead."""


class Line(NamedTuple):
    """One line.

    Attributes:
        number: The number of the line, from 1.
        content: The line without its line break, and the first one without its byte order mark. None: it has more bytes
            than the limit, and is not kept.
        end: How many bytes of the source have been read with it.
    """

    number: int
    content: bytes | None
    end: int


class Lines:
    """Reads in a thread of its own. The thread may wait for input for ever, so nothing waits for it.

    Args:
        descriptor: The file descriptor to read from. It is read with `os.read`, so that no lock of a buffer is held at
            the end of the process.
        limit: The most bytes of a line, without its line break. No more bytes of a longer line are held in memory.
    """

    def __init__(self, descriptor: int, limit: int) -> None:
        self._descriptor, self._limit = descriptor, limit
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[list[Line] | OSError | None] = asyncio.Queue()
        self._room = threading.Semaphore(AHEAD)
        self._number = self._end = 0
        self._parts: list[bytes] = []
        self._size = 0
        threading.Thread(target=self._read, name="lines", daemon=True).start()

    async def next(self) -> list[Line] | None:
        """The lines of the next read. None: there are no more.

        Raises:
            OSError: The source cannot be read.
        """
        piece = await self._pieces.get()
        self._room.release()
        if isinstance(piece, OSError):
            raise piece
        return piece

    def _read(self) -> None:
        try:
            while data := os.read(self._descriptor, READ_SIZE):
                *ends, rest = data.split(b"\n")
                lines = []
                for end in ends:
                    self._keep(end)
                    lines.append(self._line(1))
                self._keep(rest)
                if lines:
                    self._give(lines)
            if self._size:
                self._give([self._line(0)])
        except OSError as error:
            self._give(error)
        else:
            self._give(None)

    def _keep(self, part: bytes) -> None:
        """Takes a part of the line that is being read. Parts are joined once, at the end of the line."""
        self._size += len(part)
        if self._size > self._limit + 1:  # one more for a carriage return
            self._parts.clear()
        elif part:
            self._parts.append(part)

    def _line(self, breaks: int) -> Line:
        """The line whose parts are all here."""
        self._number += 1
        self._end += self._size + breaks
        content: bytes | None = b"".join(self._parts).removesuffix(b"\r")
        if self._number == 1 and content is not None:
            content = content.removeprefix(BOM_UTF8)  # a mark of the file, which some editors and shells write
        if self._size > self._limit + 1 or (content is not None and len(content) > self._limit):
            content = None
        self._parts.clear()
        self._size = 0
        return Line(self._number, content, self._end)

    def _give(self, piece: list[Line] | OSError | None) -> None:
        self._room.acquire()
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)
