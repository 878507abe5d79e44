"""Keeps the messages that wait and the messages in flight, and handles each answer of RabbitMQ.

    rendered → outbox ──flush──▶ channel (handed over) ──ack / return / nack──▶ outcome
       │        ▲  └─ held while its destination is stuck (`_stalled`)
       └────────┴─ until the topic's queue is declared (`_declaring`)

A *flush* writes the messages that are ready, up to about `FLUSH_BYTES`, with one write ("group commit"). Immediately
before the write each of these messages is *handed over*: from then on it may be in RabbitMQ. Usually a flush runs in
the next turn of the event loop. If no message is in flight, the flush runs at once. In a burst of messages a flush also
runs at once, so that the server works while the rest of the burst is rendered. The next flush waits until the operating
system has taken all bytes of the write (`Sockets.must_wait`). So while a connection stalls, no further messages are
handed over. The messages that wait are proven not sent.

On a new channel a single message is sent first, for this reason: if the exchange is wrong or a permission is missing,
RabbitMQ closes the channel and does not say which message was the cause. A message is known to be the cause if no other
message was in flight on the channel. Otherwise RabbitMQ's text must name a size or a topic that fits only one message
(`culprit`).

This file is longer than 400 lines because each answer may move messages back to the outbox, and the order of the outbox
is kept here.
"""

from __future__ import annotations

import asyncio
import collections
import enum
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cqrs_brokers.driver import Delivery, Link
from cqrs_brokers.exceptions import (
    BackpressureError,
    ConnectError,
    ConnectionLostError,
    DeliveryError,
    DeliveryTimeoutError,
    InvalidMessageError,
    NotDeliveredError,
    UnroutableError,
)
from cqrs_brokers.tasks import Tasks

from ._channels import ConfirmChannel
from ._declaring import Declarations
from ._errors import (
    body_limit,
    channel_reply,
    culprit,
    forbidden,
    publish_failure,
    refusal,
    scrubbed,
    too_large,
)
from ._leaving import Leaving
from ._options import AMQPOptions
from ._rendering import Renderer
from ._reopening import reopen
from ._session import Session
from ._stalled import LOOK_AGAIN
from ._unanswered import Entry
from ._watch import ConnectionWatch

__all__ = ["Publisher"]

FLUSH_BYTES = 512 * 1024
"""The approximate limit of one write, in bytes: the message that reaches this size is the last one of the write. So
about this many written bytes at most wait in a stalled connection."""
BURST = 128
"""Each time the outbox reaches a multiple of this number of messages, `submit` runs a flush at once, instead of in the
next turn of the event loop."""


class State(enum.Enum):
    """The state of the connection. In the states OPEN and BLOCKED there is no current channel while a closed channel is
    being replaced."""

    CLOSED = "there is no connection"
    OPEN = "there is a connection"
    BLOCKED = "RabbitMQ has an alarm"


class Publisher:
    """Publishes messages over the current session.

    Args:
        options: The exchange, and what is declared.
        tasks: Owns the tasks of the publisher. The publisher's owner ends these tasks when the session ends.
        lost: Called when a new connection is needed.
    """

    def __init__(self, options: AMQPOptions, tasks: Tasks, lost: Callable[[ConnectError], None]) -> None:
        self._options = options
        self._tasks = tasks
        self._lost = lost
        self._link: Link | None = None
        self._render = Renderer(options.exchange).render
        self._declarations: Declarations | None = None
        if options.declare == "queue":
            self._declarations = Declarations(
                options, tasks, ready=self._ready_to_go, failed=self._not_declared, lost=lost
            )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: Session | None = None
        self._state = State.CLOSED
        self._alarm = ""
        self._channel: ConfirmChannel | None = None
        self._outbox: collections.deque[Entry] = collections.deque()
        self._flush_at: asyncio.Handle | None = None
        self._let_go_at: asyncio.Handle | None = None
        self._leaving = Leaving(
            tasks,
            current=lambda: self._channel,
            use=self._use_instead,
            ready=self._go_first,
            expect=lambda when: self._watch.expect(when),
            lost=lost,
        )
        self._watch = ConnectionWatch(
            options.heartbeat,
            channels=self._channels,
            stuck=self._leaving.leave_soon,
            look=self._leaving.look,
            dead=lost,
        )
        self.callbacks: dict[str, Any] = {
            "failed": self._failed,
            "answered": self._answered,
        }
        """The functions that every channel calls; see `ConfirmChannel`."""

    @property
    def channel(self) -> ConfirmChannel | None:
        """The channel on which messages are published now."""
        return self._channel

    def bind(self, link: Link) -> None:
        """See `Driver.bind`."""
        self._link = link

    # -- sessions -----------------------------------------------------------------------------------------------------

    def use(self, session: Session, channel: ConfirmChannel) -> None:
        """Begins to use a new connection. With `declare=queue` no queue counts as declared on a new connection."""
        self._loop = asyncio.get_running_loop()
        self._session = session
        session.connection.sockets.on_drained(self._flush_soon)
        self._watch.start(session)
        self._leaving.start(session)
        if self._state is State.CLOSED:
            self._state = State.OPEN
        self._use(channel, anew=True)

    def _use(self, channel: ConfirmChannel, *, anew: bool) -> None:
        """Publishes on this channel from now on.

        Args:
            anew: Whether declared queues may be gone. If so, each queue is declared again before its next message.
        """
        self._channel = channel
        self._flush_at = self._let_go_at = None  # a callback of an event loop that was closed never runs
        self._let_go_later()
        if anew and self._declarations is not None and self._session is not None:
            waiting, self._outbox = self._outbox, collections.deque()
            self._declarations.use(self._session, waiting)
        self._flush_soon()

    def stop(self) -> list[Entry]:
        """Stops publishing, because there is no connection any more. The owner ends the tasks.

        Returns:
            The messages that were handed over and have no answer.
        """
        unanswered, waiting = self._leaving.stop()
        self._outbox.extendleft(reversed(waiting))
        if self._channel is not None:
            unanswered += self._channel.take()
        self._channel, self._session, self._state = None, None, State.CLOSED
        if self._declarations is not None:
            self._declarations.stop()
        self._watch.stop()
        return unanswered

    def fail_waiting(self, error: NotDeliveredError, which: Callable[[Delivery], bool] = lambda _: True) -> None:
        """Fails the messages that are not handed over and for which `which` is true."""

        def failed(entry: Entry) -> bool:
            if not which(entry[0]):
                return False
            _fail(entry[0], error)
            return True

        self._drop_waiting(failed)

    def _drop_waiting(self, over: Callable[[Entry], bool]) -> None:
        waiting, self._outbox = self._outbox, collections.deque()
        if self._declarations is not None:
            self._declarations.drop(over)
        if self._leaving.stalled is not None:
            self._leaving.stalled.drop(over)
        self._outbox.extend(entry for entry in waiting if not over(entry))

    # -- sending ------------------------------------------------------------------------------------------------------

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        """Renders the messages at once, so that later changes to them have no effect. A message that cannot be rendered
        fails. With `declare=queue` a message first waits until its queue is declared, and then for a flush."""
        render, outbox, declarations, channel = self._render, self._outbox, self._declarations, self._channel
        for delivery in deliveries:
            message = delivery.message
            try:
                message_id, frames, body = render(message)
            except InvalidMessageError as error:
                delivery.fail(error)
                continue
            entry = (delivery, message_id, frames, body, message.key, False)
            if declarations is None or not declarations.takes(message.topic, entry):
                outbox.append(entry)
                if not len(outbox) % BURST:  # the server works on the first of a burst while the last are rendered
                    self._flush()
        if channel is not None and not channel.in_flight:  # the flush need not wait for more messages
            self._flush()
        else:  # both methods check this, too; the checks here save calls, and a twentieth of the driver's time
            if self._flush_at is None:
                self._flush_soon()
            if self._let_go_at is None:
                self._let_go_later()

    def _let_go_later(self) -> None:
        if self._outbox and self._let_go_at is None and self._loop is not None:
            self._let_go_at = self._loop.call_later(LOOK_AGAIN, self._let_go)

    def _let_go(self) -> None:
        """Drops the waiting messages that are over (`Delivery.done`). This also happens while nothing can be
        written."""
        self._let_go_at = None
        self._drop_waiting(_over)
        self._let_go_later()

    def _flush_soon(self) -> None:
        if self._outbox and self._flush_at is None and self._loop is not None:
            self._flush_at = self._loop.call_soon(self._flush_due)

    def _flush_later(self, delay: float) -> None:
        if self._flush_at is None and self._loop is not None:
            self._flush_at = self._loop.call_later(delay, self._flush_due)

    def _flush_due(self) -> None:
        self._flush_at = None
        self._flush()

    def _flush(self) -> None:
        """Hands over the messages that are ready, and writes them. Does nothing while no message can be written."""
        channel, session, loop, outbox = self._channel, self._session, self._loop, self._outbox
        if channel is None or session is None or loop is None or self._state is not State.OPEN or not channel.open:
            return
        if channel.connection.sockets.must_wait():  # the next flush runs when the bytes are written (`on_drained`)
            return
        in_flight = channel.in_flight
        if channel.alone and in_flight:
            channel.watched = True
            return
        now = loop.time()
        pause = self._watch.wait_before_writing(now)
        if pause is not None:
            self._flush_later(pause)
            return
        batch: list[Entry] = []
        room = 1 if channel.alone else FLUSH_BYTES
        frame_max, spent, stalled = channel.connection.frame_max, channel.spent, self._leaving.stalled
        looked_at_from = min(frame_max, session.largest_body or frame_max)
        while outbox and room > 0:
            entry = outbox.popleft()
            delivery, message_id, frames, body, _, _ = entry
            if message_id in in_flight and not delivery.done:
                # aiormq finds the message of a return by its id. If two messages with one id were in flight, a
                # return could make the wrong one fail, and the returned one would get a receipt. So the second message
                # waits. To keep the order, the messages after it wait, too.
                channel.watched = True
                outbox.appendleft(entry)
                break
            if spent and message_id in spent:
                self._leaving.leave_soon(channel)
                outbox.appendleft(entry)
                break
            size = len(frames) + len(body)
            if size > looked_at_from:
                error = too_large(entry, frame_max, session.largest_body)
                if error is not None:
                    _fail(delivery, error)
                    continue
            if stalled is not None and stalled.holds(entry):
                self._leaving.look_soon()
                continue
            if delivery.handed_over():
                in_flight.add(message_id)
                batch.append(entry)
                room -= size
        if not batch:
            return
        if channel.alone:
            channel.watched = True
        channel.send(batch, now)
        self._watch.expect(batch[0][0].deadline)
        if not channel.watched:
            self._flush_soon()

    def _ready_to_go(self, entries: list[Entry]) -> None:
        self._outbox.extend(entries)
        self._flush_soon()

    def _not_declared(self, entries: list[Entry], error: DeliveryError) -> None:
        for entry in entries:
            _fail(entry[0], error)

    def _send_again(self, entries: Iterable[Entry]) -> None:
        """Puts messages before all messages that wait, in their old order. RabbitMQ has not accepted these messages."""
        back: list[Entry] = []
        for entry in entries:
            delivery = entry[0]
            if delivery.done:
                delivery.release()
            else:
                delivery.returned()
                back.append(entry)
        self._outbox.extendleft(reversed(back))
        self._flush_soon()

    # -- what RabbitMQ says -------------------------------------------------------------------------------------------

    def _answered(self, channel: ConfirmChannel, deliveries: Sequence[Delivery]) -> None:
        stalled = self._leaving.stalled
        if channel is self._channel:
            channel.watched = channel.alone = False
        if stalled is not None:
            stalled.answered(deliveries)
            self._leaving.look_soon()
        self._flush_soon()

    def _failed(self, channel: ConfirmChannel, entry: Entry, error: BaseException) -> None:
        """Handles a return or a nack."""
        delivery = entry[0]
        found = publish_failure(error, self._options, delivery.topic)
        if isinstance(found, UnroutableError) and self._declared_again(channel, entry):
            return
        delivery.fail(found)

    def _declared_again(self, channel: ConfirmChannel, entry: Entry) -> bool:
        """With `declare=queue`, declares a deleted queue again. Then the returned message is sent again, before the
        messages of its topic that still wait. A message fails if it is returned a second time, or if a later message
        with its topic and key is in flight.

        Returns:
            Whether the message is sent again.
        """
        delivery, _, _, _, key, before = entry
        topic = delivery.topic
        if self._declarations is None or before or delivery.done:
            return False
        if key is not None and any(one[4] == key and one[0].topic == topic for one in channel.entries()):
            return False  # a later message of the key may be in the queue already, if somebody else has created it
        delivery.returned()
        stalled = self._leaving.stalled
        behind = stalled.take(topic) if stalled is not None else []
        behind += [one for one in self._outbox if one[0].topic == topic]
        self._outbox = collections.deque(one for one in self._outbox if one[0].topic != topic)
        self._declarations.again((*entry[:5], True), behind)
        return True

    def why_late(self, topic: str, *, handed: bool) -> DeliveryError | None:
        """Returns an error that says why a message has no outcome at its deadline. None: no reason is known."""
        late = "the broker did not confirm the message before the deadline"
        if self._state is State.BLOCKED and handed:
            return DeliveryTimeoutError(f"{late}: {self._alarm}; RabbitMQ reads the message when the alarm is over")
        silent = None if self._leaving.stalled is None else self._leaving.stalled.silent(topic)
        if silent is not None:
            stuck = f"RabbitMQ takes nothing for routing key {topic!r}"
            if not silent:
                stuck = f"RabbitMQ has not answered for routing key {topic!r}, or for another one before it"
            stuck += ": is it a quorum queue without a majority?"
            if handed:
                return DeliveryTimeoutError(f"{late}: {stuck}")
            return BackpressureError(f"not sent until the deadline: {stuck} Send again later")
        if not handed and self._declarations is not None and self._declarations.waits(topic):
            return BackpressureError(
                f"not sent until the deadline: RabbitMQ has not declared queue {topic!r} yet: is it overloaded, or "
                "without a majority of its nodes? Send again later"
            )
        return None

    def block(self, alarm: str) -> None:
        """Called when RabbitMQ has an alarm. RabbitMQ reads nothing from this connection until the alarm is over. So
        the publisher writes nothing until `unblock()` is called or a new connection is used."""
        self._state, self._alarm = State.BLOCKED, alarm
        self._watch.paused = True

    def unblock(self) -> None:
        """Called when the alarm is over."""
        self._watch.paused = False
        if self._state is State.BLOCKED:
            self._state = State.OPEN if self._session is not None else State.CLOSED
            now = self._loop.time() if self._loop is not None else 0.0
            for channel in self._channels():
                channel.quiet_since = now
            self._flush_soon()

    def _channels(self) -> list[ConfirmChannel]:
        return [*self._leaving.channels, *((self._channel,) if self._channel is not None else ())]

    def refused(self, error: NotDeliveredError) -> None:
        """Called when the server (Apache Qpid) ended the connection because this user may not publish. If only the
        first message on a new channel was in flight, this method fails this message and all messages that wait."""
        channel = self._channel
        if channel is not None and channel.alone and len(channel.in_flight) == 1:
            for entry in channel.take():
                entry[0].fail(error)
            self.fail_waiting(error)

    def channel_closed(self, channel: ConfirmChannel, error: BaseException | None) -> None:
        """Handles the end of a channel. RabbitMQ closes a channel because of one message, and does not name the
        message.

        If `culprit` finds the message, this message fails with RabbitMQ's reason. The messages that were sent before
        it fail with an unknown outcome, and those that were sent after it are sent again. Otherwise all messages
        without an answer fail with an unknown outcome. If the first message on a new channel shows that the user may
        not publish to the exchange or to a topic, the waiting messages for that exchange or topic fail, too.
        """
        if channel not in self._channels() or self._session is None:
            return  # we closed it
        code, reply = channel_reply(error)
        unanswered = channel.take()
        blamed = refusal(code, reply, self._options.exchange)
        which = culprit(reply, unanswered) if blamed is not None else None
        self._session.largest_body = body_limit(reply) or self._session.largest_body
        if blamed is not None and which is not None:
            blamed.__cause__ = scrubbed(error)
            topic = unanswered[which][0].topic
            unanswered[which][0].fail(blamed)
            if channel.alone and forbidden(reply) == "exchange":
                self.fail_waiting(blamed)
            elif channel.alone and forbidden(reply) == "topic":
                self.fail_waiting(blamed, lambda delivery: delivery.topic == topic)
        lost = ConnectionLostError(f"RabbitMQ closed the channel: {reply or type(error).__name__}")
        lost.__cause__ = scrubbed(error)
        for entry in unanswered[:which]:
            entry[0].fail(lost)
        if channel is self._channel:
            self._channel = None
            if self._declarations is not None:
                self._declarations.pause()
            self._tasks.spawn(self._reopen(self._session, code, reply))
        elif self._leaving.stalled is not None:
            self._leaving.stalled.forget(channel)
        if which is not None:
            # RabbitMQ has closed the channel because of that message, and took none after it (AMQP 0-9-1, 1.5.2.5).
            self._send_again(unanswered[which + 1 :])

    async def _reopen(self, session: Session, code: int, reply: str) -> None:
        assert self._link is not None
        try:
            channel = await reopen(session, self._options, self._link, code, reply, missing=self.fail_waiting)
        except ConnectError as error:
            if session is self._session:
                self._lost(error)
        else:
            if session is self._session and not session.over:
                self._link.reconnecting(None)
                self._use(channel, anew=True)

    def _use_instead(self, channel: ConfirmChannel) -> None:
        assert self._link is not None
        self._use(channel, anew=False)
        self._link.may_go_on()

    def _go_first(self, entries: list[Entry]) -> None:
        self._outbox.extendleft(reversed(entries))
        self._flush_soon()


def _over(entry: Entry) -> bool:
    if entry[0].done:
        entry[0].release()
        return True
    return False


def _fail(delivery: Delivery, error: DeliveryError) -> None:
    if delivery.done:
        delivery.release()
    else:
        delivery.fail(error)
