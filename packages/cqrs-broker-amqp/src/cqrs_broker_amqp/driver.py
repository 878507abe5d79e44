"""`AMQPDriver`: what is waiting and what is in flight, and what each answer of RabbitMQ means for it.

    submit → rendered → outbox ──flush──▶ lane (handed over) ──ack / return / nack──▶ outcome
                  └─ parked, until the topic's queue is declared (declare=queue)

One flush hands over all that is ready, as one write; the next one waits until the operating system has taken it ("group
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
from .rendering import Renderer
from .settings import AMQPSettings

if TYPE_CHECKING:
    from .connecting import Session
    from .internals import Entry, Lane

__all__ = ["AMQPDriver"]

FLUSH_BYTES = 512 * 1024
"""How much one write may have: what a stalled connection holds in memory beyond the operating system's buffers."""
SILENCE = 2.0
"""When nothing came in for so long after a hand-over, the connection is given up once the deadline has passed."""
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
        self._declares_queues = settings.options.declare == "queue"
        self._link: Link | None = None
        self._render = Renderer(settings.options.exchange).render
        self._host = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: Session | None = None
        self._ended: list[Session] = []
        """Sessions whose tasks may still be ending."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._lane: Lane | None = None
        self._outbox: collections.deque[Entry] = collections.deque()
        self._parked: dict[str, list[Entry]] = {}
        self._declared: set[str] = set()
        self._busy = False
        """A flush is due, or the operating system has not taken the last one."""
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
        if not self._declares_queues:
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
        session, self._host = await connect(self._settings, self._host, self)
        self._host = (self._host + 1) % len(self._settings.hosts)
        if session.over or session.lane is None:
            raise UnreachableError(f"{session.where} ended the connection as soon as it was made")
        self._session = session
        self._use(session.lane)

    async def ping(self) -> None:
        """Opens and closes a channel."""
        from .topology import ThrowAwayChannel

        session = self._session
        if session is None:
            raise UnreachableError("not connected")
        try:
            async with ThrowAwayChannel(session.connection):
                pass
        except (Exception, asyncio.CancelledError) as error:
            self._raise_if_cancelled(error)
            raise UnreachableError(f"{session.where} does not answer ({type(error).__name__})") from error

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
        self._busy = False
        self._trying = True
        self._declared.clear()
        if self._declares_queues:
            waiting, self._outbox = self._outbox, collections.deque()
            for entry in waiting:
                self._parked.setdefault(entry[0].message.topic, []).append(entry)
            for topic in self._parked:
                self._start(self._declare(topic))
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

    def _start(self, work: Coroutine[object, object, None]) -> None:
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
        render, add, parks = self._render, self._outbox.append, self._declares_queues
        for delivery in deliveries:
            message = delivery.message
            body = message.body
            digits = f"{message.message_id.int:032x}"
            message_id = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
            entry = (delivery, message_id, render(message, message_id, len(body)), body)
            if parks and message.topic not in self._declared:
                self._park(message.topic, entry)
            else:
                add(entry)
        if not self._busy:  # a single message does not wait a turn; the rest of a burst is one write after the first
            self._flush()

    def _flush_soon(self) -> None:
        if self._outbox and not self._busy and self._loop is not None:
            self._busy = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Hands over what is ready."""
        self._busy = False
        lane, outbox = self._lane, self._outbox
        if lane is None or self._blocked or not lane.open:
            return
        assert self._loop is not None
        if lane.full:  # by heartbeats and declarations, for an instant
            self._busy = True
            self._loop.call_later(_FULL_QUEUE_PAUSE, self._flush)
            return
        in_flight = lane.in_flight
        if self._trying and in_flight:
            lane.attentive = True
            return
        batch: list[Entry] = []
        room = 1 if self._trying else FLUSH_BYTES
        while outbox and room > 0:
            entry = outbox[0]
            delivery, message_id, head, body = entry
            if message_id in in_flight and not delivery.done:
                # aiormq finds the message of a return by its id: a second one in flight would get a false receipt. What
                # comes after it waits too, or the order would be lost.
                lane.attentive = True
                break
            outbox.popleft()
            if delivery.handed_over():
                in_flight[message_id] = 0
                batch.append(entry)
                room -= len(head) + len(body)
        if not batch:
            return
        if self._trying:
            lane.attentive = True
        self._busy = True
        lane.send(batch, self._loop.time())
        if self._timer is None:
            self._watch_at(batch[0][0].deadline)

    # -- what RabbitMQ says (connecting.Owner) ------------------------------------------------------------------------

    def drained(self, lane: Lane) -> None:
        """See `connecting.Owner`."""
        if lane is self._lane:
            self._busy = False
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

        exchange, topic = self._options.exchange, delivery.message.topic
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

            self._lost(lost_error(error))

    def channel_closed(self, lane: Lane, error: BaseException | None) -> None:
        """RabbitMQ closed the channel because of one message, without saying which."""
        if lane is not self._lane:
            return
        from .errors import channel_reply, publish_error

        self._lane = None
        code, reply = channel_reply(error)
        unresolved = lane.take_in_flight()
        blamed = publish_error(code, reply, self._options.exchange)
        if blamed is not None and len(unresolved) == 1:
            blamed.__cause__ = error
            only = unresolved[0]
            only.fail(blamed)
            if self._trying and "access to exchange" in reply:
                self._fail_waiting(blamed, lambda _: True)
            elif self._trying and "access to topic" in reply:
                topic = only.message.topic
                self._fail_waiting(blamed, lambda delivery: delivery.message.topic == topic)
        else:
            lost = ConnectionLostError(f"RabbitMQ closed the channel: {reply or type(error).__name__}")
            lost.__cause__ = error
            for delivery in unresolved:
                delivery.fail(lost)
        self._start(self._reopen(code))

    # -- after the channel was closed ---------------------------------------------------------------------------------

    async def _reopen(self, code: int) -> None:
        """Applies `declare` again, or looks what is wrong, and opens the channel anew."""
        from .errors import NOT_FOUND, publish_error
        from .topology import check_exchange, declare_exchange

        session, options = self._session, self._options
        if session is None:
            return

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
                self._lost(error)
        else:
            if session is self._session and session.lane is not None and not session.over:
                self._use(session.lane)

    # -- declare=queue ------------------------------------------------------------------------------------------------

    def _park(self, topic: str, entry: Entry) -> None:
        waiting = self._parked.get(topic)
        if waiting is not None:
            waiting.append(entry)
            return
        self._parked[topic] = [entry]
        if self._lane is not None:
            self._start(self._declare(topic))

    async def _declare(self, topic: str) -> None:
        """Declares the topic's queue, then lets go what waited for it. Other topics do not wait."""
        from .topology import declare_queue, queue_error

        session, lane = self._session, self._lane
        if session is None or lane is None:
            return  # lost before this task ran: the next connection declares it
        failure: DeliveryError | None = None
        try:
            async with asyncio.timeout(self._options.connect_timeout):
                await declare_queue(session.connection, self._options, topic)
        except TimeoutError:
            if session is self._session:
                self._lost(UnreachableError(f"{session.where} does not answer a declaration"))
            return
        except (Exception, asyncio.CancelledError) as error:
            self._raise_if_cancelled(error)
            failure = queue_error(error, topic)
        if lane is not self._lane:
            return  # the new channel declares it again
        waiting = self._parked.pop(topic, [])
        if failure is None:
            self._declared.add(topic)
            self._outbox.extend(waiting)
            self._flush_soon()
            return
        for entry in waiting:
            self._fail_not_handed(entry[0], failure)

    # -- the connection is lost ---------------------------------------------------------------------------------------

    def _lost(self, error: ConnectError) -> None:
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
        parked, self._parked = self._parked, {}
        for topic, entries in parked.items():
            kept = [entry for entry in entries if not self._failed_if(entry[0], error, which)]
            if kept:
                self._parked[topic] = kept
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
        now, heard = self._loop.time(), self._session.last_inbound
        due = max(oldest.delivery.deadline, oldest.handed_at + SILENCE)
        if now < due:
            self._watch_at(due)
        elif not self._blocked and (heard < oldest.handed_at or now - heard > self._options.heartbeat + 1):
            self._lost(UnreachableError(f"{self._session.where} has been silent for {now - heard:.0f} s: half-open?"))
        else:
            self._watch_at(now + 1.0)
