"""`declare=queue`: messages wait here, by topic and in order, until their topic's queue is declared.

Other topics do not wait. What failed or was let go is the driver's again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Protocol

from cqrs_brokers.exceptions import ConnectError, DeliveryError, UnreachableError

from .options import AMQPOptions

if TYPE_CHECKING:
    from .connecting import Session
    from .lanes import Entry

__all__ = ["Owner", "Parking"]


class Owner(Protocol):
    """Who the messages belong to: the driver."""

    def start(self, work: Coroutine[object, object, None]) -> None:
        """Runs it in a task that the owner ends when the connection or the channel is lost."""

    def declared(self, entries: list[Entry]) -> None:
        """Their queue is there: they may be sent now."""

    def not_declared(self, entries: list[Entry], error: DeliveryError) -> None:
        """Their queue cannot be declared."""

    def lost(self, error: ConnectError) -> None:
        """A declaration got no answer."""


class Parking:
    """What waits for its queue, and which queues are known to be there.

    Args:
        options: How queues are declared.
        owner: Is told.
    """

    def __init__(self, options: AMQPOptions, owner: Owner) -> None:
        self._options = options
        self._owner = owner
        self._session: Session | None = None
        self._channels = 0
        """How many channels there were: a declaration made for an earlier one proves nothing for this one."""
        self._waiting: dict[str, list[Entry]] = {}
        self._declared: set[str] = set()

    def use(self, session: Session, unsent: Iterable[Entry]) -> None:
        """A new channel: nothing is known to be declared, and what was not sent yet waits again, after what did."""
        self._session = session
        self._channels += 1
        self._declared.clear()
        for entry in unsent:
            self._waiting.setdefault(entry[0].topic, []).append(entry)
        for topic in self._waiting:
            self._owner.start(self._declare(session, topic, self._channels))

    def stop(self) -> None:
        """There is no channel: what waits and what comes waits for the next one."""
        self._session = None
        self._channels += 1

    def takes(self, topic: str, entry: Entry) -> bool:
        """Lets a message wait, unless its queue is there."""
        if topic in self._declared:
            return False
        waiting = self._waiting.get(topic)
        if waiting is not None:
            waiting.append(entry)
            return True
        self._waiting[topic] = [entry]
        if self._session is not None:
            self._owner.start(self._declare(self._session, topic, self._channels))
        return True

    def drop(self, over: Callable[[Entry], bool]) -> None:
        """Lets go of the messages for which `over` is true."""
        for topic, entries in list(self._waiting.items()):
            kept = [entry for entry in entries if not over(entry)]
            if kept:
                self._waiting[topic] = kept
            else:
                del self._waiting[topic]

    async def _declare(self, session: Session, topic: str, channel: int) -> None:
        from .topology import declare_queue, queue_error

        failure: DeliveryError | None = None
        try:
            async with asyncio.timeout(self._options.connect_timeout):
                await declare_queue(session.connection, self._options, topic)
        except TimeoutError:
            if channel == self._channels:
                self._owner.lost(UnreachableError(f"{session.where} does not answer a declaration"))
            return
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            failure = queue_error(error, topic)
        if channel != self._channels:
            return  # the new channel declares it again
        waiting = self._waiting.pop(topic, [])
        if failure is None:
            self._declared.add(topic)
            self._owner.declared(waiting)
        else:
            self._owner.not_declared(waiting, failure)
