"""With `declare=queue`, messages wait here until the queue of their topic is declared. They wait by topic and in order.

A message whose queue is declared already does not wait here. Only the publisher gives a message its outcome, not this
module. All queues are declared on a few channels. A channel is used again until a declaration on it fails or takes too
long, because the channel is then closed.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable, Iterable
from typing import Any

from cqrs_brokers.exceptions import BackpressureError, ConnectError, DeliveryError, UnreachableError
from cqrs_brokers.tasks import Tasks, patient_timeout

from ._options import AMQPOptions
from ._session import Session
from ._topology import declare_queue, queue_error
from ._unanswered import Entry

__all__ = ["Declarations"]

MOST_CHANNELS = 4
"""How many channels may declare queues at the same time, if the server allows so many. The channel for publishing is
not counted."""


class _Waiting:
    """The messages that wait for one queue."""

    def __init__(self) -> None:
        self.returned: list[Entry] = []
        """Messages that RabbitMQ returned because the queue was gone. They are sent before the others."""
        self.entries: list[Entry] = []


class Declarations:
    """The messages that wait for their queues, and the queues that are known to exist.

    Args:
        options: How queues are declared.
        tasks: Owns the tasks in which declarations run.
        ready: Called with messages whose queue exists now.
        failed: Called with messages whose queue cannot be declared, and with the error for them.
        lost: Called when the connection does not answer.
    """

    def __init__(
        self,
        options: AMQPOptions,
        tasks: Tasks,
        *,
        ready: Callable[[list[Entry]], None],
        failed: Callable[[list[Entry], DeliveryError], None],
        lost: Callable[[ConnectError], None],
    ) -> None:
        self._options = options
        self._tasks = tasks
        self._ready, self._failed, self._lost = ready, failed, lost
        self._session: Session | None = None
        self._paused = True
        self._round = 0
        """The number of the current round. `use` and `pause` begin a new round. The result of a declaration from an
        earlier round is ignored."""
        self._workers = 0
        """How many channels declare now."""
        self._idle: list[Any] = []
        """Channels that are free for another declaration."""
        self._waiting: dict[str, _Waiting] = {}
        self._todo: collections.deque[str] = collections.deque()
        """The topics whose queues no channel has begun to declare. A queue is declared only if messages still
        wait for it when a channel comes to its topic."""
        self._declared: set[str] = set()

    def use(self, session: Session, unsent: Iterable[Entry]) -> None:
        """Begins to use a session, on which no queue counts as declared yet. The unsent messages wait here, after the
        messages that wait already."""
        if session is not self._session:
            self._session, self._workers = session, 0
            self._idle.clear()
        self._paused = False
        self._round += 1
        self._declared.clear()
        for entry in unsent:
            self._waiting.setdefault(entry[0].topic, _Waiting()).entries.append(entry)
        self._todo = collections.deque(self._waiting)
        self._work_on()

    def pause(self) -> None:
        """Begins no further declaration, because there is no channel to publish on. All messages, old and new, wait for
        the next channel."""
        self._paused = True
        self._round += 1

    def stop(self) -> None:
        """Begins no further declaration, because there is no connection. The owner ends the tasks."""
        self.pause()
        self._session = None
        self._idle.clear()

    def waits(self, topic: str) -> bool:
        """Whether messages wait for this topic's queue."""
        return topic in self._waiting

    def takes(self, topic: str, entry: Entry) -> bool:
        """Lets a message wait here, unless its queue is declared already. Returns whether the message waits here."""
        if topic in self._declared:
            return False
        self._of(topic).entries.append(entry)
        return True

    def again(self, entry: Entry, behind: list[Entry]) -> None:
        """Keeps a message that RabbitMQ returned because its queue was gone. When the queue is declared again, the
        returned messages are sent first, and then the messages in `behind`."""
        topic = entry[0].topic
        self._declared.discard(topic)
        waiting = self._of(topic)
        waiting.returned.append(entry)
        waiting.entries[:0] = behind

    def drop(self, over: Callable[[Entry], bool]) -> None:
        """Drops the waiting messages for which `over` is true."""
        for topic, waiting in list(self._waiting.items()):
            waiting.returned = [entry for entry in waiting.returned if not over(entry)]
            waiting.entries = [entry for entry in waiting.entries if not over(entry)]
            if not waiting.returned and not waiting.entries:
                del self._waiting[topic]

    def _of(self, topic: str) -> _Waiting:
        waiting = self._waiting.get(topic)
        if waiting is None:
            waiting = self._waiting[topic] = _Waiting()
            self._todo.append(topic)
            self._work_on()
        return waiting

    def _work_on(self) -> None:
        session = self._session
        if session is None or self._paused:
            return
        most = max(1, min(MOST_CHANNELS, session.channel_limit - 1))
        for _ in range(min(most - self._workers, len(self._todo))):
            self._workers += 1
            self._tasks.spawn(self._work(session))

    async def _work(self, session: Session) -> None:
        """Declares queues that messages wait for, one after the other, on one channel. After a failed declaration the
        next queue gets a new channel."""
        channel = self._idle.pop() if self._idle else None
        while self._todo and session is self._session and not self._paused:
            topic = self._todo.popleft()
            if topic in self._waiting:  # else its messages are over
                channel = await self._declare(session, channel, topic)
        if session is self._session:
            self._workers -= 1
            if channel is not None:
                self._idle.append(channel)

    async def _declare(self, session: Session, channel: Any, topic: str) -> Any:
        """Declares one queue.

        Returns:
            The channel, if it can be used again, else None.
        """
        number, asked = self._round, asyncio.get_running_loop().time()
        failure: DeliveryError | None = None
        try:
            async with patient_timeout(self._options.connect_timeout):
                if channel is None:
                    channel = await session.raw_channel(confirms=False)
                await declare_queue(channel, self._options, topic)
        except TimeoutError:
            channel = None
            if session.last_inbound < asked:
                if number == self._round:
                    self._lost(UnreachableError(f"{session.where} does not answer a declaration"))
                return None
            failure = BackpressureError(
                f"{session.where} did not answer the declaration of queue {topic!r} within "
                f"{self._options.connect_timeout:g} s: is it without a majority of its nodes? Send again later"
            )
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            channel = None  # RabbitMQ closes a channel on which a declaration fails
            failure = queue_error(error, topic)
        if number == self._round:  # else the next round declares the queue again, if messages wait
            waiting = self._waiting.pop(topic, None) or _Waiting()
            if failure is None:
                self._declared.add(topic)
                self._ready(waiting.returned + waiting.entries)
            else:
                self._failed(waiting.returned + waiting.entries, failure)
        return channel
