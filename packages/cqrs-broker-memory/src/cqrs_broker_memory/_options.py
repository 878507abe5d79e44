"""The options of `memory://`: its size and the faults it plays."""

from __future__ import annotations

from typing import ClassVar

from cqrs_brokers.options import BrokerOptions, Duration, option

__all__ = ["MemoryOptions"]

_MOST = 10**6


class MemoryOptions(BrokerOptions):
    """What can be set in `memory://name?…`, besides what every broker has.

    The script is played once per opened broker, in the order of the calls: first `fail` messages, then `unknown`
    messages, then all is well.
    """

    url_parts: ClassVar[frozenset[str]] = frozenset({"hosts"})

    fail: int = option(
        0, ge=0, le=_MOST, unit="messages", description="So many messages are rejected first: not delivered, not kept."
    )
    unknown: int = option(
        0,
        ge=0,
        le=_MOST,
        unit="messages",
        description="So many messages after them are kept but not confirmed: their outcome is unknown to the sender.",
    )
    latency: Duration = option(
        0.0, ge=0, le=86_400.0, description="Time from handing a message over to its outcome, each message by itself."
    )
    capacity: int = option(
        10_000, ge=1, le=_MOST, unit="messages", description="How many are kept; a full broker rejects further ones."
    )
