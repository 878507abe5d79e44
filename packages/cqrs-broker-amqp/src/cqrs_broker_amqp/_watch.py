"""Finds a connection that is dead although it is not closed, and a channel without answers on a connection that
works."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cqrs_brokers.exceptions import ConnectError, UnreachableError

from ._channels import ConfirmChannel
from ._session import Session

__all__ = ["ConnectionWatch"]

PATIENCE = 5.0
"""If a channel waits for an answer for this many seconds, the channel counts as stuck."""
SILENCE = 2.0
"""When a channel has waited for an answer for this many seconds, and the deadline of its oldest message has passed, the
connection is checked. The connection counts as dead if the server has sent nothing since the wait began, or nothing for
a heartbeat and one second."""
FIRST_LOOK = 0.05
"""We wait this many seconds when a timer is late, and before the first send after a silence. Meanwhile the event loop
reads the data that have come in."""
STANDSTILL = 0.5
"""If a timer is late by more than this many seconds, the event loop stood still."""


class ConnectionWatch:
    """One timer for all messages in flight on a connection.

    Args:
        heartbeat: The connection's heartbeat, in seconds.
        channels: The channels that may have something in flight.
        stuck: Called with a channel that has waited for an answer for `PATIENCE` seconds, each time the timer fires.
            While there is such a channel, the timer fires at least once a second.
        look: Called when the channels have been checked. Returns the seconds after which `look` must be called again,
            or None.
        dead: Called when the connection counts as dead.
    """

    def __init__(
        self,
        heartbeat: float,
        *,
        channels: Callable[[], list[ConfirmChannel]],
        stuck: Callable[[ConfirmChannel], None],
        look: Callable[[], float | None],
        dead: Callable[[ConnectError], None],
    ) -> None:
        self._heartbeat = heartbeat
        self._channels, self._stuck, self._look, self._dead = channels, stuck, look, dead
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: Session | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._looked_at = 0.0
        """When `wait_before_writing` began to hold messages back, so that the loop reads the socket first (event loop's
        time)."""
        self.paused = False
        """Whether RabbitMQ has an alarm. During an alarm RabbitMQ answers no messages."""

    def start(self, session: Session) -> None:
        """Watches a new connection."""
        self._loop, self._session = asyncio.get_running_loop(), session

    def stop(self) -> None:
        """Stops watching, because there is no connection."""
        self._session, self.paused = None, False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def expect(self, deadline: float) -> None:
        """Starts the timer, if it does not run already. The timer fires at `deadline` (in the event loop's time), or
        after `PATIENCE` seconds if that is earlier."""
        if self._timer is None and self._loop is not None:
            self._at(min(deadline, self._loop.time() + PATIENCE))

    def wait_before_writing(self, now: float) -> float | None:
        """Says how long a message must wait before it is written.

        RabbitMQ closes a connection whose client missed two heartbeats, for example because the event loop stood still.
        So if nothing came in for longer than a heartbeat, the event loop must read the socket first. The socket may
        contain the end of the connection. If nothing has come in for two heartbeats and one second even then, `dead` is
        called.

        Returns:
            The seconds after which to ask again. None: the message may be written now.
        """
        session = self._session
        if session is None or now - session.last_inbound <= self._heartbeat:
            return None
        if self._looked_at < session.last_inbound:
            self._looked_at = now
        if now - self._looked_at < FIRST_LOOK / 2:
            return FIRST_LOOK
        if now - session.last_inbound > 2 * self._heartbeat + 1:
            self._dead(_half_open(session, now))
            return FIRST_LOOK
        return None

    def _at(self, when: float) -> None:
        assert self._loop is not None
        self._timer = self._loop.call_at(when, self._watch, when)

    def _watch(self, due: float) -> None:
        self._timer = None
        session, loop = self._session, self._loop
        if session is None or loop is None:
            return
        now = loop.time()
        if now - due > STANDSTILL:
            self._at(now + FIRST_LOOK)
            return
        again: list[float] = []
        for channel in self._channels():
            oldest = channel.oldest()
            if oldest is None:
                continue
            if self.paused:
                again.append(now + 1.0)
                continue
            silent, stuck = max(oldest.deadline, channel.quiet_since + SILENCE), channel.quiet_since + PATIENCE
            if now >= silent:
                heard = session.last_inbound
                if heard < channel.quiet_since or now - heard > self._heartbeat + 1:
                    self._dead(_half_open(session, now))
                    return
            if now >= stuck:
                self._stuck(channel)
            again += [when if when > now else now + 1.0 for when in (silent, stuck)]
        soon = self._look()
        if soon is not None:
            again.append(now + soon)
        if again and self._timer is None and self._session is not None:
            self._at(min(again))


def _half_open(session: Session, now: float) -> UnreachableError:
    silence = now - session.last_inbound
    return UnreachableError(f"{session.where} has been silent for {silence:.0f} s, so the connection counts as dead")
