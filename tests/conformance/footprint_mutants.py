"""Broken drivers that do their task, and more than that: they write, keep, hold or change something beside it."""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import warnings
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar

from cqrs_brokers.driver import Delivery, Message
from cqrs_brokers.exceptions import MessageTooLargeError
from cqrs_brokers.options import BrokerOptions
from cqrs_brokers.pipeline import Pipeline
from cqrs_brokers.url import BrokerURL, Host
from tests.conformance.mutant_broker import Kept, Sound, mutant
from tests.conformance.unordered_driver import Streams, UnorderedOptions, UnorderedSound

# -- what is written ---------------------------------------------------------------------------------------------------


class RetriesWhenForbidden(UnorderedSound):
    """Writes a message again when the user must not publish there: permissions may have changed, it thinks."""

    caught_by = ("delivery.each-is-written-once",)

    def __init__(self, url: BrokerURL, options: UnorderedOptions) -> None:
        super().__init__(url, options)
        self.tried: set[str] = set()

    def forbidden(self, topic: str) -> None:
        token = self.pipeline.oldest(lambda delivery: delivery.topic == topic)
        delivery = next((found for number, found in self.pipeline._handed() if number == token), None)
        if delivery is None or self._writer is None or str(delivery.message.message_id) in self.tried:
            super().forbidden(topic)
        else:
            self.tried.add(str(delivery.message.message_id))
            self._writer.write(b"PUB %d %s\n" % (token, json.dumps(self.render(delivery.message)).encode()))


class WritesACopy(UnorderedSound):
    """Writes each message to a topic for auditors, too, and nobody waits for that answer."""

    caught_by = ("delivery.each-is-written-once",)

    def writer_of(self, writer: asyncio.StreamWriter) -> Callable[[Sequence[tuple[int, bytes]]], Awaitable[None]]:
        write = super().writer_of(writer)

        async def write_twice(batch: Sequence[tuple[int, bytes]]) -> None:
            copies = [(2**40 + token, line.replace(b'"topic": "', b'"topic": "audit-')) for token, line in batch]
            await write([*batch, *copies])

        return write_twice


class WritesTwiceWithOneId(UnorderedSound):
    """Writes each message twice with one deduplication id: the broker keeps one of them."""

    caught_by = ("delivery.each-is-written-once",)

    def writer_of(self, writer: asyncio.StreamWriter) -> Callable[[Sequence[tuple[int, bytes]]], Awaitable[None]]:
        write = super().writer_of(writer)

        async def write_twice(batch: Sequence[tuple[int, bytes]]) -> None:
            await write([each for pair in batch for each in (pair, (2**40 + pair[0], pair[1]))])

        return write_twice


class LimitOfTheFirstServer(UnorderedSound):
    """Takes the first server's limit of a message's size for that of each later one."""

    caught_by = ("delivery.limit-is-the-servers",)
    connected = False

    async def pass_over_hosts(self, hosts: Sequence[Host]) -> Streams:
        before = self._largest
        streams = await super().pass_over_hosts(hosts)
        if self.connected:
            self._largest = before
        self.connected = True
        return streams


# -- what is kept ------------------------------------------------------------------------------------------------------


class KeepsANumberOfEach(UnorderedSound):
    """Keeps the offset of each message, for a report that nobody asks for."""

    caught_by = ("delivery.what-is-kept-does-not-grow",)

    def __init__(self, url: BrokerURL, options: UnorderedOptions) -> None:
        super().__init__(url, options)
        self.offsets: list[int] = []

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        self.offsets.append(2**20 + token)
        super().answered(word, token, offset)


class KeepsIdsInItsModule(UnorderedSound):
    """Keeps the id of each message in a set of its class, to recognise it again."""

    caught_by = ("delivery.what-is-kept-does-not-grow",)
    ids: ClassVar[set[str]] = set()

    def render(self, message: Message) -> dict[str, Any]:
        self.ids.add(str(message.message_id))
        return super().render(message)


class KeepsTheTooLarge(UnorderedSound):
    """Keeps what is larger than the broker takes, for a report that nobody asks for."""

    caught_by = ("delivery.nothing-is-kept-after-trouble",)

    def __init__(self, url: BrokerURL, options: UnorderedOptions) -> None:
        super().__init__(url, options)
        self.kept: list[Delivery] = []

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        for delivery in deliveries:
            if self._largest is not None and len(delivery.message.body or b"") > self._largest:
                self.kept.append(delivery)
                delivery.fail(MessageTooLargeError("the broker would end the connection"))
            else:
                super().submit((delivery,))


@mutant("lifecycle.nothing-keeps-a-closed-driver")
class AbortsAtExit(Sound):
    """Tells the process to abort each driver at its end, also one that was closed long ago."""

    def __init__(self, url: BrokerURL, options: BrokerOptions) -> None:
        super().__init__(url, options)
        atexit.register(self.abort_session)


@mutant("lifecycle.nothing-keeps-a-closed-driver")
class ListsAllDrivers(Sound):
    """Has a list of all drivers of the process."""

    everyone: ClassVar[list[Sound]] = []

    async def connect(self) -> None:
        self.everyone.append(self)
        await super().connect()


# -- what others use, too ----------------------------------------------------------------------------------------------


@mutant("lifecycle.process-stays-as-it-is")
class TakesSigterm(Sound):
    """Takes SIGTERM over when it connects, so that the application's own handler never hears of it."""

    async def connect(self) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        await super().connect()


@mutant("lifecycle.process-stays-as-it-is")
class SilencesTheLoop(Sound):
    """Replaces the event loop's handler of exceptions by one that says nothing."""

    async def connect(self) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        await super().connect()


@mutant("lifecycle.process-stays-as-it-is")
class SetsADefaultTimeout(Sound):
    """Gives all new sockets of the process its own timeout."""

    async def connect(self) -> None:
        socket.setdefaulttimeout(5.0)
        await super().connect()


@mutant("lifecycle.process-stays-as-it-is")
class SilencesWarnings(Sound):
    """Hides the warnings of a library from the whole process."""

    async def connect(self) -> None:
        warnings.filterwarnings("ignore", module="asyncio")
        await super().connect()


@mutant("lifecycle.process-stays-as-it-is")
class SetsTheEnvironment(Sound):
    """Tells its library by the environment what to do, and so each other user of that library."""

    async def connect(self) -> None:
        os.environ["MUTANT_NO_DELAY"] = "1"
        await super().connect()


@mutant("lifecycle.process-stays-as-it-is")
class AddsALogHandler(Sound):
    """Adds a handler of its own to the root logger."""

    async def connect(self) -> None:
        logging.getLogger().addHandler(logging.NullHandler())
        await super().connect()


@mutant("lifecycle.exits-without-a-word")
class PrintsWhatItSends(Sound):
    """Prints what it sends."""

    def render(self, message: Message) -> Kept:
        print(f"sending to {message.topic}", flush=True)
        return super().render(message)


class LogsABeginning(UnorderedSound):
    """Logs the first twelve bytes of a body."""

    caught_by = ("lifecycle.nothing-confidential-is-logged",)

    def render(self, message: Message) -> dict[str, Any]:
        logging.getLogger("cqrs_broker_unordered").debug("to be sent: %s", (message.body or b"")[:12])
        return super().render(message)


class LogsAnEnd(UnorderedSound):
    """Logs the end of the password, to tell it from others."""

    caught_by = ("lifecycle.nothing-confidential-is-logged",)

    def login(self) -> bytes:
        password = self._url.password.reveal() if self._url.password else ""
        logging.getLogger("cqrs_broker_unordered").debug("logs in with …%s", password[-9:])
        return super().login()


# -- what it says of itself --------------------------------------------------------------------------------------------


class SharesAPing(UnorderedSound):
    """Takes a ping that is on its way for one that was answered."""

    caught_by = ("lifecycle.health-stays-true",)

    async def ping(self) -> None:
        if not any(not pong.done() for pong in self._pongs):
            await super().ping()


class PollingPipeline(Pipeline[bytes]):
    """Looks every 25 ms whether something waits."""

    async def _write(self) -> None:
        polling = self._tasks.spawn(self.poll())
        try:
            await super()._write()
        finally:
            polling.cancel()

    async def poll(self) -> None:
        while True:
            await asyncio.sleep(0.025)
            if self._waiting:
                self._more.set()


class LooksManyTimes(UnorderedSound):
    """Wakes forty times in a second to look whether there is something to write."""

    pipeline_type = PollingPipeline
    caught_by = ("lifecycle.idle-is-idle",)


class TellingPipeline(Pipeline[bytes]):
    """Logs the headers of what it lets go."""

    def _let_go(self) -> None:
        now = asyncio.get_running_loop().time()
        for _, found in self._handed():
            if found.done and found.deadline <= now:
                logging.getLogger("cqrs_broker_unordered").info("late: %s", dict(found.message.headers))
        super()._let_go()


class TellsOfTheLate(UnorderedSound):
    """Logs the headers of a message whose answer did not come."""

    pipeline_type = TellingPipeline
    caught_by = ("lifecycle.nothing-confidential-is-told-in-trouble",)


class ConnectsOneByOne(UnorderedSound):
    """Lets one broker of the process connect at a time."""

    caught_by = ("lifecycle.trouble-is-its-own",)
    turn: ClassVar[asyncio.Lock] = asyncio.Lock()

    async def pass_over_hosts(self, hosts: Sequence[Host]) -> Streams:
        async with self.turn:
            return await super().pass_over_hosts(hosts)


# -- the second host ---------------------------------------------------------------------------------------------------


class LogsInAtTheFirstHostOnly(UnorderedSound):
    """Names no user to the second host of the config string, which lets in whoever names none."""

    caught_by = ("delivery.wrong-password",)
    at: Host | None = None

    async def dial(self, host: Host) -> Streams:
        self.at = host
        return await super().dial(host)

    def login(self) -> bytes:
        return super().login() if self.at == self._url.hosts[0] else b":"


class VerifiesTheFirstHostsName(UnorderedSound):
    """Compares the certificate of each host with the name of the first one."""

    caught_by = ("delivery.tls-verifies-certificates",)

    def name_to_verify(self, host: Host) -> str:
        return self._url.hosts[0].host


class ShowsNoCertificate(UnorderedSound):
    """Verifies the server, and shows no certificate of its own."""

    caught_by = ("delivery.tls-shows-its-certificate",)

    def context(self, host: Host) -> ssl.SSLContext | None:
        return ssl.create_default_context(cafile=self._options.ssl_cafile) if self._options.tls else None


class ForgetsRequireTLS(UnorderedSound):
    """Has the option `require_tls`, and opens a config string without TLS all the same."""

    caught_by = ("delivery.tls-is-never-given-up",)
    keeps_require_tls = False
