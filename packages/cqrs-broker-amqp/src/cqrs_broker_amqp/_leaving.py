"""Replaces a channel without answers by a fresh channel, while the connection works. `_stalled` says what happens to
the messages of the old channel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cqrs_brokers.exceptions import ConnectError, UnreachableError
from cqrs_brokers.tasks import Tasks

from ._channels import ConfirmChannel
from ._session import Session
from ._stalled import LOOK_AGAIN, StalledDestinations
from ._unanswered import Entry
from ._watch import PATIENCE

__all__ = ["Leaving"]


class Leaving:
    """Leaves channels without answers: messages are published on a fresh channel instead. While destinations are stuck,
    this class keeps a `StalledDestinations` object.

    Args:
        tasks: Owns the task that opens a fresh channel.
        current: Returns the channel on which messages are published.
        use: Called with the fresh channel. From then on messages are published on it.
        ready: Called with a list of messages that may be sent now. The owner sends them in the order of the list, and
            before the messages that wait in its own queue.
        expect: Called with the time by which `look` must be called again, in the event loop's time.
        lost: Called when the current channel is stuck, and the server allows no further channel.
    """

    def __init__(
        self,
        tasks: Tasks,
        *,
        current: Callable[[], ConfirmChannel | None],
        use: Callable[[ConfirmChannel], None],
        ready: Callable[[list[Entry]], None],
        expect: Callable[[float], None],
        lost: Callable[[ConnectError], None],
    ) -> None:
        self._tasks = tasks
        self._current, self._use, self._ready, self._expect, self._lost = current, use, ready, expect, lost
        self._session: Session | None = None
        self._opening: asyncio.Task[None] | None = None
        self._look_at: asyncio.Handle | None = None
        self.stalled: StalledDestinations | None = None
        """The stuck destinations. None: no destination is stuck."""

    @property
    def channels(self) -> list[ConfirmChannel]:
        """The channels that may still get answers, besides the current channel."""
        return self.stalled.channels if self.stalled is not None else []

    def start(self, session: Session) -> None:
        """Begins to use a new connection."""
        self._session, self._look_at = session, None  # a callback of an event loop that was closed never runs
        if self.stalled is not None:
            self.stalled.use(session)

    def stop(self) -> tuple[list[Entry], list[Entry]]:
        """Forgets all channels, because there is no connection. The owner ends the tasks.

        Returns:
            The messages that were handed over and have no answer, and the messages that waited.
        """
        self._session = self._opening = None
        if self.stalled is None:
            return [], []
        unanswered = [entry for channel in self.stalled.channels for entry in channel.take()]
        return unanswered, self.stalled.drop_channels()

    def leave_soon(self, channel: ConfirmChannel) -> None:
        """Starts to open a fresh channel, if `channel` is the current channel. This method is called for a channel
        without answers, and for a channel that may not send a message with a `spent` id.

        If RabbitMQ opens the fresh channel, the connection works. Then messages are published on the fresh channel,
        unless the old channel has had an answer meanwhile and has no `spent` ids. If the server allows no further
        channel, `lost` is called, but only if the server has sent data since the channel began to wait for an answer.
        """
        session = self._session
        if channel is not self._current() or session is None or (self._opening and not self._opening.done()):
            return
        if session.has_room:
            self._opening = self._tasks.spawn(self._leave(session, channel, channel.quiet_since))
        elif session.last_inbound > channel.quiet_since:
            self._lost(
                UnreachableError(
                    f"{session.where} has not answered on a channel for {PATIENCE:g} s and allows no further channel: "
                    "a destination takes nothing, and the connection had to be closed"
                )
            )

    async def _leave(self, session: Session, channel: ConfirmChannel, quiet_since: float) -> None:
        fresh = await session.open_another(self._tasks)
        if fresh is None or session is not self._session:
            return
        if channel is not self._current() or (channel.quiet_since != quiet_since and not channel.spent):
            fresh.close()  # there was an answer meanwhile, or another channel is in use
            return
        if self.stalled is None:
            self.stalled = StalledDestinations(self._tasks, ready=self._ready)
            self.stalled.use(session)
        self.stalled.leave(channel)
        self._use(fresh)
        self.look_soon()

    def look_soon(self) -> None:
        """Calls `look` in the next turn of the event loop. Several calls in one turn have the effect of one call."""
        if self._look_at is None:
            self._look_at = asyncio.get_running_loop().call_soon(self.look)

    def look(self) -> float | None:
        """Checks the stuck destinations. Returns after how many seconds `look` must be called again. None: no call is
        needed."""
        self._look_at = None
        stalled = self.stalled
        if stalled is None or self._session is None:
            return None
        now = asyncio.get_running_loop().time()
        stalled.look(now)
        if stalled.over:
            self.stalled = None
        if stalled.idle:
            return None
        self._expect(now + LOOK_AGAIN)
        return LOOK_AGAIN
