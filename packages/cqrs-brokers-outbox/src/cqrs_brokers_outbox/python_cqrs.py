"""python-cqrs' outbox repository over our table. python-cqrs' handlers use it unchanged, and a `Relay` sends the
messages.

    from cqrs_brokers_outbox.python_cqrs import OutboxRepository

    repository = OutboxRepository(session, outbox)     # where SqlAlchemyOutboxedEventRepository was
    repository.add(event)
    await repository.commit()

Needs `cqrs-brokers-outbox[python-cqrs]`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NoReturn

import cqrs
from sqlalchemy.ext.asyncio import AsyncSession

from cqrs_brokers import Message

from .outbox import Outbox

__all__ = ["OutboxRepository"]

_RUN_A_RELAY = (
    "this outbox is read by a Relay, not by python-cqrs' EventProducer: run a Relay (in the application's lifespan, or "
    "`python -m cqrs_brokers_outbox relay`)"
)


@cache
def _default_outbox() -> Outbox:
    """One for all repositories: statements of new tables would be compiled anew for each request."""
    return Outbox()


class OutboxRepository(cqrs.OutboxedEventRepository):
    """`cqrs.OutboxedEventRepository` whose rows a `Relay` sends.

    Args:
        session: The handler's session.
        outbox: The tables. Default: `Outbox()`.
        ordering_key: Gives the key of an event that has none itself (python-cqrs' own events). Default: no key.
    """

    def __init__(
        self,
        session: AsyncSession,
        outbox: Outbox | None = None,
        *,
        ordering_key: Callable[[Any], str | None] | None = None,
    ) -> None:
        self.session = session
        self._outbox = outbox or _default_outbox()
        self._ordering_key = ordering_key

    def add(self, event: Any) -> None:
        """Adds an event to the session's transaction.

        The events of core and of the bridge have their own key. python-cqrs' own events are stored as its emitter sends
        them: with `event_name` as the name and `to_dict()` as the body.

        Raises:
            InvalidMessageError: The event cannot be sent as it is.
            MessageTooLargeError: The event is larger than the outbox allows.
            OutboxSessionError: The session cannot hold the event: see `Outbox.add`.
        """
        if hasattr(event, "to_message"):
            self._outbox.add(self.session, event)
            return
        key = self._ordering_key(event) if self._ordering_key is not None else None
        message = Message(event.event_name, event.topic, event.to_dict(), event.event_id, key=key)
        self._outbox.add(self.session, message)

    async def commit(self) -> None:
        """Commits the session, with the changes and the events."""
        await self.session.commit()

    async def rollback(self) -> None:
        """Rolls the session back: neither the changes nor the events are stored."""
        await self.session.rollback()

    async def get_many(self, batch_size: int = 100, topic: str | None = None) -> NoReturn:
        """Not possible with this table.

        Raises:
            NotImplementedError: Always: run a Relay.
        """
        raise NotImplementedError(_RUN_A_RELAY)

    async def update_status(self, outboxed_event_id: int, new_status: Any) -> NoReturn:
        """Not possible with this table.

        Raises:
            NotImplementedError: Always: run a Relay.
        """
        raise NotImplementedError(_RUN_A_RELAY)
