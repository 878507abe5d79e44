"""Broken variations of the driver of `unordered_driver`, thought of by a second hostile reader of the contract.

They are about connections: the second host, a certificate in one combination, what an attempt that fails leaves, what
is told in an error that is rare. `later_mutants` has those about messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from cqrs_brokers.driver import Delivery
from cqrs_brokers.exceptions import AuthenticationError, ConnectError, ProtocolError, UnreachableError
from cqrs_brokers.url import Host
from tests.conformance.unordered_driver import Streams, UnorderedSound

# -- hosts, TLS --------------------------------------------------------------------------------------------------------


class HalfForEachHost(UnorderedSound):
    """Gives each host half of `connect_timeout`, however many there are."""

    caught_by = ("lifecycle.silent-host-leaves-time",)

    async def pass_over_hosts(self, hosts: Sequence[Host]) -> Streams:
        for host in hosts[:-1]:
            try:
                return await asyncio.wait_for(self.dial(host), self._options.connect_timeout / 2)
            except (UnreachableError, TimeoutError):
                continue
        return await self.dial(hosts[-1])


class VerifiesOnlyOnce(UnorderedSound):
    """Verifies the certificate of the first connection, and of no later one."""

    caught_by = ("delivery.tls-is-as-true",)
    known = False

    def context(self, host: Host) -> ssl.SSLContext | None:
        context = super().context(host)
        if context is not None and self.known:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context

    async def dial(self, host: Host) -> Streams:
        made = await super().dial(host)
        self.known = True
        return made


class PlainAfterTLS(UnorderedSound):
    """Goes on without TLS when a server that offered it does so no more."""

    caught_by = ("delivery.tls-is-as-true",)
    known = False

    def context(self, host: Host) -> ssl.SSLContext | None:
        return None if self.known else super().context(host)

    async def dial(self, host: Host) -> Streams:
        made = await super().dial(host)
        self.known = True
        return made


class UnverifiedByAddress(UnorderedSound):
    """Does not compare the host of a certificate with an address."""

    caught_by = ("delivery.tls-failure", "delivery.tls-verifies-certificates")

    def context(self, host: Host) -> ssl.SSLContext | None:
        context = super().context(host)
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(host.host)
            if context is not None:
                context.check_hostname = False
        return context


class UnverifiedLaterHosts(UnorderedSound):
    """Compares the host of a certificate only for the first host of the config string."""

    caught_by = ("delivery.tls-verifies-certificates",)

    def context(self, host: Host) -> ssl.SSLContext | None:
        context = super().context(host)
        if context is not None and host != self._url.hosts[0]:
            context.check_hostname = False
        return context


class UnverifiedWithOwnCertificate(UnorderedSound):
    """Does not verify the server when it has a certificate of its own to show."""

    caught_by = ("delivery.tls-verifies-certificates",)

    def context(self, host: Host) -> ssl.SSLContext | None:
        context = super().context(host)
        if context is not None and self._options.ssl_certfile is not None:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context


class TakesWhatHasExpired(UnorderedSound):
    """Accepts a certificate that has expired."""

    caught_by = ("delivery.tls-verifies-certificates",)

    def context(self, host: Host) -> ssl.SSLContext | None:
        context = super().context(host)
        if context is not None:
            context.verify_flags |= ssl.VerifyFlags(0x200000)  # X509_V_FLAG_NO_CHECK_TIME
        return context


# -- what is left ------------------------------------------------------------------------------------------------------


class Leaky(UnorderedSound):
    """Leaves the socket of an attempt that fails in a way that a variation names."""

    reason: type[BaseException]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.kept: list[socket.socket] = []

    async def greet(self, host: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raw = writer.get_extra_info("socket").dup()
        try:
            await super().greet(host, reader, writer)
        except self.reason:
            LEAKED.append(raw)
            raise
        except BaseException:
            raw.close()
            raise
        raw.close()


LEAKED: list[socket.socket] = []


class LeaksWhenRefused(Leaky):
    """Leaves the socket of a connection whose login was refused."""

    caught_by = ("lifecycle.failed-connects-leave-nothing",)
    reason = AuthenticationError


class LeaksWhenForeign(Leaky):
    """Leaves the socket of a connection to a peer of another protocol."""

    caught_by = ("lifecycle.failed-connects-leave-nothing",)
    reason = ProtocolError


class LeaksWhenSilent(Leaky):
    """Leaves the socket of a connection to a peer that said nothing in time."""

    caught_by = ("lifecycle.failed-connects-leave-nothing",)
    reason = asyncio.CancelledError


class LeaksOverTLS(UnorderedSound):
    """Leaves the socket below a connection with TLS."""

    caught_by = ("delivery.tls-is-as-true",)

    async def dial(self, host: Host) -> Streams:
        reader, writer = await super().dial(host)
        if self._options.tls:
            LEAKED.append(writer.get_extra_info("socket").dup())
        return reader, writer


class LeaksWhenStuck(UnorderedSound):
    """Leaves a task when it is closed while messages have no answer."""

    caught_by = ("faults.close-while-stalled",)

    async def close(self, grace: float) -> None:
        if self.pipeline._unanswered:
            WAITING.append(asyncio.ensure_future(asyncio.sleep(3600)))
        await super().close(grace)


class WritesOnAfterClose(UnorderedSound):
    """Lets the socket write what its buffer holds when it is closed."""

    caught_by = ("faults.close-while-stalled",)

    def drop(self) -> None:
        writer = self._writer
        if writer is not None and writer.transport.get_write_buffer_size():
            self._writer = None
            writer.transport.close()
        super().drop()


WAITING: list[asyncio.Future[None]] = []

# -- what is told ------------------------------------------------------------------------------------------------------


class PingsAnotherConnection(UnorderedSound):
    """Answers for its health by a connection that it makes for that."""

    caught_by = ("lifecycle.health-asks-the-connection-in-use",)

    async def ping(self) -> None:
        _, writer = await self.pass_over_hosts(self._url.hosts)
        writer.transport.abort()

    def pinger(self) -> Callable[[], Awaitable[None]] | None:
        return super().ping


class TellsThePasswordWhenSilent(UnorderedSound):
    """Says with what it logged in when nobody answers."""

    caught_by = ("lifecycle.nothing-confidential-is-told-of-a-login",)

    async def pass_over_hosts(self, hosts: Sequence[Host]) -> Streams:
        try:
            return await super().pass_over_hosts(hosts)
        except UnreachableError as error:
            raise UnreachableError("nobody answers") from RuntimeError(
                f"tried {self._url.render(reveal=True)}: {error}"
            )


class TellsThePasswordWhenHungUp(UnorderedSound):
    """Says in hexadecimal digits with what it logged in when the peer hangs up."""

    caught_by = ("lifecycle.nothing-confidential-is-told-of-a-login",)

    async def greet(self, host: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await super().greet(host, reader, writer)
        except UnreachableError as error:
            password = self._url.password.reveal() if self._url.password else ""
            raise UnreachableError(f"{host} hung up after {password.encode().hex()}") from error


class TellsTheLoginWhenForeign(UnorderedSound):
    """Quotes its own login when the answer is none of its protocol."""

    caught_by = ("lifecycle.nothing-confidential-is-told-of-a-login",)

    async def greet(self, host: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await super().greet(host, reader, writer)
        except ProtocolError as error:
            password = self._url.password.reveal() if self._url.password else ""
            raise ProtocolError(f"{host} does not understand HELLO :{password}") from error


class QuotesWhatWaits(UnorderedSound):
    """Quotes a message that waits for its answer when the broker's answer makes no sense."""

    caught_by = ("lifecycle.nothing-confidential-is-told-in-trouble",)

    def lost(self, error: ConnectError) -> None:
        if isinstance(error.__cause__, ProtocolError | ValueError):
            error.text += f" ({self.last})"
        super().lost(error)

    last = b""

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        self.last = deliveries[-1].message.body or b""
        super().submit(deliveries)
