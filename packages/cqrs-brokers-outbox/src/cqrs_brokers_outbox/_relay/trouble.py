"""Errors of the database and the broker that keep a relay from working. The relay waits, longer each time, and tells
its observers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from cqrs_brokers_outbox.observers import RelayObservers

__all__ = ["FIRST_PAUSE", "LONGEST_PAUSE", "Trouble", "database_failure"]

logger = logging.getLogger("cqrs_brokers.outbox")

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
_DATABASE_ERRORS = (SQLAlchemyError, OSError, TimeoutError)


def database_failure(error: Exception) -> str:
    """What an error of the database says to a person. Its own text may quote messages."""
    if isinstance(error, PoolTimeoutError):
        return (
            "the engine's pool had no free connection: a relay needs four, and health() one more. Give the engine a "
            "larger pool_size, or the relay an engine of its own"
        )
    return f"the database failed: {type(getattr(error, 'orig', None) or error).__name__}"


class Trouble:
    """What a relay cannot do now.

    Args:
        observers: The objects that are told.

    Attributes:
        reasons: "claim", "send", "mark", "lease", "purge", "lag" → why it fails.
    """

    def __init__(self, observers: RelayObservers) -> None:
        self._observers = observers
        self._failures: dict[str, int] = {}
        self.reasons: dict[str, str] = {}

    async def tried(self, what: str, call: Callable[[], Awaitable[bool]]) -> bool:
        """Calls the function. After an error of the database it waits and returns False. The wait is longer after each
        further failure, up to `LONGEST_PAUSE`."""
        try:
            done = await call()
        except _DATABASE_ERRORS as error:
            self.began(what, database_failure(error))
            self._failures[what] = self._failures.get(what, 0) + 1
            await asyncio.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(10, self._failures[what] - 1)))
            return False
        self._failures.pop(what, None)
        self.ended(what)
        return done

    def began(self, what: str, reason: str) -> None:
        """Notes that something cannot be done. Observers are told a reason once, until another
        reason or an end comes."""
        if self.reasons.get(what) != reason:
            self.reasons[what] = reason
            logger.warning("outbox relay: cannot %s: %s", what, reason)
            self._observers.trouble(what, reason)

    def ended(self, what: str) -> None:
        """Notes that it can be done again."""
        self.reasons.pop(what, None)
