"""The states of a connection, and the listener that is told when they change."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

from cqrs_brokers.exceptions import NotConnectedError

__all__ = ["ConnectionListener", "State"]


class State(enum.Enum):
    IDLE = "idle"
    CONNECTING = "connecting"
    READY = "connected"
    FAILED = "failed"
    CLOSED = "closed"


class ConnectionListener(NamedTuple):
    """Functions that the connection calls: to report its changes, and to ask whether it is needed.

    Attributes:
        opened: Called with True when the driver takes messages from now on, and with False when it takes none.
        failed: Connecting failed with a permanent error, or `retry_count` times in a row. Every message that was not
            handed over ends with this error.
        dropped: The event loop is ending without `close()`.
        changed: Tells the observers the new state and the reason.
        wake_after: Calls a handler of the driver, and then wakes the callers that got their outcomes in the handler.
        may_go_on: The driver says that destinations that took nothing may take messages now.
        is_needed: Whether any message has no outcome yet.
        has_confirmed: Whether the broker has confirmed a message since the last call.
    """

    opened: Callable[[bool], None]
    failed: Callable[[NotConnectedError], None]
    dropped: Callable[[], None]
    changed: Callable[[str, str], None]
    wake_after: Callable[..., None]
    may_go_on: Callable[[], None]
    is_needed: Callable[[], bool]
    has_confirmed: Callable[[], bool]
