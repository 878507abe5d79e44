"""Makes and drops redis-py's connections. The only module that reaches into redis-py and asyncio."""

from typing import Any

from cqrs_brokers.url import BrokerURL
from redis.asyncio import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from .errors import connect_error
from .options import RedisStreamsOptions

__all__ = ["Connection", "drop", "open_connection"]


async def open_connection(url: BrokerURL, options: RedisStreamsOptions) -> Connection:
    """Connects and logs in.

    Raises:
        ConnectError: Why not.
    """
    host, password = url.hosts[0], url.password
    connection = Connection(
        host=host.host,
        port=host.port or 6379,
        username=url.username,
        password=None if password is None else password.reveal(),
        db=options.db,
        socket_timeout=None,  # deadlines are the Broker's
        socket_connect_timeout=options.connect_timeout,
        retry=Retry(NoBackoff(), 0),  # trying again is the Broker's, too; by default redis-py would, ten times
    )
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
        await connection.send_command("PING")
        await connection.read_response()
    except RedisError as error:
        drop(connection)
        raise connect_error(error) from error
    except BaseException:  # cancelled: the Broker waits no longer
        drop(connection)
        raise
    return connection


def drop(connection: Connection) -> None:
    """Closes the socket without awaiting, also when the event loop is closed. redis-py has no public way to."""
    writer, connection._reader, connection._writer = connection._writer, None, None
    if writer is None:
        return
    transport: Any = writer.transport
    try:
        transport.abort()
    except RuntimeError:  # the loop is closed: nobody else will close the socket
        transport._sock.close()
        transport._sock = None  # or the transport warns of a socket that is closed
