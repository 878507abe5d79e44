"""Every error of the library, as one tree.

    BrokerError                          picklable, without secrets; .retryable
    ├─ ConfigError (ValueError)          the config string or an option is wrong; nothing was opened
    ├─ PluginError
    │  ├─ PluginNotFoundError            no installed distribution has the scheme
    │  ├─ PluginLoadError                installed, but broken
    │  ├─ PluginContractError            loaded, but it does not keep the contract
    │  └─ AmbiguousPluginError           claimed by more than one distribution
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
       │  ├─ RejectedError               retryable; the broker refused it as a whole
       │  ├─ BackpressureError           retryable; not taken until the deadline: no room, or no leader
       │  ├─ BrokerBlockedError          retryable; the broker took no messages until the deadline
       │  ├─ NotConnectedError           no connection until the deadline; the cause is a ConnectError
       │  ├─ BrokerClosedError
       │  └─ WrongLoopError
       └─ DeliveryUnknownError           the message may be in the broker, or may not
          ├─ DeliveryTimeoutError (TimeoutError)
          ├─ ConnectionLostError
          ├─ NackedError                 retryable; one queue refused it, others may hold it
          ├─ ReturnedError               the broker returned it, but this exchange may keep it, too
          └─ ClosedWhilePendingError

`retryable` says whether the same call may succeed later if nobody changes anything. A send ends in a `Receipt`, a
`NotDeliveredError` or a `DeliveryUnknownError`; nothing else. `connect()`, `flush()`, `close()` and `async with` never
raise a `DeliveryError`. They raise only `ConnectError`, `FlushTimeoutError` and `BrokerStateError` of this tree.
`health()` raises nothing.

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
    """The transport is not secure. Either credentials go without TLS to a host that is not loopback, or the server's
    certificate is not verified."""


class BrokerError(Exception):
    """Base of every error of this library.

    Args:
        text: What happened, and what to do about it.
        broker: The broker's redacted URL, where there is one; `Broker` fills it in when a driver leaves it empty.
    """

    retryable: bool = False
    """Whether the same call may succeed later."""

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
        problems: Every problem found, a sentence each; none quotes a secret.
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
    """No installed distribution provides the scheme."""


class PluginLoadError(PluginError):
    """The plugin is installed but its metadata, its import or its requirement on core is broken."""


class PluginContractError(PluginError):
    """The plugin was loaded but does not do what the contract says."""


class AmbiguousPluginError(PluginError):
    """More than one installed distribution claims the scheme; none of them was imported."""


class BrokerStateError(BrokerError):
    """The `Broker` cannot be used here: it is closed, or it belongs to another event loop or to another process.

    Raised by `connect()`, `async with`, `flush()` and `close()`. A send gets `BrokerClosedError` or `WrongLoopError`.
    """


class FlushTimeoutError(BrokerError, TimeoutError):
    """`flush()` ran out of time. The sends continue, and each still gets its own outcome."""


class ConnectError(BrokerError):
    """A connection to the broker cannot be made or was lost.

    Args:
        text: What happened.
        broker: See `BrokerError`.
        remedy: What to do about it. The error's `text` ends with it, after a colon. "" when the text itself says it.
    """

    permanent: ClassVar[bool] = False
    """Whether trying again is useless until a person changes something."""

    def __init__(self, text: str = "", *, broker: str = "", remedy: str = "") -> None:
        super().__init__(f"{text}: {remedy}" if remedy else text, broker=broker)
        self.remedy = remedy


class AuthenticationError(ConnectError):
    """The broker does not accept the credentials or the mechanism."""

    permanent = True


class AuthorizationError(ConnectError):
    """The credentials are valid, but they do not allow the use of this virtual host or cluster."""

    permanent = True


class TLSError(ConnectError):
    """The TLS handshake failed: the certificate or the host name is wrong, or one side does not use TLS."""

    permanent = True


class UnreachableError(ConnectError):
    """No node of the broker can be reached, or none answers."""

    retryable = True


class ProtocolError(ConnectError):
    """The peer is reached but does not speak the protocol that is expected of it."""

    permanent = True


class TopologyError(ConnectError):
    """An exchange, queue or topic that must exist in the broker is missing, or differs from its declaration."""

    permanent = True


class DeliveryError(BrokerError):
    """A message was not delivered, or it is not known whether it was.

    A driver gives only the text; `Broker` fills in the message and the broker.

    Args:
        text: What happened and what to do.
        message_id: The message's id.
        topic: The message's topic.
        broker: The broker's redacted URL.
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
        """This error, with the details of a message: the same object if the error names no other message yet, else a
        copy with the same cause.

        A driver may fail many messages with one error object, but each caller must get an object of its own.
        """
        error = self
        if self.message_id is not None and self.message_id is not message_id:
            error = self._with_state(self.__dict__)
            error.__cause__ = self.__cause__
        error.message_id, error.topic, error.broker = message_id, topic, error.broker or broker
        return error


class NotDeliveredError(DeliveryError):
    """The message is not in the broker, and this call will not put it there."""


class InvalidMessageError(NotDeliveredError):
    """The message cannot be sent as it is: its topic, id, key or a header is wrong, or its payload has no encoding."""

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
        """The error for a message whose own code raised: a serializer, `ordering_key()`, an encoder.

        Args:
            what: The code that raised. It is the subject of the text's sentence.
            error: What that code raised. It becomes the cause, unless its text quotes the payload or may quote it.
            content: What must not be quoted: the payload, or whatever holds it.
            message_id: The message's id, if known.
            topic: The message's topic, if known.
            broker: The broker's redacted URL, if known.
        """
        refused = cls(f"{what} raised {type(error).__name__}", message_id=message_id, topic=topic, broker=broker)
        refused.__cause__ = safe_cause(error, content)
        return refused


def safe_cause(error: BaseException | None, content: object = None) -> BaseException | None:
    """The error. None when the error, or one of its causes, may quote the content.

    It is None for every error of pydantic and for every Unicode error. For any other error it is None if the text of
    the error contains a part of the content.
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
"""The length of the shortest text that counts as a quotation. Shorter ones occur in any sentence by chance."""
_MOST = 10_000
_LONG_WORD = r"\w{8,}"


def _texts(content: object) -> set[str]:
    """The texts and numbers in a payload, or in an object that holds one."""
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
        elif isinstance(value, int | float):
            found.add(str(value))
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
    """The message is larger than `max_message_bytes`, or than the broker accepts."""


class UnroutableError(NotDeliveredError):
    """The broker took the message, found no queue for it and returned it."""


class DestinationNotFoundError(NotDeliveredError):
    """The topic or the exchange does not exist."""


class PublishForbiddenError(NotDeliveredError):
    """The credentials do not allow publishing to this destination."""


class RejectedError(NotDeliveredError):
    """The broker refused the message as a whole."""

    retryable = True


class BackpressureError(NotDeliveredError):
    """The in-flight window had no room until the deadline, or the broker took nothing for this topic or partition."""

    retryable = True


class BrokerBlockedError(NotDeliveredError):
    """The broker was connected but accepted no messages until the deadline (RabbitMQ: a memory or disk alarm)."""

    retryable = True


class NotConnectedError(NotDeliveredError):
    """There was no connection until the deadline, or connecting cannot succeed. `__cause__` is the last `ConnectError`,
    if there was one.

    `retryable` has the value of the cause: False for a wrong password, for example.
    """

    retryable = True


class BrokerClosedError(NotDeliveredError):
    """The `Broker` was closed before the message was handed to the client."""


class WrongLoopError(NotDeliveredError):
    """The `Broker` belongs to another event loop that is not closed, or to another process; or no asyncio loop runs."""


class DeliveryUnknownError(DeliveryError):
    """The message may be in the broker, or may not: it was handed over and no proof came back."""


class DeliveryTimeoutError(DeliveryUnknownError, TimeoutError):
    """The message was handed over and the broker did not confirm it before the deadline."""


class ConnectionLostError(DeliveryUnknownError):
    """The connection was lost between handing over and the confirm."""


class NackedError(DeliveryUnknownError):
    """The broker answered with a nack: at least one queue refused the message, others may hold it."""

    retryable = True


class ReturnedError(DeliveryUnknownError):
    """The broker returned the message. But an exchange of this type may also keep a message that it returns."""


class ClosedWhilePendingError(DeliveryUnknownError):
    """The `Broker` was closed before the message was confirmed."""
