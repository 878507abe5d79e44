"""Declares or checks the exchange, and declares the queues: `declare=exchange|queue|passive|never`.

The exchange is declared on the same channel on which messages are then published. So a user who may open only one
channel can connect.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from cqrs_brokers.exceptions import (
    AuthorizationError,
    ConnectError,
    NotDeliveredError,
    PublishForbiddenError,
    TopologyError,
    UnreachableError,
)

from ._errors import ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED, channel_reply, scrubbed
from ._options import AMQPOptions

__all__ = ["declare_exchange", "declare_queue", "find_exchange", "queue_error", "reopen_channel"]

_MISMATCH = re.compile(r"inequivalent arg '([^']*)' .*received (.*?) but current is (.*)$", re.DOTALL)
_QUEUE_LIMIT = re.compile(r"queue limit in vhost .* is reached$", re.DOTALL)
_RESERVED = "contains reserved prefix 'amq.*'"


async def declare_exchange(channel: Any, options: AMQPOptions) -> bool:
    """Applies the option `declare` to the exchange.

    Returns:
        Whether messages can be published on the channel. With `declare=passive` RabbitMQ closes the channel if the user
        may not look at the exchange.

    Raises:
        ConnectError: The exchange cannot be declared, does not exist, or differs from the declaration, or the
            connection was lost. The text names the reason.
    """
    if options.declare == "never" or not options.exchange:
        return True
    if options.declare == "passive":
        found = await find_exchange(channel, options)
        if found is False:
            raise TopologyError(f"there is no exchange {options.exchange!r}: create it, or use declare=exchange")
        return found is True
    try:
        await channel.exchange_declare(options.exchange, exchange_type=options.exchange_type, durable=True)
    except Exception as error:
        raise _exchange_error(error, options) from scrubbed(error)
    return True


async def reopen_channel(
    open_channel: Callable[[], Awaitable[Any]], options: AMQPOptions, *, look: bool
) -> tuple[Any, bool | None]:
    """Opens a new channel after one was closed. Declares the exchange again, if `declare` is `exchange` or `queue`.

    Args:
        open_channel: Opens a channel.
        options: The options, which name the exchange and what is declared.
        look: Whether to check that the exchange exists, if `declare` is `passive` or `never`.

    Returns:
        The channel, and whether the exchange exists. None: this was not checked, or RabbitMQ does not tell this user.

    Raises:
        ConnectError: See `declare_exchange`.
    """
    channel = await open_channel()
    if options.declare in ("exchange", "queue"):
        await declare_exchange(channel, options)
        return channel, None
    if not look:
        return channel, None
    found = await find_exchange(channel, options)
    return channel if found else await open_channel(), found


async def find_exchange(channel: Any, options: AMQPOptions) -> bool | None:
    """Checks whether the exchange exists. If it does not exist, RabbitMQ closes the channel.

    Returns:
        Whether the exchange exists. None: RabbitMQ does not tell this user. The user may still be allowed to publish.

    Raises:
        ConnectError: The connection was lost before RabbitMQ answered, or RabbitMQ closed the channel for another
            reason.
    """
    try:
        # Qpid compares the type in a passive declaration too, and closes the connection if the type differs.
        await channel.exchange_declare(options.exchange, exchange_type=options.exchange_type, passive=True)
    except Exception as error:
        code, _ = channel_reply(error)
        if code == NOT_FOUND:
            return False
        if code == ACCESS_REFUSED:
            return None
        raise _lost(error) from scrubbed(error)
    return True


async def declare_queue(channel: Any, options: AMQPOptions, topic: str) -> None:
    """Declares the durable queue of a topic and binds it to the exchange; the default exchange needs no binding.

    Raises:
        Exception: An exception of aiormq. `queue_error` says what it means.
    """
    arguments = {"x-queue-type": options.queue_type} if options.queue_type is not None else None
    await channel.queue_declare(topic, durable=True, arguments=arguments)
    if options.exchange:
        await channel.queue_bind(topic, options.exchange, routing_key=topic)


def queue_error(error: BaseException, topic: str) -> NotDeliveredError:
    """The error for the topic's messages after a failed `declare_queue`."""
    code, reply = channel_reply(error)
    found: NotDeliveredError
    if code == ACCESS_REFUSED:
        found = PublishForbiddenError(
            f"declare=queue was refused: {reply}: grant configure and write (queue) and read (exchange) permission, or "
            "create queue and binding yourself and use declare=exchange"
        )
    elif code == PRECONDITION_FAILED and _QUEUE_LIMIT.search(reply):
        found = NotDeliveredError(f"declare=queue failed for {topic!r}: {reply}: raise the limit, or delete queues")
    elif code == PRECONDITION_FAILED:
        what = _difference(reply, f"queue {topic!r}")
        advice = "set queue_type= to its type, or " if "x-queue-type" in what else ""
        found = NotDeliveredError(f"declare=queue: {what}: {advice}use declare=exchange and bind that queue yourself")
        found.__cause__ = TopologyError(what)
        return found
    elif code:
        found = NotDeliveredError(f"declare=queue failed for {topic!r}: {reply}")
    else:
        found = NotDeliveredError(f"declare=queue failed for {topic!r} ({type(error).__name__})")
    found.__cause__ = scrubbed(error)
    return found


def _exchange_error(error: BaseException, options: AMQPOptions) -> ConnectError:
    code, reply = channel_reply(error)
    exchange = f"exchange {options.exchange!r}"
    if code == PRECONDITION_FAILED:
        match = _MISMATCH.search(reply)
        current = _value(match[3]) if match else ""
        if match and match[1] == "type":
            known = AMQPOptions.model_fields["exchange_type"].annotation
            advice = f"exchange_type={current}, or " if current in getattr(known, "__args__", ()) else ""
            advice = f"set {advice}declare=passive to use it as it is"
        else:
            advice = "set declare=passive to use it as it is, or delete it"
        return TopologyError(_difference(reply, exchange), remedy=advice)
    if code == ACCESS_REFUSED and reply.endswith(_RESERVED):
        return TopologyError(
            f"there is no {exchange}, and names that begin with amq. are RabbitMQ's own ({reply})",
            remedy="use another name",
        )
    if code == ACCESS_REFUSED:
        return AuthorizationError(
            f"{exchange} may not be declared ({reply})",
            remedy="grant configure permission, or create it: declare=passive",
        )
    if code:
        return TopologyError(f"{exchange} cannot be declared ({code} {reply})")
    return _lost(error)


def _difference(reply: str, what: str) -> str:
    """The text that names the argument that differs, and both values."""
    match = _MISMATCH.search(reply)
    if match is None:
        return f"{what} differs from what was declared ({reply})"
    return f"{what} has {match[1]}={_value(match[3])}, and {match[1]}={_value(match[2])} was declared"


def _value(text: str) -> str:
    """The value without quotes and without its type. RabbitMQ writes `'topic'`, `''x-random''`,
    `the value '7' of type 'signedint'` or `none`."""
    quoted = re.search(r"'+([^']*)'", text)
    return quoted[1] if quoted else text.strip()


def _lost(error: BaseException) -> UnreachableError:
    return UnreachableError(f"the connection was lost while declaring ({type(error).__name__})")
