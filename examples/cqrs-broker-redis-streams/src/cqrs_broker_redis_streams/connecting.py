"""Makes, uses and drops redis-py's connections. The only module that reaches into redis-py."""

from collections.abc import Sequence

from cqrs_brokers.dialing import dial, open_streams
from cqrs_brokers.tasks import drop_transport
from cqrs_brokers.tls import TLSContext
from cqrs_brokers.url import BrokerURL, Host
from redis.asyncio import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from .errors import connect_error
from .options import RedisStreamsOptions

__all__ = ["PING", "RedisConnection"]

PING = [b"*1\r\n$4\r\nPING\r\n"]


class RedisConnection(Connection):
    """redis-py's connection, over a socket and with a TLS context from core."""

    def __init__(self, host: Host, url: BrokerURL, options: RedisStreamsOptions, tls: TLSContext | None) -> None:
        self._options, self._tls = options, None if tls is None else tls.current()
        super().__init__(
            host=host.host,
            port=host.port or 6379,
            username=url.username,
            password=None if url.password is None else url.password.reveal(),
            db=options.db,
            socket_timeout=None,  # deadlines are the Broker's
            retry=Retry(NoBackoff(), 0),  # trying again is the Broker's, too; by default redis-py would, ten times
        )

    async def _connect(self) -> None:
        name = self.host if self._tls is not None else None
        raw = await dial(self.host, self.port)
        self._reader, self._writer = await open_streams(raw, ssl=self._tls, server_hostname=name)

    async def open(self) -> "RedisConnection":
        """Connects and logs in.

        Raises:
            ConnectError: Why not.
        """
        try:
            await self.connect()  # type: ignore[no-untyped-call]
            await self.send_command("PING")
            await self.read_response()
        except BaseException as error:  # cancelled, too: the host's share of the time is over
            self.drop()
            if isinstance(error, RedisError):
                raise connect_error(error, f"{self.host}:{self.port}", self._options) from error
            raise
        return self

    async def write(self, batch: Sequence[tuple[int, list[bytes]]]) -> None:
        """Writes commands, and returns when the socket's buffer has room again."""
        if not self.is_connected:  # redis-py would connect anew, behind our back
            raise ConnectionResetError("the connection was lost")
        await self.send_packed_command([part for _, command in batch for part in command], check_health=False)

    def drop(self) -> None:
        """Closes the socket without awaiting, also when the event loop is closed. redis-py has no public way to."""
        writer, self._reader, self._writer = self._writer, None, None
        drop_transport(None if writer is None else writer.transport)
