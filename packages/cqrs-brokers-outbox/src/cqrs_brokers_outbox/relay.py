"""`Relay` takes messages from the outbox to the broker. It runs in the application or in a process of its own, and
there may be any number of relays."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Sequence
from typing import Literal, Self

from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import StaticPool

from cqrs_brokers import Broker, BrokerError, ConfigError

from ._relay.leases import Leases
from ._relay.outcomes import Marker
from ._relay.statements import FOR_EVER, Statements
from ._relay.store import Store
from ._relay.trouble import Trouble, database_failure
from ._relay.upkeep import Upkeep
from ._relay.worker import CANCEL_STEP, MARGIN, Worker, cancelled
from .exceptions import OutboxError
from .observers import RelayObserver, RelayObservers
from .opening import check_schema, make_statements
from .outbox import Outbox
from .status import OutboxStatus, RelayHealth, read_status

__all__ = ["Relay"]

logger = logging.getLogger("cqrs_brokers.outbox")

_LEAST_LEASE_OVER = MARGIN + 5.0
_DEFAULT_LEASE_OVER = 30.0
LONG = 5.0
"""After this many seconds without a receipt for a topic, `health()` mentions the topic."""
_NOT_SERVED = ("connecting", "reconnecting", "blocked", "failed", "closed")


class Relay:
    """Sends the messages of an outbox to a broker, and writes the outcome into each row.

        async with Relay(engine, broker, outbox):
            ...                                    # in the application; or: await relay.run()

    Rows with the same topic and key are sent in the order in which their transactions wrote them. Each is sent when the
    row before it has its receipt, unless `pipeline_keys` or `when_parked` says otherwise. Any number of relays, in any
    number of processes, share the work by partitions.

    Args:
        engine: The database. The relay uses up to four of its connections, and `health()` one more.
        broker: Where messages go. The relay does not close it.
        outbox: The tables. Default: `Outbox()`.
        topics: Only these topics: two relays can serve two brokers from one table. Default: all.
        pipeline_keys: Sends the rows of a key together. This is much faster for a single busy key. But a row that fails
            is then overtaken by the rows behind it that are in flight.
        when_parked: What happens to the rows behind a parked row of the same key: "stop" (they wait for a person) or
            "continue" (they are sent).
        keep: Seconds for which sent rows are kept, with their partition and offset in the broker. Older rows are
            deleted, also those that another relay sent. 0: the relay deletes each row when it has its receipt, and no
            row that is kept already.
        batch: How many ready rows a claim brings, at most. It brings as many that have waited.
        lease: Seconds for which a relay takes a partition. If the relay dies, another one takes the partition over at
            most 2 s after the lease has ended, while the other one's database and broker work. Default: the broker's
            `delivery_timeout` plus 30 s.
        close_timeout: Seconds for which a relay that stops waits for what is in flight. Giving back its leases may take
            5 s more, and closing its connections 2 s.
        observers: The objects that are told what happens.

    Raises:
        ConfigError: An option has a value that it cannot have, the outbox does not know this kind of database, or the
            engine has only one connection for everybody, as for SQLite in memory.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        broker: Broker,
        outbox: Outbox | None = None,
        *,
        topics: Sequence[str] | None = None,
        pipeline_keys: bool = False,
        when_parked: Literal["stop", "continue"] = "stop",
        keep: float = 24 * 3600.0,
        batch: int = 500,
        lease: float | None = None,
        close_timeout: float = 10.0,
        observers: Sequence[RelayObserver] = (),
    ) -> None:
        if isinstance(topics, str):
            raise ConfigError("topics must be a list of topics, not one text")
        seconds = broker.delivery_timeout + _DEFAULT_LEASE_OVER if lease is None else lease
        problems = []
        if not seconds >= broker.delivery_timeout + _LEAST_LEASE_OVER:
            problems.append(
                f"lease must be at least {broker.delivery_timeout + _LEAST_LEASE_OVER:g} s, not {seconds:g}: the "
                f"broker's delivery_timeout and {_LEAST_LEASE_OVER:g} s; or open the broker with a shorter one"
            )
        if seconds > FOR_EVER:
            problems.append(f"lease must be at most {FOR_EVER:g} s, not {seconds:g}")
        if batch < 1:
            problems.append(f"batch must be at least 1, not {batch}")
        if not keep >= 0:
            problems.append(f"keep must be 0 or more, not {keep}")
        if not close_timeout >= 0:
            problems.append(f"close_timeout must be 0 or more, not {close_timeout}")
        if when_parked not in ("stop", "continue"):
            problems.append(f'when_parked must be "stop" or "continue", not {when_parked!r:.40}')
        if topics is not None and not topics:
            problems.append("topics is empty: no message would be sent")
        if isinstance(engine.pool, StaticPool):
            problems.append(
                "the engine has one connection for everybody (StaticPool, as SQLite in memory has it), and a relay "
                "needs connections of its own: use a file, such as sqlite+aiosqlite:///outbox.db"
            )
        if problems:
            raise ConfigError(problems)
        self._engine = engine
        self._broker = broker
        self._outbox = outbox or Outbox()
        self._statements = make_statements(
            engine, self._outbox.tables, topics=topics, continue_past_parked=when_parked == "continue"
        )
        self._topics = topics
        self._pipeline = pipeline_keys
        self._keep = keep
        self._batch = batch
        self._lease = seconds
        self._close_timeout = close_timeout
        self._observers = RelayObservers(observers)
        self._trouble = Trouble(self._observers)
        self.name = f"{socket.gethostname()[:60]}:{os.getpid()}:{secrets.token_hex(6)}"
        self._worker: Worker | None = None
        self._leases: Leases | None = None
        self._running: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[Leases] | None = None
        self._stopped = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._outbox!r} to {self._broker.url or self._broker.name}>"

    async def run(self) -> None:
        """Works until `stop()` or a cancellation; then finishes what is in flight, marks it and gives back its leases.

        If that takes longer than `close_timeout`, the relay keeps the leases of the rows that it has. The next relay
        takes these partitions when the leases end, and counts their rows as possibly sent.

        Raises:
            OutboxSchemaError: The tables are missing, of another version, or not accessible.
            OutboxError: The relay runs already, or another one with other topics sends some of the same topics.
            SQLAlchemyError, OSError: The database failed before the work began. Later the relay tries again.
        """
        if self._worker is not None or self._starting is not None:
            raise OutboxError("this relay runs already: make another one")
        stores = [Store(self._engine, self._statements) for _ in range(4)]
        leasing, claims, marks, beside = stores
        try:
            leases = None if self._stopped else await self._started(leasing)
            if leases is None:
                return
            trouble = self._trouble = Trouble(self._observers)
            worker = self._worker = Worker(
                self._broker,
                leases,
                claims=claims,
                marker=Marker(marks, scope=leases.scope, sent_to=self._broker.name, keep=self._keep > 0),
                upkeep=Upkeep(beside, keep=self._keep, observers=self._observers, trouble=trouble),
                trouble=trouble,
                batch=self._batch,
                pipeline=self._pipeline,
                observers=self._observers,
            )
            try:
                await worker.run(self._close_timeout)
            finally:
                await _shielded(leases.leave(worker.in_use), self._close_timeout)
        finally:
            self._worker = None
            self._observers.ended()
            try:
                await asyncio.gather(*(store.close() for store in stores))
            finally:
                self._stopped = False

    async def _started(self, leasing: Store) -> Leases | None:
        """Begins, in a task of its own that `stop()` can cancel: a database may take a connection and not answer.

        Returns:
            The leases. None: the relay was stopped meanwhile.
        """
        starting = self._starting = asyncio.create_task(self._start(leasing))
        try:
            await asyncio.wait([starting])
        finally:
            self._starting = None
            await cancelled([starting])
        if self._stopped:
            if not starting.cancelled():
                starting.exception()  # nobody wants to know it any more
            return None
        return starting.result()

    async def _start(self, leasing: Store) -> Leases:
        await check_schema(leasing, self._outbox.tables)
        leases = self._leases = Leases(
            leasing,
            owner=self.name,
            topics=self._topics,
            lease=self._lease,
            partitions=self._statements.partitions,
            broker=self._broker.url or self._broker.name,
        )
        await leases.join()
        return leases

    def stop(self) -> None:
        """Lets `run()` finish what is in flight and end. A relay that is still starting ends at once, and so does the
        next `run()` of a relay that does not run. May be called in a signal handler of the event loop."""
        self._stopped = True
        if self._worker is not None:
            self._worker.stop()
        elif self._starting is not None:
            self._starting.cancel()

    async def __aenter__(self) -> Self:
        await check_schema_once(self._engine, self._statements, self._outbox)
        self._running = asyncio.create_task(self.run())
        self._running.add_done_callback(_tell_of_an_early_end)
        return self

    async def __aexit__(self, *_: object) -> None:
        running = self._running
        if running is None:
            return
        while not running.done():  # a database driver may swallow a cancellation: see `worker`
            self.stop()
            await asyncio.wait([running], timeout=CANCEL_STEP)
        self._running = None
        if (error := _error_of(running)) is not None:
            raise error

    async def health(self) -> RelayHealth:
        """The state of the relay now, and what the outbox holds. Never raises."""
        reasons: list[str] = []
        waits: list[str] = []
        if self._worker is None:
            reasons.append("the relay does not run")
        else:
            reasons += [f"cannot {what}: {text}" for what, text in sorted(self._trouble.reasons.items())]
            if self._broker.state in _NOT_SERVED:
                reasons.append(f"the broker is {self._broker.state}")
            waits += [
                f"topic {topic!r} has given no receipt for {seconds:.0f} s"
                for topic, seconds in sorted(self._worker.unanswered(LONG).items())
            ]
        if (error := _error_of(self._running)) is not None:
            reasons.append(f"the relay ended: {_said(error)}")
        store = Store(self._engine, self._statements)
        status = None
        try:
            async with asyncio.timeout(10):
                status = await read_status(store)
        except Exception as error:
            reasons.append(f"cannot read what waits: {database_failure(error)}")
        finally:
            await store.close()
        if status is not None:
            reasons += _for_a_person(status)
            if status.waiting:
                waits.append(f"rows that wait: {status.waiting}")
        return RelayHealth(
            ok=not reasons,
            reason="; ".join([*reasons, *waits]) or "ok",
            running=self._worker is not None,
            partitions=tuple(sorted(self._leases.tokens)) if self._leases is not None and self._worker else (),
            in_flight=self._worker.in_flight if self._worker else 0,
            sent=self._worker.sent if self._worker else 0,
            fenced=self._worker.fenced if self._worker else 0,
            status=status,
        )


def _tell_of_an_early_end(running: asyncio.Task[None]) -> None:
    """Logs the error of a relay that ended by itself: the block that it runs in may last for weeks."""
    if (error := _error_of(running)) is not None:
        logger.error("outbox relay: it has ended, and sends nothing any more: %s", _said(error))


def _error_of(running: asyncio.Task[None] | None) -> BaseException | None:
    """The error with which the relay ended by itself, if it did."""
    return running.exception() if running is not None and running.done() and not running.cancelled() else None


def _said(error: BaseException) -> str:
    """What an error says to a person. The text of a database's error may quote messages."""
    return error.text if isinstance(error, BrokerError) else type(error).__name__


def _for_a_person(status: OutboxStatus) -> list[str]:
    reasons = []
    if status.parked:
        reasons.append(f"rows that are parked: {status.parked}; release or discard them")
    if status.refused_topics:
        topics = ", ".join(map(repr, status.refused_topics[:3])) + (", …" if len(status.refused_topics) > 3 else "")
        reasons.append(f"topics that the broker refuses: {topics}; make them, or grant the right to write to them")
    return reasons


async def check_schema_once(engine: AsyncEngine, statements: Statements, outbox: Outbox) -> None:
    """Checks the tables on a connection of its own, so that start-up fails early."""
    store = Store(engine, statements)
    try:
        await check_schema(store, outbox.tables)
    finally:
        await store.close()


async def _shielded(leaving: object, timeout: float) -> None:
    """Waits until the leases are given back, also in a task that was cancelled before. It waits for the timeout, but at
    least 1 s and at most 5 s."""
    task = asyncio.ensure_future(leaving)  # type: ignore[call-overload]
    await asyncio.wait([task], timeout=max(1.0, min(timeout, 5.0)))
    if not task.done():
        await cancelled([task])
    elif not task.cancelled():
        task.exception()  # without them the leases end by themselves
