"""What redis-py's errors mean: which of them prove that nothing was written."""

import re

from cqrs_brokers import exceptions as errors
from cqrs_brokers.tls import tls_error
from redis import exceptions as redis_errors

from .options import RedisStreamsOptions

__all__ = ["ANSWERS", "connect_error", "refusal"]

ANSWERS = (redis_errors.ResponseError, redis_errors.AuthenticationError, redis_errors.BusyLoadingError)
"""What answered, answered with an error."""

ENTRY_ID = re.compile(rb"\d+-\d+")
NOT_RUN = "ASK BUSY CLUSTERDOWN LOADING MASTERDOWN MISCONF MOVED NOREPLICAS OOM READONLY".split()
"""Redis says these before it runs a command. Another error may be a proxy's, which proves nothing."""

NO_CONNECTION: list[tuple[type[Exception], type[errors.ConnectError], str]] = [
    (redis_errors.AuthenticationError, errors.AuthenticationError, "Redis does not accept the user and password"),
    (redis_errors.NoPermissionError, errors.AuthorizationError, "the user may not use PING: give it +@connection"),
    (redis_errors.InvalidResponse, errors.ProtocolError, "the server there is not Redis: check host and port"),
    (redis_errors.ResponseError, errors.TopologyError, "Redis does not have this database: check db="),
    (Exception, errors.UnreachableError, "Redis does not answer: check host, port and server"),
]
"""redis-py's error, ours, and what to do. The first that fits counts."""


def refusal(answer: object) -> errors.DeliveryError | None:
    """Why an answer to XADD is no confirm. None: it is one, the id of the new entry."""
    if isinstance(answer, bytes) and ENTRY_ID.fullmatch(answer):
        return None
    word = getattr(answer, "status_code", None) or str(answer).partition(" ")[0]
    if word in ("NOPERM", "NOAUTH"):
        return errors.PublishForbiddenError("Redis does not allow XADD: give the user +xadd and the stream's name")
    if word == "WRONGTYPE":
        return errors.DestinationNotFoundError("a key of this name is there, but is no stream: choose another topic")
    if word in NOT_RUN:
        return errors.RejectedError(f"Redis refused the message ({word}): see its log")
    return errors.DeliveryUnknownError("what answered is no entry's id, and no refusal: see the log of Redis")


def connect_error(error: redis_errors.RedisError, host: str, options: RedisStreamsOptions) -> errors.ConnectError:
    """Why there is no connection to that host."""
    ours, text = next((ours, text) for theirs, ours, text in NO_CONNECTION if isinstance(error, theirs))
    return tls_error(error, host, options) or ours(f"{host}: {text} ({type(error).__name__})")
