"""`Broker`, the object that applications use. It does the work that is the same for every broker.

    message → validate and encode → window → driver → client → outcome

Three packages do most of this work. `_message` checks and encodes messages. `_delivery` has the state and the deadline
of each message, and the window, which limits how many messages the driver holds at a time. `_delivery` also wraps
drivers that have only `send_message`. `_connection` connects, reconnects, checks the health and closes, and binds the
broker to its event loop and process.

This file is longer than 400 lines because the docstrings of its one class are the documentation of the API.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import math
import warnings
from asyncio import CancelledError, get_running_loop
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Self, TypeVar
from uuid import UUID

from ._config.settings import DEFAULTS, BrokerSettings
from ._connection.closing import Closing, checked_timeout
from ._connection.connection import Connection
from ._connection.loops import LoopBinding, running_loop
from ._delivery.breaches import ContractBreach, ContractBreaches
from ._delivery.delivery import Sending
from ._delivery.in_flight import InFlight
from ._delivery.outcomes import AwaitedDelivery, BulkDelivery, BulkOutcomes
from ._delivery.simple import SimpleSender
from ._delivery.window import Window
from ._message.coercion import Coercion, readable
from ._message.validation import Validator
from .driver import PipelinedDriver
from .exceptions import (
    BackpressureError,
    BrokerClosedError,
    BrokerStateError,
    ConfigError,
    DeliveryError,
    FlushTimeoutError,
    InvalidMessageError,
    NotDeliveredError,
)
from .observers import Observer, Observers
from .protocol import Capabilities, Encoder, MessageBroker, MessageEncoder, MessageLike, Receipt

if TYPE_CHECKING:
    from ._connection.health import Health
    from .events import Event
    from .options import EffectiveOption
    from .url import BrokerURL

__all__ = ["Broker"]

Refused = TypeVar("Refused", bound=DeliveryError)

logger = logging.getLogger("cqrs_brokers.broker")

CLOSED = (
    "the broker is closed and cannot be opened again: make a new Broker (give lifespan() a function that makes one)"
)
BURST = 250
"""The most messages that a `send_messages` call makes ready before it hands them to the window."""
TURN = 0.005
"""When a `send_messages` call has made messages ready for this many seconds, it lets the event loop do other work. The
call looks at the time after each burst."""
LATE = (
    "the deadline passed before this message of the batch was made ready: send fewer messages at a time, or raise the "
    "timeout"
)


class Broker(MessageBroker):
    """Sends messages through a driver and reports a true outcome for each message.

    A send that is not cancelled ends in one of three ways: with a `Receipt`, with a `NotDeliveredError` (the message is
    not in the broker, and this call will not put it there) or with a `DeliveryUnknownError` (the message may be in the
    broker). The outcome comes at the latest at the deadline, unless the event loop is busy or stood still.

    A `Broker` is made without I/O and without an event loop. The first valid send, `connect()`, `health()` or `async
    with` connects it. The broker belongs to the event loop in which it is used first. After that loop is closed, the
    broker may be used in another loop, and connects again there.

    Args:
        driver: A driver, or any `MessageBroker`.
        name: The broker's name in receipts. Default: the URL's scheme, else the driver's class name.
        url: The URL to which the driver connects. Its secrets are never shown.
        delivery_timeout: The longest time from a call to its outcome, in seconds, if the call has no `timeout` of its
            own.
        connect_timeout: Seconds for each attempt to connect, and so for `connect()`. `Broker` cancels an attempt only
            0.5 s after this time, so that the driver can raise an error of its own. This time never extends the
            deadline of a send.
        close_timeout: Seconds that `close()` has for sending the accepted messages and closing the connection.
        max_in_flight: The most messages that the driver may hold at a time. Further messages wait in the `Broker`. The
            driver may usually hold two fifths of this number, and at least one message. The rest is used only when a
            destination (for example a topic) takes no messages. Then the driver gets only a few messages beyond the two
            fifths for this destination. The other destinations may use two fifths of the free places.
        max_in_flight_bytes: The most bytes that the driver may hold at a time, unless a single message has more bytes.
            The two fifths apply to bytes, too. A message that is larger than two fifths of this number is sent when the
            driver holds no other message. If there is room for such a message, it is also sent while the driver holds
            only messages for destinations that take no messages.
        max_message_bytes: The most bytes that a message may have: body, key and headers together.
        encoder: Encodes the payloads of messages that have neither `payload_bytes` nor a content type. `TOMBSTONE` is
            not encoded. The argument is a function that takes the payload and returns bytes, or a `MessageEncoder`,
            which takes the whole message. None: payloads of bytes are sent as they are, and other payloads as JSON.
        observers: Objects that `Broker` informs about the outcome of every message and about every change of the
            connection. Observers may add headers to messages.
        retry_count: When this many attempts to connect have failed in a row, the waiting sends fail. None: the number
            of attempts does not matter.
        retry_delay: Seconds between attempts to connect. None: the delay begins at 0.1 s, doubles with each further
            attempt up to 1 s, and is shortened at random by at most half. A connection that lasts for 5 s, or on which
            a message is confirmed, makes the delay begin at 0.1 s again.
        options: The options with the values that are in effect and where each value came from, for `describe()`.

    Raises:
        TypeError: The driver is a `Broker`, or is not a `MessageBroker`. Or a number is an object of another type.
        ConfigError: A number is too small or NaN, `encoder` is no encoder, or `observers` is no sequence of observers.
    """

    def __init__(
        self,
        driver: MessageBroker,
        /,
        *,
        name: str | None = None,
        url: BrokerURL | None = None,
        delivery_timeout: float = DEFAULTS.delivery_timeout,
        connect_timeout: float = DEFAULTS.connect_timeout,
        close_timeout: float = DEFAULTS.close_timeout,
        max_in_flight: int = DEFAULTS.max_in_flight,
        max_in_flight_bytes: int = DEFAULTS.max_in_flight_bytes,
        max_message_bytes: int = DEFAULTS.max_message_bytes,
        encoder: Encoder | None = None,
        observers: Sequence[Observer] = (),
        retry_count: int | None = DEFAULTS.retry_count,
        retry_delay: float | None = DEFAULTS.retry_delay,
        options: Mapping[str, EffectiveOption] | None = None,
    ) -> None:
        if isinstance(driver, Broker):
            raise TypeError("a Broker cannot be the driver of a Broker: pass its driver, or use the Broker itself")
        if not isinstance(driver, MessageBroker):
            raise TypeError(f"a {type(driver).__name__} is no MessageBroker: derive from MessageBroker or Driver")
        given: object = encoder
        if not (given is None or callable(given) or isinstance(given, MessageEncoder)):
            raise ConfigError(f"encoder must be a function, or have encode_message(), not a {type(given).__name__}")
        self._settings = settings = BrokerSettings(
            delivery_timeout=delivery_timeout,
            connect_timeout=connect_timeout,
            close_timeout=close_timeout,
            max_in_flight=max_in_flight,
            max_in_flight_bytes=max_in_flight_bytes,
            max_message_bytes=max_message_bytes,
            retry_count=retry_count,
            retry_delay=retry_delay,
        )
        settings.check()
        self._driver = driver
        self._sender: PipelinedDriver = driver if isinstance(driver, PipelinedDriver) else SimpleSender(driver)
        self._name = name or (url.scheme if url is not None else type(driver).__name__)
        self._url = url
        self._address = str(url) if url is not None else self._name
        self._options = dict(options or {})
        self._capabilities = self._sender.capabilities
        self._breaches = ContractBreaches(self._address)
        simple = self._sender if isinstance(self._sender, SimpleSender) else None
        self._validator = Validator(
            address=self._address,
            capabilities=self._capabilities if simple is None else simple.declared,
            refuse_topic=self._why_not_topic,
            max_message_bytes=self.max_message_bytes,
        )
        self._observers = Observers(observers, self._validator.add_headers)
        self._are_asked = self._observers.are_asked
        self._coercion = Coercion(address=self._address, encoder=encoder)
        self._in_flight = InFlight(
            name=self._name,
            address=self._address,
            confirms=self._capabilities.confirms,
            max_count=max_in_flight,
            max_bytes=max_in_flight_bytes,
            breaches=self._breaches,
            observe=self._observe if self._observers.are_told else None,
        )
        self._window = Window(
            self._in_flight,
            submit=self._sender.submit,
            copies=not (self._are_asked or (simple is not None and simple.passes_through)),
            why_not_taken=lambda: self._connection.why_not_taken(),
            why_late=self._sender.why_late,
            destination=self._sender.destination,
            timeout=delivery_timeout,
        )
        self._connection = Connection(
            self._sender,
            self._window,
            self._in_flight,
            settings,
            changed=self._observers.connection_changed,
            warn=lambda: self._warn_unclosed("its event loop is ending"),
        )
        self._bound = LoopBinding()
        self._make_ready: Callable[[], object] | None = None
        """Makes the remaining messages of a running `send_messages` call ready. The attribute is set only while that
        call lets the event loop do other work."""
        self._closing: Closing | None = None
        self._closed = False
        self._observers.attached(self)

    # -- sending ------------------------------------------------------------------------------------------------------

    async def send_message(self, message: MessageLike, *, timeout: float | None = None) -> Receipt:
        """Sends one message and waits for its outcome.

        Messages with the same topic and the same key keep the order of the calls. A call begins when its coroutine
        first runs. If the call is cancelled after the driver gave the message to its client library, the message may
        still be delivered.

        Args:
            message: A `Message`, or any other `MessageLike`, for example python-cqrs' `Message`.
            timeout: The longest time from the call to the outcome, in seconds. None: the broker's `delivery_timeout`.

        Returns:
            The receipt.

        Raises:
            NotDeliveredError: The message is not in the broker, and this call will not put it there.
            DeliveryUnknownError: The message may be in the broker.
        """
        try:  # as `running_loop`, without its call
            loop = get_running_loop()
        except RuntimeError:
            loop = None
        if loop is None or self._bound.loop is not loop or self._closed:
            try:
                loop = self._enter(loop)
            except NotDeliveredError as error:
                raise self.refuse(message, error)  # noqa: B904 - it is the same error
        if self._make_ready is not None:
            self._finish_preparing()
        coercion = self._coercion
        refusal: InvalidMessageError | None = None
        try:
            ready: Any = message if type(message) is coercion.unchanged_type else coercion.message(message)
            size = self._validator.check(ready)
        except DeliveryError as error:
            self._observers.refused(message, error)
            raise
        except Exception as error:
            refusal = coercion.unreadable(error, message)
        if refusal is not None:  # raised outside the handler: the message's own error must not become its context
            try:
                raise self.refuse(message, refusal)
            finally:
                del refusal
        if self._are_asked:
            ready, size = self._observers.before_send(ready, size)
            message = ready  # the original is not kept while the copy is in flight: the garbage collector has less work
        window = self._window
        seconds = self._settings.delivery_timeout if timeout is None else self._checked_timeout(timeout, ready)
        now = loop.time()
        delivery = AwaitedDelivery(ready, now, now + seconds, size, self._in_flight, window.wakeups)
        if timeout is not None:
            window.expect(delivery.deadline)
        if not window.admit(delivery) and not window.accepting:
            self._connection.want(loop)
        try:
            if delivery.outcome is None:
                await delivery
        except CancelledError:  # the caller's task was cancelled: no other code can cancel the delivery
            window.give_up(delivery)
            raise
        outcome, delivery.outcome = delivery.outcome, None
        if isinstance(outcome, DeliveryError):
            try:
                raise outcome
            finally:  # the traceback of the error holds this frame; the frame must not hold the error (a cycle)
                del outcome
        return outcome  # type: ignore[return-value] # there is one now

    async def send_messages(
        self, messages: Iterable[MessageLike], *, timeout: float | None = None
    ) -> list[Receipt | DeliveryError]:
        """Sends many messages. For a batch this method costs less than one call of `send_message` for each message. The
        batch may have more messages than `max_in_flight`.

        A large batch is made ready (checked and encoded) in several turns of the event loop. Do not change its messages
        before the call ends. If another send, a flush or a close of this broker begins meanwhile, the rest of the batch
        is made ready first. So the messages of the other send come after the batch.

        Args:
            messages: The messages, in the order in which they are to be sent. All have the same deadline, counted from
                the call.
            timeout: The longest time from the call to the last outcome, in seconds. None: the broker's
                `delivery_timeout`.

        Returns:
            One outcome per message, in the same order. The errors of messages are returned, not raised.

        Raises:
            InvalidMessageError: The argument is not iterable, or the timeout is not a finite number above 0.
        """
        given: object = messages
        if not isinstance(given, Iterable):
            refused = InvalidMessageError(
                f"send_messages() takes an iterable of messages, not a {type(given).__name__}: "
                "send_messages([message]), or send_message(message)"
            )
            raise self.refuse(given, refused)
        messages = list(messages)  # reads every message before the first is sent: an iterable that raises sends none
        del given  # else the caller's list, and all messages in it, would stay in memory until the call ends
        try:
            loop = self._enter(running_loop())
        except NotDeliveredError as refusal:
            return [self.refuse(message, type(refusal)(refusal.text)) for message in messages]
        self._finish_preparing()
        seconds = self._settings.delivery_timeout if timeout is None else self._checked_timeout(timeout, *messages)
        bulk = BulkOutcomes(loop.create_future(), loop.time())
        deadline = bulk.began + seconds
        if timeout is not None:
            self._window.expect(deadline)
        preparing = self._prepare(messages, bulk, deadline, loop)
        make_ready: Callable[[], object] = partial(collections.deque, preparing, 0)
        if self._are_asked:  # another call may run it; observers must be asked in the context of this call
            make_ready = partial(copy_context().run, make_ready)
        try:
            for _ in preparing:
                self._make_ready = make_ready
                await asyncio.sleep(0)
                if self._make_ready is not make_ready:  # another call made the rest ready (and may be a batch itself)
                    break
                self._make_ready = None
            await bulk.future
        except CancelledError:
            if self._make_ready is make_ready:
                self._make_ready = None
            preparing.close()
            self._window.give_up_all(bulk)
            if self._observers.are_told:
                for message in reversed(messages):  # those that are left
                    self.refuse(message, NotDeliveredError("the call was cancelled before the message was made ready"))
            raise
        return bulk.outcomes

    def _prepare(
        self,
        messages: list[MessageLike],
        bulk: BulkOutcomes,
        deadline: float,
        loop: asyncio.AbstractEventLoop,
    ) -> Generator[None, None, None]:
        """Makes the messages of a `send_messages` call ready and hands them to the window, in bursts of 250. The
        generator yields when the event loop should do other work. The generator removes each burst from the list, so
        that the list does not keep these messages in memory. The list is reversed first, because removing from the end
        is cheap."""
        window, coercion, validator, observers = self._window, self._coercion, self._validator, self._observers
        batch = observers.batch(len(messages)) if self._are_asked and messages else None
        outcomes = bulk.outcomes
        turn = loop.time()
        messages.reverse()
        while messages:  # the broker works on the first while the last are made ready
            taken = messages[-BURST:]
            del messages[-BURST:]
            burst: list[Sending] = []
            late = loop.time() >= deadline
            for index, message in enumerate(reversed(taken), len(outcomes)):
                if late:
                    outcomes.append(self.refuse(message, BackpressureError(LATE)))
                    continue
                try:
                    ready: Any = message if type(message) is coercion.unchanged_type else coercion.message(message)
                    size = validator.check(ready)
                except DeliveryError as error:
                    observers.refused(message, error)
                    outcomes.append(error.with_traceback(None))
                    continue
                except Exception as error:
                    outcomes.append(self.refuse(message, coercion.unreadable(error, message)))
                    continue
                if batch is not None:
                    ready, size = batch.before_send(ready, size)
                burst.append(BulkDelivery(ready, deadline, size, self._in_flight, bulk, index))
                outcomes.append(None)
            if not messages and batch is not None:
                batch.complete()
            if burst:
                bulk.left += len(burst)
                window.queue(burst)
                if window.accepting:
                    window.refill()
                else:
                    self._connection.want(loop)
                window.keep(burst)
            if messages and loop.time() - turn >= TURN:
                try:
                    yield
                except GeneratorExit:  # the call was cancelled
                    if batch is not None:
                        batch.complete()
                    raise
                turn = loop.time()
        bulk.left -= 1
        if not bulk.left:
            bulk.finish()

    def _finish_preparing(self) -> None:
        """Makes the remaining messages of a `send_messages` call ready, because another call begins. So the messages of
        the batch come before the messages of the new call, and a flush or a close waits for the whole batch."""
        make_ready, self._make_ready = self._make_ready, None
        if make_ready is not None:
            make_ready()

    async def publish(self, event: Event[Any], *, timeout: float | None = None) -> Receipt:
        """Sends an event as a message. The message has the event's name, topic, id, time, key and headers. The body is
        the result of the event's `to_dict()`, as JSON or in the form that the broker's `encoder` makes. The message
        about a deletion has no body.

        Args:
            event: The event, or any object with a method `to_message()`.
            timeout: The longest time from the call to the outcome, in seconds. None: the broker's `delivery_timeout`.

        Raises:
            DeliveryError: The same errors as from `send_message`.
        """
        try:
            message = self._coercion.event_message(event)
        except DeliveryError as error:
            self._observers.refused(event, error)
            raise
        return await self.send_message(message, timeout=timeout)

    def refuse(self, message: object, error: Refused) -> Refused:
        """Tells the observers that a message is refused before it reaches `send_message`.

        Code that stands between an application and the broker calls this method when that code refuses a message.

        Args:
            message: The object that was to be sent.
            error: Why the message is refused.

        Returns:
            The same error, for the caller to raise. If the error had no message id, it now has the id and the topic of
            the message, as far as they can be read, and the broker's URL (or name, if there is no URL).
        """
        if error.message_id is None:
            message_id, topic = readable(message, "message_id", UUID), readable(message, "topic", str)
            error = error.about(message_id, error.topic if topic is None else topic, self._address)
        self._observers.refused(message, error)
        return error

    def _why_not_topic(self, topic: str) -> str | None:
        try:
            return self._sender.refuse_topic(topic)
        except Exception as error:
            self._breaches.add("refuse_topic", f"raised {type(error).__name__}", error=error)
            raise

    def _checked_timeout(self, timeout: float, *messages: object) -> float:
        """Returns the timeout of a call if it is valid. If not, tells the observers that the messages are refused.

        Raises:
            InvalidMessageError: The timeout is not a finite number above 0.
        """
        if isinstance(timeout, int | float) and not isinstance(timeout, bool) and 0 < timeout < math.inf:
            return timeout
        what = timeout if isinstance(timeout, int | float) else f"a {type(timeout).__name__}"
        text = f"timeout must be seconds above 0, not {what}: nothing was sent"
        errors = [self.refuse(message, InvalidMessageError(text)) for message in messages]
        raise errors[0] if len(errors) == 1 else InvalidMessageError(text, broker=self._address)

    # -- lifecycle ----------------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Connects now instead of at the first send, so that a wrong setting is found at start-up. If the broker is
        connected already, nothing happens. If not, this method waits for one pass: the driver tries its hosts until one
        is connected.

        Raises:
            ConnectError: The pass failed. The class of the error says why. `connect()` does not wait for further
                attempts.
            BrokerStateError: The broker is closed, or belongs to another event loop that is still open, or was used in
                the parent process before a fork. Or no asyncio event loop is running.
        """
        await self._connection.connect(self._entered())

    async def flush(self, timeout: float | None = None) -> None:
        """Waits until every message that was sent so far has its outcome.

        Args:
            timeout: The longest wait, in seconds. None: only the deadlines of the messages limit the wait.

        Raises:
            FlushTimeoutError: The time is over, and some messages have no outcome yet. Their sends continue.
            BrokerStateError: The reasons are the same as in `connect`. The flush of a broker that was never used raises
                no error.
        """
        if self._bound.loop is None:
            return
        self._entered()
        self._finish_preparing()
        if not await self._window.drained(timeout):
            raise FlushTimeoutError(
                f"flush() ended after {timeout:g} s with messages still in flight: wait for their sends, or give it "
                "more time",
                broker=self._address,
            )

    async def health(self) -> Health:
        """Returns the state of the broker now. This method may connect or ping the broker to find the state. It raises
        no error, and takes at most `connect_timeout` plus 1 s, unless the event loop stands still."""
        from ._connection.health import Health, whats_wrong  # opening a broker does not need it

        started = monotonic()
        connection = self._connection
        try:
            reason = await whats_wrong(connection, self._entered(), self._settings.connect_timeout)
        except BrokerStateError as error:
            reason = error.text
        throttled = "ok" if connection.throttled_by is None else f"throttled: {connection.throttled_by}"
        return Health(
            ok=not reason,
            reason=reason or throttled,
            latency=monotonic() - started,
            last_error=connection.last_error,
            blocked=connection.blocked_by is not None,
            in_flight=self._in_flight.count,
        )

    async def close(self, timeout: float | None = None) -> None:
        """Flushes the accepted messages, then closes the connection. When the time for the flush is over, the sends
        that still wait end with a `ClosedWhilePendingError` if their message was handed over, and with a
        `BrokerClosedError` if not. Afterwards no task and no socket of the broker is left.

        This method may be called more than once, by several tasks, before the first connection, and while the broker is
        down. A later call with a shorter timeout shortens a close that is under way. If the caller is cancelled, the
        close is ended by force before `CancelledError` is raised.

        Args:
            timeout: Seconds for flushing and closing. None: the broker's `close_timeout`. A close that has to be forced
                takes at most 1.5 s more.

        Raises:
            BrokerStateError: The broker belongs to another event loop that is still open, or was used in the parent
                process before a fork. Or no asyncio event loop is running.
            TypeError: The timeout is not a number.
            ValueError: The timeout is NaN.
        """
        checked_timeout(timeout)
        timeout = self._settings.close_timeout if timeout is None else timeout
        if self._closing is None:
            loop = self._entered()
            self._finish_preparing()
            self._closed = True
            self._closing = Closing(loop, self._window, self._connection, timeout)
            try:
                await self._closing.wait()
            finally:
                self._connection.unclosed = False
                self._observers.connection_changed("closed", "")
        elif self._closing.loop is running_loop():
            self._closing.shorten(timeout)
            await self._closing.wait()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The broker's name. Receipts show it as `broker`."""
        return self._name

    @property
    def driver(self) -> MessageBroker:
        """The driver that this broker sends through."""
        return self._driver

    @property
    def capabilities(self) -> Capabilities:
        """What the driver can do."""
        return self._capabilities

    @property
    def delivery_timeout(self) -> float:
        """The longest time from a call to its outcome, in seconds, if the call has no `timeout` of its own."""
        return self._settings.delivery_timeout

    @property
    def max_message_bytes(self) -> int:
        """The most bytes that a message may have: body, key and headers together. This is the option
        `max_message_bytes`, or the limit in the driver's `capabilities` if that limit is lower."""
        option = self._settings.max_message_bytes
        return min(option, self._capabilities.max_message_bytes or option)

    @property
    def url(self) -> str | None:
        """The broker's URL, with its secrets masked. None: the broker was made without a URL."""
        return None if self._url is None else self._address

    @property
    def state(self) -> str:
        """The state of the connection, in one word.

        * "idle": there is no connection, and nobody waits for a connection.
        * "connecting": the first connection, or a new one, is being made.
        * "connected": messages can be sent.
        * "reconnecting": the driver lost the connection and reconnects by itself.
        * "blocked": there is a connection, but the broker takes no messages.
        * "throttled": there is a connection, but the broker slows this client down.
        * "failed": connecting failed with a permanent error, for example a wrong password. The broker does not try
          again by itself. `connect()`, `health()`, or a send 5 s or more after the failure makes the broker try again.
        * "closed": `close()` was called.
        """
        return "closed" if self._closed else self._connection.described

    @property
    def in_flight(self) -> int:
        """How many messages the driver holds."""
        return self._in_flight.count

    @property
    def waiting(self) -> int:
        """How many messages wait in the `Broker`, because the driver has no room for them or takes no messages now."""
        return self._window.waiting

    @property
    def oldest(self) -> tuple[str, float] | None:
        """The topic and the age (in seconds) of the message that has waited longest for its outcome. None: no message
        waits.

        If one destination takes no messages and the other destinations do, the oldest message is soon a message for
        that destination.
        """
        loop, delivery = self._bound.loop, self._window.oldest()
        return None if loop is None or delivery is None else (delivery.topic, loop.time() - delivery.began)

    @property
    def contract_breaches(self) -> tuple[ContractBreach, ...]:
        """The last 100 cases in which the driver broke the driver contract. Tests of drivers read them."""
        return tuple(self._breaches.kept)

    def describe(self) -> dict[str, Any]:
        """Returns the broker's name, URL, driver, state, capabilities and options. Each option has its value and where
        the value came from. Secrets are masked."""
        return {
            "name": self._name,
            "url": self.url,
            "driver": f"{type(self._driver).__module__}.{type(self._driver).__qualname__}",
            "state": self.state,
            "capabilities": self._capabilities.to_dict(),
            "options": dict(self._options),
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._address} {self.state}>"

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("a Broker holds a connection and cannot be pickled or copied")

    # -- event loops --------------------------------------------------------------------------------------------------

    def _enter(self, loop: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
        """Binds the broker to the event loop of a call, unless the broker is bound to that loop already. What the
        broker still has of an earlier, closed event loop is dropped.

        Raises:
            BrokerClosedError: The broker is closed.
            WrongLoopError: No event loop runs, or the broker belongs to another process, or to another event loop that
                is still open.
        """
        if self._closed:
            raise BrokerClosedError(CLOSED)
        if loop is not None and self._bound.loop is loop:
            return loop
        loop = self._bound.checked(loop)
        before, self._bound.loop = self._bound.loop, loop
        self._make_ready = None
        self._window.bind(loop)  # first: the driver may end deliveries below, and a closed loop runs no callbacks
        if before is not None:
            self._connection.drop()
            self._warn_unclosed("its event loop was closed")
        return loop

    def _entered(self) -> asyncio.AbstractEventLoop:
        """Does the work of `_enter` for calls that send nothing. A refusal becomes a `BrokerStateError`."""
        try:
            return self._enter(running_loop())
        except NotDeliveredError as refusal:
            raise BrokerStateError(refusal.text, broker=self._address) from None

    def _warn_unclosed(self, what: str) -> None:
        """Warns once for each connection that nobody closed."""
        if not self._connection.unclosed:
            return
        self._connection.unclosed = False
        text = f"{self!r} was not closed ({what}): use `async with`, or await broker.close()"
        try:
            warnings.warn(text, ResourceWarning, source=self, stacklevel=2)
        except ResourceWarning:  # where warnings are errors, this one must not lose a message or break a loop
            logger.warning("%s", text)

    def __del__(self) -> None:
        if hasattr(self, "_bound") and self._connection.unclosed and not self._bound.forked:
            self._warn_unclosed("it was forgotten")
            self._connection.drop()
            self._window.forget()

    # -- for observers ------------------------------------------------------------------------------------------------

    def _observe(self, delivery: Sending, outcome: Receipt | DeliveryError) -> None:
        loop = self._bound.loop
        assert loop is not None
        self._observers.sent(delivery.message, outcome, loop.time() - delivery.began)
