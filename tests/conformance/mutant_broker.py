"""A tiny broker in this process, the sound driver of it, and the list of its deliberately broken variations.

The broker (`Server`) is an object of its own, so that what is read back does not depend on what a driver says. The
variations are in the modules that end in `_mutants`; `mutant_plugin` is the plugin.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, NamedTuple

from cqrs_brokers.driver import Capabilities, Delivery, Driver, Link, Message, PipelinedDriver, content_type_of
from cqrs_brokers.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BrokerClosedError,
    ClosedWhilePendingError,
    ConnectionLostError,
    DestinationNotFoundError,
    NackedError,
    PublishForbiddenError,
    RejectedError,
    TLSError,
    UnreachableError,
    UnroutableError,
)
from cqrs_brokers.options import BrokerOptions, option
from cqrs_brokers.url import BrokerURL

log = logging.getLogger("cqrs_broker_mutant")

# -- the broker --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """A message as the server holds it."""

    topic: str
    name: str
    message_id: str
    key: str | None
    headers: dict[str, str]
    body: bytes
    content_type: str
    timestamp: datetime
    persistent: bool = True


Answer = Callable[[str], None]


class Server:
    """A broker in this process. May be broken from any thread.

    Topics decide what happens: `unroutable-…` is returned, `missing-…` does not exist, `forbidden-…` is refused, what
    goes to `nack-…` is kept and nacked, and a message named `Refused` is refused.
    """

    ANSWER_AFTER = 0.005

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.up = True
        self.stalled = self.silent = False
        self.sessions: list[Session] = []
        self.kept: list[Kept] = []
        self.connections = 0

    def each(self, action: Callable[[Session], None]) -> None:
        """Does it in each session's own loop, and waits until it is done."""
        for session in list(self.sessions):
            done = threading.Event()

            def run(session: Session = session, done: threading.Event = done) -> None:
                action(session)
                done.set()

            with contextlib.suppress(RuntimeError):
                session.loop.call_soon_threadsafe(run)
                done.wait(2.0)

    def reset(self) -> None:
        self.each(Session.cut)

    def resume(self) -> None:
        self.stalled = self.silent = False
        self.each(Session.catch_up)

    def kill(self) -> None:
        self.up = False
        self.reset()
        self.kept = [kept for kept in self.kept if kept.persistent]

    def keep(self, record: Kept) -> str:
        """Takes a message; returns the verdict."""
        if record.topic.startswith("unroutable-"):
            return "returned"
        if record.topic.startswith("missing-"):
            return "missing"
        if record.topic.startswith("forbidden-"):
            return "forbidden"
        if record.name == "Refused":
            return "refused"
        with self.lock:
            self.kept.append(record)
        return "nack" if record.topic.startswith("nack-") else "ack"


SERVERS: dict[str, Server] = {}


def server(name: str) -> Server:
    """The server of that name, the same in the whole process."""
    return SERVERS.setdefault(name, Server())


class Session:
    """One connection to a server."""

    def __init__(self, server: Server, lost: Callable[[], None], blocked: Callable[[bool], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.alive = True
        self.blocked = blocked
        self._server, self._lost = server, lost
        self._held: list[tuple[Kept, Answer]] = []
        self._unanswered: list[tuple[Answer, str]] = []
        server.connections += 1
        server.sessions.append(self)

    @classmethod
    async def open(cls, server: Server, lost: Callable[[], None], blocked: Callable[[bool], None]) -> Session:
        await asyncio.sleep(0)
        while server.stalled:
            await asyncio.sleep(0.02)
        if not server.up:
            raise ConnectionRefusedError("nobody listens")
        return cls(server, lost, blocked)

    async def ask(self) -> None:
        """A round trip."""
        while self._server.stalled or self._server.silent:
            await asyncio.sleep(0.02)
        if not self.alive:
            raise ConnectionResetError

    def publish(self, record: Kept, answer: Answer) -> None:
        if not self.alive:
            return
        if self._server.stalled:
            self._held.append((record, answer))
            return
        verdict = self._server.keep(record)
        if self._server.silent:
            self._unanswered.append((answer, verdict))
        else:
            self.loop.call_later(self._server.ANSWER_AFTER, self._tell, answer, verdict)

    def _tell(self, answer: Answer, verdict: str) -> None:
        if not self.alive:
            return
        if self._server.silent or self._server.stalled:
            self._unanswered.append((answer, verdict))
        else:
            answer(verdict)

    def catch_up(self) -> None:
        held, self._held = self._held, []
        unanswered, self._unanswered = self._unanswered, []
        for answer, verdict in unanswered:
            self._tell(answer, verdict)
        for record, answer in held:
            self.publish(record, answer)

    def cut(self) -> None:
        if self.alive:
            self.close()
            self._lost()

    def close(self) -> None:
        self.alive = False
        self._held.clear()
        self._unanswered.clear()
        if self in self._server.sessions:
            self._server.sessions.remove(self)


# -- the sound driver --------------------------------------------------------------------------------------------------


class MutantOptions(BrokerOptions):
    """What a sound plugin declares."""

    url_parts: ClassVar[frozenset[str]] = frozenset({"userinfo", "hosts", "path"})
    colour: str = option("red", description="Has no effect.")


Entry = tuple[Delivery, Kept]


class Sound(PipelinedDriver):
    """Keeps every rule. The mutants override one method each."""

    options: ClassVar[type[BrokerOptions]] = MutantOptions
    CREDIT = 32
    """So many messages may be unanswered at a time."""

    def __init__(self, url: BrokerURL, options: BrokerOptions) -> None:
        self._url = url
        self._server = server(url.hosts[0].host if url.hosts else "default")
        self._link: Link | None = None
        self._session: Session | None = None
        self._outbox: deque[Entry] = deque()
        self._in_flight: dict[int, Entry] = {}
        self._token = 0

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(confirms=True, ordering_key=True, headers=True, unroutable_detection=True, durable=True)

    def bind(self, link: Link) -> None:
        self._link = link

    def refuse_topic(self, topic: str) -> str | None:
        return "no '%' in topics" if "%" in topic else None

    async def connect(self) -> None:
        self.abort_session()
        self.check_credentials()
        try:
            self._session = await Session.open(self._server, self.lost, self.blocked)
        except OSError as error:
            raise UnreachableError("nobody listens") from error
        self.flush()

    def check_credentials(self) -> None:
        host = self._url.hosts[0].host if self._url.hosts else ""
        if host == "nowhere":
            raise UnreachableError("nobody listens")
        if host == "bad-tls":
            raise TLSError("the certificate is not trusted")
        if self._url.password is not None and self._url.password.reveal() != "right":
            raise AuthenticationError("the password is wrong")
        if self._url.path == "locked":
            raise AuthorizationError("the user may not use this")

    async def ping(self) -> None:
        if self._session is None:
            raise UnreachableError("not connected")
        await self._session.ask()

    def blocked(self, is_blocked: bool) -> None:
        assert self._link is not None
        if is_blocked:
            self._link.blocked("the server says so")
        else:
            self._link.unblocked()

    # -- sending

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        self._outbox.extend((delivery, self.render(delivery.message)) for delivery in deliveries)
        asyncio.get_running_loop().call_soon(self.flush)

    def render(self, message: Message) -> Kept:
        return Kept(
            message.topic,
            message.message_name,
            str(message.message_id),
            message.key,
            {name: str(value) for name, value in message.headers.items()},
            message.body or b"",
            content_type_of(message),
            message.timestamp,
        )

    def flush(self) -> None:
        while self._outbox and self._session is not None and len(self._in_flight) < self.CREDIT:
            self.hand_over(self._outbox.popleft())

    def hand_over(self, entry: Entry) -> None:
        delivery, record = entry
        if delivery.handed_over() and self._session is not None:
            self._token += 1
            token = self._token
            self._in_flight[token] = entry
            self._session.publish(record, lambda verdict: self.answered(token, verdict))

    def answered(self, token: int, verdict: str) -> None:
        entry = self._in_flight.pop(token, None)
        if entry is not None:
            self.settle(entry[0], verdict)
        self.flush()

    def settle(self, delivery: Delivery, verdict: str) -> None:
        if verdict == "ack":
            delivery.confirm()
        elif verdict == "nack":
            delivery.fail(NackedError("nacked"))
        elif verdict == "returned":
            delivery.fail(UnroutableError("no queue"))
        elif verdict == "missing":
            delivery.fail(DestinationNotFoundError("no such topic"))
        elif verdict == "forbidden":
            delivery.fail(PublishForbiddenError("not allowed"))
        else:
            delivery.fail(RejectedError("refused"))

    # -- the end of a connection

    def lost(self) -> None:
        self._session = None
        in_flight, self._in_flight = self._in_flight, {}
        for entry in in_flight.values():
            self.lost_in_flight(entry)
        assert self._link is not None
        self._link.lost(UnreachableError("the server closed the connection"))

    def lost_in_flight(self, entry: Entry) -> None:
        entry[0].fail(ConnectionLostError("the connection was lost"))

    def abort_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    async def close(self, grace: float) -> None:
        for delivery, _ in self._in_flight.values():
            if not delivery.done:  # else `Broker` has ended it
                delivery.fail(ClosedWhilePendingError("closed"))
        for delivery, _ in self._outbox:
            if not delivery.done:
                delivery.fail(BrokerClosedError("closed"))
        self._in_flight.clear()
        self._outbox.clear()
        self.abort_session()

    def abort(self) -> None:
        self._in_flight.clear()
        self._outbox.clear()
        self.abort_session()


# -- the mutants -------------------------------------------------------------------------------------------------------


class Mutant(NamedTuple):
    """A broken driver.

    Attributes:
        driver: Its class.
        caught_by: The cases that must fail, the one that names the defect first.
        url: What the harness opens.
    """

    driver: type[Driver]
    caught_by: tuple[str, ...]
    url: str

    @property
    def defect(self) -> str:
        """What is wrong with it."""
        return (self.driver.__doc__ or "").strip().splitlines()[0]


MUTANTS: dict[str, Mutant] = {}


def mutant(*caught_by: str, url: str = "mutant://server") -> Callable[[type[Driver]], type[Driver]]:
    """Registers a broken driver under the name of its class."""

    def register(driver: type[Driver]) -> type[Driver]:
        name = "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in driver.__name__).lstrip("-")
        MUTANTS[name] = Mutant(driver, caught_by, url)
        return driver

    return register
