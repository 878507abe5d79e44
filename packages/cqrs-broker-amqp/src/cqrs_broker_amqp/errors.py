"""Which error of RabbitMQ, aiormq or the network means which of ours. Tables and nothing else; imports aiormq.

Reply codes: AMQP 0-9-1, 1.2 "Constants", and what RabbitMQ does with them.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl

from aiormq import exceptions as client

from cqrs_brokers.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ConnectError,
    DestinationNotFoundError,
    MessageTooLargeError,
    NotDeliveredError,
    ProtocolError,
    PublishForbiddenError,
    TLSError,
    UnreachableError,
)

from .logs import safe_reply

__all__ = [
    "HandshakeRefused",
    "channel_reply",
    "connect_error",
    "forbidden",
    "lost_error",
    "publish_error",
    "scrubbed",
    "telling",
]

ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED = 403, 404, 406
_CONTENT_TOO_LARGE, _CONNECTION_FORCED, _NOT_ALLOWED, _INTERNAL_ERROR, _RESOURCE_ERROR = 311, 320, 530, 541, 506

# Later versions name the permission first. From the beginning, because a topic's name follows.
_FORBIDDEN = re.compile(r"ACCESS_REFUSED - (?:\w+ )?access to (exchange|topic) ")

_CHANNEL_CODES: dict[type[BaseException], int] = {
    client.ChannelAccessRefused: ACCESS_REFUSED,
    client.ChannelNotFoundEntity: NOT_FOUND,
    client.ChannelLockedResource: 405,
    client.ChannelPreconditionFailed: PRECONDITION_FAILED,
}


class HandshakeRefused(Exception):  # noqa: N818 - names what the server did
    """The server answered a step of the handshake with Connection.Close.

    Attributes:
        code: Its reply code.
        reply: Its reply text.
    """

    def __init__(self, code: int, reply: str) -> None:
        reply = safe_reply(reply)
        super().__init__(f"{code} {reply}")
        self.code = code
        self.reply = reply


def scrubbed(error: BaseException | None) -> BaseException | None:
    """An exception of the client as it may be shown as a cause: of the same class, without quoted bytes.

    A frame that cannot be read is quoted by pamqp, and so is one of ours by RabbitMQ.
    """
    if isinstance(error, client.ProtocolSyntaxError):
        return type(error)("a frame could not be read")
    if isinstance(error, (client.ConnectionClosed, client.AMQPChannelError)):
        shown = tuple(safe_reply(part) if isinstance(part, str) else part for part in error.args)
        if shown != error.args:
            return type(error)(*shown)
    return error


class NotAMQPError(ConnectionError):
    """What comes in cannot be AMQP."""


def connect_error(error: BaseException, where: str) -> ConnectError:
    """Why one host could not be connected.

    Args:
        error: What the client raised.
        where: The host and port.
    """
    found = _connect_error(error, where)
    found.__cause__ = scrubbed(error)
    return found


def _connect_error(error: BaseException, where: str) -> ConnectError:
    if isinstance(error, HandshakeRefused):
        return _refused(error.code, error.reply, where)
    if isinstance(error, client.ProbableAuthenticationError):
        return _refused(ACCESS_REFUSED, str(error), where)
    if isinstance(error, client.AuthenticationError):
        return AuthenticationError(f"{where} does not offer PLAIN: enable it in RabbitMQ's auth_mechanisms")
    # The client wraps what the operating system said.
    root = error.__cause__ if isinstance(error, client.AMQPConnectionError) and error.__cause__ else error
    if isinstance(root, ssl.SSLCertVerificationError):
        return TLSError(
            f"the certificate of {where} is not trusted: {root.verify_message}: check ssl_cafile and the host name"
        )
    # An end or a reset in the handshake also happens when a node restarts or a proxy gives up: that can pass.
    if isinstance(root, ssl.SSLError) and not isinstance(root, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return TLSError(
            f"no TLS with {where} ({root.reason or 'handshake failed'}): is this its TLS port (RabbitMQ: 5671), and "
            "does it ask for a client certificate?"
        )
    if isinstance(root, socket.gaierror):
        return UnreachableError(f"the name of {where} cannot be resolved: check the host name and DNS")
    if isinstance(root, ConnectionRefusedError):
        return UnreachableError(f"{where} refuses connections: is RabbitMQ running there?")
    if isinstance(root, TimeoutError):
        return UnreachableError(f"{where} does not answer: check the address and the network")
    if isinstance(root, (client.ProtocolSyntaxError, client.IncompatibleProtocolError, NotAMQPError)):
        return ProtocolError(f"{where} does not speak AMQP 0-9-1: check the port (RabbitMQ: 5672, with TLS 5671)")
    if isinstance(root, (OSError, EOFError, asyncio.CancelledError, client.AMQPError, RuntimeError)):
        reason = getattr(root, "strerror", None) or type(root).__name__
        return UnreachableError(
            f"{where} ended the connection while it was being made ({reason}): is it starting, or is this a TLS port?"
        )
    return ConnectError(f"connecting to {where} failed with an unclassified {type(error).__name__}")


def hung_up(error: ConnectError) -> bool:
    """Whether the peer ended the connection without a word while it was being made."""
    cause = error.__cause__
    root = cause.__cause__ if isinstance(cause, client.AMQPConnectionError) and cause.__cause__ else cause
    return isinstance(root, (ConnectionResetError, BrokenPipeError, EOFError, ssl.SSLEOFError, ssl.SSLZeroReturnError))


def _refused(code: int, reply: str, where: str) -> ConnectError:
    """Connection.Close in the handshake."""
    said = f"{where} answered: {reply}"
    if code == ACCESS_REFUSED:
        return AuthenticationError(f"{said}: check user and password (guest may log in from its own host only)")
    if code == _NOT_ALLOWED:
        # Users and virtual hosts may have any name, "limit" or "not found" too: the end of the text is RabbitMQ's own.
        if reply.endswith("is reached"):
            return UnreachableError(f"{said}: close other connections or raise the limit")
        if reply.endswith("not found"):
            return AuthorizationError(f"there is no such virtual host; {said}: create it, or check the path of the URL")
        return AuthorizationError(
            f"the user may not use the virtual host; {said}: grant it with rabbitmqctl set_permissions"
        )
    if code in (_CONNECTION_FORCED, _INTERNAL_ERROR, _RESOURCE_ERROR):
        return UnreachableError(f"{said} ({code}): is it starting or stopping?")
    return ProtocolError(f"{said} ({code})")


def telling(errors: list[ConnectError]) -> ConnectError:
    """The most telling of a pass: one that a person must fix before one that may pass, else the first."""
    chosen = next((error for error in errors if error.permanent), errors[0])
    others = [error.text for error in errors if error is not chosen]
    if others:
        chosen.text = "; ".join([chosen.text, *others])
    return chosen


def lost_error(error: BaseException | None) -> UnreachableError:
    """Why a connection that worked is gone. Whether it can be made again shows when that is tried."""
    if error is None or isinstance(error, asyncio.CancelledError):
        found = UnreachableError("RabbitMQ has been silent for three heartbeats")
    elif isinstance(error, client.ConnectionClosed):
        reply = error.args[-1] if error.args else ""
        found = UnreachableError(f"RabbitMQ closed the connection: {safe_reply(str(reply))}")
    else:
        found = UnreachableError(f"the connection broke ({type(error.__cause__ or error).__name__})")
    found.__cause__ = scrubbed(error)
    return found


def channel_reply(error: BaseException | None) -> tuple[int, str]:
    """The code and text with which the server closed a channel; 0 when it was not the server."""
    for kind, code in _CHANNEL_CODES.items():
        if isinstance(error, kind):
            return code, safe_reply(str(error.args[0])) if error.args else ""
    if isinstance(error, client.ChannelClosed) and len(error.args) == 2 and isinstance(error.args[0], int):
        return error.args[0], safe_reply(str(error.args[1]))
    return 0, ""


def publish_error(code: int, reply: str, exchange: str) -> NotDeliveredError | None:
    """What a closed channel means for the one message that can have caused it; None: it proves nothing."""
    if code == NOT_FOUND:
        return DestinationNotFoundError(
            f"there is no exchange {exchange!r} ({reply}): create it, or use declare=exchange"
        )
    if code == ACCESS_REFUSED:
        return PublishForbiddenError(
            f"RabbitMQ refused the message: {reply}: grant write permission with rabbitmqctl set_permissions"
        )
    if code == _CONTENT_TOO_LARGE or (code == PRECONDITION_FAILED and "size" in reply):
        return MessageTooLargeError(f"RabbitMQ refused the message: {reply}: send less, or raise its max_message_size")
    return None


def forbidden(reply: str) -> str:
    """What the permission is missing for, by RabbitMQ's text: "exchange", "topic", or "" for neither."""
    found = _FORBIDDEN.match(reply)
    return found[1] if found else ""
