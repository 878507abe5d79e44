"""Channels in confirm mode on which only this plugin publishes.

`FastChannel` is several times faster than aiormq's documented way to publish.

`FastChannel` uses these undocumented parts of aiormq. Each part has a test in tests/amqp/test_channels.py:

    Channel.delivery_tag                                        to publish without a task and a lock for each message
    Channel._on_confirm_frame                                   to resolve, in one loop, all messages of one ack
    Channel._on_return_frame, .confirmations, .message_id_delivery_tag      to learn which message was returned
    Connection.channels, Channel.number                         to know whether the channel is still open
    Channel.frames                                              to know whether some answers are not read yet

If one of these parts is not as expected, `_fallback` publishes in aiormq's documented way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import aiormq
from pamqp import commands

from cqrs_brokers.driver import Delivery, confirm_all
from cqrs_brokers.tasks import Tasks, retrieve_exception

from ._client import Connection, close_without_waiting
from ._rendering import CHANNEL, body_frames, on_channel
from ._unanswered import Entry, Unanswered

__all__ = ["ConfirmChannel", "Failed", "FastChannel"]

logger = logging.getLogger("cqrs_broker_amqp.channels")

NACK_HOLD = 0.2
"""Apache Qpid sends the nack of a message before the return of the same message. So a nack of a server that names no
capabilities is held for at most this many seconds, because a return may follow."""

Failed = Callable[["ConfirmChannel", Entry, BaseException], None]


class ConfirmChannel:
    """A channel on which messages are published.

    Args:
        connection: The connection of the channel.
        channel: aiormq's channel.
        failed: Called when a message is returned or nacked, with aiormq's exception for the return or the nack.
        answered: Called after each answer while `watched` is set, with the deliveries that were confirmed or returned.
            After a nack there are none.
    """

    def __init__(
        self,
        connection: Connection,
        channel: Any,
        *,
        failed: Failed,
        answered: Callable[[ConfirmChannel, Sequence[Delivery]], None],
    ) -> None:
        self.connection = connection
        self.channel = channel
        self.number: int = channel.number
        self.in_flight: set[bytes] = set()
        """The ids of the messages without an answer. Two messages with the same id are never in flight on one
        channel."""
        self.spent: set[bytes] = set()
        """The ids of messages whose return may still come (Apache Qpid). No message with such an id is sent on this
        channel."""
        self.watched = False
        self.alone = True
        """Whether the channel is new. Then only one message is in flight at a time, until a message has its answer."""
        self.quiet_since = 0.0
        """Since this time the channel has waited for an answer (event loop's time). This is the time of the last
        answer, or of a later send while no message was in flight. The end of an alarm counts as an answer."""
        self._failed = failed
        self._on_answer = answered
        self._question: asyncio.Task[Any] | None = None

    @property
    def open(self) -> bool:
        """Whether frames may be sent: aiormq has not read a Channel.Close, and the transport is open.

        aiormq first forgets a channel that the server closes, and then sends Channel.CloseOk. If we
        sent a frame after Channel.CloseOk, the server would close the whole connection.
        """
        connection, channel = self.connection, self.channel
        return connection.channels.get(channel.number) is channel and connection.sockets.open_for_writing

    @property
    def has_unread(self) -> bool:
        """Whether aiormq has received frames for this channel that it has not handled yet."""
        return not self.channel.frames.empty()

    def send(self, entries: Sequence[Entry], now: float) -> None:
        """Sends messages that are handed over."""
        raise NotImplementedError

    def entries(self) -> list[Entry]:
        """The messages without an answer, in the order in which they were sent."""
        raise NotImplementedError

    def oldest(self) -> Delivery | None:
        """The message that has waited longest for its answer. None: no message waits for an answer."""
        raise NotImplementedError

    def take(self) -> list[Entry]:
        """Removes and returns the messages without an answer. They get no answer from this channel any more."""
        taken = self.entries()
        self.in_flight.clear()
        return taken

    def ask(self, tasks: Tasks) -> asyncio.Task[Any]:
        """Asks a question that changes nothing and that the server must answer (Basic.Qos).

        While a question has no answer, the same task is returned. The caller must not cancel the task, because aiormq
        would then close the channel.
        """
        if self._question is None or self._question.done():
            self._question = tasks.spawn(self.channel.basic_qos(prefetch_count=0))
            self._question.add_done_callback(retrieve_exception)
        return self._question

    def close(self) -> None:
        """Closes the channel without waiting for the server. The caller first takes the messages without an answer (see
        `take`)."""
        self.in_flight.clear()
        close_without_waiting(self.channel)


class FastChannel(ConfirmChannel):
    """Sends many messages with one write. Handles an ack for many messages in one step."""

    def __init__(self, connection: Connection, channel: Any, **callbacks: Any) -> None:
        super().__init__(connection, channel, **callbacks)
        self._unanswered = Unanswered(self.in_flight)
        self._last: int = channel.delivery_tag
        self._frame_max = connection.frame_max
        self._nacks_first = not connection.names_capabilities
        self._nacked: dict[int, asyncio.TimerHandle] = {}
        """Nacks that are held until the next answer on this channel, or until the timer ends. The next answer may be
        the return of the nacked message (Apache Qpid)."""
        # aiormq uses the first two to find the message of a Basic.Return, and calls the third for acks and nacks.
        channel.message_id_delivery_tag = _TagById(self._unanswered)
        channel.confirmations = _Returns(self._returned)
        channel._on_confirm_frame = self._confirmed

    def send(self, entries: Sequence[Entry], now: float) -> None:
        """See `ConfirmChannel`. The frames are written at once. aiormq's writer task would write them some turns of the
        event loop later."""
        if not self._unanswered:
            self.quiet_since = now
        first, number = self._last + 1, self.number
        self._unanswered.add(first, entries)
        self._last = self.channel.delivery_tag = self._last + len(entries)
        parts: list[bytes] = []
        for _, _, frames, body, _, _ in entries:
            parts.append(frames if number == CHANNEL else on_channel(frames, number))
            if body:
                body_frames(body, self._frame_max, number, parts)
        self.connection.sockets.write(b"".join(parts))

    async def _confirmed(self, frame: commands.Basic.Ack | commands.Basic.Nack) -> None:
        """Replaces aiormq's `_on_confirm_frame`. aiormq's method schedules one call in the event loop for each message
        of an ack with `multiple`."""
        tag, multiple, unanswered = frame.delivery_tag or 0, frame.multiple, self._unanswered
        if tag > self._last:
            logger.error("RabbitMQ answered delivery tag %d, and the last one sent is %d: ignored", tag, self._last)
            return
        if multiple:
            tag = tag or self._last  # AMQP 0-9-1: zero means all that is outstanding
        self.quiet_since = self.channel.loop.time()
        if self._nacked:
            self._release_nacks()
        if isinstance(frame, commands.Basic.Ack):
            answered: Sequence[Delivery] = ()
            if multiple:
                answered = unanswered.take_until(tag)
            elif (delivery := unanswered.take(tag)) is not None:  # else it was returned, or has its answer
                answered = (delivery,)
            confirm_all(answered)
            if self.watched:
                self._on_answer(self, answered)
            return
        nacked = unanswered.tags(tag) if multiple else [tag]
        if self._nacks_first:
            self._hold_nacks(nacked)
            return
        for tag in nacked:
            self._fail(tag, aiormq.exceptions.DeliveryError(None, frame))
        if self.watched:
            self._on_answer(self, ())

    def _fail(self, tag: int, error: BaseException) -> Entry | None:
        entry = self._unanswered.take_entry(tag)
        if entry is not None:
            self._failed(self, entry, error)
        return entry

    def _returned(self, tag: int, error: BaseException) -> None:
        self.quiet_since = self.channel.loop.time()
        timer = self._nacked.pop(tag, None)
        if timer is not None:
            timer.cancel()
        self._release_nacks()
        entry = self._fail(tag, error)
        if entry is not None and self.watched:
            self._on_answer(self, entry[:1])

    # -- a server that nacks before it returns ------------------------------------------------------------------------

    def _hold_nacks(self, tags: Sequence[int]) -> None:
        self._release_nacks(tags[:-1])
        for tag in tags[-1:]:
            self._nacked[tag] = self.channel.loop.call_later(NACK_HOLD, self._release_nacks)

    def _release_nacks(self, tags: Sequence[int] = ()) -> None:
        """Fails the messages with these tags and those whose nacks were held, because no return has followed."""
        held, self._nacked = self._nacked, {}
        for timer in held.values():
            timer.cancel()
        for tag in (*held, *tags):
            entry = self._fail(tag, aiormq.exceptions.DeliveryError(None, commands.Basic.Nack(delivery_tag=tag)))
            if entry is not None:
                self.spent.add(entry[1])
                if self.watched:
                    self._on_answer(self, ())

    def entries(self) -> list[Entry]:
        """See `ConfirmChannel`."""
        return self._unanswered.entries()

    def oldest(self) -> Delivery | None:
        """See `ConfirmChannel`."""
        return self._unanswered.oldest()

    def take(self) -> list[Entry]:
        """See `ConfirmChannel`."""
        self._release_nacks()
        taken = self.entries()
        self._unanswered.clear()
        return taken


class _TagById:
    """Replaces aiormq's table of delivery tags. aiormq looks up the id of a returned message in this table."""

    def __init__(self, unanswered: Unanswered) -> None:
        self._unanswered = unanswered

    def get(self, message_id: str) -> int | None:
        """The delivery tag of the message with this id. None: no message with this id is in flight."""
        return self._unanswered.tag_of(message_id.encode())


class _Returns:
    """Replaces aiormq's table of confirms. aiormq takes the future of a returned message out of this table."""

    def __init__(self, returned: Callable[[int, BaseException], None]) -> None:
        self._returned = returned

    def pop(self, tag: int, default: object = None) -> _Return:
        """Returns the object that replaces the message's future."""
        return _Return(self._returned, tag)

    def __setitem__(self, tag: int, value: object) -> None:
        """Does nothing. aiormq calls this method to mark a message as returned, so that the later ack is ignored.
        `FastChannel` needs no such mark, because it removes a returned message."""


class _Return:
    """Replaces the future of a returned message."""

    def __init__(self, returned: Callable[[int, BaseException], None], tag: int) -> None:
        self._returned = returned
        self._tag = tag

    def set_exception(self, error: BaseException) -> None:
        """aiormq calls this method when it has read the whole return."""
        self._returned(self._tag, error)
