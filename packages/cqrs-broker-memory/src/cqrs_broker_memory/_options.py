"""The options of `memory://`: the size of the broker, and the faults that it plays."""

from __future__ import annotations

from dataclasses import fields
from typing import ClassVar

from cqrs_brokers.options import BrokerOptions, Duration, option

from ._script import ErrorName, Faults

__all__ = ["MemoryOptions"]

_MOST = 10**6


class MemoryOptions(BrokerOptions):
    """The options that can be set in `memory://name?…`, besides the options of every broker.

    Each broker plays the script of its config string once, in the order of the calls. The first `fail` messages and the
    messages in `fail_at` fail. The next `unknown` messages after the first `fail` messages have an unknown outcome,
    except those in `fail_at`. All other messages are confirmed, until the broker is full. `published(name).play(...)`
    replaces the script.
    """

    url_parts: ClassVar[frozenset[str]] = frozenset({"hosts"})

    fail: int = option(0, ge=0, le=_MOST, unit="messages", description="How many messages fail first.")
    unknown: int = option(
        0,
        ge=0,
        le=_MOST,
        unit="messages",
        description="How many messages after them are kept but not confirmed: the sender gets an unknown outcome.",
    )
    fail_at: list[int] = option([], description="Which other messages fail, such as `3,7`; 1 is the first.")
    error: ErrorName = option(
        "RejectedError",
        description="The error of the messages that `fail` and `fail_at` select. If it says that the outcome is "
        "unknown, the message is kept, else not.",
    )
    fail_connect: int = option(
        0, ge=0, le=_MOST, unit="attempts", description="How many attempts to connect fail first."
    )
    fail_health: int = option(
        0, ge=0, le=_MOST, unit="calls", description="How many calls of `health()` find a broker that does not answer."
    )
    latency: Duration = option(
        0.0, ge=0, le=86_400.0, description="Time from handing a message over to its outcome, each message by itself."
    )
    capacity: int = option(
        10_000,
        ge=1,
        le=_MOST,
        unit="messages",
        description="How many messages are kept. A full broker rejects further ones.",
    )

    @property
    def faults(self) -> Faults:
        """The faults of the script."""
        return Faults(**{each.name: getattr(self, each.name) for each in fields(Faults)})
