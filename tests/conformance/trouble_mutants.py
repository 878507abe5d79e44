"""Broken variations of the driver of `unordered_driver` that behave badly when something else has gone wrong, and at
the log-in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
import time
import urllib.parse
import warnings
from typing import Any

from cqrs_brokers.exceptions import ConnectError, ProtocolError, TLSError, UnreachableError
from cqrs_brokers.url import Host
from tests.conformance.unordered_driver import Streams, UnorderedSound

log = logging.getLogger("cqrs_broker_unordered")
STOPS = 0.3

# -- the event loop ----------------------------------------------------------------------------------------------------


class StopsWhenRefused(UnorderedSound):
    """Stops the event loop for a moment when nobody listens."""

    caught_by = ("faults.loop-goes-on-in-trouble",)

    async def dial(self, host: Host) -> Streams:
        try:
            return await super().dial(host)
        except UnreachableError as error:
            if isinstance(error.__cause__, ConnectionRefusedError):
                time.sleep(STOPS)
            raise


class StopsWhenLost(UnorderedSound):
    """Waits in the event loop's thread, by something else than a sleep, when a connection is lost."""

    caught_by = ("faults.loop-goes-on-in-trouble",)

    def lost(self, error: ConnectError) -> None:
        super().lost(error)
        threading.Event().wait(STOPS)


class StopsOnNonsense(UnorderedSound):
    """Computes for a moment, and lets nobody else work, when an answer makes no sense."""

    caught_by = ("faults.loop-goes-on-in-trouble",)

    def answered(self, word: bytes, token: int, offset: bytes) -> None:
        try:
            super().answered(word, token, offset)
        except ProtocolError:
            until = time.thread_time() + STOPS
            while time.thread_time() < until:
                pass
            raise


class StopsOnARefusal(UnorderedSound):
    """Stops the event loop for a moment when a message is refused."""

    caught_by = ("faults.loop-goes-on-in-trouble",)

    def forbidden(self, topic: str) -> None:
        super().forbidden(topic)
        here, there = socket.socketpair()
        with here, there:
            here.settimeout(STOPS)
            with contextlib.suppress(TimeoutError):
                here.recv(1)


# -- the log-in --------------------------------------------------------------------------------------------------------


class TakesOldTLS(UnorderedSound):
    """Speaks TLS 1.0 with a server that has nothing newer."""

    caught_by = ("delivery.tls-takes-no-old-version",)

    def context(self, host: Host) -> ssl.SSLContext | None:
        context = super().context(host)
        if context is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                context.minimum_version = ssl.TLSVersion.TLSv1
            context.set_ciphers("ALL:@SECLEVEL=0")
        return context


class DecodesThePasswordTwice(UnorderedSound):
    """Takes a password, which was decoded already, for percent-encoded."""

    caught_by = ("delivery.login-is-sent-as-it-is",)

    def login(self) -> bytes:
        return urllib.parse.unquote_to_bytes(super().login())


class TakesAPlusForASpace(UnorderedSound):
    """Takes a plus sign in a password for a space."""

    caught_by = ("delivery.login-is-sent-as-it-is",)

    def login(self) -> bytes:
        return super().login().replace(b"+", b" ")


class CutsThePasswordAtAColon(UnorderedSound):
    """Takes a second colon for the end of the password."""

    caught_by = ("delivery.login-is-sent-as-it-is",)

    def login(self) -> bytes:
        return b":".join(super().login().split(b":")[:2])


class EncodesThePassword(UnorderedSound):
    """Sends the password as it stands in the config string."""

    caught_by = ("delivery.login-is-sent-as-it-is",)

    def login(self) -> bytes:
        user, _, password = super().login().partition(b":")
        return user + b":" + urllib.parse.quote(password, safe="").encode()


class LosesLettersOfTheUser(UnorderedSound):
    """Leaves out what is not ASCII in the user's name."""

    caught_by = ("delivery.login-is-sent-as-it-is",)

    def login(self) -> bytes:
        user, _, password = super().login().partition(b":")
        return user.decode().encode("ascii", "ignore") + b":" + password


# -- what is told of the log-in ----------------------------------------------------------------------------------------


class Talkative(UnorderedSound):
    """Says with what it logs in, in some state that a variation names."""

    def told(self) -> str:
        return f"tried {self._url.render(reveal=True)}"


class TellsTheLoginWhenNotFound(Talkative):
    """Says with what it logs in when the name of a host cannot be resolved."""

    caught_by = ("lifecycle.nothing-confidential-is-told-of-a-login",)

    async def dial(self, host: Host) -> Streams:
        try:
            return await super().dial(host)
        except UnreachableError as error:
            if isinstance(error.__cause__, socket.gaierror):
                raise UnreachableError(f"{host} does not exist: {self.told()}") from error
            raise


class TellsTheLoginWhenTlsFails(Talkative):
    """Says with what it logs in when the handshake fails."""

    caught_by = ("lifecycle.nothing-confidential-is-told-of-a-login",)

    async def dial(self, host: Host) -> Streams:
        try:
            return await super().dial(host)
        except TLSError as error:
            error.add_note(self.told())
            raise TLSError(f"{host}: the handshake failed") from RuntimeError(self.told())


class LogsTheLoginInALongHandshake(Talkative):
    """Logs with what it logs in when the time is over in the middle of the handshake."""

    caught_by = ("lifecycle.nothing-confidential-is-told-of-a-login",)
    greeting = False

    async def greet(self, host: Host, *streams: Any) -> None:
        self.greeting = True
        await super().greet(host, *streams)

    async def dial(self, host: Host) -> Streams:
        self.greeting = False
        try:
            return await super().dial(host)
        except asyncio.CancelledError:
            if self._options.tls and not self.greeting:
                log.debug("no handshake in time: %s", self.told())
            raise


class QuotesTheGreeting(UnorderedSound):
    """Quotes what came back when it is no answer to a greeting: perhaps the greeting itself."""

    caught_by = ("lifecycle.nothing-confidential-is-told-of-a-login",)

    async def greet(self, host: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came: list[bytes] = []
        readline = reader.readline

        async def read() -> bytes:
            came.append(await readline())
            return came[-1]

        reader.readline = read  # type: ignore[method-assign]
        try:
            await super().greet(host, reader, writer)
        except ProtocolError as error:
            raise ProtocolError(f"{host}: this is no unordered broker, it said {came[-1]!r}") from error
        finally:
            reader.readline = readline  # type: ignore[method-assign]


class LogsTheLoginAtClose(Talkative):
    """Logs with what it logged in when it is closed before it was connected."""

    caught_by = ("lifecycle.nothing-confidential-is-told-of-a-login",)

    async def close(self, grace: float) -> None:
        if self._writer is None:
            log.debug("closed while %s", self.told())
        await super().close(grace)


class NamesATaskByItsLogin(Talkative):
    """Names the task that connects by the config string."""

    caught_by = ("lifecycle.nothing-confidential-is-told-of-a-login",)

    async def dial(self, host: Host) -> Streams:
        dialing = asyncio.create_task(super().dial(host), name=self.told())
        try:
            return await dialing
        finally:
            dialing.cancel()


class TellsTheLoginOnNonsense(Talkative):
    """Says with what it logged in when an answer on a connection that worked makes no sense."""

    caught_by = ("lifecycle.nothing-confidential-is-told-of-a-later-login",)

    def lost(self, error: ConnectError) -> None:
        if isinstance(error.__cause__, ProtocolError | ValueError):
            error.text += f" ({self.told()})"
        super().lost(error)


class LogsTheLoginWhenLost(Talkative):
    """Logs with what it logged in when it is closed while a message has no answer."""

    caught_by = ("lifecycle.nothing-confidential-is-told-of-a-later-login",)

    async def close(self, grace: float) -> None:
        if self.pipeline._unanswered:
            log.debug("closed while %s", self.told())
        await super().close(grace)
