"""Deletes sent rows that were kept long enough, and tells the observers of a relay which rows wait."""

from __future__ import annotations

import asyncio

from cqrs_brokers_outbox.observers import RelayObservers
from cqrs_brokers_outbox.status import read_lag

from .store import CHUNK, Store
from .trouble import Trouble

__all__ = ["Upkeep"]

STEP = 10.0


class Upkeep:
    """The purge and the lag of one relay.

    Args:
        store: A connection.
        keep: Seconds for which sent rows are kept. 0: nothing is purged, because receipts delete rows.
        observers: The objects that are told the lag.
        trouble: Notes errors of the database.
    """

    def __init__(self, store: Store, *, keep: float, observers: RelayObservers, trouble: Trouble) -> None:
        self._store = store
        self._keep = keep
        self._observers = observers
        self._trouble = trouble

    async def run(self) -> None:
        """Works until it is cancelled."""
        while True:
            await asyncio.sleep(STEP)
            if self._observers:
                await self._trouble.tried("lag", self._lag)
            while self._keep and await self._trouble.tried("purge", self._purge):
                pass

    async def _lag(self) -> bool:
        self._observers.lag(await read_lag(self._store))
        return True

    async def _purge(self) -> bool:
        statements = self._store.statements
        rows = await self._store.rows(statements.old(self._keep, CHUNK))
        if rows:
            await self._store.change(statements.delete([row.id for row in rows]))
        return len(rows) == CHUNK
