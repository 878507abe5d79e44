"""What waits, what is in flight, and what each answer of RabbitMQ means for it.

    rendered → outbox ──flush──▶ channel (handed over) ──ack / return / nack──▶ outcome
       │        ▲  └─ held while its destination is stuck (`_stalled`)
       └────────┴─ until the topic's queue is declared (`_declaring`)

One flush hands over all that is ready, as one write: at the end of the event loop's turn, or earlier in a burst, so
that the server works while the rest is rendered. The next one waits until the operating system has taken it ("group
commit"). So a connection that stalls holds little that was handed over, and the rest is proven not sent.

A new channel is first tried with a single message: RabbitMQ answers a wrong exchange or a missing permission by closing
the channel without naming a message, and only a message that was alone can be told why.
"""

from __future__ import annotations

import asyncio
import collections
import enum
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cqrs_brokers.driver import Delivery, Link
from cqrs_brokers.exceptions import (
    ConnectError,
    ConnectionLostError,
    DeliveryError,
    InvalidMessageError,
    MessageTooLargeError,
    NotDeliveredError,
    UnreachableError,
    UnroutableError,
)
from cqrs_brokers.tasks import Tasks

from ._channels import ConfirmChannel, Entry
from ._declaring import Declarations
from ._errors import (
    NOT_FOUND,
    body_limit,
    channel_reply,
    culprit,
    forbidden,
    publish_failure,
    refusal,
    scrubbed,
)
from ._options import AMQPOptions
from ._rendering import Renderer, header_frame_size
from ._session import Session
from ._stalled import PATIENCE, StalledDestinations
from ._topology import declare_exchange, find_exchange

__all__ = ["Publisher"]

FLUSH_BYTES = 512 * 1024
"""How much one write may have: what a stalled connection holds in memory beyond the operating system's buffers."""
BURST = 128
"""After how many messages of one turn of the event loop a write goes out before its end."""
SILENCE = 2.0
"""When nothing came in for so long after a hand-over, the connection is given up once the deadline has passed."""
SLOW_REOPENING = 0.5
"""After how many seconds without a channel the connection counts as reconnecting."""
FIRST_LOOK = 0.05
"""How long what has come in is read before a late timer, or a send after a silence, goes on, in seconds."""
STANDSTILL = 0.5
"""A timer that is this late says that the event loop stood still, in seconds."""
LOOK_AGAIN = 0.25
"""How often stalled destinations are looked at, in seconds."""
_FULL_QUEUE_PAUSE = 0.01


class State(enum.Enum):
    """Whether messages can be written."""

    CLOSED = "there is no channel"
    OPEN = "there is one"
    BLOCKED = "there may be one, but RabbitMQ has an alarm"


class Publisher:
    """Publishes what it is given, over whatever session there is.

    Args:
        options: The exchange, and what is declared.
        tasks: Where the work that takes time runs; ended by the owner when the session ends.
        lost: Called when the connection must be made anew.
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
        self._stalled: StalledDestinations | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: Session | None = None
        self._state = State.CLOSED
        self._channel: ConfirmChannel | None = None
        self._outbox: collections.deque[Entry] = collections.deque()
        self._flush_at: asyncio.Handle | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._looked_at = 0.0
        """When a connection that is silent was last looked at, in the loop's time."""
        self.callbacks: dict[str, Any] = {
            "failed": self._failed,
            "answered": self._answered,
            "drained": self._drained,
        }
        """What every channel tells."""

    @property
    def channel(self) -> ConfirmChannel | None:
        """The channel that is published on now."""
        return self._channel

    def bind(self, link: Link) -> None:
        """See `Driver.bind`."""
        self._link = link

    # -- sessions -----------------------------------------------------------------------------------------------------

    def use(self, session: Session, channel: ConfirmChannel) -> None:
        """A new connection: nothing is known to be declared."""
        self._loop = asyncio.get_running_loop()
        self._session = session
        if self._state is State.CLOSED:
            self._state = State.OPEN
        self._use(channel, anew=True)

    def _use(self, channel: ConfirmChannel, *, anew: bool) -> None:
        """Publishes on a channel.

        Args:
            anew: What was declared may be gone.
        """
        self._channel = channel
        self._flush_at = None  # what was due in an event loop that is closed never comes
        if anew and self._declarations is not None and self._session is not None:
            waiting, self._outbox = self._outbox, collections.deque()
            self._declarations.use(self._session, waiting)
        self._flush_soon()

    def stop(self) -> list[Entry]:
        """There is no connection any more. The owner ends the tasks.

        Returns:
            What was handed over and has no answer.
        """
        unanswered: list[Entry] = []
        stalled = self._stalled
        if stalled is not None:
            for channel in stalled.channels:
                unanswered += channel.take()
            self._outbox.extendleft(reversed(stalled.drop_channels()))
        if self._channel is not None:
            unanswered += self._channel.take()
        self._channel, self._session, self._state, self._leaving = None, None, State.CLOSED, None
        if self._declarations is not None:
            self._declarations.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return unanswered

    def fail_waiting(self, error: NotDeliveredError, which: Callable[[Delivery], bool] = lambda _: True) -> None:
        """Fails what is not handed over."""

        def failed(entry: Entry) -> bool:
            if not which(entry[0]):
                return False
            _fail(entry[0], error)
            return True

        waiting, self._outbox = self._outbox, collections.deque()
        if self._declarations is not None:
            self._declarations.drop(failed)
        if self._stalled is not None:
            self._stalled.drop(failed)
        self._outbox.extend(entry for entry in waiting if not failed(entry))

    # -- sending ------------------------------------------------------------------------------------------------------

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        """Renders the messages, so that later changes to them do no harm, and lets them go with the next flush."""
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
        if channel is not None and not channel.in_flight:  # a single message does not wait a turn
            self._flush()
        else:
            self._flush_soon()

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
        """Hands over what is ready."""
        channel, session, loop, outbox = self._channel, self._session, self._loop, self._outbox
        if channel is None or session is None or loop is None or self._state is not State.OPEN or not channel.open:
            return
        if channel.connection.sockets.writing:  # `_drained` goes on
            return
        if channel.full:  # by heartbeats and declarations, for an instant
            self._flush_later(_FULL_QUEUE_PAUSE)
            return
        in_flight = channel.in_flight
        if channel.alone and in_flight:
            channel.watched = True
            return
        now = loop.time()
        if now - session.last_inbound > self._options.heartbeat and not self._has_looked(session, now):
            return
        batch: list[Entry] = []
        room = 1 if channel.alone else FLUSH_BYTES
        frame_max, spent, stalled = channel.connection.frame_max, channel.spent, self._stalled
        while outbox and room > 0:
            entry = outbox[0]
            delivery, message_id, frames, body, _, _ = entry
            if message_id in in_flight and not delivery.done:
                # aiormq finds the message of a return by its id: a second one in flight would get a false receipt. What
                # comes after it waits too, or the order would be lost.
                channel.watched = True
                break
            if message_id in spent:
                self._leave_soon(channel)
                break
            outbox.popleft()
            if len(frames) > frame_max or (body and session.largest_body):
                error = _too_large(entry, frame_max, session.largest_body)
                if error is not None:
                    _fail(delivery, error)
                    continue
            if stalled is not None and stalled.holds(entry):
                continue
            if delivery.handed_over():
                in_flight[message_id] = 0
                batch.append(entry)
                room -= len(frames) + len(body)
        if not batch:
            return
        if channel.alone:
            channel.watched = True
        taken = channel.send(batch, now)
        if self._timer is None:
            self._watch_at(min(batch[0][0].deadline, now + PATIENCE))
        if taken and not channel.watched:
            self._flush_soon()

    def _has_looked(self, session: Session, now: float) -> bool:
        """Heartbeats were missed, or the event loop stood still: what has come in is read before more is written."""
        silent = now - session.last_inbound
        if self._looked_at < session.last_inbound:
            self._looked_at = now
            self._flush_later(FIRST_LOOK)
            return False
        if now - self._looked_at < FIRST_LOOK / 2:
            self._flush_later(FIRST_LOOK)
            return False
        if silent > 2 * self._options.heartbeat + 1:
            self._lost(_half_open(session, silent))
            return False
        return True

    def _ready_to_go(self, entries: list[Entry]) -> None:
        self._outbox.extend(entries)
        self._flush_soon()

    def _not_declared(self, entries: list[Entry], error: DeliveryError) -> None:
        for entry in entries:
            _fail(entry[0], error)

    def _send_again(self, entries: Iterable[Entry]) -> None:
        """These are proven not taken: they go before all that waits, in their old order."""
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

    def _drained(self, channel: ConfirmChannel) -> None:
        if channel is self._channel:
            self._flush_soon()

    def _answered(self, channel: ConfirmChannel, entries: Sequence[Entry]) -> None:
        stalled = self._stalled
        if channel is self._channel:
            channel.watched = channel.alone = False
        if stalled is not None:
            stalled.answered(entries)
            self._look_soon()
        self._flush_soon()

    def _failed(self, channel: ConfirmChannel, entry: Entry, error: BaseException) -> None:
        """A return or a nack."""
        delivery = entry[0]
        found = publish_failure(error, self._options, delivery.topic)
        if isinstance(found, UnroutableError) and self._declared_again(channel, entry):
            return
        delivery.fail(found)

    def _declared_again(self, channel: ConfirmChannel, entry: Entry) -> bool:
        """With `declare=queue` a deleted queue is declared again, once, and the message goes again in its place."""
        delivery, _, _, _, key, before = entry
        topic = delivery.topic
        if self._declarations is None or before or delivery.done:
            return False
        if key is not None and any(one[4] == key and one[0].topic == topic for one in channel.entries()):
            return False  # what followed it may have found the queue that somebody else has made meanwhile
        delivery.returned()
        behind = self._stalled.take(topic) if self._stalled is not None else []
        behind += [one for one in self._outbox if one[0].topic == topic]
        self._outbox = collections.deque(one for one in self._outbox if one[0].topic != topic)
        self._declarations.again((*entry[:5], True), behind)
        return True

    def block(self) -> None:
        """RabbitMQ has an alarm: what is written now is read later."""
        self._state = State.BLOCKED

    def unblock(self) -> None:
        """The alarm is over."""
        if self._state is State.BLOCKED:
            self._state = State.OPEN if self._session is not None else State.CLOSED
            now = self._loop.time() if self._loop is not None else 0.0
            for channel in self._channels():
                channel.quiet_since = now
            self._flush_soon()

    def _channels(self) -> list[ConfirmChannel]:
        stalled = self._stalled.channels if self._stalled is not None else []
        return [*stalled, *((self._channel,) if self._channel is not None else ())]

    def channel_closed(self, channel: ConfirmChannel, error: BaseException | None) -> None:
        """RabbitMQ closed a channel because of one message, without saying which."""
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
        elif self._stalled is not None:
            self._stalled.forget(channel)
        if which is not None:
            # RabbitMQ takes nothing more on a channel after the message that it closes it for (AMQP 0-9-1, 1.5.2.5).
            self._send_again(unanswered[which + 1 :])

    async def _reopen(self, session: Session, code: int, reply: str) -> None:
        """Applies `declare` again, or looks what is wrong, and opens the channel anew."""
        options, link, loop = self._options, self._link, asyncio.get_running_loop()
        assert link is not None
        # Opening a channel takes a round trip. When it takes long, what waits is to be told why at its deadline.
        reason = UnreachableError(f"{session.where} closed the channel ({reply or code}) and is slow to open another")
        slow = loop.call_later(SLOW_REOPENING, link.reconnecting, reason)

        async def work() -> ConfirmChannel:
            raw = await session.raw_channel(confirms=True)
            if options.declare in ("exchange", "queue"):
                await declare_exchange(raw, options)
            elif code == NOT_FOUND:
                found = await find_exchange(raw, options.exchange)
                missing = refusal(code, "still", options.exchange)
                if found is False and missing is not None:
                    self.fail_waiting(missing)
                if not found:
                    raw = await session.raw_channel(confirms=True)
            return session.publish_on(raw)

        try:
            channel = await session.run(work(), options.connect_timeout)
        except ConnectError as error:
            if session is self._session:
                self._lost(error)
        else:
            if session is self._session and not session.over:
                link.reconnecting(None)
                self._use(channel, anew=True)
        finally:
            slow.cancel()

    # -- destinations that take nothing -------------------------------------------------------------------------------

    def _leave_soon(self, channel: ConfirmChannel) -> None:
        """Publishes on a fresh channel, if one opens: then the connection lives, and a destination is stuck."""
        session = self._session
        if session is None or (self._leaving is not None and not self._leaving.done()):
            return
        if session.has_room:
            self._leaving = self._tasks.spawn(self._leave(session, channel, channel.quiet_since))
        elif channel.in_flight and session.last_inbound > channel.quiet_since:
            self._lost(
                UnreachableError(
                    f"{session.where} has not answered on the only channel that it allows for {PATIENCE:g} s: a "
                    "destination takes nothing, and its channel had to be closed"
                )
            )

    async def _leave(self, session: Session, channel: ConfirmChannel, quiet_since: float) -> None:
        fresh = await self._open_another(session)
        if fresh is None:
            return
        if channel is not self._channel or (channel.quiet_since != quiet_since and not channel.spent):
            fresh.close()  # there was an answer meanwhile
            return
        if self._stalled is None:
            self._stalled = StalledDestinations(open_probe=self._open_probe, ready=self._go_first)
        self._stalled.leave(channel)
        self._use(fresh, anew=False)
        self._look_soon()

    async def _open_another(self, session: Session) -> ConfirmChannel | None:
        """One more channel on a connection that works, or None when it does not open in time."""
        opening = self._tasks.spawn(session.open_channel(declare=False))
        done, _ = await asyncio.wait((opening,), timeout=self._options.connect_timeout)
        if not done:
            opening.cancel()
        if not done or opening.cancelled() or opening.exception() is not None or session is not self._session:
            return None
        return opening.result()

    def _open_probe(self) -> None:
        assert self._session is not None
        self._tasks.spawn(self._open_probe_on(self._session))

    async def _open_probe_on(self, session: Session) -> None:
        channel = await self._open_another(session) if session.has_room else None
        if session is self._session and self._stalled is not None:
            self._stalled.use_probe(channel)
            self._look_soon()
        elif channel is not None:
            channel.close()

    def _go_first(self, entries: list[Entry]) -> None:
        self._outbox.extendleft(reversed(entries))
        self._flush_soon()

    def _look_soon(self) -> None:
        if self._loop is not None:
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        stalled = self._stalled
        if stalled is None or self._loop is None or self._session is None:
            return
        stalled.look(self._loop.time())
        if stalled.over:
            self._stalled = None
        elif self._timer is None:
            self._watch_at(self._loop.time() + LOOK_AGAIN)

    def _watch_at(self, when: float) -> None:
        assert self._loop is not None
        self._timer = self._loop.call_at(when, self._watch, when)

    def _watch(self, due: float) -> None:
        """A destination that is stuck, or a connection that is dead without saying so."""
        self._timer = None
        session, loop = self._session, self._loop
        if session is None or loop is None:
            return
        now = loop.time()
        if now - due > STANDSTILL:  # the event loop stood still: what has come in is read first
            self._watch_at(now + FIRST_LOOK)
            return
        channels = [channel for channel in self._channels() if channel.in_flight]
        again = [now + LOOK_AGAIN] if self._stalled is not None else []
        for channel in channels:
            oldest = channel.oldest()
            if oldest is None or self._state is State.BLOCKED:
                again.append(now + 1.0)
                continue
            silent = max(oldest.deadline, channel.quiet_since + SILENCE)
            if now >= silent:
                heard = session.last_inbound
                if heard < channel.quiet_since or now - heard > self._options.heartbeat + 1:
                    self._lost(_half_open(session, now - heard))
                    return
                silent = now + 1.0
            again.append(silent)
            if channel is self._channel:
                stuck = channel.quiet_since + PATIENCE
                if now >= stuck:
                    self._leave_soon(channel)
                    stuck = now + 1.0
                again.append(stuck)
        if again:
            self._watch_at(min(again))
        self._look()


def _half_open(session: Session, silent: float) -> UnreachableError:
    return UnreachableError(f"{session.where} has been silent for {silent:.0f} s: half-open?")


def _fail(delivery: Delivery, error: DeliveryError) -> None:
    if delivery.done:
        delivery.release()
    else:
        delivery.fail(error)


def _too_large(entry: Entry, frame_max: int, largest_body: int | None) -> MessageTooLargeError | None:
    """What the server certainly refuses, and with it the messages beside this one."""
    _, _, frames, body, _, _ = entry
    if len(frames) > frame_max and (size := header_frame_size(frames)) > frame_max:
        return MessageTooLargeError(
            f"the message's headers need a frame of {size} bytes, and a frame has at most {frame_max} bytes here: send "
            "less in headers, or raise RabbitMQ's frame_max"
        )
    if largest_body is not None and len(body) > largest_body:
        return MessageTooLargeError(
            f"the body has {len(body)} bytes, and RabbitMQ takes at most {largest_body} bytes: send less, or raise its "
            "max_message_size"
        )
    return None
