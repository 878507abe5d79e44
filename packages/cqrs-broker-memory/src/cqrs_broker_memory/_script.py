"""The faults of a `memory://` broker. A *script* counts messages and calls from its beginning, and says which of them
fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from cqrs_brokers import exceptions
from cqrs_brokers.exceptions import DeliveryError, DeliveryUnknownError, RejectedError, UnreachableError

__all__ = ["ERRORS", "ErrorName", "Faults", "Script"]

ErrorName = Literal[
    "RejectedError",
    "UnroutableError",
    "DestinationNotFoundError",
    "PublishForbiddenError",
    "MessageTooLargeError",
    "BackpressureError",
    "BrokerBlockedError",
    "DeliveryUnknownError",
    "DeliveryTimeoutError",
    "ConnectionLostError",
    "NackedError",
]
ERRORS: Final[dict[str, type[DeliveryError]]] = {name: getattr(exceptions, name) for name in get_args(ErrorName)}


@dataclass(frozen=True, kw_only=True)
class Faults:
    """The faults of a script, for `Published.play`. All other messages and calls succeed.

    Attributes:
        fail: The first `fail` messages fail.
        fail_at: The messages with these numbers fail too. 1 is the first message.
        error: The error of the messages that `fail` and `fail_at` select. If the error is a kind of
            `DeliveryUnknownError`, the message is kept.
        unknown: This many messages after the first `fail` messages are kept but not confirmed.
        fail_connect: The first `fail_connect` attempts to connect fail.
        fail_health: In the first `fail_health` calls of `health()` the broker does not answer.
        latency: Seconds from handing a message over to its outcome.
    """

    fail: int = 0
    fail_at: Sequence[int] = ()
    error: ErrorName = "RejectedError"
    unknown: int = 0
    fail_connect: int = 0
    fail_health: int = 0
    latency: float = 0.0


class Script:
    """A script that is being played."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self._calls = self._connects = self._pings = 0

    def next_send(self) -> DeliveryError | None:
        """Counts a message, and returns the error with which the message ends. None: the message is confirmed."""
        faults, call = self.faults, self._calls + 1
        self._calls = call
        if call <= faults.fail or call in faults.fail_at:
            error = ERRORS[faults.error]
            verb = "rejected" if error is RejectedError else f"failed with {faults.error}"
            how = f"fail={faults.fail}" if call <= faults.fail else f"fail_at={','.join(map(str, faults.fail_at))}"
            return error(f"{verb} by the script: message {call} of {how}")
        if call <= faults.fail + faults.unknown:
            text = f"not confirmed by the script: message {call - faults.fail} of unknown={faults.unknown}"
            return DeliveryUnknownError(text)
        return None

    def connect(self) -> None:
        """Counts an attempt to connect. Raises an `UnreachableError` if the script says so."""
        self._connects += 1
        if self._connects <= self.faults.fail_connect:
            text = f"unreachable by the script: attempt {self._connects} of fail_connect={self.faults.fail_connect}"
            raise UnreachableError(text)

    def ping(self) -> None:
        """Counts a call of `health()`. Raises an `UnreachableError` if the script says so."""
        self._pings += 1
        if self._pings <= self.faults.fail_health:
            raise UnreachableError(f"silent by the script: call {self._pings} of fail_health={self.faults.fail_health}")
