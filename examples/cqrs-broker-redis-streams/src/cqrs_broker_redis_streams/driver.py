"""Publishes with XADD over one connection; Redis' answer, the id of the new entry, is the confirm.

Redis answers commands in the order in which it got them. Many may be on their way, and the next answer always belongs
to the oldest one without.
"""

import asyncio
from collections.abc import Sequence

from cqrs_brokers.driver import Capabilities, Delivery, Link, PipelinedDriver
from cqrs_brokers.exceptions import UnreachableError
from cqrs_brokers.pipeline import Pipeline, connect_to_any
from cqrs_brokers.url import BrokerURL

from .connecting import PING, Connection, drop, open_connection
from .entries import xadd
from .errors import ANSWERS, refusal
from .options import RedisStreamsOptions

__all__ = ["RedisStreamsDriver"]


class RedisStreamsDriver(PipelinedDriver):
    """What Redis needs; the queues and tasks are the pipeline's."""

    def __init__(self, url: BrokerURL, options: RedisStreamsOptions) -> None:
        self._url = url
        self._options = options
        self._connection: Connection | None = None
        self._pipeline = Pipeline[list[bytes]](
            self._lost, in_order=True, ping_after=options.ping_after, ping_timeout=options.ping_after
        )

    @property
    def capabilities(self) -> Capabilities:
        """Not durable: as it is installed, Redis writes to disk once a second, not before it answers."""
        return Capabilities(confirms=True, ordering_key=True, headers=True)

    def bind(self, link: Link) -> None:
        """Keeps the link, to report a lost connection."""
        self._link = link

    async def connect(self) -> None:
        """Connects to the first host that answers, and opens the pipeline."""
        await self._pipeline.end()
        self._drop()
        url, options = self._url, self._options
        connection = self._connection = await connect_to_any(
            url.hosts, lambda host: open_connection(host, url, options), options.connect_timeout, drop=drop
        )

        async def write(batch: Sequence[tuple[int, list[bytes]]]) -> None:
            if not connection.is_connected:  # redis-py would connect anew, behind our back
                raise ConnectionResetError("the connection was lost")
            await connection.send_packed_command([part for _, item in batch for part in item], check_health=False)

        self._pipeline.open(write, read=self._read(connection), ping=self.ping)

    async def ping(self) -> None:
        """Asks on the same connection, after the messages that are on their way: another one would prove nothing."""
        await self._pipeline.ask(PING)

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        """Queues the commands. They are packed now, because the caller may change a message later."""
        for delivery in deliveries:
            command = xadd(delivery.message, self._options.maxlen)
            self._pipeline.put(delivery, command, sum(map(len, command)))

    async def _read(self, connection: Connection) -> None:
        while True:
            refused = None
            try:
                answer = await connection.read_response()
            except ANSWERS as error:
                refused = refusal(error)
                refused.__cause__ = error
            else:
                if answer in (b"PONG", "PONG"):
                    self._pipeline.answered_question()
                    continue
            delivery = self._pipeline.answered()
            if delivery is not None and refused is not None:
                delivery.fail(refused)
            elif delivery is not None:
                delivery.confirm()

    def _lost(self, error: Exception) -> None:
        self._drop()
        lost = UnreachableError(f"the connection broke ({type(error).__name__}): see the log of Redis")
        lost.__cause__ = error
        self._link.lost(lost)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            drop(connection)

    async def close(self, grace: float) -> None:
        """Drops the connection: by now every message has its outcome, and Redis expects no farewell."""
        self._drop()
        await self._pipeline.close()
        await asyncio.sleep(0)  # asyncio closes an aborted socket in the next round of its loop

    def abort(self) -> None:
        """Drops everything, also when the loop is closed."""
        self._drop()
        self._pipeline.abort()
