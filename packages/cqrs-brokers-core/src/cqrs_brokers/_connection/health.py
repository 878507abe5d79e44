"""What `Broker.health()` answers."""

from __future__ import annotations

from dataclasses import dataclass

from cqrs_brokers.exceptions import ConnectError

__all__ = ["Health"]


@dataclass(frozen=True, slots=True)
class Health:
    """How a broker is, for readiness probes.

    Attributes:
        ok: Connected, answering, and taking messages.
        reason: Why it is not ok; else "ok", or "throttled: …" while the broker slows this client down (a quota).
        latency: How long finding out took, in seconds.
        last_error: Why the connection was lost or could not be made; None while connected.
        blocked: Connected, but the broker takes no messages (RabbitMQ: a memory or disk alarm).
        in_flight: How many messages the driver holds.
    """

    ok: bool
    reason: str
    latency: float
    last_error: ConnectError | None
    blocked: bool
    in_flight: int
