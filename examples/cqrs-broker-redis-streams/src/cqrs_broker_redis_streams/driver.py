"""Publishes with XADD over one connection; Redis' answer, the id of the new entry, is the confirm.

Redis answers commands in the order in which it got them. So many can be on their way, and the next answer always
belongs to the oldest one without.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Sequence

from cqrs_brokers.driver import Capabilities, Delivery, Link, PipelinedDriver
from cqrs_brokers.exceptions import ConnectionLostError, UnreachableError
from cqrs_brokers.url import BrokerURL

from .connecting import Connection, drop, open_connection
from .entries import xadd
from .errors import ANSWERS, refusal
from .options import RedisStreamsOptions

__all__ = ["RedisStreamsDriver"]

BATCH_BYTES = 64 * 1024
"""About so much is written at once; what does not fit is not handed over yet, and can still be skipped."""


class RedisStreamsDriver(PipelinedDriver):
    """Keeps two queues: what is not written, and what is written and not answered."""

    def __init__(self, url: BrokerURL, options: RedisStreamsOptions) -> None:
        self._url = url
        self._options = options
        self._connection: Connection | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._waiting: deque[tuple[Delivery, list[bytes]]] = deque()
        self._unanswered: deque[Delivery] = deque()
        self._more = asyncio.Event()

    @property
    def capabilities(self) -> Capabilities:
        """Not durable: as it is installed, Redis writes to disk once a second, not before it answers."""
        return Capabilities(confirms=True, ordering_key=True, headers=True)

    def bind(self, link: Link) -> None:
        """Keeps the link, to report a lost connection."""
        self._link = link

    async def connect(self) -> None:
        """Connects, and starts a task that writes and one that reads."""
        self._disconnect()
        self._connection = connection = await open_connection(self._url, self._options)
        self._more = asyncio.Event()
        self._more.set()
        for work in (self._write(connection), self._read(connection)):
            self._tasks.append(asyncio.create_task(self._until_lost(work)))

    async def ping(self) -> None:
        """Makes another connection: while many messages are on their way, a PING on this one would stand in line."""
        drop(await open_connection(self._url, self._options))

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        """Queues the commands. They are packed now, because the caller may change a message later."""
        self._waiting.extend((delivery, xadd(delivery.message, self._options.maxlen)) for delivery in deliveries)
        self._more.set()

    async def _write(self, connection: Connection) -> None:
        while True:
            await self._more.wait()
            if not connection.is_connected:  # the reader has noticed; redis-py would connect anew, behind our back
                return
            batch: list[bytes] = []
            size = 0
            while self._waiting and size < BATCH_BYTES:
                delivery, command = self._waiting.popleft()
                if delivery.handed_over():  # otherwise its deadline has passed, or its caller was cancelled
                    self._unanswered.append(delivery)
                    batch += command
                    size += sum(map(len, command))
            if not self._waiting:
                self._more.clear()
            await connection.send_packed_command(batch, check_health=False)

    async def _read(self, connection: Connection) -> None:
        while True:
            try:
                await connection.read_response()
            except ANSWERS as error:
                answer = refusal(error)
                answer.__cause__ = error
                self._unanswered.popleft().fail(answer)
            else:
                self._unanswered.popleft().confirm()

    async def _until_lost(self, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception as error:  # also what no client should raise: either way the connection is of no use any more
            self._disconnect()
            for delivery in self._unanswered:
                lost = ConnectionLostError("the connection to Redis was lost before it answered")
                lost.__cause__ = error
                delivery.fail(lost)
            self._unanswered.clear()
            self._link.lost(UnreachableError(f"the connection broke ({type(error).__name__}): see the log of Redis"))

    def _disconnect(self) -> None:
        for task in self._tasks:
            if not task.get_loop().is_closed():
                task.cancel()
        self._tasks.clear()
        if self._connection is not None:
            drop(self._connection)
            self._connection = None

    async def close(self, grace: float) -> None:
        """Drops the connection: by now every message has its outcome, and Redis expects no farewell."""
        tasks = tuple(self._tasks)
        self.abort()
        if tasks:
            await asyncio.wait(tasks, timeout=0.5)
        await asyncio.sleep(0)  # asyncio closes an aborted socket in the next round of its loop

    def abort(self) -> None:
        """Drops everything, also when the loop is closed."""
        self._disconnect()
        self._waiting.clear()
        self._unanswered.clear()
