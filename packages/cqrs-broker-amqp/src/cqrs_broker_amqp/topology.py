"""What is created in RabbitMQ before publishing, or checked: `declare=exchange|queue|passive|never`.

Everything runs on a throw-away channel, because RabbitMQ closes a channel on which a declaration fails.
"""

from __future__ import annotations

import re
from typing import Any

from cqrs_brokers.exceptions import (
    AuthorizationError,
    ConnectError,
    NotDeliveredError,
    PublishForbiddenError,
    TopologyError,
    UnreachableError,
)

from .errors import ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED, channel_reply, scrubbed
from .internals import Connection, goodbye
from .options import AMQPOptions

__all__ = ["ThrowAwayChannel", "check_exchange", "declare_exchange", "declare_queue", "queue_error"]

_THROW_AWAY = 2
_MISMATCH = re.compile(r"inequivalent arg '([^']*)' .*received (.*?) but current is (.*)$", re.DOTALL)


async def declare_exchange(connection: Connection, options: AMQPOptions) -> None:
    """Applies `declare` to the exchange.

    Raises:
        ConnectError: It cannot be declared, is not there, or differs from what is asked; the text says how.
    """
    if options.declare == "never" or not options.exchange:
        return
    if options.declare == "passive":
        if not await check_exchange(connection, options.exchange):
            raise TopologyError(f"there is no exchange {options.exchange!r}: create it, or use declare=exchange")
        return
    name, kind = options.exchange, options.exchange_type
    try:
        async with ThrowAwayChannel(connection) as channel:
            await channel.exchange_declare(name, exchange_type=kind, durable=True)
    except Exception as error:
        raise _exchange_error(error, options) from scrubbed(error)


async def check_exchange(connection: Connection, name: str) -> bool:
    """Whether the exchange is there.

    Raises:
        ConnectError: That cannot be found out.
    """
    if not name:
        return True
    try:
        async with ThrowAwayChannel(connection) as channel:
            await channel.exchange_declare(name, passive=True)
    except Exception as error:
        code, _ = channel_reply(error)
        if code == NOT_FOUND:
            return False
        # RabbitMQ 3.10 asks no permission for this; whoever may not look may still publish.
        if code == ACCESS_REFUSED:
            return True
        raise _lost(error) from scrubbed(error)
    return True


async def declare_queue(connection: Connection, options: AMQPOptions, topic: str) -> None:
    """Declares the durable queue of a topic and binds it to the exchange; the default exchange needs no binding.

    Raises:
        Exception: aiormq's; `queue_error` says what it means.
    """
    async with ThrowAwayChannel(connection) as channel:
        await channel.queue_declare(topic, durable=True)
        if options.exchange:
            await channel.queue_bind(topic, options.exchange, routing_key=topic)


def queue_error(error: BaseException, topic: str) -> NotDeliveredError:
    """What a failed `declare_queue` means for the topic's messages."""
    code, reply = channel_reply(error)
    found: NotDeliveredError
    if code == ACCESS_REFUSED:
        found = PublishForbiddenError(
            f"declare=queue was refused: {reply}: grant configure and write (queue) and read (exchange) permission, or "
            "create queue and binding yourself and use declare=exchange"
        )
    elif code == PRECONDITION_FAILED:
        what = _difference(reply, f"queue {topic!r}")
        found = NotDeliveredError(f"declare=queue: {what}: use declare=exchange and bind that queue yourself")
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
        return TopologyError(f"{_difference(reply, exchange)}: {advice}")
    if code == ACCESS_REFUSED:
        return AuthorizationError(
            f"{exchange} may not be declared ({reply}): grant configure permission, or create it: declare=passive"
        )
    if code:
        return TopologyError(f"{exchange} cannot be declared ({code} {reply})")
    return _lost(error)


def _difference(reply: str, what: str) -> str:
    """Which argument differs, and both values."""
    match = _MISMATCH.search(reply)
    if match is None:
        return f"{what} differs from what was declared ({reply})"
    return f"{what} has {match[1]}={_value(match[3])}, and {match[1]}={_value(match[2])} was declared"


def _value(text: str) -> str:
    """From how RabbitMQ writes it: `'topic'`, `the value '7' of type 'signedint'`, `none`."""
    quoted = re.search(r"'([^']*)'", text)
    return quoted[1] if quoted else text.strip()


def _lost(error: BaseException) -> UnreachableError:
    return UnreachableError(f"the connection was lost while declaring ({type(error).__name__})")


class ThrowAwayChannel:
    """A channel for one declaration; it may die of it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._channel: Any = None

    async def __aenter__(self) -> Any:
        number = self._connection.free_number(_THROW_AWAY)
        self._channel = await self._connection.channel(number, publisher_confirms=False)
        return self._channel

    async def __aexit__(self, error: type[BaseException] | None, *_: object) -> None:
        # After an error the server closed it, or aiormq is about to. aiormq's own close() would send Channel.Close a
        # second time when the answer takes longer than a heartbeat or the wait is cancelled, and then RabbitMQ closes
        # the whole connection. So nobody waits: the number is free again when the answer comes.
        if error is None:
            goodbye(self._channel)
