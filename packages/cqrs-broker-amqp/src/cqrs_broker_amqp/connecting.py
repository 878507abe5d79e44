"""One pass over the hosts: from nothing to an open confirm channel on one of them.

Not here: when to try again (`Broker`), what is in flight (`driver`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from aiormq.exceptions import ConnectionClosed
from yarl import URL

from cqrs_brokers.driver import Delivery
from cqrs_brokers.exceptions import ConnectError, TLSError, TopologyError, UnreachableError

from .errors import connect_error, hung_up, telling
from .internals import Connection, Sockets
from .lanes import Lane, make_lane
from .rendering import CHANNEL
from .settings import AMQPSettings
from .topology import declare_exchange

__all__ = ["Owner", "Session", "connect"]

SECOND_TRY = 0.3
"""Seconds between two tries at a host that hangs up, so that a proxy's reset is not taken for a verdict."""
_FORCED = 0.3
"""How long aiormq's tasks get to end after their socket was dropped, in seconds."""


class Owner(Protocol):
    """Who is told what happens in a session: the driver."""

    def session_ended(self, session: Session, error: BaseException | None) -> None:
        """The connection is gone; everything of it has been dropped."""

    def channel_closed(self, lane: Lane, error: BaseException | None) -> None:
        """The channel that is published on is closed; the connection may live."""

    def blocked(self, reason: str) -> None:
        """RabbitMQ takes no messages for now."""

    def unblocked(self) -> None:
        """It takes messages again."""

    def failed(self, delivery: Delivery, error: BaseException) -> None:
        """A message was returned or nacked."""

    def resolved(self, lane: Lane) -> None:
        """A message has its answer; asked for with `lane.attentive`."""

    def drained(self, lane: Lane) -> None:
        """What was sent last is with the operating system."""


def _looked_at(task: asyncio.Task[None]) -> None:
    """For a task whose error changes nothing: asyncio would complain that nobody looked at it."""
    if not task.cancelled():
        task.exception()


class Session:
    """A connection to one host, and the channel that messages are published on.

    Args:
        settings: How to connect.
        host: Where to.
        owner: Is told what happens.
    """

    def __init__(self, settings: AMQPSettings, host: tuple[str, int], owner: Owner) -> None:
        self.where = f"{host[0]}:{host[1]}"
        self.lane: Lane | None = None
        self.over = False
        """Nothing will be sent or received any more."""
        self._settings = settings
        self._owner = owner
        self._sockets = Sockets(*host, settings.tls)
        self._ended_by: BaseException | None = None
        self.connection = Connection(_url(settings, host), vhost=settings.vhost, sockets=self._sockets, watcher=self)

    @property
    def last_inbound(self) -> float:
        """When the last byte came, in the loop's time."""
        return self._sockets.last_inbound

    async def open(self) -> None:
        """Logs in, applies `declare` to the exchange and opens the channel.

        Raises:
            ConnectError: Why that failed.
        """
        await self.connection.connect()
        await declare_exchange(self.connection, self._settings.options)
        await self.open_lane()

    async def open_lane(self) -> Lane:
        """Opens the channel to publish on, the first time or again."""
        channel = await self.connection.channel(CHANNEL, publisher_confirms=True, on_return_raises=True)
        owner = self._owner
        lane = self.lane = make_lane(
            self.connection, channel, failed=owner.failed, resolved=owner.resolved, drained=owner.drained
        )

        def closed(closing: asyncio.Future[Any]) -> None:
            error = asyncio.CancelledError() if closing.cancelled() else closing.exception()
            if not self.over:
                owner.channel_closed(lane, error)

        channel.closing.add_done_callback(closed)
        return lane

    async def run(self, work: Coroutine[Any, Any, None], timeout: float) -> None:
        """Does something over the connection, within the timeout (in seconds). Drops the session when it fails.

        Raises:
            ConnectError: It failed.
        """
        task = asyncio.get_running_loop().create_task(work)
        failed = True
        try:
            await asyncio.wait((task,), timeout=timeout)
            failed = not task.done() or task.cancelled() or task.exception() is not None
        finally:
            if failed:
                self.abort()
                task.cancel()
                await self.gone(task)
        if not failed:
            return
        if not task.done() or (task.cancelled() and self._ended_by is None):
            raise UnreachableError(f"{self.where} does not answer within {timeout:.3g} s: check address and network")
        error = self._ended_by if task.cancelled() else task.exception()
        assert error is not None
        if isinstance(error, ConnectError):
            raise error
        raise connect_error(error, self.where)

    # -- what the connection says (internals.Watcher) -----------------------------------------------------------------

    def ended(self, error: BaseException | None) -> None:
        """Nothing more comes in. What has come in is looked at first: there may be receipts among it."""
        self._ended_by = error or ConnectionClosed(0, "no reason given")
        self._look_at_rest(20)

    def _look_at_rest(self, turns: int) -> None:
        loop = asyncio.get_running_loop()
        if turns and self.lane is not None and self.lane.has_unread:
            loop.call_soon(self._look_at_rest, turns - 1)
        else:
            loop.call_soon(self._end)  # aiormq resolves what one ack confirms in one more turn

    def _end(self) -> None:
        if not self.over:
            self.abort()
            self._owner.session_ended(self, self._ended_by)

    def blocked(self, reason: str) -> None:
        """See `internals.Watcher`."""
        if not self.over:
            self._owner.blocked(reason)

    def unblocked(self) -> None:
        """See `internals.Watcher`."""
        if not self.over:
            self._owner.unblocked()

    # -- the end ------------------------------------------------------------------------------------------------------

    async def close(self, grace: float) -> None:
        """Says goodbye for `grace` seconds, then drops the socket; takes at most 0.3 s more."""
        if self.over:
            await self.gone()
            return
        self.over = True
        self.connection.forget_watcher()
        closing: asyncio.Task[None] | None = None
        try:
            if grace > 0 and self.connection.is_opened:
                goodbye = ConnectionClosed(200, "closed by us")
                closing = asyncio.get_running_loop().create_task(self.connection.close(goodbye))
                closing.add_done_callback(_looked_at)
                await asyncio.wait((closing,), timeout=grace)
        finally:
            self.abort()
            await self.gone(closing)

    def abort(self) -> None:
        """Drops the socket and aiormq's tasks at once; also when the event loop is closed."""
        self.over = True
        self.connection.forget_watcher()
        self._sockets.abort()
        self.connection.drop_tasks()

    async def gone(self, *own: asyncio.Task[Any] | None) -> None:
        """Waits, for a moment, until aiormq's tasks have ended after `abort()`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + _FORCED
        while loop.time() < end:
            tasks = [task for task in (*own, *self.connection.tasks) if task is not None and not task.done()]
            if not tasks:
                break
            await asyncio.wait(tasks, timeout=max(0.0, end - loop.time()))
        for task in own:
            if task is not None and not task.done():
                task.cancel()
        await asyncio.sleep(0)  # the transport calls connection_lost in the loop's next turn


async def connect(settings: AMQPSettings, first: int, owner: Owner, *, trusted: bool) -> tuple[Session, int]:
    """Tries the hosts in turn, starting with number `first`; each gets its share of `connect_timeout`.

    With TLS 1.3 a server learns only after the handshake that the client certificate is missing, and its reset may
    overtake the alert that says so. A node that restarts resets too: so it counts only twice in a row, and only with
    settings that have never worked (`trusted` False).

    Returns:
        The session, and the number of its host.

    Raises:
        ConnectError: No host could be connected: the most telling reason.
    """
    loop = asyncio.get_running_loop()
    hosts = settings.hosts
    end = loop.time() + settings.options.connect_timeout
    errors: list[ConnectError] = []
    for turn in range(len(hosts)):
        number = (first + turn) % len(hosts)
        share = max(0.1, (end - loop.time()) / (len(hosts) - turn))
        for once_more in (settings.tls is not None and not trusted, False):
            session = Session(settings, hosts[number], owner)
            try:
                await session.run(session.open(), share)
            except TopologyError:
                raise  # every node of a cluster says the same
            except ConnectError as error:
                if once_more and hung_up(error):
                    await asyncio.sleep(SECOND_TRY)
                    continue
                errors.append(_twice(error, session) if settings.tls and not trusted and hung_up(error) else error)
                break
            else:
                return session, number
    raise telling(errors)


def _twice(error: ConnectError, session: Session) -> TLSError:
    found = TLSError(
        f"{session.where} hangs up during or after the TLS handshake: does it ask for a client certificate, and is "
        "this its TLS port?"
    )
    found.__cause__ = error.__cause__
    return found


def _url(settings: AMQPSettings, host: tuple[str, int]) -> URL:
    """What aiormq wants to know, in the form in which it wants it."""
    options = settings.options
    return URL.build(
        scheme="amqps" if settings.tls else "amqp",
        user=settings.username,
        password=settings.password.reveal(),
        host=host[0],
        port=host[1],
        path="/",
        query={"heartbeat": str(options.heartbeat), "name": options.connection_name},
    )
