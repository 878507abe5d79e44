"""For plugin authors: what a driver is, and what `Broker` gives it.

A driver maps a `Message` to its broker and classifies its client's errors. `Broker` does everything else, the same for
every driver: validation, encoding, deadlines, the in-flight window, connecting once, reconnecting with backoff,
draining and closing.

| your broker | take |
|---|---|
| answers at once, in the process or through one call | `Driver` and its `send_message` |
| is reached over a network | `PipelinedDriver`, on `cqrs_brokers.pipeline`: it can say what was written |

Every driver of a networked broker must follow these rules, whichever client it uses. Use one connection, not a pool: a
pool reorders messages. (In a cluster such as Kafka, use one for each node that owns destinations.) Switch the client's
own retries off: they send again what may have been written. Notice a dead connection while it is idle. Call `Link.lost`
only for the connection in use: a callback of an old connection may come late.
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
    """The methods by which a driver tells `Broker` what happens to its connection. Call them in the event loop's
    thread."""

    def wake_after(self, handler: Callable[..., object], *args: object) -> None:
        """Calls a handler of the driver, and then wakes the callers that got their outcomes in the handler.

        A driver may use this method for the event loop's callback that reads answers, if nothing is left to do after
        the handler. Without it these callers are woken in the loop's next turn. When messages are sent one by one, that
        turn takes 4 % of the time.

        Args:
            handler: What to call. Callers may send again before this method returns.
            args: Its arguments.
        """

    def lost(self, error: ConnectError) -> None:
        """The connection is gone, or must be made anew; `Broker` will call `connect()`.

        A permanent error stops the reconnecting. Report the loss of a working connection as `UnreachableError`,
        whatever the server sent last. If the cause persists, the next `connect()` will raise the specific error.

        Before this call the driver ends the messages that it had handed over: with `fail(ConnectionLostError)`, or with
        `returned()` for those that are proven not written. It keeps the other messages, in order, and sends them after
        the next `connect()`.
        """

    def reconnecting(self, error: ConnectError | None) -> None:
        """The driver lost the broker and reconnects by itself, as the Kafka driver does. None: it is connected again.

        `Broker` goes on submitting. A message that is not handed over by its deadline fails with a `NotConnectedError`
        whose cause is this error. `health()` gives it as the reason.
        """

    def blocked(self, reason: str) -> None:
        """The broker is connected but takes no messages for now. `Broker` submits nothing until `unblocked()`."""

    def unblocked(self) -> None:
        """The broker takes messages again."""

    def may_go_on(self) -> None:
        """Destinations that took nothing may take messages now, because the driver sends another way: over a fresh
        channel, for example.

        `Broker` keeps back most messages for such destinations. It now tries one message for each of them, even if
        earlier ones have no answer.
        """

    def throttled(self, reason: str | None) -> None:
        """The broker slows this client down because of a quota. None: the throttling has ended.

        `Broker` goes on submitting. `health()` gives the reason. Observers are told when the throttling begins and
        ends.
        """


class Driver(MessageBroker):
    """The base class of drivers. Only `send_message` must be written; override the other methods that the broker needs.

    `Broker` calls `send_message` in tasks of its own, at most one at a time for the same topic and key when the driver
    declares `ordering_key`. A send that has started counts as handed over. So raise `NotDeliveredError` only if the
    message is proven not to be in the broker. An unclassified exception becomes a `DeliveryUnknownError`. Return a
    `Receipt` (`confirmed=True` after the broker's confirm) or None.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What this broker can do; constant, and known before connecting."""
        return Capabilities()

    def bind(self, link: Link) -> None:
        """`Broker` calls it once, before any other method. Only `capabilities` may be read earlier. Keep the link if
        the driver notices lost connections by itself."""
        return

    def refuse_topic(self, topic: str) -> str | None:
        """Why this broker cannot have such a topic, or None when it can.

        `Broker` asks before any I/O, and remembers the topics that the broker can have. The driver gets every topic
        that is not empty, even one that is longer than 255 bytes or has characters that are not printable. `Broker`
        itself refuses such a topic afterwards. After a refusal `Broker` also asks about the name of the message,
        because name and topic may be swapped.
        """
        return None

    async def connect(self) -> None:
        """Makes one pass over all hosts. Called again after `lost`, `abort()` and failed passes.

        The driver first drops what is left of an earlier connection.

        `Broker` ends it after `connect_timeout` plus 0.5 s, so that the driver's own, better error comes first.

        Raises:
            ConnectError: Why it failed; a permanent one stops the reconnecting.
        """

    async def ping(self) -> None:
        """Asks the broker whether it is alive, for `Broker.health()`.

        Raises:
            ConnectError: The broker is not alive.
        """

    async def close(self, grace: float) -> None:
        """Closes the connection: gracefully for `grace` seconds, then by force within a further 0.8 s.

        `Broker` has ended every delivery before the call, so the driver forgets those that it has. After the call no
        task or socket of the driver is left.
        """

    def abort(self) -> None:
        """Drops the connection at once, without awaiting; also when the event loop is closed.

        Deliveries need no answer any more: `Broker` ends them itself.
        """


class PipelinedDriver(Driver):
    """A driver that takes many messages in flight."""

    async def send_message(self, message: Message) -> NoReturn:
        """Raises an error: a pipelined driver gets its messages by `submit`.

        Raises:
            TypeError: Always: pass the driver to a `Broker` and send through that.
        """
        raise TypeError(f"{type(self).__name__} takes messages from a Broker only: Broker(driver).send_message(…)")

    @abstractmethod
    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        """Takes messages, in order, and returns at once: it must not block.

        Called only while connected. The driver keeps the order of submission among messages with the same topic and
        key, also when its client reconnects. Messages without a key have no order. The driver must end each delivery:
        with `confirm`, `fail` or `release`, or with a `handed_over` that returns False.
        """

    def destination(self, message: Message) -> str:
        """The place where the message goes. One place can be stuck while others are not. Errors name it.

        While a place takes nothing, `Broker` submits few further messages for it, and keeps room in flight for the
        others. Default: the topic.
        """
        return message.topic

    def why_late(self, delivery: Delivery, /, *, handed: bool) -> DeliveryError | None:
        """Says why a message has no outcome at its deadline. None: the driver knows no reason.

        `Broker` asks about each message that was handed over and has no outcome then. It asks about other messages only
        while the driver is connected and not blocked. The error should name what the broker said last about the
        message's destination. The driver keeps the message as before.

        Args:
            delivery: The message; the driver may not have been given it yet.
            handed: Whether it was handed over. If so, the error must be a `DeliveryUnknownError`, else a
                `NotDeliveredError`. An error of the other kind is ignored.
        """
        return None
