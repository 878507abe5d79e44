"""One connection to one host, from opening the socket to closing it, and the channels on this connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from aiormq.exceptions import ConnectionClosed
from yarl import URL

from cqrs_brokers.dialing import Address
from cqrs_brokers.exceptions import (
    ConnectError,
    ProtocolError,
    TopologyError,
    UnreachableError,
)
from cqrs_brokers.tasks import Tasks, patient_timeout, retrieve_exception

from ._channels import ConfirmChannel
from ._client import Connection, Sockets
from ._errors import connect_error
from ._fallback import make_channel
from ._settings import AMQPSettings
from ._topology import declare_exchange

__all__ = ["Session", "SessionListener"]

T = TypeVar("T")

_FORCED = 0.3
"""After the socket was dropped, we wait at most this many seconds until aiormq's tasks have ended."""
_READ_TURNS = 20
"""When a connection has ended, aiormq gets at most this many turns of the event loop to handle the frames that came in
before the end."""


class SessionListener(Protocol):
    """The methods that a session calls when something happens to it."""

    def session_ended(self, session: Session, error: BaseException | None) -> None:
        """Called when the connection has ended, and the session was not closed or dropped before. The socket and
        aiormq's tasks have been dropped."""

    def channel_closed(self, channel: ConfirmChannel, error: BaseException | None) -> None:
        """Called when a channel for publishing was closed by the server or by us. The connection may still work."""

    def blocked(self, reason: str) -> None:
        """Called when RabbitMQ stops accepting messages."""

    def unblocked(self) -> None:
        """Called when RabbitMQ accepts messages again."""

    @property
    def callbacks(self) -> dict[str, Any]:
        """The functions that every `ConfirmChannel` calls, by the names of the arguments of `ConfirmChannel`."""


class Session:
    """A connection to one host, and the channels on it.

    Args:
        settings: How to connect.
        host: The name and the port to connect to.
        listener: Its methods are called when something happens to the session.
        channel_limit: How many channels this user may open. None: the number is not known.
        addresses: The addresses of the host that are left to try. None: the name is looked up.
    """

    def __init__(
        self,
        settings: AMQPSettings,
        host: tuple[str, int],
        listener: SessionListener,
        channel_limit: int | None,
        addresses: Sequence[Address] | None = None,
    ) -> None:
        self.where = f"{host[0]}:{host[1]}"
        self.over = False
        """Whether the session is closed, dropped or being closed. No message is sent on it any more."""
        self.largest_body: int | None = None
        """The size of the largest body that the server accepts. None: the server has not said it yet."""
        self._settings = settings
        self._host = host
        self._listener = listener
        self._limit = channel_limit
        self._channels: list[ConfirmChannel] = []
        self._step = ""
        self._sockets = Sockets(*host, settings.tls, addresses)
        self._ended_by: BaseException | None = None
        self.connection = Connection(_url(settings, host), vhost=settings.vhost, sockets=self._sockets, listener=self)

    @property
    def last_inbound(self) -> float:
        """See `Sockets.last_inbound`."""
        return self._sockets.last_inbound

    @property
    def _silent(self) -> bool:
        """Whether the server has not sent anything yet."""
        return not self._sockets.answers

    @property
    def channel_limit(self) -> int:
        """How many channels there may be on this connection."""
        most = self.connection.channel_max
        return most if self._limit is None else min(most, self._limit)

    @property
    def has_room(self) -> bool:
        """Whether one more channel may be opened."""
        return len(self.connection.channels) < self.channel_limit

    @property
    def other_addresses(self) -> list[Address]:
        """See `Sockets.other_addresses`."""
        return self._sockets.other_addresses

    # -- opening ------------------------------------------------------------------------------------------------------

    async def open(self, timeout: float) -> ConfirmChannel:
        """Connects, logs in, opens a channel and applies the option `declare` to the exchange.

        Args:
            timeout: The seconds that `run` allows. If the host has further addresses, the TLS handshake and the wait
                for the server's first bytes of AMQP together get only a share of this time.

        Raises:
            ConnectError: The server has no publisher confirms, allows too few channels or sends nothing, or the
                exchange cannot be declared or does not exist.
            Exception: Another exception of aiormq, asyncio or the operating system. `run` translates it.
        """
        await self._sockets.connect()
        share = timeout / (1 + len(self.other_addresses))
        limit = asyncio.timeout(None)
        looking = asyncio.get_running_loop().call_later(share, self._leave_if_silent, limit)
        try:
            async with limit:
                await self._sockets.start_tls()
                self._step = "logging in"
                await self.connection.connect()
        except TimeoutError:
            if not limit.expired():
                raise
            raise UnreachableError(self._late(share)) from None
        finally:
            looking.cancel()
        if not self.connection.publisher_confirms:
            raise ProtocolError(
                f"{self.where} ({self.connection.server}) has no publisher confirms (capability publisher_confirms): "
                "without them nobody can say what was delivered"
            )
        if self._settings.options.declare == "queue" and self.channel_limit < 2:
            raise TopologyError(
                f"{self.where} allows one channel, and declare=queue needs two: raise the limit, or create the queues "
                "and use declare=exchange"
            )
        return await self._open_channel(declare=True)

    def _leave_if_silent(self, limit: asyncio.Timeout) -> None:
        """Ends the TLS handshake or the log-in if no AMQP has come from the server yet and the host has other
        addresses."""
        if self.other_addresses and self._silent and not self.over:
            limit.reschedule(asyncio.get_running_loop().time())

    async def _open_channel(self, *, declare: bool) -> ConfirmChannel:
        """Opens a channel to publish on.

        Args:
            declare: Whether to apply the option `declare` to the exchange.
        """
        channel = await self.raw_channel()
        if declare:
            options = self._settings.options
            self._step = f"declaring exchange {options.exchange!r}"
            if not await declare_exchange(channel, options):
                channel = await self.raw_channel()
        return self.publish_on(channel)

    async def open_another(self, tasks: Tasks) -> ConfirmChannel | None:
        """Opens one more channel to publish on. None: no further channel is allowed, or the channel was not opened
        within `connect_timeout`."""
        if not self.has_room:
            return None
        opening = tasks.spawn(self._open_channel(declare=False))
        with contextlib.suppress(TimeoutError):
            async with patient_timeout(self._settings.options.connect_timeout):
                await asyncio.wait((opening,))
        done = opening.done()
        if not done:
            opening.cancel()
        failed = not done or opening.cancelled() or opening.exception() is not None
        return None if failed or self.over else opening.result()

    async def raw_channel(self, *, confirms: bool = True) -> Any:
        """Opens a channel of aiormq.

        Raises:
            UnreachableError: All channel numbers are in use.
            Exception: An exception of aiormq.
        """
        self._step = "opening a channel with publisher confirms" if confirms else "opening a channel"
        number = self.connection.free_number()
        if number is None:
            raise UnreachableError(f"{self.where} allows {self.channel_limit} channels, and all are in use")
        return await self.connection.channel(number, publisher_confirms=confirms, on_return_raises=True)

    def publish_on(self, raw: Any) -> ConfirmChannel:
        """Makes a `ConfirmChannel` from a channel of aiormq, so that messages can be published on it."""
        channel = make_channel(self.connection, raw, **self._listener.callbacks)
        self._channels.append(channel)

        def closed(closing: asyncio.Future[Any]) -> None:
            error = asyncio.CancelledError() if closing.cancelled() else closing.exception()
            self._channels.remove(channel)
            if not self.over:
                self._listener.channel_closed(channel, error)

        raw.closing.add_done_callback(closed)
        return channel

    async def run(self, work: Coroutine[Any, Any, T], timeout: float, *, declaring: bool = False) -> T:
        """Runs a coroutine that uses the connection. Drops the session if the coroutine fails or takes too long, or if
        the caller is cancelled.

        Args:
            work: The coroutine.
            timeout: The most seconds that the coroutine may take.
            declaring: Whether the coroutine declares the exchange or checks whether the exchange exists. If so, the
                error for a refusal says that the declaration was refused.

        Raises:
            ConnectError: The coroutine failed or took too long, or the connection ended.
        """
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(retrieve_exception)
        try:
            await asyncio.wait((task,), timeout=timeout)
        except asyncio.CancelledError:
            task.cancel()
            await self._drop(task)
            raise
        if task.done() and not task.cancelled() and task.exception() is None:
            return task.result()
        late = not task.done()
        if late:
            task.cancel()
        await self._drop(task)
        if late:
            raise UnreachableError(self._late(timeout))
        error = None if task.cancelled() else task.exception()
        if self._ended_by is not None and not (isinstance(error, ConnectError) and error.permanent):
            error = self._ended_by  # the task failed only because the connection ended
        assert error is not None
        if isinstance(error, ConnectError):
            raise error
        declaring = declaring or self._step.startswith("declaring")
        raise connect_error(error, self.where, self._settings.options, declaring=declaring)

    def _late(self, timeout: float) -> str:
        """The text of the error for a timeout. It says which step took too long, and whether the server is silent."""
        step = self._step or self._sockets.step
        if step == "resolving its name":
            return f"the name of {self.where} was not resolved within {timeout:.3g} s: the name server does not answer"
        if self._silent:
            return f"{self.where} does not answer within {timeout:.3g} s ({step}): check address and network"
        return (
            f"{self.where} answers, but {step} was not done within {timeout:.3g} s: is it overloaded, or without a "
            "majority of its nodes? A slow line needs a larger connect_timeout"
        )

    async def _drop(self, task: asyncio.Task[Any]) -> None:
        self.abort()
        await self.gone(task)

    # -- what the connection says (ConnectionListener) ----------------------------------------------------------------

    def ended(self, error: BaseException | None) -> None:
        """See `ConnectionListener`. aiormq still handles the frames that came in before, because they may contain
        confirms."""
        self._ended_by = error or ConnectionClosed(0, "no reason given")
        self._look_at_rest(_READ_TURNS)

    def _look_at_rest(self, turns: int) -> None:
        loop = asyncio.get_running_loop()
        if turns and any(channel.has_unread for channel in self._channels):
            loop.call_soon(self._look_at_rest, turns - 1)
        else:
            loop.call_soon(self._end)  # in one more turn aiormq resolves the futures of an ack

    def _end(self) -> None:
        if not self.over:
            self.abort()
            self._listener.session_ended(self, self._ended_by)

    def blocked(self, reason: str) -> None:
        """See `ConnectionListener`."""
        if not self.over:
            self._listener.blocked(reason)

    def unblocked(self) -> None:
        """See `ConnectionListener`."""
        if not self.over:
            self._listener.unblocked()

    # -- the end ------------------------------------------------------------------------------------------------------

    async def close(self, grace: float) -> None:
        """Closes the connection with Connection.Close, for at most `grace` seconds. Then drops the socket and waits for
        aiormq's tasks, for at most 0.3 s. If the session is over already, this method only
        waits for the tasks."""
        if self.over:
            await self.gone()
            return
        self.over = True
        self.connection.forget_listener()
        closing: asyncio.Task[None] | None = None
        try:
            if grace > 0 and self.connection.is_opened:
                goodbye = ConnectionClosed(200, "closed by us")
                closing = asyncio.get_running_loop().create_task(self.connection.close(goodbye))
                closing.add_done_callback(retrieve_exception)
                await asyncio.wait((closing,), timeout=grace)
        finally:
            self.abort()
            await self.gone(closing)

    def abort(self) -> None:
        """Drops the socket and aiormq's tasks at once, also when the event loop is closed."""
        self.over = True
        self.connection.forget_listener()
        self._sockets.abort()
        self.connection.drop_tasks()

    async def gone(self, *own: asyncio.Task[Any] | None) -> None:
        """Waits until aiormq's tasks have ended, for at most 0.3 s. The caller calls `abort()` first.

        Args:
            own: Further tasks to wait for. Those that have not ended by then are cancelled.
        """
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


def _url(settings: AMQPSettings, host: tuple[str, int]) -> URL:
    """The URL for aiormq, with the options that aiormq reads from a URL."""
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
