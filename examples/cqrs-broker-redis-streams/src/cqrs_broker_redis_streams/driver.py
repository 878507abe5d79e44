"""Publishes with XADD over one connection; Redis' answer, the id of the new entry, is the confirm.

Redis answers commands in the order in which it got them. Many may be on their way, and the next answer always belongs
to the oldest one without.
"""

from collections.abc import Sequence

from cqrs_brokers.driver import Capabilities, Delivery, Link, PipelinedDriver
from cqrs_brokers.exceptions import ConnectError
from cqrs_brokers.pipeline import Pipeline, connect_to_any
from cqrs_brokers.tls import TLSContext
from cqrs_brokers.url import BrokerURL, Host

from .connecting import PING, RedisConnection
from .entries import xadd
from .errors import ANSWERS, refusal
from .options import RedisStreamsOptions

__all__ = ["RedisStreamsDriver"]


class RedisStreamsDriver(PipelinedDriver):
    """What Redis needs; the queues and tasks are the pipeline's."""

    capabilities = Capabilities(confirms=True, ordering_key=True, headers=True)
    """Not durable: as it is installed, Redis writes to disk once a second, not before it answers."""

    def __init__(self, url: BrokerURL, options: RedisStreamsOptions, tls: TLSContext | None) -> None:
        self._url, self._options, self._tls = url, options, tls
        self._connection: RedisConnection | None = None
        self._pipeline = Pipeline[list[bytes]](self._lost, in_order=True, ping_after=options.ping_after)

    def bind(self, link: Link) -> None:
        """Keeps the link, to report a lost connection."""
        self._link = link

    async def connect(self) -> None:
        """Connects to the first host that answers, and opens the pipeline."""
        await self._pipeline.end()
        self._drop()
        hosts, timeout = self._url.hosts, self._options.connect_timeout
        connection = self._connection = await connect_to_any(hosts, self._open, timeout, drop=RedisConnection.drop)
        self._pipeline.open(connection.write, read=self._read(connection), ping=self.ping)

    async def _open(self, host: Host) -> RedisConnection:
        return await RedisConnection(host, self._url, self._options, self._tls).open()

    async def ping(self) -> None:
        """Asks on the same connection, after the messages that are on their way: another one would prove nothing."""
        await self._pipeline.ask(PING)

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        """Queues the commands. They are packed now, because the caller may change a message later."""
        for delivery in deliveries:
            command = xadd(delivery.message, self._options.maxlen)
            self._pipeline.put(delivery, command, sum(map(len, command)))

    async def _read(self, connection: RedisConnection) -> None:
        while True:
            try:
                answer = await connection.read_response()
            except ANSWERS as error:
                answer = error
            if answer in (b"PONG", "PONG"):
                self._pipeline.answered_question()
            elif (delivery := self._pipeline.answered()) is not None:
                refused = refusal(answer)
                if refused is None:
                    delivery.confirm()
                else:
                    delivery.fail(refused)

    def _lost(self, error: ConnectError) -> None:
        self._drop()
        self._link.lost(error)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.drop()

    async def close(self, grace: float) -> None:
        """Drops the connection: by now every message has its outcome, and Redis expects no farewell."""
        self._drop()
        await self._pipeline.close()

    def abort(self) -> None:
        """Drops everything, also when the loop is closed."""
        self._drop()
        self._pipeline.abort()
