"""The error classes of this library, as one tree.

    BrokerError                          picklable, without secrets; .retryable
    ├─ ConfigError (ValueError)          the config string or an option is wrong; nothing was opened
    ├─ PluginError
    │  ├─ PluginNotFoundError            no installed distribution provides the scheme
    │  ├─ PluginLoadError                installed, but broken or for another version of core
    │  ├─ PluginContractError            loaded, but it does not follow the contract
    │  └─ AmbiguousPluginError           more than one distribution claims the scheme
    ├─ BrokerStateError                  the Broker is closed, or belongs to another event loop or process
    ├─ FlushTimeoutError (TimeoutError)  flush() ran out of time
    ├─ ConnectError                      .permanent: trying again cannot help
    │  ├─ AuthenticationError            permanent
    │  ├─ AuthorizationError             permanent (virtual host, cluster)
    │  ├─ TLSError                       permanent
    │  ├─ UnreachableError               retryable
    │  ├─ ProtocolError                  permanent
    │  └─ TopologyError                  permanent
    └─ DeliveryError                     .message_id .topic .broker
       ├─ NotDeliveredError              the message is not in the broker; this call will not put it there
       │  ├─ InvalidMessageError
       │  ├─ MessageTooLargeError
       │  ├─ UnroutableError
       │  ├─ DestinationNotFoundError
       │  ├─ PublishForbiddenError
       │  ├─ RejectedError               retryable; the broker refused it, and no queue or partition has it
       │  ├─ BackpressureError           retryable; no room until the deadline, or its destination took nothing
       │  ├─ BrokerBlockedError          retryable; the broker took no messages until the deadline
       │  ├─ NotConnectedError           no connection until the deadline; .retryable as in its cause
       │  ├─ BrokerClosedError
       │  └─ WrongLoopError
       └─ DeliveryUnknownError           the message may be in the broker, or may not
          ├─ DeliveryTimeoutError (TimeoutError)
          ├─ ConnectionLostError
          ├─ NackedError                 retryable; at least one queue refused it, others may hold it
          ├─ ReturnedError               the broker returned it, but the exchange may also have kept it
          └─ ClosedWhilePendingError

`retryable` says whether the same call may succeed later although nobody has changed anything. A send that is not
cancelled ends in a `Receipt`, a `NotDeliveredError` or a `DeliveryUnknownError`. `connect()`, `flush()`, `close()` and
`async with` never raise a `DeliveryError`. Of this tree, they raise only a `ConnectError`, a `FlushTimeoutError` or a
`BrokerStateError`. `health()` raises no error.

This file is longer than 400 lines because all errors are one tree, each with its documentation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self
from uuid import UUID

__all__ = [
    "AmbiguousPluginError",
    "AuthenticationError",
    "AuthorizationError",
    "BackpressureError",
    "BrokerBlockedError",
    "BrokerClosedError",
    "BrokerError",
    "BrokerStateError",
    "ClosedWhilePendingError",
    "ConfigError",
    "ConnectError",
    "ConnectionLostError",
    "DeliveryError",
    "DeliveryTimeoutError",
    "DeliveryUnknownError",
    "DestinationNotFoundError",
    "FlushTimeoutError",
    "InsecureTransportWarning",
    "InvalidMessageError",
    "MessageTooLargeError",
    "NackedError",
    "NotConnectedError",
    "NotDeliveredError",
    "PluginContractError",
    "PluginError",
    "PluginLoadError",
    "PluginNotFoundError",
    "ProtocolError",
    "PublishForbiddenError",
    "RejectedError",
    "ReturnedError",
    "TLSError",
    "TopologyError",
    "UnreachableError",
    "UnroutableError",
    "WrongLoopError",
]


class InsecureTransportWarning(UserWarning):
    """The transport is not secure. Either credentials are sent without TLS to another machine (a host that is not
    loopback), or the server's certificate or host name is not verified."""


class BrokerError(Exception):
    """The base class of the errors in this module.

    Args:
        text: What happened, and what to do about the error.
        broker: The broker's URL with its secrets masked, or the broker's name if it has no URL. If a driver leaves this
            argument empty, `Broker` fills in the value. "": the error belongs to no broker.
    """

    retryable: bool = False
    """Whether the same call may succeed later although nobody has changed anything."""

    def __init__(self, text: str = "", *, broker: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.broker = broker

    def __str__(self) -> str:
        return f"{self.text} [{self.broker}]" if self.broker else self.text

    def __reduce__(self) -> tuple[Any, ...]:
        # One method for the whole tree: subclasses take different arguments, and OSError's own __reduce__ (through
        # TimeoutError) would call them with the wrong ones.
        return self._with_state, (self.__dict__.copy(),)

    @classmethod
    def _with_state(cls, state: dict[str, Any]) -> Self:
        error = cls.__new__(cls)
        Exception.__init__(error, state.get("text", ""))
        error.__dict__.update(state)
        return error


class ConfigError(BrokerError, ValueError):
    """The config string or an option is wrong. Nothing was opened.

    Args:
        problems: The problems that were found, one sentence for each. No sentence may quote a secret.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        if len(self.problems) == 1:
            super().__init__(self.problems[0])
        else:
            super().__init__(f"{len(self.problems)} problems:" + "".join(f"\n- {problem}" for problem in self.problems))


class PluginError(BrokerError):
    """A plugin cannot be found, chosen, loaded or used."""


class PluginNotFoundError(PluginError):
    """No installed distribution provides the scheme. Or the scheme is reserved for a distribution, or pinned to a
    distribution, that does not provide the scheme."""


class PluginLoadError(PluginError):
    """The plugin is installed but cannot be used: its metadata is missing or wrong, its import fails, a module that the
    plugin needs is missing, or the plugin does not fit this version of core."""


class PluginContractError(PluginError):
    """The plugin was loaded, but does not follow the contract for plugins (`cqrs_brokers.hooks`)."""


class AmbiguousPluginError(PluginError):
    """More than one installed distribution claims the scheme. The call that raised this error imported none of these
    distributions."""


class BrokerStateError(BrokerError):
    """The `Broker` cannot be used here. It is closed, or belongs to another event loop that is not closed, or to
    another process, or no asyncio event loop is running. Or `SyncBroker.close` was called in the thread of that
    `SyncBroker`.

    `connect()`, `async with`, `flush()` and `close()` raise this error. But closing a closed broker raises no error. A
    send raises `BrokerClosedError` or `WrongLoopError` instead.
    """


class FlushTimeoutError(BrokerError, TimeoutError):
    """`flush()` ran out of time. The sends continue, and each send still gets its own outcome."""


class ConnectError(BrokerError):
    """A connection to the broker cannot be made or was lost.

    Args:
        text: What happened.
        broker: See `BrokerError`.
        remedy: What to do about the error. The remedy is added to the end of the error's `text`, after a colon. "": the
            argument `text` says what to do, or there is nothing to do.
    """

    permanent: ClassVar[bool] = False
    """Whether further attempts to connect are useless until a person changes something."""

    def __init__(self, text: str = "", *, broker: str = "", remedy: str = "") -> None:
        super().__init__(f"{text}: {remedy}" if remedy else text, broker=broker)
        self.remedy = remedy


class AuthenticationError(ConnectError):
    """The broker does not accept the credentials or the authentication mechanism."""

    permanent = True


class AuthorizationError(ConnectError):
    """The credentials are valid, but do not allow the use of this virtual host or cluster, or a declaration that the
    options ask for. Or the virtual host does not exist."""

    permanent = True


class TLSError(ConnectError):
    """The TLS handshake failed. For example, the certificate or the host name is wrong, the server wants a client
    certificate, or one side does not use TLS."""

    permanent = True


class UnreachableError(ConnectError):
    """No node of the broker can be reached, or no node answers."""

    retryable = True


class ProtocolError(ConnectError):
    """The server can be reached, but does not use the protocol, or the version of the protocol, that the driver
    expects."""

    permanent = True


class TopologyError(ConnectError):
    """An exchange, queue or topic that must exist in the broker is missing, differs from its declaration, or cannot be
    declared."""

    permanent = True


class DeliveryError(BrokerError):
    """A message was not delivered, or nobody knows whether it was delivered.

    A driver gives only the text. `Broker` adds the message's id, the message's topic, and the broker.

    Args:
        text: What happened and what to do.
        message_id: The message's id. None: the id is not known.
        topic: The message's topic. None: the topic is not known.
        broker: See `BrokerError`.
    """

    def __init__(
        self, text: str = "", *, message_id: UUID | None = None, topic: str | None = None, broker: str = ""
    ) -> None:
        super().__init__(text, broker=broker)
        self.message_id = message_id
        self.topic = topic

    def __str__(self) -> str:
        about = []
        if self.message_id is not None:
            about.append(f"message {self.message_id}")
        if self.topic is not None:
            about.append(f"topic {self.topic!r:.80}")
        if self.broker:
            about.append(f"broker {self.broker}")
        return f"{self.text} [{', '.join(about)}]" if about else self.text

    def about(self, message_id: UUID | None, topic: str | None, broker: str) -> Self:
        """Gives this error the id and the topic of a message, and the broker if the error has none. Returns the error.
        If the error has another id already, this method changes and returns a copy with the same cause instead.

        A driver may use one error object for many messages, but each caller must get an error object of its own.
        """
        error = self
        if self.message_id is not None and self.message_id is not message_id:
            error = self._with_state(self.__dict__)
            error.__cause__ = self.__cause__
        error.message_id, error.topic, error.broker = message_id, topic, error.broker or broker
        return error


class NotDeliveredError(DeliveryError):
    """The message is not in the broker, and the call that raised this error will not put it there later."""


class InvalidMessageError(NotDeliveredError):
    """The message cannot be sent as it is: for example, its topic, id, key or a header is wrong, or its payload cannot
    be encoded. Or an argument of the send is wrong, for example the timeout."""

    @classmethod
    def raised_by(
        cls,
        what: str,
        error: Exception,
        *,
        content: object = None,
        message_id: UUID | None = None,
        topic: str | None = None,
        broker: str = "",
    ) -> Self:
        """Makes the error for a message that cannot be read because code of the application raised an exception: for
        example a serializer, `ordering_key()` or an encoder.

        Args:
            what: The code that raised the exception, for example "the encoder". The error's text begins with these
                words.
            error: The exception. The exception becomes the cause, unless it may quote `content` (see `safe_cause`).
            content: The object that must not be quoted: the payload, or an object that contains the payload.
            message_id: The message's id, if known.
            topic: The message's topic, if known.
            broker: See `BrokerError`.
        """
        refused = cls(f"{what} raised {type(error).__name__}", message_id=message_id, topic=topic, broker=broker)
        refused.__cause__ = safe_cause(error, content)
        return refused


def safe_cause(error: BaseException | None, content: object = None) -> BaseException | None:
    """Returns the error, or None if the error or one of its causes may quote the content. The context of an error
    counts as a cause if a traceback would show the context.

    Every pydantic error and every Unicode error may quote the content. Any other error may quote the content if its
    text, its `repr` or its notes contain a result of `_texts`. If these texts cannot be read, the result is None, too.
    """
    one, seen = error, set[int]()
    quotable = None
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        if isinstance(one, UnicodeError) or any(base.__module__.startswith("pydantic") for base in type(one).__mro__):
            return None
        try:
            said = f"{one!r} {one} {getattr(one, '__notes__', '')}"
            quotable = _texts(content) if quotable is None else quotable
        except Exception:  # the application's own `__str__` or `__repr__` raised, too
            return None
        if any(text in said for text in quotable):
            return None
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return error


_SHORTEST = 3
"""The length of the shortest text that counts as a quotation. Shorter texts occur in any sentence by chance."""
_MOST = 10_000
_LONG_WORD = r"\w{8,}"


def _texts(content: object) -> set[str]:
    """The texts, bytes, numbers, UUIDs and dates in a payload, or in an object that contains a payload, as texts, and
    the long words in these texts. Texts shorter than `_SHORTEST` are left out, and so are keys that are identifiers. At
    most `_MOST` values are read."""
    from datetime import date  # only an error needs them
    from decimal import Decimal

    found: set[str] = set()
    todo, seen = [content], set[int]()
    while todo and len(seen) < _MOST:
        value = todo.pop()
        if value is None or isinstance(value, bool | type) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, str):
            found.add(str.__str__(value))
        elif isinstance(value, bytes | bytearray):
            found.add(bytes(value).decode(errors="replace"))
        elif isinstance(value, int | float | Decimal | UUID):
            found.add(str(value))
        elif isinstance(value, date):  # as in its text, and as in its repr
            found |= {value.isoformat()[:10], f"({value.year}, {value.month}, {value.day}"}
        elif isinstance(value, Mapping):
            todo += [key for key in value if not (isinstance(key, str) and key.isidentifier())]
            todo += value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            todo += value
        elif not type(value).__module__.startswith(("datetime", "builtins")):
            todo += vars(value).values() if hasattr(value, "__dict__") else ()
            todo += [getattr(value, name, None) for name in getattr(type(value), "__slots__", ()) if name[:2] != "__"]
    whole = {text for text in found if len(text) >= _SHORTEST}
    # A repr escapes characters, and an error may cut a text. So a long word of it counts as a quotation, too.
    return whole | {word for text in whole for word in re.findall(_LONG_WORD, text)}


class MessageTooLargeError(NotDeliveredError):
    """The message is larger than `max_message_bytes`, or larger than the broker accepts."""


class UnroutableError(NotDeliveredError):
    """The broker found no queue for the message, and returned the message."""


class DestinationNotFoundError(NotDeliveredError):
    """The topic or the exchange does not exist."""


class PublishForbiddenError(NotDeliveredError):
    """The credentials do not allow publishing to this destination, or declaring its queue."""


class RejectedError(NotDeliveredError):
    """The broker refused the message. No queue and no partition of the broker has it."""

    retryable = True


class BackpressureError(NotDeliveredError):
    """The message was not handed over in time. The reason is neither a missing connection nor a blocked broker. For
    example, `max_in_flight` messages were in flight, the broker took nothing for this topic or partition, or the
    deadline passed before a message of a large batch was made ready."""

    retryable = True


class BrokerBlockedError(NotDeliveredError):
    """The broker was connected but accepted no messages when the deadline came (RabbitMQ: a memory or disk alarm)."""

    retryable = True


class NotConnectedError(NotDeliveredError):
    """There was no connection at the deadline, or `Broker` gave up connecting before. `Broker` gives up after a
    permanent error, after `retry_count` failed attempts, and when the event loop ends. A `SyncBroker` raises this
    error, too, if its thread cannot start.

    `__cause__` is the last `ConnectError`, if there was such an error. Then `retryable` has the same value as in the
    cause. For example, the value is False if the password is wrong.
    """

    retryable = True


class BrokerClosedError(NotDeliveredError):
    """The `Broker` was closed before the message was handed over to the client library."""


class WrongLoopError(NotDeliveredError):
    """The `Broker` belongs to another event loop that is not closed, or to another process, or no asyncio event loop is
    running. Or `SyncBroker.send` was called in the thread of that `SyncBroker`, for example by an observer."""


class DeliveryUnknownError(DeliveryError):
    """The message was handed over, and nothing proves whether the broker has it. The message may be in the broker, or
    may not."""


class DeliveryTimeoutError(DeliveryUnknownError, TimeoutError):
    """The message was handed over, but the broker did not confirm it before the deadline."""


class ConnectionLostError(DeliveryUnknownError):
    """The connection was lost after the message was handed over and before the broker confirmed it."""


class NackedError(DeliveryUnknownError):
    """The broker answered with a nack: at least one queue refused the message, but other queues may hold it."""

    retryable = True


class ReturnedError(DeliveryUnknownError):
    """The broker returned the message, but the exchange may have kept the message all the same. Some exchange types of
    RabbitMQ's plugins do both."""


class ClosedWhilePendingError(DeliveryUnknownError):
    """The message was handed over, and the `Broker` was closed before the broker confirmed the message."""
