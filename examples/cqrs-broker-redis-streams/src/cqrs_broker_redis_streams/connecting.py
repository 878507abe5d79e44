"""Makes and drops redis-py's connections. The only module that reaches into redis-py."""

from cqrs_brokers.tasks import drop_transport
from cqrs_brokers.url import BrokerURL, Host
from redis.asyncio import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from .errors import connect_error
from .options import RedisStreamsOptions

__all__ = ["PING", "Connection", "drop", "open_connection"]

PING = [b"*1\r\n$4\r\nPING\r\n"]


async def open_connection(host: Host, url: BrokerURL, options: RedisStreamsOptions) -> Connection:
    """Connects and logs in.

    Raises:
        ConnectError: Why not.
    """
    password = url.password
    connection = Connection(
        host=host.host,
        port=host.port or 6379,
        username=url.username,
        password=None if password is None else password.reveal(),
        db=options.db,
        socket_timeout=None,  # deadlines are the Broker's
        retry=Retry(NoBackoff(), 0),  # trying again is the Broker's, too; by default redis-py would, ten times
    )
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
        await connection.send_command("PING")
        await connection.read_response()
    except RedisError as error:
        drop(connection)
        raise connect_error(error, host) from error
    except BaseException:  # cancelled: the host's share of the time is over
        drop(connection)
        raise
    return connection


def drop(connection: Connection) -> None:
    """Closes the socket without awaiting, also when the event loop is closed. redis-py has no public way to."""
    writer, connection._reader, connection._writer = connection._writer, None, None
    if writer is not None:
        drop_transport(writer.transport)
