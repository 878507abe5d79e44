"""A sound plugin over a tiny broker in this process, and deliberately broken variations of it.

Installed by `mutant_runs.install` as the module `cqrs_broker_mutant`; the environment variable `CQRS_MUTANT` chooses
the variation. `MUTANTS` says for each which cases must catch it. The broker (`Server`) is an object of its own, so that
what is read back does not depend on what a driver says.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import socket
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, ClassVar, NamedTuple

from cqrs_brokers import Receipt
from cqrs_brokers.driver import Capabilities, Delivery, Driver, Link, Message, PipelinedDriver, content_type_of
from cqrs_brokers.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BrokerClosedError,
    ClosedWhilePendingError,
    ConnectError,
    ConnectionLostError,
    DeliveryUnknownError,
    DestinationNotFoundError,
    MessageTooLargeError,
    NackedError,
    NotDeliveredError,
    PublishForbiddenError,
    RejectedError,
    TLSError,
    UnreachableError,
    UnroutableError,
)
from cqrs_brokers.hooks import hookimpl
from cqrs_brokers.options import BrokerOptions, option
from cqrs_brokers.pipeline import header_text, header_value
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


# static


@mutant("static.entry-point-is-ready", url="stale://server")
class NeedsAnotherCore(Sound):
    """Its distribution requires a core that is not there."""


@mutant("static.scheme-is-the-distributions-name", url="othername://server")
class MisnamedScheme(Sound):
    """Its scheme has nothing to do with the name of its distribution."""


@mutant("static.import-is-quiet")
class LoudImport(Sound):
    """Importing it changes the level of a logger and starts a thread."""


class UndescribedOptions(MutantOptions):
    size: int = option(1, ge=0, description="")


@mutant("static.options-are-described")
class UndescribedOption(Sound):
    """An option has no description."""

    options = UndescribedOptions


class OutOfRangeOptions(MutantOptions):
    size: int = option(0, ge=1, description="How large.")


@mutant("static.defaults-are-valid")
class InvalidDefault(Sound):
    """An option has a default outside of its own range."""

    options = OutOfRangeOptions


@mutant("static.opening-does-no-io", "static.unknown-option-is-refused")
class ConnectsWhenOpened(Sound):
    """Looks a name up when its options are asked for and again in `open_broker`."""

    def __init__(self, url: BrokerURL, options: BrokerOptions) -> None:
        super().__init__(url, options)
        socket.getaddrinfo("localhost", 1)


@mutant("static.no-secret-is-shown")
class SecretInRepr(Sound):
    """Shows the password in its repr."""

    def __repr__(self) -> str:
        return f"<Driver {self._url.render(reveal=True)}>"


@mutant("static.no-secret-is-shown")
class SecretInAttribute(Sound):
    """Keeps the password as plain text in an attribute."""

    def __init__(self, url: BrokerURL, options: BrokerOptions) -> None:
        super().__init__(url, options)
        self.password = url.password.reveal() if url.password else None


@mutant("static.broker-is-true")
class FalseWhenEmpty(Sound):
    """Has a length, which is 0 at first, so that it is false."""

    def __len__(self) -> int:
        return len(self._outbox)


@mutant("static.capabilities-are-constant")
class CapabilitiesChange(Sound):
    """Declares something else each time it is asked."""

    asked = 0

    @property
    def capabilities(self) -> Capabilities:
        type(self).asked += 1
        return replace(super().capabilities, max_message_bytes=10_000_000 + self.asked)


# messages


@mutant("messages.body-is-untouched")
class TruncatesBody(Sound):
    """Cuts bodies at 64 KiB."""

    def render(self, message: Message) -> Kept:
        return replace(super().render(message), body=(message.body or b"")[:65_536])


@mutant("messages.payload-bytes-go-first", "messages.payloads-become-json")
class EncodesItself(Sound):
    """Encodes the payload itself instead of taking the message's body."""

    def render(self, message: Message) -> Kept:
        payload = message.payload
        body = payload if isinstance(payload, bytes) else json.dumps(payload, default=str).encode()
        return replace(super().render(message), body=body)


@mutant("messages.identity-arrives")
class NewMessageId(Sound):
    """Gives every message an id of its own."""

    def render(self, message: Message) -> Kept:
        return replace(super().render(message), message_id=os.urandom(16).hex())


@mutant("messages.content-type-arrives")
class WrongContentType(Sound):
    """Says JSON, whatever it is."""

    def render(self, message: Message) -> Kept:
        return replace(super().render(message), content_type="application/json")


@mutant("messages.timestamp-arrives")
class TimeOfSending(Sound):
    """Puts the time of sending in the place of the message's own."""

    def render(self, message: Message) -> Kept:
        return replace(super().render(message), timestamp=datetime.now(UTC))


@mutant("messages.key-arrives", "ordering.keys-keep-their-order")
class IgnoresKey(Sound):
    """Declares ordering keys and drops them."""

    def render(self, message: Message) -> Kept:
        return replace(super().render(message), key=None)


@mutant("messages.headers-arrive", "messages.hundred-headers-arrive")
class DropsHeaders(Sound):
    """Declares headers and drops them."""

    def render(self, message: Message) -> Kept:
        return replace(super().render(message), headers={})


@mutant("messages.hundred-headers-arrive")
class SixtyFourHeaders(Sound):
    """Carries at most 64 headers."""

    def render(self, message: Message) -> Kept:
        kept = super().render(message)
        return replace(kept, headers=dict(list(kept.headers.items())[:64]))


@mutant("messages.headers-arrive")
class HeaderTakesAField(Sound):
    """Writes headers beside the fields of the message, so that one called like a field takes its place."""

    def render(self, message: Message) -> Kept:
        record = super().render(message)
        fields = {name: str(value) for name, value in message.headers.items() if name in ("name", "message_id")}
        return replace(record, **fields)  # type: ignore[arg-type]


@mutant("messages.headers-arrive")
class CutsLongHeaders(Sound):
    """Writes at most 4 KiB of a header's value."""

    def render(self, message: Message) -> Kept:
        record = super().render(message)
        return replace(record, headers={name: value[:4096] for name, value in record.headers.items()})


@mutant("messages.longest-values-arrive-or-are-refused")
class CutsEscapedKeys(Sound):
    """Writes keys percent-encoded, and of each 64 KiB at most."""

    def render(self, message: Message) -> Kept:
        record = super().render(message)
        return replace(record, key=record.key and header_text(header_value(record.key)[: 2**16]))


@mutant("messages.headers-arrive")
class HeadersAsLines(Sound):
    """Writes headers as lines of text, as they are, so that a line break in a value begins another header."""

    def render(self, message: Message) -> Kept:
        kept = super().render(message)
        lines = "".join(f"{name}: {value}\r\n" for name, value in kept.headers.items()).split("\r\n")
        return replace(kept, headers=dict(line.split(": ", 1) for line in lines if ": " in line))


@mutant("messages.key-arrives")
class KeyAsALine(Sound):
    """Writes the key as a line of text, up to its first line break."""

    def render(self, message: Message) -> Kept:
        kept = super().render(message)
        return replace(kept, key=kept.key and kept.key.partition("\r\n")[0])


@mutant("messages.tombstone-is-no-value")
class TombstonesBecomeEmpty(Sound):
    """Declares tombstones, and writes an empty body for each."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, tombstones=True)


@mutant("messages.headers-keep-their-types")
class HeadersBecomeText(Sound):
    """Declares headers that are numbers, and writes them as text."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, header_types=frozenset({str, int}))


@mutant("messages.callers-message-is-unchanged")
class ChangesCallersMessage(Sound):
    """Puts its own header into the caller's message."""

    def render(self, message: Message) -> Kept:
        record = super().render(message)
        message.headers = {**message.headers, "sent-by": "mutant"}
        return record


@mutant("messages.snapshot-is-taken")
class ReadsLate(Sound):
    """Reads the message when it is handed over, long after `submit` returned."""

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        asyncio.get_running_loop().call_later(0.02, super().submit, deliveries)


@mutant("messages.topics-are-kept-apart")
class OneTopicPerBatch(Sound):
    """Sends a whole batch to the topic of its first message."""

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        topic = deliveries[0].message.topic
        self._outbox.extend((d, replace(self.render(d.message), topic=topic)) for d in deliveries)
        asyncio.get_running_loop().call_soon(self.flush)


# refusals


@mutant("refusals.illegal-topic")
class AcceptsEveryTopic(Sound):
    """Does not say which topics its broker cannot have."""

    def refuse_topic(self, topic: str) -> str | None:
        return None


# delivery


@mutant(
    "delivery.receipt-means-it-is-there",
    "delivery.no-receipt-before-the-answer",
    "delivery.lost-answer-is-unknown",
    "delivery.stall-ends-at-the-deadline",
    "lifecycle.close-flushes",
)
class AcksBeforeSending(Sound):
    """Confirms first and sends 50 ms later."""

    def hand_over(self, entry: Entry) -> None:
        delivery, record = entry
        if delivery.handed_over():
            delivery.confirm()
            asyncio.get_running_loop().call_later(0.05, self.send_later, record)

    def send_later(self, record: Kept) -> None:
        if self._session is not None:
            self._session.publish(record, lambda _: None)


@mutant("delivery.lost-answer-is-unknown", "delivery.no-receipt-before-the-answer")
class TiresOfWaiting(Sound):
    """Takes a broker that says nothing for half a second for one that agrees."""

    def hand_over(self, entry: Entry) -> None:
        super().hand_over(entry)
        asyncio.get_running_loop().call_later(0.5, self.answered, self._token, "ack")


@mutant("delivery.unconfirmed-is-said")
class BoastsOfConfirms(Driver):
    """Declares no confirms and returns confirmed receipts."""

    options: ClassVar[type[BrokerOptions]] = MutantOptions

    def __init__(self, url: BrokerURL, options: BrokerOptions) -> None:
        self._server = server(url.hosts[0].host if url.hosts else "default")

    async def send_message(self, message: Message) -> Receipt:
        self._server.keep(Sound.render(self, message))  # type: ignore[arg-type]
        return Receipt(message.message_id, message.topic, "mutant", confirmed=True)


@mutant("delivery.receipt-names-the-message")
class OneOffsetForAll(Sound):
    """Says the same offset for every message."""

    def settle(self, delivery: Delivery, verdict: str) -> None:
        if verdict == "ack":
            delivery.confirm(partition=0, offset=0)
        else:
            super().settle(delivery, verdict)


@mutant("delivery.every-message-is-answered")
class DropsWithoutAnswer(Sound):
    """Forgets every tenth message that it was given."""

    def hand_over(self, entry: Entry) -> None:
        self._dropped = getattr(self, "_dropped", 0) + 1
        if self._dropped % 10:
            super().hand_over(entry)


@mutant("delivery.nack-is-not-success")
class SwallowsNack(Sound):
    """Takes a nack for an ack."""

    def settle(self, delivery: Delivery, verdict: str) -> None:
        super().settle(delivery, "ack" if verdict == "nack" else verdict)


@mutant("delivery.nack-is-not-success")
class RetriesNack(Sound):
    """Sends a nacked message again."""

    def answered(self, token: int, verdict: str) -> None:
        entry = self._in_flight.get(token)
        if verdict == "nack" and entry is not None and self._session is not None and not getattr(self, "_again", False):
            self._again = True
            self._session.publish(entry[1], lambda again: self.answered(token, again))
        else:
            super().answered(token, verdict)


@mutant("delivery.refused-is-not-delivered")
class RefusedIsConfirmed(Sound):
    """Takes a refusal for an ack."""

    def settle(self, delivery: Delivery, verdict: str) -> None:
        super().settle(delivery, "ack" if verdict == "refused" else verdict)


@mutant("delivery.refused-spares-its-neighbours")
class RefusalHitsNeighbours(Sound):
    """Fails everything in flight when one message is refused."""

    def settle(self, delivery: Delivery, verdict: str) -> None:
        super().settle(delivery, verdict)
        if verdict == "refused":
            for token in list(self._in_flight):
                super().settle(self._in_flight.pop(token)[0], verdict)


@mutant("delivery.unroutable-is-reported")
class ConfirmsUnroutable(Sound):
    """Takes a returned message for delivered."""

    def settle(self, delivery: Delivery, verdict: str) -> None:
        super().settle(delivery, "ack" if verdict == "returned" else verdict)


@mutant("delivery.unroutable-is-reported")
class ConfirmsUnroutableAmongOthers(Sound):
    """Takes a returned message for delivered when others are in flight."""

    def settle(self, delivery: Delivery, verdict: str) -> None:
        super().settle(delivery, "ack" if verdict == "returned" and len(self._in_flight) > 1 else verdict)


@mutant("delivery.unroutable-twin-is-told-apart")
class FindsReturnsById(Sound):
    """Finds the message of an answer by its id, of which there may be two in flight."""

    def answered(self, token: int, verdict: str) -> None:
        entry = self._in_flight.get(token)
        if entry is not None and verdict == "returned":
            twins = [t for t, other in self._in_flight.items() if other[1].message_id == entry[1].message_id]
            token = next((t for t in twins if t != token), token)
        super().answered(token, verdict)


@mutant("delivery.missing-destination")
class MissingIsUnknown(Sound):
    """Does not classify a missing destination."""

    def settle(self, delivery: Delivery, verdict: str) -> None:
        if verdict == "missing":
            delivery.fail(DeliveryUnknownError("error 404"))
        else:
            super().settle(delivery, verdict)


@mutant("delivery.forbidden-destination")
class ForbiddenIsRejected(Sound):
    """Reports a missing permission as something that may pass."""

    def settle(self, delivery: Delivery, verdict: str) -> None:
        super().settle(delivery, "refused" if verdict == "forbidden" else verdict)


@mutant("delivery.blocked-is-waited-out")
class NeverUnblocks(Sound):
    """Passes on that the broker takes no messages, and not that it takes them again."""

    def blocked(self, is_blocked: bool) -> None:
        if is_blocked:
            super().blocked(True)


@mutant("delivery.blocked-is-waited-out")
class BlockedForGood(Sound):
    """Takes the next connection for blocked, too, when the last one was."""

    was_blocked = False

    def blocked(self, is_blocked: bool) -> None:
        self.was_blocked = self.was_blocked or is_blocked
        super().blocked(is_blocked)

    async def connect(self) -> None:
        await super().connect()
        if self.was_blocked:
            super().blocked(True)


@mutant("delivery.blocked-is-waited-out")
class DeafToBlocking(Sound):
    """Does not pass on that the broker takes no messages."""

    def blocked(self, is_blocked: bool) -> None:
        return


@mutant("delivery.lost-answer-is-not-resent", "delivery.reset-leaves-the-truth")
class BlindResend(Sound):
    """Sends again after a reconnect what had no answer."""

    def lost_in_flight(self, entry: Entry) -> None:
        entry[0].returned()
        self._outbox.append(entry)


@mutant("delivery.reset-leaves-the-truth")
class LostIsNotDelivered(Sound):
    """Reports what was sent and not answered as not delivered."""

    def lost_in_flight(self, entry: Entry) -> None:
        entry[0].fail(NotDeliveredError("the connection was lost"))


@mutant("delivery.reset-leaves-the-truth", "delivery.lost-answer-is-not-resent")
class LostIsConfirmed(Sound):
    """Reports what was in flight when the connection was lost as confirmed, and sends the rest twice."""

    def lost_in_flight(self, entry: Entry) -> None:
        self._server.keep(entry[1])
        entry[0].confirm()


@mutant("delivery.stall-ends-at-the-deadline", "lifecycle.health-when-stalled", "faults.close-while-stalled")
class BlocksTheLoop(Sound):
    """Waits for the broker in a way that stops the event loop."""

    def hand_over(self, entry: Entry) -> None:
        super().hand_over(entry)
        self._wait()

    async def ping(self) -> None:
        self._wait()

    def _wait(self) -> None:
        give_up = time.monotonic() + 4
        while self._server.stalled and time.monotonic() < give_up:
            time.sleep(0.05)


@mutant("delivery.memory-is-bounded")
class UnboundedBuffer(Sound):
    """Lets go of what has expired, and still keeps it for later."""

    def hand_over(self, entry: Entry) -> None:
        super().hand_over(entry)
        delivery = entry[0]

        def expire() -> None:
            if delivery.done and self._in_flight:
                delivery.fail(DeliveryUnknownError("expired"))
                self._in_flight[-id(entry)] = entry

        asyncio.get_running_loop().call_at(delivery.deadline + 0.05, expire)

    def flush(self) -> None:
        while self._outbox and self._session is not None:
            self.hand_over(self._outbox.popleft())


@mutant("delivery.unreachable-is-not-delivered", "lifecycle.async-with-fails-early", "lifecycle.health-when-down")
class RawConnectErrors(Sound):
    """Lets its client's own exceptions out of `connect()`."""

    def check_credentials(self) -> None:
        try:
            super().check_credentials()
        except UnreachableError:
            raise ConnectionRefusedError(111, "refused") from None


@mutant("delivery.wrong-password")
class AuthIsUnreachable(Sound):
    """Reports a wrong password as a server that is not there, and so tries for ever."""

    def check_credentials(self) -> None:
        try:
            super().check_credentials()
        except AuthenticationError as error:
            raise UnreachableError(error.text) from None


@mutant("delivery.wrong-permission")
class PermissionIsAuthentication(Sound):
    """Reports a missing permission as a wrong password."""

    def check_credentials(self) -> None:
        try:
            super().check_credentials()
        except AuthorizationError as error:
            raise AuthenticationError(error.text) from None


@mutant("delivery.tls-failure")
class TlsIsProtocol(Sound):
    """Does not classify a certificate that is not trusted."""

    def check_credentials(self) -> None:
        try:
            super().check_credentials()
        except TLSError as error:
            raise ConnectError(error.text) from None


# ordering


@mutant("ordering.many-tasks-lose-nothing", "lifecycle.close-flushes", "ordering.bad-ones-fail-alone")
class Duplicates(Sound):
    """Sends every fiftieth message twice."""

    def hand_over(self, entry: Entry) -> None:
        super().hand_over(entry)
        if self._session is not None and self._token % 50 == 49:
            self._session.publish(entry[1], lambda _: None)


@mutant("ordering.many-tasks-lose-nothing", "lifecycle.close-flushes", "ordering.bad-ones-fail-alone")
class LosesSome(Sound):
    """Confirms every fiftieth message without sending it."""

    def hand_over(self, entry: Entry) -> None:
        self._count = getattr(self, "_count", 0) + 1
        if self._count % 50 == 49 and entry[0].handed_over():
            entry[0].confirm()
        else:
            super().hand_over(entry)


@mutant("ordering.keys-keep-their-order", "ordering.batch-keeps-its-order")
class SwapsTwo(Sound):
    """Swaps the messages at the ends of what waits."""

    def flush(self) -> None:
        if len(self._outbox) > 20:
            self._outbox[0], self._outbox[-1] = self._outbox[-1], self._outbox[0]
        super().flush()


@mutant("ordering.keys-keep-their-order", "ordering.batch-keeps-its-order")
class SwapsAtTheFullWindow(Sound):
    """Lets the next message go first when there is room for one only."""

    held: Entry | None = None

    def hand_over(self, entry: Entry) -> None:
        if self.held is None and self._outbox and len(self._in_flight) == self.CREDIT - 1:
            self.held = entry
            return
        super().hand_over(entry)
        held, self.held = self.held, None
        if held is not None:
            super().hand_over(held)


@mutant("ordering.order-survives-a-reset")
class ReversesAfterReconnect(Sound):
    """Sends what had waited in the wrong order after a reconnect."""

    def lost(self) -> None:
        self._outbox.reverse()
        super().lost()


@mutant("ordering.first-sends-share-a-connection")
class ConnectsPerSender(Sound):
    """Makes a connection of its own for each message that finds none ready."""

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        for _ in range(len(deliveries) if not self._in_flight else 0):
            Session(self._server, lambda: None, lambda _: None)
        super().submit(deliveries)


@mutant("ordering.cancel-hits-one-caller", "ordering.failing-sibling-hits-nobody-else")
class CancelHitsAll(Sound):
    """Takes one message that nobody waits for any more as the end of all that are in flight."""

    def hand_over(self, entry: Entry) -> None:
        if entry[0].done:
            self._end_all()
        super().hand_over(entry)

    def answered(self, token: int, verdict: str) -> None:
        if token in self._in_flight and self._in_flight[token][0].done:
            self._end_all()
        super().answered(token, verdict)

    def _end_all(self) -> None:
        for token in list(self._in_flight):
            self._in_flight.pop(token)[0].fail(DeliveryUnknownError("cancelled"))


# lifecycle


@mutant("lifecycle.two-brokers-side-by-side")
class SharedState(Sound):
    """Shares its connection among all brokers of the process."""

    shared: ClassVar[list[Session]] = []

    async def connect(self) -> None:
        if self.shared and self.shared[0].loop is asyncio.get_running_loop():
            self._session = self.shared[0]
            return
        await super().connect()
        if self._session is not None:
            self.shared[:] = [self._session]


@mutant("lifecycle.reconnects-after-a-reset", "faults.down-for-a-while")
class NeverReconnects(Sound):
    """Does not tell that its connection was lost, nor answer what was in flight."""

    def lost(self) -> None:
        return


@mutant("lifecycle.no-wire-opens-no-socket", "lifecycle.nothing-is-left-behind")
class LeaksSocket(Sound):
    """Opens a socket with each connection and never closes it."""

    left: ClassVar[list[socket.socket]] = []

    async def connect(self) -> None:
        self.left.extend(socket.socketpair())
        await super().connect()


@mutant("lifecycle.nothing-is-left-behind")
class LeaksTask(Sound):
    """Starts a task with each connection and never ends it."""

    async def connect(self) -> None:
        self._task = asyncio.create_task(asyncio.sleep(3600), name="left behind")
        await super().connect()


@mutant("lifecycle.nothing-is-left-behind")
class LeaksThread(Sound):
    """Starts a thread with each connection and never ends it."""

    async def connect(self) -> None:
        threading.Thread(target=time.sleep, args=(20,), daemon=True, name="left behind").start()
        await super().connect()


@mutant("lifecycle.close-while-down", "faults.close-after-a-reset", "faults.close-while-stalled")
class BlocksInClose(Sound):
    """Stops the event loop in `close()` until something happens that never does."""

    async def close(self, grace: float) -> None:
        time.sleep(4)
        await super().close(grace)


@mutant("lifecycle.close-is-idempotent")
class HangsOnClose(Sound):
    """Waits in `close()` for something that never comes."""

    async def close(self, grace: float) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(30)
        await asyncio.sleep(30)


@mutant("lifecycle.pending-at-close-is-no-success")
class SendsAfterClose(Sound):
    """Sends what is left over when it is closed, although its callers are told that it is not delivered."""

    async def close(self, grace: float) -> None:
        session, self._session = self._session, None
        if session is not None:
            for _, record in self._outbox:
                session.publish(record, lambda _: None)
        await super().close(grace)


@mutant("delivery.cancel-is-not-success")
class SuccessOnCancel(Driver):
    """Catches the cancellation of its send and returns a receipt."""

    options: ClassVar[type[BrokerOptions]] = MutantOptions

    def __init__(self, url: BrokerURL, options: BrokerOptions) -> None:
        self._server = server(url.hosts[0].host if url.hosts else "default")

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(confirms=True, headers=True)

    async def send_message(self, message: Message) -> Receipt:
        try:
            while self._server.stalled:
                await asyncio.sleep(0.02)
            self._server.keep(Sound.render(self, message))  # type: ignore[arg-type]
        except asyncio.CancelledError:
            pass
        return Receipt(message.message_id, message.topic, "mutant", confirmed=True)


@mutant("lifecycle.exits-without-a-word")
class WarnsOnUse(Sound):
    """Uses something that is deprecated."""

    async def connect(self) -> None:
        warnings.warn("this is deprecated", DeprecationWarning, stacklevel=2)
        await super().connect()


@mutant("lifecycle.run-ends-without-close", "lifecycle.interrupted-without-close")
class LoudAbort(Sound):
    """Adds a warning of its own when its loop ends without `close()`."""

    def abort(self) -> None:
        super().abort()
        warnings.warn("unclosed connection", ResourceWarning, stacklevel=2)


@mutant("lifecycle.works-in-the-next-loop")
class KeepsItsFirstLoop(Sound):
    """Remembers the first event loop for ever."""

    loop: asyncio.AbstractEventLoop | None = None

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        self.loop = self.loop or asyncio.get_running_loop()
        self._outbox.extend((delivery, self.render(delivery.message)) for delivery in deliveries)
        self.loop.call_soon(self.flush)


@mutant("lifecycle.health-when-healthy")
class HealthRaises(Sound):
    """Raises its client's exception in `ping()`."""

    async def ping(self) -> None:
        raise ValueError("not supported")


@mutant("lifecycle.health-when-stalled")
class HealthGuesses(Sound):
    """Takes a connection for alive because it was once made."""

    async def ping(self) -> None:
        return


@mutant("lifecycle.logger-levels-stay")
class SetsLoggerLevel(Sound):
    """Makes a logger louder when it connects."""

    async def connect(self) -> None:
        logging.getLogger("asyncio").setLevel(logging.DEBUG)
        await super().connect()


@mutant("lifecycle.nothing-confidential-is-logged")
class LogsPassword(Sound):
    """Logs the address that it connects to, with the password."""

    async def connect(self) -> None:
        log.debug("connecting to %s", self._url.render(reveal=True))
        await super().connect()


@mutant("lifecycle.nothing-confidential-is-logged")
class LogsTheLoginInHexadecimal(Sound):
    """Logs the bytes of its login, in hexadecimal."""

    def check_credentials(self) -> None:
        password = self._url.password.reveal() if self._url.password else ""
        log.debug("> %s", f"LOGIN\0{self._url.username}\0{password}".encode().hex(" "))
        super().check_credentials()


@mutant("lifecycle.nothing-confidential-is-logged")
class LogsBody(Sound):
    """Logs what it sends."""

    def render(self, message: Message) -> Kept:
        log.debug("sending %r", message.body)
        return super().render(message)


@mutant("lifecycle.nothing-confidential-is-logged")
class LogsInBase64(Sound):
    """Logs what it writes, in base64."""

    def hand_over(self, entry: Entry) -> None:
        log.debug("> %s", base64.b64encode(f"{entry[1]}".encode()).decode())
        super().hand_over(entry)


@mutant("lifecycle.nothing-confidential-is-told-of-what-is-large")
class NamesTheLongKey(Sound):
    """Refuses keys of more than 4 KiB, with the key in the error."""

    def hand_over(self, entry: Entry) -> None:
        delivery, record = entry
        if len(record.key or "") > 4096:
            delivery.fail(MessageTooLargeError(f"the key {record.key} is too long"))
        else:
            super().hand_over(entry)


@mutant("lifecycle.cancelled-task-may-clean-up")
class RefusesTheCancelled(Sound):
    """Fails every send while the task that was cancelled is the running one."""

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            for delivery in deliveries:
                delivery.fail(NotDeliveredError("cancelled"))
        else:
            super().submit(deliveries)


# faults and the contract


@mutant("faults.wall-clock-jumps")
class TrustsTheWallClock(Sound):
    """Measures by the wall clock for how long it has heard nothing, and takes a long silence for a lost connection."""

    def __init__(self, url: BrokerURL, options: BrokerOptions) -> None:
        super().__init__(url, options)
        self._heard = 0.0

    async def connect(self) -> None:
        await super().connect()
        self._heard = time.time()

    def answered(self, token: int, verdict: str) -> None:
        self._heard = time.time()
        super().answered(token, verdict)

    def hand_over(self, entry: Entry) -> None:
        super().hand_over(entry)
        asyncio.get_running_loop().call_later(1.0, self.look)

    def look(self) -> None:
        if self._in_flight and abs(time.time() - self._heard) > 600 and self._session is not None:
            self._session.cut()


@mutant("faults.restart-at-a-third", "faults.restart-at-half")
class NotDurable(Sound):
    """Declares durable and sends messages that the broker keeps only in memory."""

    def render(self, message: Message) -> Kept:
        return replace(super().render(message), persistent=False)


@mutant("contract.kept-in-every-case")
class ConfirmsTwice(Sound):
    """Confirms every message twice."""

    def settle(self, delivery: Delivery, verdict: str) -> None:
        super().settle(delivery, verdict)
        super().settle(delivery, verdict)


# -- the plugin --------------------------------------------------------------------------------------------------------


def chosen() -> type[Any]:
    """The driver that `CQRS_MUTANT` names; none: the sound one."""
    name = os.environ.get("CQRS_MUTANT", "")
    return MUTANTS[name].driver if name else Sound


if chosen().__name__ == "LoudImport":
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    threading.Thread(target=time.sleep, args=(1,), daemon=True).start()


@hookimpl
def broker_options() -> type[BrokerOptions]:
    """The options of `mutant://`."""
    if chosen() is ConnectsWhenOpened:
        socket.getaddrinfo("localhost", 1)
    options: type[BrokerOptions] = chosen().options
    return options


@hookimpl
def open_message_broker(url: BrokerURL, options: BrokerOptions) -> Driver:
    """The driver of `mutant://`."""
    driver: Driver = chosen()(url, options)
    return driver
