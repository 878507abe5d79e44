"""Translates the errors of RabbitMQ, aiormq and the network into the errors of cqrs-brokers.

The meaning of the reply codes comes from AMQP 0-9-1, 1.2 "Constants", and from the ways in which RabbitMQ and Apache
Qpid use the codes.

This file is longer than 400 lines because all translations are in one place, except those of a declaration (see
`_topology`).
"""

from __future__ import annotations

import asyncio
import errno
import re
import socket
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aiormq import exceptions as client

from cqrs_brokers.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ConnectError,
    DeliveryError,
    DestinationNotFoundError,
    MessageTooLargeError,
    NackedError,
    NotDeliveredError,
    ProtocolError,
    PublishForbiddenError,
    RejectedError,
    ReturnedError,
    TopologyError,
    UnreachableError,
    UnroutableError,
)
from cqrs_brokers.tls import tls_error

from ._logs import safe_reply
from ._rendering import body_size, header_frame_size

if TYPE_CHECKING:
    from ._options import AMQPOptions
    from ._unanswered import Entry

__all__ = [
    "HandshakeRefused",
    "NotAMQPError",
    "body_limit",
    "channel_limit",
    "channel_reply",
    "connect_error",
    "culprit",
    "forbidden",
    "forbidden_publish",
    "lost_error",
    "publish_failure",
    "refusal",
    "scrubbed",
    "too_large",
]

ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED = 403, 404, 406
_CONTENT_TOO_LARGE, _CONNECTION_FORCED, _NOT_ALLOWED, _INTERNAL_ERROR, _RESOURCE_ERROR = 311, 320, 530, 541, 506
_PASSING = (_CONNECTION_FORCED, _INTERNAL_ERROR, _RESOURCE_ERROR)

# Later versions of RabbitMQ name the permission first. The patterns match from the beginning, because a topic may have
# any name.
_FORBIDDEN = re.compile(r"ACCESS_REFUSED - (?:\w+ )?access to (exchange|topic) ")
_FORBIDDEN_TOPIC = re.compile(r"ACCESS_REFUSED - (?:\w+ )?access to topic '(.*)' in exchange '")
_INTERNAL_EXCHANGE = re.compile(r"ACCESS_REFUSED - cannot publish to internal exchange '")
_TOO_LARGE = re.compile(r"PRECONDITION_FAILED - message size (\d+) is larger than configured max size (\d+)$")
# Apache Qpid ends the connection where RabbitMQ closes the channel.
_QPID_DENIES = re.compile(r"Permission PERFORM_ACTION\((connect|publish)\) is denied for ")
_CHANNEL_LIMIT = re.compile(r"number of channels opened .*\blimit of \(?(\d+)\)?")
_CHANNEL_MAX = re.compile(r"number of channels opened .*channel_max")

_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM, errno.EINVAL)
"""The operating system's errors for an address to which it cannot send at all."""

_CHANNEL_CODES: dict[type[BaseException], int] = {
    client.ChannelAccessRefused: ACCESS_REFUSED,
    client.ChannelNotFoundEntity: NOT_FOUND,
    client.ChannelLockedResource: 405,
    client.ChannelPreconditionFailed: PRECONDITION_FAILED,
}
_CONNECTION_CODES: dict[type[BaseException], int] = {
    client.ConnectionFrameError: 501,
    client.ConnectionSyntaxError: 502,
    client.ConnectionCommandInvalid: 503,
    client.ConnectionChannelError: 504,
    client.ConnectionUnexpectedFrame: 505,
    client.ConnectionResourceError: _RESOURCE_ERROR,
    client.ConnectionNotAllowed: _NOT_ALLOWED,
    client.ConnectionNotImplemented: 540,
    client.ConnectionInternalError: _INTERNAL_ERROR,
}


class HandshakeRefused(Exception):  # noqa: N818 - names what the server did
    """The server answered a step of the handshake with Connection.Close.

    Attributes:
        code: The server's reply code.
        reply: The server's reply text.
        logged_in: Whether the server had accepted user and password before.
    """

    def __init__(self, code: int, reply: str, *, logged_in: bool = True) -> None:
        reply = safe_reply(reply)
        super().__init__(f"{code} {reply}")
        self.code = code
        self.reply = reply
        self.logged_in = logged_in


class NotAMQPError(ConnectionError):
    """The received bytes cannot be AMQP."""


def scrubbed(error: BaseException | None) -> BaseException | None:
    """Makes an exception of aiormq safe to show as a cause. The result has the same class, but quotes no bytes of
    a frame.

    The text of such an exception may quote bytes: pamqp (aiormq's codec) quotes a frame that it cannot read, and
    RabbitMQ quotes a frame of ours that it cannot read.
    """
    if isinstance(error, client.ProtocolSyntaxError):
        return type(error)("a frame could not be read")
    if isinstance(error, (client.ConnectionClosed, client.AMQPChannelError)):
        shown = tuple(safe_reply(part) if isinstance(part, str) else part for part in error.args)
        if shown != error.args:
            return type(error)(*shown)
    cause = None if error is None else error.__cause__
    if cause is not None and cause.__context__ is error:
        cause.__context__ = None  # aiormq raises the same error again while it closes: the causes would form a cycle
    return error


# -- connecting -------------------------------------------------------------------------------------------------------


def connect_error(
    error: BaseException, where: str, options: AMQPOptions | None = None, *, declaring: bool = False
) -> ConnectError:
    """The error for a host to which no connection could be made.

    Args:
        error: The exception that was raised while connecting.
        where: The host and port.
        options: The options, which name the certificates in use.
        declaring: Whether the exchange was being declared.
    """
    found = _connect_error(error, where, options)
    if declaring and type(found) in (AuthorizationError, ProtocolError):  # Qpid closes the connection, not the channel
        advice = "set exchange_type to its type, or declare=passive when it may not be declared"
        found = TopologyError(f"the exchange cannot be declared; {found.text}: {advice}")
    found.__cause__ = scrubbed(error)
    return found


def _connect_error(error: BaseException, where: str, options: AMQPOptions | None) -> ConnectError:
    if isinstance(error, HandshakeRefused):
        return _refused(error.code, error.reply, where, logged_in=error.logged_in)
    if isinstance(error, client.ProbableAuthenticationError):
        return _refused(ACCESS_REFUSED, str(error), where, logged_in=False)
    if isinstance(error, client.AuthenticationError):
        return AuthenticationError(
            f"{where} offers neither PLAIN nor SCRAM-SHA-256", remedy="enable one of them there, or connect with TLS"
        )
    # aiormq wraps an error of the operating system.
    root = error.__cause__ if isinstance(error, client.AMQPConnectionError) and error.__cause__ else error
    if isinstance(root, client.ConnectionClosed):
        code, reply = _connection_reply(root)
        if code:
            return _refused(code, reply, where, logged_in=True)
    if options is not None and (found := tls_error(root, where, options)) is not None:
        return found
    if isinstance(root, socket.gaierror) and root.errno == socket.EAI_AGAIN:
        text = f"the name of {where} was not resolved: the name server does not answer"
        return UnreachableError(text, remedy="check DNS and the network")
    if isinstance(root, socket.gaierror):
        return UnreachableError(f"the name of {where} cannot be resolved", remedy="check the host name and DNS")
    if isinstance(root, ConnectionRefusedError):
        return UnreachableError(f"{where} refuses connections: is RabbitMQ running there?")
    if isinstance(root, TimeoutError):
        return UnreachableError(f"{where} does not answer", remedy="check the address and the network")
    if isinstance(root, OSError) and root.errno in _NO_WAY:
        remedy = "check the address and the network"
        return UnreachableError(f"{where} cannot be reached: {root.strerror}", remedy=remedy)
    if isinstance(root, (client.ProtocolSyntaxError, NotAMQPError)) or (
        isinstance(root, client.IncompatibleProtocolError) and not isinstance(root.__cause__, EOFError)
    ):
        remedy = "check the port (RabbitMQ: 5672, with TLS 5671)"
        return ProtocolError(f"{where} does not speak AMQP 0-9-1", remedy=remedy)
    # aiormq raises StopAsyncIteration when the connection ends between two frames.
    if isinstance(
        root, (OSError, EOFError, StopAsyncIteration, asyncio.CancelledError, client.AMQPError, RuntimeError)
    ):
        reason = f" ({root.strerror})" if isinstance(root, OSError) and root.strerror else ""
        return UnreachableError(
            f"{where} ended the connection while it was being made{reason}: is it starting, is this a TLS port, or is "
            "the broker behind it down (a port forwarder or a load balancer takes connections for it)?"
        )
    return ConnectError(f"connecting to {where} failed with an unclassified {type(error).__name__}")


def hung_up(error: ConnectError) -> bool:
    """Whether the peer ended the connection without a reason, while the connection was being made."""
    cause = error.__cause__
    root = cause.__cause__ if isinstance(cause, client.AMQPConnectionError) and cause.__cause__ else cause
    return isinstance(
        root,
        (ConnectionResetError, BrokenPipeError, EOFError, StopAsyncIteration, ssl.SSLEOFError, ssl.SSLZeroReturnError),
    )


def _refused(code: int, reply: str, where: str, *, logged_in: bool) -> ConnectError:
    """The error for a Connection.Close that comes while the connection is being made."""
    said = f"{where} answered: {reply.rstrip('.')}"
    # A user or a virtual host may be called "limit" or "not found". Only the end of the text is always RabbitMQ's own.
    if code == _NOT_ALLOWED and reply.endswith("is reached"):
        return UnreachableError(said, remedy="close other connections or raise the limit")
    if code in _PASSING:
        return UnreachableError(f"{said} ({code}): is it starting or stopping?")
    denied = _QPID_DENIES.match(reply)
    if denied and denied[1] == "connect":
        return AuthorizationError(f"the user may not use the virtual host; {said}")
    if code == ACCESS_REFUSED or (not logged_in and code in (_NOT_ALLOWED, NOT_FOUND)):
        remedy = "check user and password (guest may log in from its own host only)"
        return AuthenticationError(said, remedy=remedy)
    if code == _NOT_ALLOWED:
        if _CHANNEL_LIMIT.search(reply) or _CHANNEL_MAX.search(reply):
            remedy = "raise the limit of channels, or close other connections of this user"
            return UnreachableError(said, remedy=remedy)
        if reply.endswith("not found"):
            return _no_virtual_host(said)
        if "vhost" in reply:
            remedy = "grant it with rabbitmqctl set_permissions"
            return AuthorizationError(f"the user may not use the virtual host; {said}", remedy=remedy)
        return AuthorizationError(said)
    if code == NOT_FOUND:
        return _no_virtual_host(said)
    return ProtocolError(f"{said} ({code})")


def _no_virtual_host(said: str) -> AuthorizationError:
    remedy = "create it, or check the path of the URL"
    return AuthorizationError(f"there is no such virtual host; {said}", remedy=remedy)


# -- a connection that worked -----------------------------------------------------------------------------------------


def lost_error(error: BaseException | None) -> UnreachableError:
    """The error that says why a connection that worked is gone. The next attempt shows whether a new connection can be
    made."""
    if error is None or isinstance(error, asyncio.CancelledError):
        # aiormq cancels its reader after a silence, and also when its write queue is full for so long.
        found = UnreachableError("RabbitMQ sent nothing, or took nothing from us, for three heartbeats")
    elif isinstance(error, client.ConnectionClosed):
        found = UnreachableError(f"RabbitMQ closed the connection: {_connection_reply(error)[1]}")
    else:
        found = UnreachableError(f"the connection broke ({type(error.__cause__ or error).__name__})")
    found.__cause__ = scrubbed(error)
    return found


def _connection_reply(error: client.ConnectionClosed) -> tuple[int, str]:
    """The code and text with which the server closed the connection. The code is 0 if the server gave no code."""
    reply = safe_reply(str(error.args[-1])) if error.args else ""
    if len(error.args) == 2 and isinstance(error.args[0], int):
        return error.args[0], reply
    return _CONNECTION_CODES.get(type(error), 0), reply


def forbidden_publish(error: BaseException | None) -> PublishForbiddenError | None:
    """The error for the message that made the server (Apache Qpid) end the connection. None: the connection ended for
    another reason."""
    if not isinstance(error, client.ConnectionClosed):
        return None
    code, reply = _connection_reply(error)
    denied = _QPID_DENIES.match(reply)
    if code != ACCESS_REFUSED or denied is None or denied[1] != "publish":
        return None
    found = PublishForbiddenError(f"the broker refused the message: {reply}: grant the permission")
    found.__cause__ = scrubbed(error)
    return found


def channel_limit(error: BaseException | None) -> int | None:
    """The limit of channels that the server's text names. None: the text names no limit of a user or a node, or the
    server did not close the connection."""
    found = _CHANNEL_LIMIT.search(str(error.args[-1])) if isinstance(error, client.ConnectionClosed) else None
    return int(found[1]) if found else None


# -- a message that failed --------------------------------------------------------------------------------------------


def publish_failure(error: BaseException, options: AMQPOptions, topic: str) -> DeliveryError:
    """Makes the error for a message that was nacked or returned.

    Args:
        error: aiormq's exception.
        options: The options, which decide whether a return proves that no queue has the message.
        topic: The message's routing key.
    """
    found: DeliveryError
    exchange = options.exchange
    if not isinstance(error, client.PublishError):  # a nack: a plain DeliveryError of aiormq
        found = NackedError(
            "RabbitMQ nacked the message: at least one queue refused it (is it full?), others may hold it"
        )
    elif getattr(error.frame, "reply_code", 0) == _RESOURCE_ERROR:  # Apache Qpid: no queue gets the message
        found = RejectedError(f"the broker returned the message for {topic!r} (506): a queue is full")
    elif not exchange:
        found = UnroutableError(f"there is no queue {topic!r}: create it, or use declare=queue")
    elif _routing_ends(options):
        advice = "its queue or binding was deleted" if options.declare == "queue" else "bind one, or use declare=queue"
        found = UnroutableError(f"no queue is bound to exchange {exchange!r} for {topic!r}: {advice}")
        found.retryable = options.declare == "queue"
    else:
        found = ReturnedError(
            f"RabbitMQ returned the message, because no queue is bound to exchange {exchange!r} for {topic!r}; an "
            "exchange of a plugin may keep it all the same (delayed, recent history). If this exchange is of a "
            "built-in type, set exchange_type=topic (or direct, fanout, headers): then a return is a proof"
        )
    found.__cause__ = error
    return found


def _routing_ends(options: AMQPOptions) -> bool:
    """Whether the exchange is known to be of a built-in type: RabbitMQ has checked the type, or the user says so. Then
    a return proves that no queue has the message."""
    return options.declare in ("exchange", "queue") or "exchange_type" in options.model_fields_set


def channel_reply(error: BaseException | None) -> tuple[int, str]:
    """The code and text with which the server closed a channel. Code 0: the server did not close the channel, or gave
    no code."""
    for kind, code in _CHANNEL_CODES.items():
        if isinstance(error, kind):
            return code, safe_reply(str(error.args[0])) if error.args else ""
    if isinstance(error, client.ChannelClosed) and len(error.args) == 2 and isinstance(error.args[0], int):
        return error.args[0], safe_reply(str(error.args[1]))
    return 0, ""


def refusal(code: int, reply: str, exchange: str) -> NotDeliveredError | None:
    """The error for the message that made the server close the channel. None: the reply proves nothing about a
    message."""
    if code == NOT_FOUND:
        return DestinationNotFoundError(
            f"there is no exchange {exchange!r} ({reply}): create it, or use declare=exchange"
        )
    if code == ACCESS_REFUSED and _INTERNAL_EXCHANGE.match(reply):
        return PublishForbiddenError(
            f"exchange {exchange!r} is internal, nobody can publish to it ({reply}): publish to another exchange"
        )
    if code == ACCESS_REFUSED:
        return PublishForbiddenError(
            f"RabbitMQ refused the message: {reply}: grant write permission with rabbitmqctl set_permissions"
        )
    if code == _CONTENT_TOO_LARGE or (code == PRECONDITION_FAILED and _TOO_LARGE.match(reply)):
        return MessageTooLargeError(f"RabbitMQ refused the message: {reply}: send less, or raise its max_message_size")
    return None


def culprit(reply: str, entries: Sequence[Entry]) -> int | None:
    """Finds the message that made the server close the channel.

    Args:
        reply: The server's text. It names no message, but may name a size or a topic.
        entries: The messages without an answer, in the order in which they were sent.

    Returns:
        The index of the message. None: no message, or more than one message, is possible.
    """
    if len(entries) == 1:
        return 0
    size, topic = _TOO_LARGE.match(reply), _FORBIDDEN_TOPIC.match(reply)
    fits: list[int] = []
    if size:
        fits = [index for index, entry in enumerate(entries) if body_size(entry[2]) == int(size[1])]
    elif topic:
        fits = [index for index, entry in enumerate(entries) if entry[0].topic == topic[1]]
    return fits[0] if len(fits) == 1 else None


def body_limit(reply: str) -> int | None:
    """The size of the largest body that the server accepts. None: the text does not name it."""
    found = _TOO_LARGE.match(reply)
    return int(found[2]) if found else None


def forbidden(reply: str) -> str:
    """Returns what the user may not publish to, as RabbitMQ's text says: "exchange", "topic", or "" for neither."""
    if _INTERNAL_EXCHANGE.match(reply):
        return "exchange"
    found = _FORBIDDEN.match(reply)
    return found[1] if found else ""


def too_large(entry: Entry, frame_max: int, largest_body: int | None) -> MessageTooLargeError | None:
    """The error for a message that is certainly too large for the server. None: the message may be sent. If a message
    that is too large were sent, the server would close the channel because of the body, or the connection because of
    the headers. Then other messages in flight would fail too."""
    frames = entry[2]
    if len(frames) > frame_max and (size := header_frame_size(frames)) > frame_max:
        return MessageTooLargeError(
            f"the message's headers need a frame of {size} bytes, and a frame has at most {frame_max} bytes here: send "
            "less in headers, or raise RabbitMQ's frame_max"
        )
    if largest_body is not None and (size := body_size(frames)) > largest_body:
        return MessageTooLargeError(
            f"the body has {size} bytes, and RabbitMQ takes at most {largest_body} bytes: send less, or raise its "
            "max_message_size"
        )
    return None
