"""Reads the lines of a file or of standard input, as they come, without blocking the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from typing import NamedTuple

__all__ = ["Line", "Lines"]

READ_SIZE = 65_536
AHEAD = 4
"""How many pieces are read ahead."""


class Line(NamedTuple):
    """One line.

    Attributes:
        number: The number of the line, from 1.
        content: The line without its line break.
        end: How many bytes of the source have been read with it.
    """

    number: int
    content: bytes
    end: int


class Lines:
    """Reads in a thread of its own. The thread may wait for input for ever, so nothing waits for it.

    Args:
        descriptor: The file descriptor to read from. It is read with `os.read`, so that no lock of a buffer is held at
            the end of the process.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[list[Line] | OSError | None] = asyncio.Queue()
        self._room = threading.Semaphore(AHEAD)
        self._number = self._end = 0
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
        rest = b""
        try:
            while data := os.read(self._descriptor, READ_SIZE):
                *whole, rest = (rest + data).split(b"\n")
                if whole:
                    self._give([self._line(content, 1) for content in whole])
            if rest:
                self._give([self._line(rest, 0)])
        except OSError as error:
            self._give(error)
        else:
            self._give(None)

    def _line(self, content: bytes, breaks: int) -> Line:
        self._number += 1
        self._end += len(content) + breaks
        return Line(self._number, content.removesuffix(b"\r"), self._end)

    def _give(self, piece: list[Line] | OSError | None) -> None:
        self._room.acquire()
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)
