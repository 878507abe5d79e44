"""`OutboxAdmin`: what a person can do with an outbox. The command line uses it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any, Self

from sqlalchemy.ext.asyncio import AsyncEngine

from ._relay.leases import REPARTITION, Leases, change_all
from ._relay.store import CHUNK, Store
from .exceptions import OutboxError
from .opening import check_schema, make_statements
from .outbox import Outbox
from .schema import State
from .status import OutboxStatus, ParkedRow, read_parked, read_status

__all__ = ["OutboxAdmin"]

_LEASE = 15.0
_LAST_POSITION = 2**63 - 1
"""The columns have 64 bits."""


class OutboxAdmin:
    """Shows what an outbox holds, releases or deletes parked rows, deletes sent rows, and changes the number of
    partitions. It works beside running relays.

        async with OutboxAdmin(engine) as admin:
            for row in await admin.parked():
                await admin.release(row.position)

    Args:
        engine: The database.
        outbox: The tables. Default: `Outbox()`.

    Raises:
        ConfigError: The outbox does not know this kind of database.
        OutboxSchemaError: At the beginning of the block: the tables are missing, of another version, or not accessible.
    """

    def __init__(self, engine: AsyncEngine, outbox: Outbox | None = None) -> None:
        self._tables = (outbox or Outbox()).tables
        self._store = Store(engine, make_statements(engine, self._tables))

    async def __aenter__(self) -> Self:
        try:
            await check_schema(self._store, self._tables)
        except BaseException:
            await self._store.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._store.close()

    async def status(self) -> OutboxStatus:
        """What the outbox holds."""
        return await read_status(self._store)

    async def parked(self, limit: int = 100) -> list[ParkedRow]:
        """The parked rows, in their order.

        Args:
            limit: The most rows.

        Raises:
            OutboxError: The limit is not a whole number from 1 to 2**63 - 1.
        """
        if type(limit) is not int or not 1 <= limit <= _LAST_POSITION:
            raise OutboxError(f"the limit must be a whole number from 1 to {_LAST_POSITION}, not {limit!r}")
        return await read_parked(self._store, limit)

    async def release(self, *positions: int) -> int:
        """Makes parked rows, and the rows behind them, ready to be sent again.

        Args:
            positions: The numbers of the rows. Without numbers: all parked rows.

        Returns:
            How many parked rows were released.

        Raises:
            OutboxError: A number cannot be that of a row: it is not a whole number from 1 to 2**63 - 1.
        """
        return await self._unpark(positions, delete=False)

    async def discard(self, *positions: int) -> int:
        """Deletes parked rows, which are never sent, and makes the rows behind them ready.

        Args:
            positions: Their numbers.

        Returns:
            How many rows were deleted.

        Raises:
            OutboxError: A number cannot be that of a row: it is not a whole number from 1 to 2**63 - 1.
        """
        return await self._unpark(positions, delete=True) if positions else 0

    async def purge(self, keep: float = 0.0) -> int:
        """Deletes rows that were sent. A relay does the same by itself, for rows that are older than its `keep`, unless
        that is 0.

        Args:
            keep: Rows that were sent in the last `keep` seconds stay.

        Returns:
            How many rows were deleted.

        Raises:
            OutboxError: `keep` is below 0.
        """
        if not keep >= 0:
            raise OutboxError(f"keep must be 0 or more seconds, not {keep}")
        deleted = 0
        while rows := await self._store.rows(self._store.statements.old(keep, CHUNK)):
            deleted += await self._store.change(self._store.statements.delete([row.id for row in rows]))
        return deleted

    async def partitions(self, count: int, *, topics: Sequence[str] | None = None, timeout: float = 120.0) -> None:
        """Changes the number of partitions: takes all partitions from the relays, changes their number, and gives them
        back.

        Args:
            count: The new number.
            topics: The topics of the relays that share the partitions; None: relays of all topics.
            timeout: Seconds in which the relays must give back their partitions. Above 0.

        Raises:
            OutboxError: A number is out of range, or the relays did not give back their partitions in time. Or a relay
                with other topics is at work on some of these topics, or a relay took a partition meanwhile.
        """
        if not 1 <= count <= 1024:
            raise OutboxError(f"the number of partitions must be 1 to 1024, not {count}")
        if not timeout > 0:
            raise OutboxError(f"the timeout must be above 0 seconds, not {timeout:g}")
        owner = f"{REPARTITION}{secrets.token_hex(6)}"
        leases = Leases(self._store, owner=owner, topics=topics, lease=_LEASE, partitions=count, broker="")
        await leases.join()
        try:
            async with asyncio.timeout(timeout):
                await self._take_all(leases)
            await self._change_count(leases, count)
        except TimeoutError:
            raise OutboxError(
                f"the relays did not give back all partitions within {timeout:g} s: a send or a lease may take longer; "
                "try again with a longer timeout, or stop the relays"
            ) from None
        finally:  # also after Ctrl-C: the relays would wait for the end of these leases
            await leases.leave(set)

    # -- parts --------------------------------------------------------------------------------------------------------

    async def _take_all(self, leases: Leases) -> None:
        """Takes every partition. Relays give theirs back when they see the name of this owner in the relay table."""
        s = self._store.statements
        while True:
            await leases.step(set)
            rows = await self._store.rows(
                (
                    f"SELECT number, owner, token, claimed_to, until < {s.now} AS free FROM {s.lease} "
                    "WHERE scope = :scope ORDER BY number",
                    {"scope": leases.scope},
                )
            )
            await leases.take([row for row in rows if row.free and row.number not in leases.tokens])
            if len(leases.tokens) == len(rows):
                return
            await asyncio.sleep(0.2)

    async def _change_count(self, leases: Leases, count: int) -> None:
        s, scope = self._store.statements, {"scope": leases.scope}
        async with self._store.transaction():
            *locks, read = s.lock_leases(leases.scope, leases.tokens)
            for lock in locks:
                await self._store.change(lock)
            held = {row.number: row.token for row in await self._store.rows(read)}
            if held != leases.tokens:
                raise OutboxError("another relay took a partition meanwhile: try again")
            await self._store.change((f"DELETE FROM {s.lease} WHERE scope = :scope", scope))
            # The tokens are higher than all earlier ones: a relay that was suspended must not take them for its own.
            await leases.create(range(count), max(held.values(), default=0) + 1)
            leases.tokens.clear()
            # A refused topic has one row in each partition that stands for it, and the partitions have changed.
            rows = await self._store.rows(
                (f"SELECT id FROM {s.messages} WHERE state IN ({State.REFUSED}, {State.BEHIND})", {})
            )
            await change_all(self._store, rows, State.READY)

    async def _unpark(self, positions: Sequence[int], *, delete: bool) -> int:
        s = self._store.statements
        for position in positions:
            if type(position) is not int or not 1 <= position <= _LAST_POSITION:
                raise OutboxError(
                    f"the number of a row is a whole number from 1 to {_LAST_POSITION}, not {position!r}: parked rows "
                    "have theirs in `position`, and the command `parked` lists them"
                )
        async with self._store.transaction():
            where = f"state = {State.PARKED}"
            parameters: dict[str, Any] = {}
            if positions:
                condition, parameters = s.among("id", "ids", positions)
                where += f" AND {condition}"
            parked = (f"SELECT id, hash FROM {s.messages} WHERE {where}", parameters)
            rows = await self._store.rows(parked)
            await self._lock({row.hash for row in rows})
            # Somebody else may have released some of them meanwhile: those are on their way, and must not be deleted.
            still = {row.id for row in await self._store.rows(parked)}
            rows = [row for row in rows if row.id in still]
            for start in range(0, len(rows), CHUNK):
                ids = [row.id for row in rows[start : start + CHUNK]]
                await self._store.change(s.delete(ids) if delete else s.set_state(ids, State.READY))
                hashes = {row.hash for row in rows[start : start + CHUNK]}
                await change_all(self._store, await self._store.rows(s.behind(hashes)), State.READY)
        return len(rows)

    async def _lock(self, hashes: set[int]) -> None:
        """Locks the leases of these keys, so that no relay can hold up a row that is made ready at the same time."""
        s = self._store.statements
        scopes: dict[str, int] = {}
        for row in await self._store.rows((f"SELECT scope, number FROM {s.lease} ORDER BY scope", {})):
            scopes[row.scope] = scopes.get(row.scope, 0) + 1
        for scope, count in scopes.items():
            statements: list[Any] = s.lock_leases(scope, {number % count for number in hashes} or {-1})
            *locks, read = statements
            for lock in locks:
                await self._store.change(lock)
            await self._store.rows(read)
