"""`AMQPDriver` connects a `Broker` to RabbitMQ. `Publisher` sends the messages over the connection."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

from cqrs_brokers.driver import Capabilities, Delivery, Link, PipelinedDriver
from cqrs_brokers.exceptions import (
    BrokerClosedError,
    ClosedWhilePendingError,
    ConnectError,
    ConnectionLostError,
    DeliveryError,
    NotDeliveredError,
    UnreachableError,
)
from cqrs_brokers.tasks import Tasks

from ._channels import ConfirmChannel
from ._connecting import connect
from ._errors import channel_limit, forbidden_publish, lost_error, scrubbed
from ._logs import redact_client_logs
from ._publisher import Publisher
from ._session import Session
from ._settings import AMQPSettings

__all__ = ["AMQPDriver"]

_QUEUE_NAME = re.compile(r"[A-Za-z0-9_.:@#,/+ -]*")
_CAPABILITIES = Capabilities(
    confirms=True,
    ordering_key=True,
    headers=True,
    header_types=frozenset({str, bytes, int, float, bool, type(None)}),
    unroutable_detection=True,
    durable=True,
    max_message_bytes=None,
)
_NO_CHANNEL_PAUSE = 0.05


class AMQPDriver(PipelinedDriver):
    """Publishes to RabbitMQ with confirms. The messages are persistent and have the flag `mandatory`.

    Args:
        settings: Where to connect and how.
    """

    def __init__(self, settings: AMQPSettings) -> None:
        self._settings = settings
        self._tasks = Tasks()
        self._publisher = Publisher(settings.options, self._tasks, self.lost)
        self._link: Link | None = None
        self._connected_before = False
        self._host = 0
        self._channel_limit: int | None = None
        """The limit of channels that RabbitMQ named when it ended a connection because of this limit. None: RabbitMQ
        has named no limit."""
        self._session: Session | None = None
        self._ended: list[Session] = []
        """Sessions whose tasks may still be ending."""

    @property
    def capabilities(self) -> Capabilities:
        """A confirm means that every queue to which RabbitMQ routed the message has taken the message. If the queue is
        durable, the message is on disk. If the queue has replicas, a majority of the replicas has the message."""
        return _CAPABILITIES

    def bind(self, link: Link) -> None:
        """See `Driver.bind`."""
        self._link = link
        self._publisher.bind(link)

    def refuse_topic(self, topic: str) -> str | None:
        """With `declare=queue` the topic must be a name that aiormq and RabbitMQ accept for a new queue."""
        if self._settings.options.declare != "queue":
            return None
        if topic.startswith("amq."):
            return "declare=queue: RabbitMQ keeps queue names that start with 'amq.' for itself: use another topic"
        if not _QUEUE_NAME.fullmatch(topic):
            return "declare=queue: a queue's name has only letters, digits, spaces and - _ . : @ # , / +"
        return None

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        """See `PipelinedDriver.submit`."""
        self._publisher.submit(deliveries)

    def why_late(self, delivery: Delivery, /, *, handed: bool) -> DeliveryError | None:
        """See `PipelinedDriver.why_late`."""
        return self._publisher.why_late(delivery.topic, handed=handed)

    # -- connecting and closing ---------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Makes one pass over the hosts. The first pass begins with the first host, a later pass with the host that
        comes after the last connected host."""
        redact_client_logs()
        self._drop_session()
        await self._clear_away()
        session, channel, self._host = await connect(
            self._settings, self._host, self, known=self._connected_before, channel_limit=self._channel_limit
        )
        self._host = (self._host + 1) % len(self._settings.hosts)
        if session.over:
            raise UnreachableError(f"{session.where} ended the connection as soon as it was made")
        self._session = session
        self._connected_before = True
        self._publisher.use(session, channel)

    async def ping(self) -> None:
        """Asks RabbitMQ a question on the channel for messages, because some users may open only one channel. While
        that channel is being replaced, this method waits for the new channel.

        Raises:
            UnreachableError: There is no connection, or RabbitMQ closed the channel instead of answering.
        """
        while (session := self._session) is not None:
            channel = self._publisher.channel
            if channel is None or not channel.open:  # it is being opened again
                await asyncio.sleep(_NO_CHANNEL_PAUSE)
                continue
            question = channel.ask(self._tasks)
            while not question.done() and channel is self._publisher.channel:
                await asyncio.wait((question,), timeout=_NO_CHANNEL_PAUSE)
            if not question.done():
                continue  # the channel was left for another one
            error = asyncio.CancelledError() if question.cancelled() else question.exception()
            if error is None:
                return
            if channel is self._publisher.channel and session is self._session:
                raise UnreachableError(f"{session.where} does not answer ({type(error).__name__})") from scrubbed(error)
        raise UnreachableError("not connected")

    async def close(self, grace: float) -> None:
        """See `Driver.close`."""
        session, self._session = self._session, None
        self._forget_all(ClosedWhilePendingError("closed before the confirm came"), BrokerClosedError("closed"))
        await self._tasks.end(0.2)
        if session is not None:
            await session.close(grace)
        await self._clear_away()

    def abort(self) -> None:
        """See `Driver.abort`."""
        session, self._session = self._session, None
        self._forget_all(ClosedWhilePendingError("the connection was dropped"), BrokerClosedError("dropped"))
        if session is not None:
            session.abort()
        self._tasks.abort()
        self._ended.clear()

    def _drop_session(self) -> None:
        """Drops the connection and cancels the driver's tasks. `_clear_away` then waits a limited time until these
        tasks have ended."""
        session, self._session = self._session, None
        if session is not None:
            session.abort()
            self._ended.append(session)
        for task in self._tasks:
            task.cancel()

    async def _clear_away(self) -> None:
        await self._tasks.end(0.2)
        ended, self._ended = self._ended, []
        for session in ended:
            await session.gone()

    def _forget_all(self, handed: DeliveryError, not_handed: NotDeliveredError) -> None:
        for entry in self._publisher.stop():
            if not entry[0].done:
                entry[0].fail(handed)
        self._publisher.fail_waiting(not_handed)

    # -- what happens to the connection (SessionListener) -------------------------------------------------------------

    @property
    def callbacks(self) -> dict[str, Any]:
        """See `SessionListener`."""
        return self._publisher.callbacks

    def session_ended(self, session: Session, error: BaseException | None) -> None:
        """See `SessionListener`."""
        limit = channel_limit(error)
        if limit is not None:
            self._channel_limit = limit
        if session is self._session:
            refused = forbidden_publish(error)
            if refused is not None:
                self._publisher.refused(refused)
            self.lost(lost_error(error))

    def channel_closed(self, channel: ConfirmChannel, error: BaseException | None) -> None:
        """See `SessionListener`."""
        self._publisher.channel_closed(channel, error)

    def blocked(self, reason: str) -> None:
        """See `SessionListener`."""
        alarm = f"RabbitMQ has an alarm: {reason}"
        self._publisher.block(alarm)
        if self._link is not None:
            self._link.blocked(alarm)

    def unblocked(self) -> None:
        """See `SessionListener`."""
        self._publisher.unblock()
        if self._link is not None:
            self._link.unblocked()

    def lost(self, error: ConnectError) -> None:
        """Handles the loss of the connection. Messages that were handed over and have no answer fail with an unknown
        outcome. The other messages wait, in order, for the next connection."""
        unanswered = self._publisher.stop()
        self._drop_session()
        if unanswered:
            lost = ConnectionLostError(f"the connection was lost before the confirm came: {error.text}")
            lost.__cause__ = error
            for entry in unanswered:
                entry[0].fail(lost)
        if self._link is not None:
            self._link.lost(error)
