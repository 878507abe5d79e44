"""Handles destinations that accept no messages while others do, for example a quorum queue without a majority.

RabbitMQ works on the messages of a channel one after the other. So if RabbitMQ cannot put a message into a queue, all
later messages of the channel wait. A channel that gives no answer is *left*: a fresh channel replaces it. The routing
keys of the old channel's messages without an answer are *suspects*. New messages for a suspect do not go to the fresh
channel. They are tried one at a time on another channel, the *probe*, until one is confirmed or returned. So a suspect
is cleared soon if its messages only waited behind the messages of another destination.

    no answer for 5 s ──▶ suspect ──a message is confirmed or returned──▶ cleared, its messages go on
                             └──no answer for 1 s──▶ silent: tried again when that message has its outcome

Messages with the same routing key and the same ordering key keep their order: while one of them has no outcome, the
next message waits.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable, Sequence

from cqrs_brokers.driver import Delivery
from cqrs_brokers.exceptions import ConnectionLostError
from cqrs_brokers.tasks import Tasks

from ._channels import ConfirmChannel
from ._session import Session
from ._unanswered import Entry

__all__ = ["LOOK_AGAIN", "StalledDestinations"]

LOOK_AGAIN = 0.25
"""The time between two checks of stalled destinations, in seconds."""
PROBE_PATIENCE = 1.0
"""If the message on the probe has no answer after this many seconds, its routing key counts as silent, and another
suspect is tried if messages for one wait."""
MOST_LEFT = 2
"""How many channels may be left and still have messages without an answer."""


class StalledDestinations:
    """The destinations that are stuck, and the messages that wait for them.

    Args:
        tasks: Owns the task that opens the probe.
        ready: Called with messages that may now be sent, in this order, before all messages that wait.
    """

    def __init__(self, tasks: Tasks, *, ready: Callable[[list[Entry]], None]) -> None:
        self._tasks = tasks
        self._ready = ready
        self._session: Session | None = None
        self._left: list[ConfirmChannel] = []
        self._probe: ConfirmChannel | None = None
        self._opening = False
        self._suspects: dict[str, bool] = {}
        """The suspects. The value says whether the routing key is *silent*: a message that was alone on its channel had
        no answer."""
        self._held: collections.deque[Entry] = collections.deque()
        self._busy: set[tuple[str, str]] = set()
        """The pairs of routing key and ordering key for which a message waits or has no outcome."""

    @property
    def channels(self) -> list[ConfirmChannel]:
        """The channels that were left, and the probe."""
        return [*self._left, *((self._probe,) if self._probe is not None else ())]

    @property
    def over(self) -> bool:
        """Whether nothing is stuck any more."""
        return self.idle and not self._suspects

    def silent(self, topic: str) -> bool | None:
        """Whether this suspect is silent. None: this routing key is no suspect."""
        return self._suspects.get(topic)

    @property
    def idle(self) -> bool:
        """Whether no message waits and no channel must be checked. Even then there may be suspects."""
        return not (self._held or self._left or self._opening or self._probe is not None)

    def use(self, session: Session) -> None:
        """Tries suspects on this connection from now on."""
        self._session = session

    def leave(self, channel: ConfirmChannel) -> None:
        """Adds a channel without answers to the channels that were left. The routing keys of its messages without an
        outcome become suspects. These messages may still get answers."""
        channel.watched = True
        self._left.append(channel)
        for delivery, *_ in channel.entries():
            if not delivery.done:
                self._suspects.setdefault(delivery.topic, channel.alone)
        if len(self._left) > MOST_LEFT:
            self._give_up()
        self._busy |= self._unanswered_keys()

    def holds(self, entry: Entry) -> bool:
        """Lets a message wait if its routing key is a suspect, or if an earlier message with the same routing key and
        ordering key waits here or has no outcome. Returns whether the message waits."""
        topic, key = entry[0].topic, entry[4]
        if topic not in self._suspects and (key is None or (topic, key) not in self._busy):
            return False
        self._held.append(entry)
        if key is not None:
            self._busy.add((topic, key))
        return True

    def answered(self, deliveries: Sequence[Delivery]) -> None:
        """Called when RabbitMQ has confirmed or returned these messages. So their routing keys are no suspects any
        more."""
        for delivery in deliveries:
            self._suspects.pop(delivery.topic, None)

    def forget(self, channel: ConfirmChannel) -> None:
        """Forgets a channel that RabbitMQ closed."""
        if channel is self._probe:
            self._probe = None
        elif channel in self._left:
            self._left.remove(channel)

    def drop_channels(self) -> list[Entry]:
        """Forgets all channels, because the connection is gone. Returns the messages that waited. Only silent
        routing keys stay suspects."""
        held, self._held = list(self._held), collections.deque()
        self._left.clear()
        self._session, self._probe, self._opening = None, None, False
        self._busy.clear()
        self._suspects = {topic: True for topic, silent in self._suspects.items() if silent}
        return held

    def take(self, topic: str) -> list[Entry]:
        """Takes out and returns the messages that wait for this routing key."""
        taken = [entry for entry in self._held if entry[0].topic == topic]
        self._held = collections.deque(entry for entry in self._held if entry[0].topic != topic)
        return taken

    def drop(self, over: Callable[[Entry], bool]) -> None:
        """Drops the waiting messages for which `over` is true."""
        self._held = collections.deque(entry for entry in self._held if not over(entry))

    def look(self, now: float) -> None:
        """Closes left channels on which every message has its outcome, gives the messages that need not wait any more
        to `ready`, and tries the next message for a suspect. `Leaving` calls this method each `LOOK_AGAIN` seconds
        while `idle` is False, and after answers."""
        for channel in list(self._left):
            if all(entry[0].done for entry in channel.entries()):
                self._left.remove(channel)
                _close(channel)
        self._look_at_probe(now)
        held, self._held = self._held, collections.deque()
        self._busy = self._unanswered_keys()
        free: list[Entry] = []
        for entry in held:
            if entry[0].done:
                entry[0].release()
            elif not self.holds(entry):
                free.append(entry)
        if free:
            self._ready(free)
        self._try_next(now)

    # -- one suspect at a time ----------------------------------------------------------------------------------------

    def _look_at_probe(self, now: float) -> None:
        probe = self._probe
        if probe is None or not probe.in_flight:
            return
        waiting = [entry[0] for entry in probe.entries() if not entry[0].done]
        if not waiting:  # the deadline of its message has passed
            self._probe = None
            _close(probe)
        elif now - probe.quiet_since >= PROBE_PATIENCE:
            self._suspects[waiting[0].topic] = True
            if self._next(silent=False) is not None:  # a message for another suspect waits to be tried
                self._left.append(probe)
                self._probe = None
                if len(self._left) > MOST_LEFT:
                    self._give_up()

    def _try_next(self, now: float) -> None:
        probe = self._probe
        if self._opening or (probe is not None and probe.in_flight):
            return
        entry = self._next(silent=False) or self._next(silent=True)
        if probe is not None and (entry is None or entry[1] in probe.spent):
            self._probe = None
            _close(probe)
            probe = None
        if entry is None:
            return
        if probe is None and self._session is not None:
            self._opening = True
            self._tasks.spawn(self._open_probe(self._session))
        elif probe is not None and probe.open:
            self._held.remove(entry)
            if entry[0].handed_over():
                probe.send((entry,), now)

    async def _open_probe(self, session: Session) -> None:
        probe = await session.open_another(self._tasks)
        if session is self._session:
            self._probe, self._opening = probe, False
            if probe is not None:
                probe.watched = True
                self._try_next(asyncio.get_running_loop().time())

    def _next(self, *, silent: bool) -> Entry | None:
        """The next message to try for a suspect, or None. A silent suspect is tried only when all messages that were
        sent for it have their outcomes."""
        unanswered = {entry[0].topic for channel in self.channels for entry in channel.entries() if not entry[0].done}
        keys = self._unanswered_keys()
        for entry in self._held:
            delivery, key = entry[0], entry[4]
            if delivery.done or self._suspects.get(delivery.topic) is not silent:
                continue
            if key is not None and (delivery.topic, key) in keys:
                continue
            if not silent or delivery.topic not in unanswered:
                return entry
        return None

    def _unanswered_keys(self) -> set[tuple[str, str]]:
        return {
            (delivery.topic, key)
            for channel in self.channels
            for delivery, _, _, _, key, _ in channel.entries()
            if key is not None and not delivery.done
        }

    def _give_up(self) -> None:
        """Called when too many channels were left. Closes the left channel with the fewest messages without an
        answer."""
        channel = min(self._left, key=lambda one: len(one.in_flight))
        self._left.remove(channel)
        _close(channel)


def _close(channel: ConfirmChannel) -> None:
    """Closes a channel. Its messages without an answer fail with an unknown outcome, unless they are over."""
    for entry in channel.take():
        delivery = entry[0]
        if delivery.done:
            delivery.release()
        else:
            delivery.fail(
                ConnectionLostError(
                    f"RabbitMQ has not answered for routing key {delivery.topic!r}, or for another one that was sent "
                    "before it, and its channel was closed"
                )
            )
    channel.close()
