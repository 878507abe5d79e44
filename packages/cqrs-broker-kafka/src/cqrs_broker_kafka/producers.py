"""Which producer takes batches now, and which ones only wait for the answers to their last batches.

A producer is replaced, not repaired: after any failed batch its sequence numbers for that partition have a gap, and the
broker refuses all that follows (aiokafka#1017). Lanes with a batch on the old producer wait for its answer, all others
go on with the new one, so that nothing is lost and nothing overtakes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Protocol

from cqrs_brokers.exceptions import ConnectError, UnreachableError

from .internals import Producer, why_not_started
from .probe import first_that_answers
from .settings import KafkaSettings

__all__ = ["Owner", "Producers"]

logger = logging.getLogger("cqrs_broker_kafka.producers")

MOST_RECORDS = 2**30
"""A producer is replaced before a sequence number can wrap: aiokafka wraps to -2**31, Kafka expects 0."""


class Owner(Protocol):
    """What the producers need of the driver."""

    def topics_in_use(self) -> list[str]:
        """Which topics a new producer must know."""

    def metadata_changed(self, _: object) -> None:
        """A producer has fresh metadata."""

    def heard(self) -> None:
        """The cluster has answered."""

    def renewed(self) -> None:
        """Another producer takes batches now."""

    def died(self, producer: Producer) -> None:
        """The producer will answer nothing any more."""

    def lost(self, error: ConnectError) -> None:
        """There is no producer; the driver is to be connected anew."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs it in a task that the driver ends."""


class Producers:
    """The producers of one driver.

    Args:
        settings: Where and how.
        owner: Is told.

    Attributes:
        current: Who takes batches; None: nobody.
    """

    def __init__(self, settings: KafkaSettings, owner: Owner) -> None:
        self.current: Producer | None = None
        self._settings = settings
        self._timeout = settings.options.connect_timeout
        self._owner = owner
        self._retired: list[Producer] = []
        """Not fed any more; stopped when their last batch has its answer."""
        self._replacing: asyncio.Task[None] | None = None
        self._trusted = False
        """These settings have worked."""

    # -- a producer that can take messages ----------------------------------------------------------------------------

    async def connect(self) -> None:
        """Starts one. Dead ones go; those that still wait for answers stay until they have them.

        Raises:
            ConnectError: Why there is none.
        """
        if self.current is not None:
            self._retire(self.current)
        self._replacing = None
        for producer in [producer for producer in self._retired if not producer.in_flight]:
            self._retired.remove(producer)
            await producer.stop(0.0)
        self.current = await self._open()

    async def _open(self) -> Producer:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._timeout
        greeting = await first_that_answers(self._settings, timeout=self._timeout, trusted=self._trusted)
        producer = Producer(self._settings, greeting.host, self._ended, self._owner.heard)
        try:
            async with asyncio.timeout_at(until):
                await producer.start(greeting)
            topics = self._owner.topics_in_use()
            if topics:  # what it does not know by then is asked for again before it is sent to
                await producer.refresh(topics, timeout=min(1.0, until - loop.time()))
        except asyncio.CancelledError:
            producer.abort()
            raise
        except Exception as error:
            failure = self._why(producer, error)
            await producer.stop(0.0)
            raise failure from error
        self._trusted = True
        producer.watch_metadata(self._owner.metadata_changed)
        return producer

    def _why(self, producer: Producer, error: Exception) -> ConnectError:
        if not isinstance(error, TimeoutError):
            return why_not_started(error)
        if producer.reached is not None:
            return UnreachableError(
                f"node {producer.reached} of the cluster was reached, but gave no producer id within "
                f"{self._timeout:g} s: see its log, and whether the cluster has an active controller"
            )
        nodes = ", ".join(map(str, producer.nodes()))
        return UnreachableError(
            f"the bootstrap server answers, but none of the nodes it advertises can be reached within "
            f"{self._timeout:g} s ({nodes}): check advertised.listeners and the network"
        )

    # -- one after the other ------------------------------------------------------------------------------------------

    def answered(self, producer: Producer, failed: bool) -> None:
        """A batch of the producer has its answer."""
        if producer is self.current:
            if (failed and producer.idempotent) or producer.appended >= MOST_RECORDS:
                self.replace(producer)
        elif not producer.in_flight and producer in self._retired:
            self._owner.spawn(self.stop_retired(producer))

    def replace(self, producer: Producer) -> None:
        """Lets another one take its place."""
        if producer is self.current and self._replacing is None:
            self._replacing = self._owner.spawn(self._swap(producer))

    async def _swap(self, old: Producer) -> None:
        try:
            new = await self._open()
        except ConnectError as error:
            # Batches that the old one still has stay with it: it reconnects by itself, and their answers count.
            if self.current is old:
                self._retire(old)
                self._owner.lost(error)
            return
        finally:
            self._replacing = None
        if self.current is not old:  # connected anew, or dropped, meanwhile
            await new.stop(0.0)
            return
        self.current = new
        self._retire(old)
        self._owner.renewed()

    def _retire(self, producer: Producer) -> None:
        if self.current is producer:
            self.current = None
        self._retired.append(producer)
        if not producer.in_flight:
            self._owner.spawn(self.stop_retired(producer))

    def reap(self) -> bool:
        """Stops retired ones that wait for nothing, because they died.

        Returns:
            Whether there are retired ones.
        """
        for producer in self._retired:
            if not producer.in_flight:
                self._owner.spawn(self.stop_retired(producer))
        return bool(self._retired)

    async def stop_retired(self, producer: Producer) -> None:
        """Stops one that has nothing to wait for."""
        if producer in self._retired:
            self._retired.remove(producer)
            await producer.stop(0.2)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _ended(self, producer: Producer) -> None:
        """Its sender task ended: it will never send again. No task is made here: the loop may be ending."""
        logger.warning("aiokafka's sender task ended by itself: the producer is replaced")
        self.bury(producer, UnreachableError("the Kafka client stopped working and is replaced"))

    def bury(self, producer: Producer, error: ConnectError) -> None:
        """It is dead, with that reason."""
        current = producer is self.current
        if current:
            self.current = None
        if producer not in self._retired:
            self._retired.append(producer)
        self._owner.died(producer)
        if current:
            self._owner.lost(error)

    async def bury_all(self, error: ConnectError) -> None:
        """None of them can go on, for that reason: they are stopped, and connecting begins anew."""
        for producer in (*self._retired, self.current):
            if producer is not None:
                self.bury(producer, error)
        for producer in list(self._retired):
            await self.stop_retired(producer)

    def take_all(self) -> list[Producer]:
        """All of them, to be stopped or dropped; there is none any more."""
        taken, self._retired = self._retired, []
        if self.current is not None:
            taken.append(self.current)
            self.current = None
        self._replacing = None
        return taken
