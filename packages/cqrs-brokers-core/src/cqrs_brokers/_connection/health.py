"""The result of `Broker.health()`, and the check that finds it."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from dataclasses import dataclass

from cqrs_brokers.exceptions import BrokerStateError, ConnectError

from .connection import Connection, State

__all__ = ["Health", "whats_wrong"]


@dataclass(frozen=True, slots=True)
class Health:
    """The state of a broker, for readiness probes.

    Attributes:
        ok: Whether the broker is connected, answers, and takes messages.
        reason: Why the broker is not ok. If it is ok, the reason is "ok", or "throttled: …" while the broker slows this
            client down (a quota).
        latency: How long the check took, in seconds.
        last_error: Why the connection was lost or could not be made. None: the broker is connected, or there was no
            error yet.
        blocked: Whether the broker is connected but takes no messages (RabbitMQ: a memory or disk alarm).
        in_flight: How many messages the driver holds.
    """

    ok: bool
    reason: str
    latency: float
    last_error: ConnectError | None
    blocked: bool
    in_flight: int


async def whats_wrong(connection: Connection, loop: AbstractEventLoop, timeout: float) -> str:
    """Returns why the broker is not healthy, or "" if it is healthy. The function connects an idle or failed broker,
    and pings a connected one. The timeout (in seconds) limits the ping."""
    try:
        if connection.state in (State.IDLE, State.FAILED):
            await connection.connect(loop)
        elif connection.state is not State.READY:
            return "connecting" if connection.last_error is None else connection.last_error.text
        elif connection.blocked_by is None:  # a blocked broker reads nothing, so it would not answer a ping
            await connection.ping(timeout)
    except (ConnectError, BrokerStateError) as error:
        reason = error.text
    else:
        reason = "" if connection.last_error is None else connection.last_error.text
    # If the broker is blocked, the block is the reason, even if the ping failed.
    return reason if connection.blocked_by is None else f"blocked: {connection.blocked_by}"
