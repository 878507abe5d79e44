"""What redis-py's errors mean: which of them prove that nothing was written."""

from cqrs_brokers import exceptions as errors
from cqrs_brokers.url import Host
from redis import exceptions as redis_errors

__all__ = ["ANSWERS", "connect_error", "refusal"]

ANSWERS = (redis_errors.ResponseError, redis_errors.AuthenticationError, redis_errors.BusyLoadingError)
"""Redis answered, with an error: it has not run the command."""


def refusal(error: redis_errors.RedisError) -> errors.NotDeliveredError:
    """Why Redis refused an XADD."""
    text = str(error)
    if isinstance(error, redis_errors.NoPermissionError | redis_errors.AuthenticationError):
        return errors.PublishForbiddenError("Redis does not allow XADD: give the user +xadd and the stream's name")
    if text.startswith("WRONGTYPE"):
        return errors.DestinationNotFoundError("a key of this name is there, but is no stream: choose another topic")
    return errors.RejectedError(f"Redis refused the message ({text.partition(' ')[0]}): see its log")


def connect_error(error: redis_errors.RedisError, host: Host) -> errors.ConnectError:
    """Why there is no connection to that host."""
    if isinstance(error, redis_errors.AuthenticationError):
        return errors.AuthenticationError(f"{host}: Redis does not accept the user and password")
    if isinstance(error, redis_errors.NoPermissionError):
        return errors.AuthorizationError(f"{host}: the user may not use PING: give it +@connection")
    if isinstance(error, redis_errors.InvalidResponse):
        return errors.ProtocolError(f"{host}: what answers there is not Redis: check host and port")
    if isinstance(error, redis_errors.ResponseError):
        return errors.TopologyError(f"{host}: Redis does not have this database: check db=")
    return errors.UnreachableError(f"{host} does not answer ({type(error).__name__}): check host, port and server")
