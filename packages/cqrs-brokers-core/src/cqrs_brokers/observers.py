"""Observers are objects that `Broker` informs about each message and each change of the connection, for metrics,
tracing and tests. A broker without observers does no work for them.

    class Tenant(Observer):
        def before_send(self, message: Message) -> Mapping[str, HeaderValue]:
            return {"tenant": current_tenant.get()}

    broker = open_broker("kafka://localhost:9092", observers=[Tenant()])

An exception of an observer cannot make a send fail, unless it is a `KeyboardInterrupt` or `SystemExit`. Headers from an
observer can make a send fail, if core accepts the headers and only the driver refuses them (for example RabbitMQ's own
header `CC`). If a method of an observer (except `attached`) raises an exception, the exception is logged with its
traceback, at most once a minute for each observer and method. The log does not contain the text of the exception if
that text may quote the message.
"""

from __future__ import annotations

import logging
import traceback
from asyncio import CancelledError
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from ._message.coercion import readable
from .exceptions import ConfigError, DeliveryError, InvalidMessageError, NotDeliveredError, safe_cause
from .protocol import HeaderValue, Message, Receipt, with_body

__all__ = ["BatchObserver", "ObservedBroker", "Observer"]

logger = logging.getLogger("cqrs_brokers.observers")

LOG_EVERY = 60.0
"""The faults of one method of an observer are logged at most once in this many seconds."""


class ObservedBroker(Protocol):
    """The properties of a `Broker` that its observers may read at any time, without awaiting. The class `Broker`
    describes them."""

    @property
    def name(self) -> str: ...
    @property
    def url(self) -> str | None: ...
    @property
    def state(self) -> str: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def oldest(self) -> tuple[str, float] | None: ...


class BatchObserver(Protocol):
    """The object that `Observer.before_batch` returns. Its methods are called for the messages of one call of
    `send_messages`."""

    def before_send(self, message: Message, /) -> Mapping[str, HeaderValue] | None:
        """Does the same as `Observer.before_send`, and is called instead of that method for the messages of the
        batch."""

    def complete(self) -> None:
        """Says that `before_send` will not be called again: all messages of the batch are ready, or the call of
        `send_messages` was cancelled. `Observer.sent` gets the outcomes. Some outcomes may come before `complete` is
        called."""


class Observer:
    """The base class of observers. `Broker` calls the methods when something happens to its messages or to its
    connection. Derive from this class, and write the methods that you need.

    The methods run in the event loop's thread and must not block. Three cases differ. `attached` runs in the thread
    that makes the broker. `sent` runs in the caller's thread if a `SyncBroker` itself refuses a message. `sent` may run
    in any thread when a broker that nobody closed is deleted. `before_send` runs in the context (`contextvars`) of the
    call that sends the message. This is also true with `SyncBroker`.
    """

    def attached(self, broker: ObservedBroker) -> None:
        """Called when a broker with this observer is made. If this method raises an exception, the code that makes the
        broker gets the exception."""

    def before_send(self, message: Message) -> Mapping[str, HeaderValue] | None:
        """Called before a message is sent, whichever method sends the message. This method may return headers to add.

        The message is a validated and encoded copy, and must not be changed. `sent` later gets the same object, once. A
        returned header replaces a header of the message that has the same name. If this method raises an exception, the
        exception is logged, and the message is sent without this observer's headers. The same happens if core refuses
        these headers: because of their names, values or size, or because the broker has no headers.

        Returns:
            Headers, or None.
        """

    def before_batch(self, count: int) -> BatchObserver | None:
        """Called when a call of `send_messages` with at least one message begins to make its messages ready. This
        method runs in the context of that call, before `before_send` is called for any of the messages.

        Args:
            count: The number of messages, including the messages that will be refused. For a refused message `sent` is
                called, but not `before_send`.

        Returns:
            The object whose `before_send` is called for each of these messages. None: the observer's own `before_send`
            is called. If this method raises an exception, the exception is logged, and the result counts as None.
        """
        return None

    def sent(self, message: Message, outcome: Receipt | DeliveryError, elapsed: float) -> None:
        """Called when a message has its outcome: once for each message of each call, at the latest at the deadline.

        This method is also called for the messages of a cancelled call. If such a message was not handed over, the
        outcome is a `NotDeliveredError`. If the message was handed over, the outcome is the answer of the broker, or a
        `DeliveryUnknownError` if there is no answer. This method is also called for a message that is refused before it
        is sent: for example because the message is invalid or too large, because the broker is closed, or because the
        broker belongs to another event loop or process.

        Args:
            message: The message. If a refused object is no `Message`, or its topic, name or id has a wrong type, the
                observer gets another `Message` instead: without payload, with the name, topic and id that could be
                read. A name or topic that could not be read is "", and an id that could not be read is replaced by a
                new id.
            outcome: The result or the error of the call for this message. A cancelled call would have returned or
                raised this outcome.
            elapsed: Seconds since the call began. 0 if the message was refused before it was sent.
        """

    def connection_changed(self, state: str, reason: str) -> None:
        """Called when the state of the connection changes. The state is connecting, connected, reconnecting, lost,
        failed, idle or closed. Four further states are about a connected broker: it takes no messages (blocked), takes
        messages again (unblocked), slows this client down (throttled), or no longer slows it down (unthrottled). The
        reason is a text, or "" if there is none."""


METHODS = ("attached", "before_send", "before_batch", "sent", "connection_changed")
"""An observer has at least one of these methods."""

Asked = list[tuple[Any, Callable[..., Any]]]
"""The observers that may add headers, each with the function that returns its headers."""


class AskedBatch(NamedTuple):
    """The functions that `Broker` calls for the messages of one `send_messages`."""

    before_send: Callable[[Message, int], tuple[Message, int]]
    """See `Observers.before_send`."""
    complete: Callable[[], None]
    """See `BatchObserver.complete`."""


class Observers:
    """All observers of one broker.

    Args:
        observers: The observers. An object that does not derive from `Observer` may have only some of its methods.
        add_headers: Adds headers to a validated message. The last argument is the message's size in bytes. The function
            returns the new size.
    """

    def __init__(
        self, observers: Sequence[Observer], add_headers: Callable[[Message, Mapping[str, HeaderValue], int], int]
    ) -> None:
        if isinstance(observers, str | bytes | Mapping):
            raise ConfigError(f"observers takes a sequence of observers, not a {type(observers).__name__}")
        if not isinstance(observers, Iterable):
            raise ConfigError(f"observers takes a sequence: observers=[{type(observers).__name__}(…)]")
        self._observers = tuple(observers)
        for observer in self._observers:
            if isinstance(observer, type):
                raise ConfigError(f"observers takes objects, not classes: observers=[{observer.__name__}(…)]")
            if not any(callable(getattr(observer, name, None)) for name in METHODS):
                raise ConfigError(
                    f"a {type(observer).__name__} is no observer: derive from Observer, or write {', '.join(METHODS)}, "
                    "or some of them"
                )
        self._add_headers = add_headers
        self._sent = self._having("sent")
        self._changed = self._having("connection_changed")
        self._batch_methods = {id(observer): method for observer, method in self._having("before_batch")}
        self._before: Asked = self._having("before_send")
        asked = {id(observer) for observer, _ in self._before}
        self._before += [(it, it.before_send) for it, _ in self._having("before_batch") if id(it) not in asked]
        self.before_send: Callable[[Message, int], tuple[Message, int]] = partial(self._ask, self._before)
        """Takes a validated message and its size in bytes. Returns a copy with the headers that the observers add, and
        the size of the copy."""
        self._logged: dict[tuple[int, str], float] = {}
        """When a fault was last logged, by observer and method."""

    def _having(self, name: str) -> list[tuple[Any, Callable[..., Any]]]:
        """The observers that define the method themselves, each with the method."""
        ours = getattr(Observer, name)
        found = [(observer, getattr(observer, name, None)) for observer in self._observers]
        return [(it, method) for it, method in found if method and getattr(method, "__func__", None) is not ours]

    @property
    def are_told(self) -> bool:
        """Whether any observer gets outcomes (has the method `sent`)."""
        return bool(self._sent)

    @property
    def are_asked(self) -> bool:
        """Whether any observer may add headers."""
        return bool(self._before)

    def attached(self, broker: ObservedBroker) -> None:
        """See `Observer.attached`."""
        for _, attached in self._having("attached"):
            attached(broker)

    def batch(self, count: int) -> AskedBatch:
        """Calls `Observer.before_batch` of all observers for one `send_messages`. Returns the functions to call for the
        messages of that `send_messages`."""
        asked: Asked = []
        batches: list[tuple[object, BatchObserver]] = []
        for observer, before_send in self._before:
            before_batch = self._batch_methods.get(id(observer))
            if before_batch is not None:
                try:
                    batch = before_batch(count)
                    if batch is not None:
                        before_send = batch.before_send
                        batches.append((observer, batch))
                except (Exception, CancelledError) as error:
                    self._failed(observer, "before_batch", error, None)
            asked.append((observer, before_send))
        return AskedBatch(partial(self._ask, asked), partial(self._complete, batches))

    def _complete(self, batches: Iterable[tuple[object, BatchObserver]]) -> None:
        for observer, batch in batches:
            try:
                batch.complete()
            except (Exception, CancelledError) as error:
                self._failed(observer, "complete", error, None)

    def _ask(self, asked: Asked, message: Message, size: int) -> tuple[Message, int]:
        message = with_body(message, message.body)  # as `snapshot`, without its call
        for observer, before_send in asked:
            try:
                added = before_send(message)
                if added is None:
                    continue
                if type(added) is not dict and not isinstance(added, Mapping):
                    raise InvalidMessageError(f"it returned a {type(added).__name__}, not a mapping")
                if added:
                    size = self._add_headers(message, added, size)
            except NotDeliveredError as refusal:
                self._log(observer, "before_send", "the headers that observer %s adds are refused: %s", refusal.text)
            except (Exception, CancelledError) as error:
                self._failed(observer, "before_send", error, message)
        return message, size

    def sent(self, message: Message, outcome: Receipt | DeliveryError, elapsed: float) -> None:
        """See `Observer.sent`."""
        for observer, sent in self._sent:
            try:
                sent(message, outcome, elapsed)
            except (Exception, CancelledError) as error:
                self._failed(observer, "sent", error, message)

    def refused(self, candidate: object, error: DeliveryError) -> None:
        """Tells the observers that a message was refused before it was sent. The candidate is the object that the
        application tried to send. It may have any type."""
        if self._sent:
            self.sent(_readable(candidate, error), error, 0.0)

    def connection_changed(self, state: str, reason: str) -> None:
        """See `Observer.connection_changed`."""
        for observer, changed in self._changed:
            try:
                changed(state, reason)
            except (Exception, CancelledError) as error:
                self._failed(observer, "connection_changed", error, None)

    # -- their faults -------------------------------------------------------------------------------------------------

    def _failed(self, observer: object, method: str, error: BaseException, message: Message | None) -> None:
        text = f"observer %s raised {type(error).__name__} in {method}()"
        if safe_cause(error, message) is not None:
            self._log(observer, method, text, error=error)
        else:  # the text may quote the message; the lines of code do not
            stack = "".join(traceback.format_tb(error.__traceback__)).rstrip()
            self._log(observer, method, f"{text}:\n%s", stack)

    def _log(self, observer: object, method: str, text: str, *more: str, error: BaseException | None = None) -> None:
        now = monotonic()
        fault = id(observer), method
        if now - self._logged.get(fault, -LOG_EVERY) >= LOG_EVERY:
            self._logged[fault] = now
            logger.error(text, type(observer).__qualname__, *more, exc_info=error)


def _readable(candidate: Any, error: DeliveryError) -> Message:
    """A message that observers can read: its name and topic are text, and its id is a UUID. If the candidate is such a
    message, the result is the candidate itself."""
    message_name, topic = readable(candidate, "message_name", str), readable(candidate, "topic", str)
    message_id = readable(candidate, "message_id", UUID)
    if isinstance(candidate, Message) and None not in (message_name, topic, message_id):
        return candidate
    return Message(message_name or "", topic or error.topic or "", None, message_id or error.message_id)
