"""For plugin authors: what a driver does, and what `Broker` does for it.

A driver sends each `Message` to its broker through a client library, and turns the client's errors into the errors of
`cqrs_brokers.exceptions`. `Broker` does everything else, in the same way for every driver: validation, encoding,
deadlines, the in-flight window (it limits how many messages the driver holds), connecting once, reconnecting with
backoff, draining and closing.

| your broker | derive from |
|---|---|
| runs in the process, or takes a message and answers in one call | `Driver`: define its `send_message` |
| is reached over a network | `PipelinedDriver`; `cqrs_brokers.pipeline` keeps the messages until the broker answers |

Every driver of a networked broker must follow these rules, whichever client it uses. Use one connection, not a pool: a
pool reorders messages. (In a cluster such as Kafka, use one connection for each node that leads partitions.) Switch off
the client's own retries: a retry may write a message twice. Detect a dead connection even while no message is sent.
Call `Link.lost` only for the connection in use: a callback of an old connection may come late.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol

from ._delivery.breaches import ContractBreach
from ._delivery.delivery import Delivery, confirm_all
from ._message.encoding import content_type_of
from .exceptions import ConnectError, DeliveryError
from .protocol import Capabilities, HeaderValue, Message, MessageBroker, id_text, timestamp_ms

__all__ = [
    "Capabilities",
    "ContractBreach",
    "Delivery",
    "Driver",
    "HeaderValue",
    "Link",
    "Message",
    "PipelinedDriver",
    "confirm_all",
    "content_type_of",
    "id_text",
    "timestamp_ms",
]


class Link(Protocol):
    """The methods by which a driver tells `Broker` what happens to the connection. Call them in the event loop's
    thread."""

    def wake_after(self, handler: Callable[..., object], *args: object) -> None:
        """Calls a handler of the driver, and then wakes the callers of `send_message` whose messages got their outcomes
        in the handler.

        This method makes sends faster; a driver need not use it. The event loop calls the driver back when answers have
        arrived. In that callback the driver may call `wake_after` with the function that reads the answers. The
        callback must do nothing after this call. If a task makes this call, or without `wake_after`, the callers are
        woken only in the next turn of the loop. When messages are sent one by one, that extra turn takes 4 % of the
        time for a message.

        Args:
            handler: The function to call. Woken callers may send again before `wake_after` returns.
            args: The arguments of the handler.
        """

    def lost(self, error: ConnectError) -> None:
        """Reports that the connection is lost, or that a new connection must be made. `Broker` then calls `connect()`.

        If the error is permanent, `Broker` does not reconnect by itself. So report the loss of a working connection as
        `UnreachableError`, even if the last answer of the server gives a more specific reason. If the cause persists,
        the next `connect()` will raise the specific error.

        Before this call the driver calls a method of each delivery that was handed over and has no answer: `returned()`
        if it is proven that the message was not written, else `fail()` with a `ConnectionLostError`. The driver keeps
        the returned messages and the messages that it has not handed over, in order. It sends these messages after the
        next `connect()`.
        """

    def reconnecting(self, error: ConnectError | None) -> None:
        """Reports that the driver lost its connections and reconnects by itself, as the Kafka driver does. None: the
        driver is connected again.

        While the driver reconnects, `Broker` continues to submit messages. A message that is not handed over by its
        deadline fails with a `NotConnectedError`. The cause of that error is the error that the driver reported.
        `health()` gives the text of the reported error as the reason, unless the ping fails with an error of its own.
        """

    def blocked(self, reason: str) -> None:
        """Reports that the message broker is connected but takes no messages now. `Broker` submits nothing until the
        driver calls `unblocked()` or has a new connection."""

    def unblocked(self) -> None:
        """Reports that the message broker takes messages again."""

    def may_go_on(self) -> None:
        """Reports that destinations which took no messages may take them now, for example because the driver has opened
        a new channel.

        While a destination takes no messages, `Broker` limits the number of messages that it submits for the
        destination. After this call `Broker` may submit one more message for each such destination, even if earlier
        messages have no answer.
        """

    def throttled(self, reason: str | None) -> None:
        """Reports that the message broker slows this client down because of a quota. None: the throttling has ended.

        `Broker` continues to submit messages during the throttling. If nothing else is wrong, `health()` gives the
        reason. Observers are informed when the driver reports the beginning or the end of the throttling. A new
        connection is not throttled until the driver calls this method again.
        """


class Driver(MessageBroker):
    """The base class of drivers. A driver that derives directly from this class must define `send_message`. The driver
    overrides other methods if its broker needs them.

    `Broker` calls `send_message` once for each message. Calls for several messages run at the same time, in tasks of
    `Broker`. If the driver declares the capability `ordering_key`, only one call runs at a time for the same topic and
    key. A message counts as handed over as soon as the call has started. So raise `NotDeliveredError` only if it is
    proven that the message is not in the broker. Any exception that is not a `DeliveryError` becomes a
    `DeliveryUnknownError`. Return a `Receipt`, or None. A `Receipt` has `confirmed=True` by default: pass
    `confirmed=False` if the broker has not confirmed the message.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What this broker can do. The value is known before the driver connects, and never changes."""
        return Capabilities()

    def bind(self, link: Link) -> None:
        """Gives the link to the driver. `Broker` calls this method once, before any other method. Only `capabilities`
        may be read earlier. Keep the link if the driver has something to report, for example a lost connection."""
        return

    def refuse_topic(self, topic: str) -> str | None:
        """Returns the reason why this broker cannot have a topic of this name. None: the name is allowed.

        `Broker` calls this method before any I/O, and remembers up to 10 000 allowed topics. The method gets every
        topic that is not empty and not remembered. The topic may be longer than 255 bytes or have characters that are
        not printable: `Broker` refuses such a topic itself, after this call. When the method refuses a topic, `Broker`
        calls the method again with the name of the message, because the application may have swapped name and topic.
        """
        return None

    async def connect(self) -> None:
        """Tries all hosts once, until one is connected. `Broker` calls this method again after `lost`, after `abort()`,
        and after a call that failed.

        The driver first drops everything that is left of an earlier connection.

        If no host has answered after `connect_timeout`, the driver should raise an error itself, because its error can
        give a better reason. `Broker` cancels the call 0.5 s later. A cancelled call that does not end within 0.4 s
        breaks the contract.

        Raises:
            ConnectError: No host could be connected. If the error is permanent, `Broker` does not try again by itself.
        """

    async def ping(self) -> None:
        """Asks the broker whether it is alive, for `Broker.health()`.

        Raises:
            ConnectError: The broker is not alive.
        """

    async def close(self, grace: float) -> None:
        """Closes the connection. The driver has `grace` seconds to close it gracefully, and then 0.8 s to close it by
        force.

        `Broker` has ended every delivery before this call, so the driver forgets the deliveries that it still has.
        After the call no task and no socket of the driver may be left.
        """

    def abort(self) -> None:
        """Drops the connection at once, without awaiting. This method must also work when the event loop is closed.

        The driver need not end its deliveries: `Broker` ends them itself.
        """


class PipelinedDriver(Driver):
    """A driver that takes further messages while earlier messages have no answer yet."""

    async def send_message(self, message: Message) -> NoReturn:
        """Raises an error, because a pipelined driver gets its messages through `submit`.

        Raises:
            TypeError: Always. Pass the driver to a `Broker`, and send messages with that `Broker`.
        """
        raise TypeError(f"{type(self).__name__} takes messages from a Broker only: Broker(driver).send_message(…)")

    @abstractmethod
    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        """Takes messages, in order, and returns at once. This method must not block.

        `Broker` calls this method only while the driver is connected and not blocked. A driver that has reported
        `Link.reconnecting` counts as connected. The driver keeps the order of submission among messages with the same
        topic and key, also when its client reconnects. Messages without a key have no order. Until `close` or `abort`
        is called, the driver must end each delivery: with a call of `confirm`, `fail` or `release`, or with a call of
        `handed_over` that returns False.
        """

    def destination(self, message: Message) -> str:
        """The place to which the message goes, for example a partition. One place may take no messages while other
        places take them. If a message gets no room in flight for this reason, its error names the place.

        While a place takes no messages, `Broker` limits the number of messages that it submits for this place. So there
        is room in flight for messages to the other places. Default: the topic.
        """
        return message.topic

    def why_late(self, delivery: Delivery, /, *, handed: bool) -> DeliveryError | None:
        """Says why a message has no outcome at its deadline. None: the driver knows no reason.

        `Broker` calls this method for each message that was handed over and has no outcome at its deadline. For a
        message that was not handed over, `Broker` calls this method only while the driver is connected, not blocked and
        not reconnecting. The returned error should contain the broker's last answer about the destination of the
        message. This call does not end the delivery for the driver: the driver keeps the message as before.

        Args:
            delivery: The message. The message may still wait in `Broker`, so the driver may not know it yet.
            handed: Whether the message was handed over. If so, the error must be a `DeliveryUnknownError`, else a
                `NotDeliveredError`. An error of the other kind is ignored.
        """
        return None
