"""Opens a new channel after the channel for publishing was closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cqrs_brokers.driver import Link
from cqrs_brokers.exceptions import NotDeliveredError, UnreachableError

from ._channels import ConfirmChannel
from ._errors import NOT_FOUND, refusal
from ._options import AMQPOptions
from ._session import Session
from ._topology import reopen_channel

__all__ = ["reopen"]

SLOW = 0.5
"""If there is no new channel after this many seconds, the connection counts as reconnecting."""


async def reopen(
    session: Session,
    options: AMQPOptions,
    link: Link,
    code: int,
    reply: str,
    *,
    missing: Callable[[NotDeliveredError], None],
) -> ConfirmChannel:
    """Opens a channel. With `declare=exchange` and `declare=queue`, declares the exchange again. Otherwise checks
    whether the exchange exists, if the reply code is 404 (not found).

    Args:
        session: The connection.
        options: The exchange, and what is declared.
        link: If there is no channel after `SLOW` seconds, `link.reconnecting` is called. Then the errors of waiting
            messages name the reason. The caller reports the end of the reconnecting.
        code: The reply code with which the channel was closed.
        reply: The reply text with which the channel was closed.
        missing: Called if the exchange does not exist, with the error for the messages that wait.

    Raises:
        ConnectError: No channel could be opened, or the exchange could not be declared. The session is dropped.
    """
    reason = UnreachableError(f"{session.where} closed the channel ({reply or code}) and is slow to open another")
    slow = asyncio.get_running_loop().call_later(SLOW, link.reconnecting, reason)

    async def work() -> ConfirmChannel:
        raw, found = await reopen_channel(session.raw_channel, options, look=code == NOT_FOUND)
        error = refusal(code, "still", options.exchange)
        if found is False and error is not None:
            missing(error)
        return session.publish_on(raw)

    try:
        return await session.run(work(), options.connect_timeout)
    finally:
        slow.cancel()
