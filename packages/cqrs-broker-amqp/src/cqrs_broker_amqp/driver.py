"""`AMQPDriver`: what is waiting and what is in flight, and what each answer of RabbitMQ means for it.

    submit → rendered → outbox ──flush──▶ lane (handed over) ──ack / return / nack──▶ outcome
                  └─ parked, until the topic's queue is declared (declare=queue)

One flush hands over all that is ready, as one write: at the end of the event loop's turn, or earlier in a burst, so
that the server works while the rest is rendered. The next one waits until the operating system has taken it ("group
commit"). So a connection that stalls holds little that was handed over, and the rest is proven not sent.

A new channel is first tried with a single message: RabbitMQ answers a wrong exchange or a missing permission by closing
the channel without naming a message, and only a message that was alone can be told why.
"""

from __future__ import annotations

import asyncio
import collections
import re
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING

from cqrs_brokers.driver import Capabilities, Delivery, Link, PipelinedDriver
from cqrs_brokers.exceptions import (
    BrokerClosedError,
    ClosedWhilePendingError,
    ConnectError,
    ConnectionLostError,
    DeliveryError,
    DestinationNotFoundError,
    NackedError,
    NotDeliveredError,
    UnreachableError,
    UnroutableError,
)

from .logs import redact_client_logs
from .parking import Parking
from .rendering import Renderer
from .settings import AMQPSettings

if TYPE_CHECKING:
    from .connecting import Session
    from .lanes import Entry, Lane

__all__ = ["AMQPDriver"]

FLUSH_BYTES = 512 * 1024
"""How much one write may have: what a stalled connection holds in memory beyond the operating system's buffers."""
BURST = 128
"""So many messages that come in one turn of the event loop are written before its end."""
SILENCE = 2.0
"""When nothing came in for so long after a hand-over, the connection is given up once the deadline has passed."""
SLOW_REOPENING = 0.5
"""After how many seconds without a channel the connection counts as reconnecting."""
_FULL_QUEUE_PAUSE = 0.01
_QUEUE_NAME = re.compile(r"[A-Za-z0-9_.:@#,/+ -]*")
_CAPABILITIES = Capabilities(
    confirms=True, ordering_key=True, headers=True, unroutable_detection=True, durable=True, max_message_bytes=None
)


class AMQPDriver(PipelinedDriver):
    """Publishes to RabbitMQ with confirms, `mandatory` and persistent messages.

    Args:
        settings: Where to connect and how.
    """

    def __init__(self, settings: AMQPSettings) -> None:
        self._settings = settings
        self._options = settings.options
        self._parking = Parking(settings.options, self) if settings.options.declare == "queue" else None
        self._link: Link | None = None
        self._render = Renderer(settings.options.exchange).render
        self._trusted = False
        """These settings have worked."""
        self._host = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: Session | None = None
        self._ended: list[Session] = []
        """Sessions whose tasks may still be ending."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._lane: Lane | None = None
        self._outbox: collections.deque[Entry] = collections.deque()
        self._due = False
        """A flush is due in the event loop."""
        self._stalled = False
        """The operating system has not taken all of the last flush."""
        self._trying = False
        """The channel is new: one message at a time until one has its answer."""
        self._blocked = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def capabilities(self) -> Capabilities:
        """A confirm means: in every queue it was routed to, on disk where the queue is durable."""
        return _CAPABILITIES

    def bind(self, link: Link) -> None:
        """See `Driver.bind`."""
        self._link = link

    def refuse_topic(self, topic: str) -> str | None:
        """With `declare=queue` the topic must do as a queue's name."""
        if self._parking is None:
            return None
        if topic.startswith("amq."):
            return "declare=queue: RabbitMQ keeps queue names that start with 'amq.' for itself"
        if not _QUEUE_NAME.fullmatch(topic):
            return "declare=queue: a queue's name has only letters, digits, spaces and - _ . : @ # , / +"
        return None

    # -- connecting and closing ---------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """One pass over the hosts, starting with the next one after that of the last connection."""
        from .connecting import connect  # aiormq is imported when it is needed, not when a plugin is described

        redact_client_logs()
        self._loop = asyncio.get_running_loop()
        self._drop_session()
        await self._clear_away()
        session, self._host = await connect(
            self._settings, self._host, self, trusted=self._trusted
        )
        self._host = (self._host + 1) % len(self._settings.hosts)
        if session.over or session.lane is None:
            raise UnreachableError(f"{session.where} ended the connection as soon as it was made")
        self._session = session
        self._trusted = True
        self._use(session.lane)

    async def ping(self) -> None:
        """Opens and closes a channel."""
        from .errors import scrubbed
        from .topology import ThrowAwayChannel

        session = self._session
        if session is None:
            raise UnreachableError("not connected")
        try:
            async with ThrowAwayChannel(session.connection):
                pass
        except (Exception, asyncio.CancelledError) as error:
            self._raise_if_cancelled(error)
            raise UnreachableError(f"{session.where} does not answer ({type(error).__name__})") from scrubbed(error)

    async def close(self, grace: float) -> None:
        """See `Driver.close`."""
        session = self._session
        self._session = None
        self._forget_all(ClosedWhilePendingError("closed before the confirm came"), BrokerClosedError("closed"))
        self._stop()
        if session is not None:
            await session.close(grace)
        await self._clear_away()

    def abort(self) -> None:
        """See `Driver.abort`."""
        self._drop_session()
        self._forget_all(ClosedWhilePendingError("the connection was dropped"), BrokerClosedError("dropped"))
        if self._loop is not None and self._loop.is_closed():
            for task in self._tasks:
                task._log_destroy_pending = False  # type: ignore[attr-defined] # its loop is gone: it can never finish
            self._tasks.clear()
            self._ended.clear()

    def _use(self, lane: Lane) -> None:
        """Publishes on a new channel: nothing is known to be declared, and its first message goes alone."""
        self._lane = lane
        self._due = self._stalled = False  # what was due in an event loop that is closed never comes
        self._trying = True
        if self._parking is not None and self._session is not None:
            waiting, self._outbox = self._outbox, collections.deque()
            self._parking.use(self._session, waiting)
        self._flush_soon()

    def _drop_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.abort()
            self._ended.append(session)
        self._stop()

    def _stop(self) -> None:
        """Nothing is sent, declared or watched any more, until there is a connection again."""
        self._lane = None
        self._blocked = False
        if self._parking is not None:
            self._parking.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._loop is not None and not self._loop.is_closed():
            for task in self._tasks:
                task.cancel()

    async def _clear_away(self) -> None:
        """Waits, for a moment, for what `_drop_session` and `_stop` ended."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=0.2)
        ended, self._ended = self._ended, []
        for session in ended:
            await session.gone()

    def _forget_all(self, handed: DeliveryError, not_handed: NotDeliveredError) -> None:
        for delivery in self._lane.take_in_flight() if self._lane is not None else ():
            if not delivery.done:
                delivery.fail(handed)
        self._fail_waiting(not_handed, lambda _: True)

    def start(self, work: Coroutine[object, object, None]) -> None:
        """Runs it in a task that `_stop` ends."""
        assert self._loop is not None
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @staticmethod
    def _raise_if_cancelled(error: BaseException) -> None:
        """Lets through a cancellation that was meant for the running task, and not aiormq's own."""
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise error

    # -- sending ------------------------------------------------------------------------------------------------------

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        """Renders the messages, so that later changes to them do no harm, and lets them go with the next flush."""
        render, outbox, parking, lane = self._render, self._outbox, self._parking, self._lane
        for delivery in deliveries:
            message = delivery.message
            entry = (delivery, *render(message))
            if parking is None or not parking.takes(message.topic, entry):
                outbox.append(entry)
                if not len(outbox) % BURST:  # the server works on the first of a burst while the last are rendered
                    self._flush()
        if lane is not None and not lane.in_flight:  # a single message does not wait a turn
            self._flush()
        else:
            self._flush_soon()

    def _flush_soon(self) -> None:
        if self._outbox and not self._due and self._loop is not None:
            self._due = True
            self._loop.call_soon(self._flush_due)

    def _flush_due(self) -> None:
        self._due = False
        self._flush()

    def _flush(self) -> None:
        """Hands over what is ready."""
        lane, outbox = self._lane, self._outbox
        if lane is None or self._stalled or self._blocked or not lane.open:
            return
        assert self._loop is not None
        if lane.full:  # by heartbeats and declarations, for an instant
            if not self._due:
                self._due = True
                self._loop.call_later(_FULL_QUEUE_PAUSE, self._flush_due)
            return
        in_flight = lane.in_flight
        if self._trying and in_flight:
            lane.attentive = True
            return
        batch: list[Entry] = []
        room = 1 if self._trying else FLUSH_BYTES
        while outbox and room > 0:
            entry = outbox[0]
            delivery, message_id, frames, body = entry
            if message_id in in_flight and not delivery.done:
                # aiormq finds the message of a return by its id: a second one in flight would get a false receipt. What
                # comes after it waits too, or the order would be lost.
                lane.attentive = True
                break
            outbox.popleft()
            if delivery.handed_over():
                in_flight[message_id] = 0
                batch.append(entry)
                room -= len(frames) + len(body)
        if not batch:
            return
        if self._trying:
            lane.attentive = True
        self._stalled = not lane.send(batch, self._loop.time())
        if self._timer is None:
            self._watch_at(batch[0][0].deadline)
        if not self._stalled and not lane.attentive:
            self._flush_soon()

    # -- what RabbitMQ says (connecting.Owner) ------------------------------------------------------------------------

    def drained(self, lane: Lane) -> None:
        """See `connecting.Owner`."""
        if lane is self._lane:
            self._stalled = False
            self._flush_soon()

    def resolved(self, lane: Lane) -> None:
        """See `connecting.Owner`."""
        lane.attentive = False
        if lane is self._lane:
            self._trying = False
            self._flush_soon()

    def failed(self, delivery: Delivery, error: BaseException) -> None:
        """A return or a nack."""
        from aiormq.exceptions import PublishError

        exchange, topic = self._options.exchange, delivery.topic
        found: DeliveryError
        if isinstance(error, PublishError):  # before its base class, which a nack is
            if exchange:
                advice = "bind one, or use declare=queue"
                found = UnroutableError(f"no queue is bound to exchange {exchange!r} for {topic!r}: {advice}")
            else:
                found = UnroutableError(f"there is no queue {topic!r}: create it, or use declare=queue")
        else:
            found = NackedError(
                "RabbitMQ nacked the message: at least one queue refused it (is it full?), others may hold it"
            )
        found.__cause__ = error
        delivery.fail(found)

    def blocked(self, reason: str) -> None:
        """See `connecting.Owner`."""
        self._blocked = True
        if self._link is not None:
            self._link.blocked(f"RabbitMQ has an alarm: {reason}")

    def unblocked(self) -> None:
        """See `connecting.Owner`."""
        self._blocked = False
        if self._link is not None:
            self._link.unblocked()
        self._flush_soon()

    def session_ended(self, session: Session, error: BaseException | None) -> None:
        """See `connecting.Owner`."""
        if session is self._session:
            from .errors import lost_error

            self.lost(lost_error(error))

    def channel_closed(self, lane: Lane, error: BaseException | None) -> None:
        """RabbitMQ closed the channel because of one message, without saying which."""
        if lane is not self._lane:
            return
        from .errors import channel_reply, forbidden, publish_error, scrubbed

        self._lane = None
        if self._parking is not None:
            self._parking.stop()
        code, reply = channel_reply(error)
        unresolved = lane.take_in_flight()
        blamed = publish_error(code, reply, self._options.exchange)
        if blamed is not None and len(unresolved) == 1:
            blamed.__cause__ = scrubbed(error)
            only = unresolved[0]
            only.fail(blamed)
            if self._trying and forbidden(reply) == "exchange":
                self._fail_waiting(blamed, lambda _: True)
            elif self._trying and forbidden(reply) == "topic":
                topic = only.topic
                self._fail_waiting(blamed, lambda delivery: delivery.topic == topic)
        else:
            lost = ConnectionLostError(f"RabbitMQ closed the channel: {reply or type(error).__name__}")
            lost.__cause__ = scrubbed(error)
            for delivery in unresolved:
                delivery.fail(lost)
        self.start(self._reopen(code, reply))

    # -- after the channel was closed ---------------------------------------------------------------------------------

    async def _reopen(self, code: int, reply: str) -> None:
        """Applies `declare` again, or looks what is wrong, and opens the channel anew."""
        from .errors import NOT_FOUND, publish_error
        from .topology import check_exchange, declare_exchange

        session, options, link, loop = self._session, self._options, self._link, self._loop
        if session is None or link is None or loop is None:
            return
        # Opening a channel takes a round trip. When it takes long, what waits is to be told why at its deadline.
        reason = UnreachableError(f"{session.where} closed the channel ({reply or code}) and is slow to open another")
        slow = loop.call_later(SLOW_REOPENING, link.reconnecting, reason)

        async def work() -> None:
            if options.declare in ("exchange", "queue"):
                await declare_exchange(session.connection, options)
            elif code == NOT_FOUND and not await check_exchange(session.connection, options.exchange):
                missing = publish_error(code, "still", options.exchange)
                assert isinstance(missing, DestinationNotFoundError)
                self._fail_waiting(missing, lambda _: True)
            await session.open_lane()

        try:
            await session.run(work(), options.connect_timeout)
        except ConnectError as error:
            if session is self._session:
                self.lost(error)
        else:
            if session is self._session and session.lane is not None and not session.over:
                link.reconnecting(None)
                self._use(session.lane)
        finally:
            slow.cancel()

    # -- declare=queue (parking.Owner) --------------------------------------------------------------------------------

    def declared(self, entries: list[Entry]) -> None:
        """See `parking.Owner`."""
        self._outbox.extend(entries)
        self._flush_soon()

    def not_declared(self, entries: list[Entry], error: DeliveryError) -> None:
        """See `parking.Owner`."""
        for entry in entries:
            self._fail_not_handed(entry[0], error)

    # -- the connection is lost ---------------------------------------------------------------------------------------

    def lost(self, error: ConnectError) -> None:
        """What was handed over is unknown; the rest waits, in order, for the next connection."""
        lane = self._lane
        unresolved = lane.take_in_flight() if lane is not None else []
        self._drop_session()
        if unresolved:
            lost = ConnectionLostError(f"the connection was lost before the confirm came: {error.text}")
            lost.__cause__ = error
            for delivery in unresolved:
                delivery.fail(lost)
        if self._link is not None:
            self._link.lost(error)

    def _fail_waiting(self, error: NotDeliveredError, which: Callable[[Delivery], bool]) -> None:
        """Fails what is not handed over."""
        waiting, self._outbox = self._outbox, collections.deque()
        if self._parking is not None:
            self._parking.drop(lambda entry: self._failed_if(entry[0], error, which))
        self._outbox.extend(entry for entry in waiting if not self._failed_if(entry[0], error, which))

    def _failed_if(self, delivery: Delivery, error: NotDeliveredError, which: Callable[[Delivery], bool]) -> bool:
        if not which(delivery):
            return False
        self._fail_not_handed(delivery, error)
        return True

    @staticmethod
    def _fail_not_handed(delivery: Delivery, error: DeliveryError) -> None:
        if delivery.done:
            delivery.handed_over()  # lets go of it
        else:
            delivery.fail(error)

    def _watch_at(self, when: float) -> None:
        assert self._loop is not None
        self._timer = self._loop.call_at(when, self._watch)

    def _watch(self) -> None:
        """A connection that is dead without saying so: a deadline passed and nothing came in since."""
        self._timer = None
        oldest = self._lane.oldest() if self._lane is not None else None
        if oldest is None or self._session is None:
            return
        assert self._loop is not None
        delivery, _, handed_at = oldest
        now, heard = self._loop.time(), self._session.last_inbound
        due = max(delivery.deadline, handed_at + SILENCE)
        if now < due:
            self._watch_at(due)
        elif not self._blocked and (heard < handed_at or now - heard > self._options.heartbeat + 1):
            self.lost(UnreachableError(f"{self._session.where} has been silent for {now - heard:.0f} s: half-open?"))
        else:
            self._watch_at(now + 1.0)
