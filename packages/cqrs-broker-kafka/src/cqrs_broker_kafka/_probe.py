"""Finds the bootstrap host that answers first, or the reason why no host answers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Any, NamedTuple

from cqrs_brokers.dialing import dial
from cqrs_brokers.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ConnectError,
    ProtocolError,
    TLSError,
    UnreachableError,
)
from cqrs_brokers.tasks import retrieve_exception
from cqrs_brokers.tls import tls_error
from cqrs_brokers.url import Host

from ._client import Connection, TokenError, errors
from ._settings import KafkaSettings

__all__ = ["Finding", "Greeting", "first_that_answers", "judge_greeting"]

AGAIN_AFTER = 0.3
PATIENCE = 0.3
"""While we examine a host, we wait this many seconds before we send anything, because the host may close the connection
or send something first."""
LOOK_FOR = 1.0
"""The examination of a host takes at most this many seconds."""
_API_VERSIONS = b"\x00\x00\x00\x0a\x00\x12\x00\x00\x00\x00\x00\x01\xff\xff"
"""A whole ApiVersions request of version 0. Every Kafka broker since 0.10 answers this request."""

_OUR_ANSWER = b"\x00\x00\x00\x01"
"""The correlation id of `_API_VERSIONS`. Kafka's answer contains this id directly after the size field."""
_TLS_ALERT = b"\x15\x03"
"""The start of a TLS alert. A TLS listener may answer plain text with an alert."""


class Greeting(NamedTuple):
    """A host that answered.

    Attributes:
        host: The host.
        answer: The metadata response of the host.
    """

    host: Host
    answer: Any

    @property
    def nodes(self) -> set[Host]:
        """The addresses of the nodes that the host names."""
        return {Host(name, port) for _, name, port, *_ in self.answer.brokers}


class _HungUpError(Exception):
    """The host answered the question for its versions, but closed the connection at the question for the nodes."""


async def _greet(settings: KafkaSettings, host: Host) -> Greeting:
    """Connects to one host, in the same way as for messages, and asks for the nodes.

    Raises:
        OSError, KafkaError, ssl.SSLError, TimeoutError, TokenError, _HungUpError: One of the steps failed.
            `judge_greeting` says what the error means.
    """
    connection = await Connection.open(settings, host)
    try:
        try:
            return Greeting(host, await connection.metadata([]))
        except errors.KafkaError as error:
            raise _HungUpError from error
    finally:
        connection.drop()
        with contextlib.suppress(Exception):
            await connection.ended()


class Finding(NamedTuple):
    """The meaning of a failure.

    Attributes:
        error: The error to raise.
        inferred: Whether the error is only a guess. The same failure may occur when a node restarts, or when a machine
            between us and the host resets the connection.
        host: The host. None: the failure concerns several hosts.
    """

    error: ConnectError
    inferred: bool = False
    host: Host | None = None


async def first_that_answers(settings: KafkaSettings, *, timeout: float, trusted: bool) -> Greeting:
    """Finds the bootstrap host that answers first, and returns its greeting.

    All hosts are asked at once, so that a silent host does not delay the answer.

    Args:
        settings: Where and how to connect.
        timeout: A host must answer within this many seconds.
        trusted: Whether these settings have worked before. If so, an error that is only a guess (`Finding.inferred`)
            becomes an `UnreachableError`. If not, the hosts are asked again, and the host may be examined. An error
            that is still only a guess then becomes an `UnreachableError`.

    Raises:
        ConnectError: No host answers. If the hosts' errors differ, errors that are not guesses come first, in the order
            of `_SAYS_MOST`.
    """
    until = asyncio.get_running_loop().time() + timeout
    outcome = await _ask_all(settings, until)
    if isinstance(outcome, Finding) and outcome.inferred and not trusted:
        await asyncio.sleep(AGAIN_AFTER)
        again = await _ask_all(settings, until)
        if not isinstance(again, Finding):
            outcome = again
        elif type(again.error) is type(outcome.error):
            outcome = await _confirmed(again, settings)
    if isinstance(outcome, Greeting):
        return outcome
    if not outcome.inferred:
        raise outcome.error
    host = ", ".join(map(str, settings.hosts)) if outcome.host is None else outcome.host
    error = UnreachableError(
        f"{host} takes the connection and closes it at once: is the broker behind it running (a port forwarder or a "
        "load balancer takes connections for it)?"
    )
    error.__cause__ = outcome.error.__cause__
    raise error


async def _confirmed(finding: Finding, settings: KafkaSettings) -> Finding:
    """Examines the host, to find out whether an error that is only a guess (`Finding.inferred`) is right.

    A host that closes connections before anything is sent counts as a forwarder whose broker is down.
    """
    host, error = finding.host, finding.error
    if host is None or isinstance(error.__cause__, _HungUpError):
        return finding._replace(inferred=False)
    try:
        async with asyncio.timeout(LOOK_FOR):
            if settings.options.tls:  # the handshake is the first step, so a failed handshake is the reason
                return finding._replace(inferred=await _says_hello(host) is None)
            start = await _says(host)
            if start and start[4:] == _OUR_ANSWER:
                return finding  # a Kafka that closed two connections before
            if start and not start.startswith(_TLS_ALERT):
                found = _of_another_protocol(start, host)
                found.__cause__ = error.__cause__
                return Finding(found, host=host)
            return finding._replace(inferred=not start and not await _says_hello(host))
    except OSError:  # TimeoutError too
        return finding


def _of_another_protocol(start: bytes, host: Host) -> ProtocolError:
    """Makes the error for a host that answers a request without TLS, but not as Kafka does."""
    if start.startswith(b"AMQP"):
        text = f"{host} is a port of RabbitMQ or of another AMQP broker, not of Kafka"
        return ProtocolError(text, remedy="write amqp://, or check the port")
    what = "an HTTP server" if start.startswith(b"HTTP") else "a server of another protocol"
    return ProtocolError(f"{host} is {what}, not Kafka", remedy="check the port (Kafka: 9092)")


async def _says(host: Host) -> bytes | None:
    """Connects without TLS, sends a request, and returns the first bytes from the host. b"": the host closed the
    connection after the request. None: the host closed the connection before the request."""
    reader, writer = await asyncio.open_connection(sock=await _dial(host))
    try:
        first = await _comes_first(reader)
        if first == b"":
            return None
        writer.write(_API_VERSIONS)
        return first or await reader.read(8)
    finally:
        writer.transport.abort()


async def _says_hello(host: Host) -> bool | None:
    """Whether the host answers a TLS hello. None: the host closed the connection before the hello.

    Nothing is sent after the TLS handshake, so the host's certificate does not matter.
    """
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(sock=await _dial(host))
    try:
        if await _closes(reader):
            return None
        await writer.start_tls(context, server_hostname=host.host)
    except ssl.SSLError as error:
        return not isinstance(error, ssl.SSLEOFError)
    except OSError:
        return False
    finally:
        writer.transport.abort()
    return True


async def _closes(reader: asyncio.StreamReader) -> bool:
    """Whether the host closes a connection on which we have sent nothing, within `PATIENCE`."""
    return await _comes_first(reader) == b""


async def _comes_first(reader: asyncio.StreamReader) -> bytes | None:
    """Returns the first bytes that the host sends within `PATIENCE`, before we send anything. b"": the host closes the
    connection. None: the host waits for a request."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            return await reader.read(8)
    return None


async def _dial(host: Host) -> socket.socket:
    assert host.port is not None  # the settings have filled it in
    return await dial(host.host, host.port, timeout=LOOK_FOR)


async def _ask_all(settings: KafkaSettings, until: float) -> Greeting | Finding:
    loop = asyncio.get_running_loop()
    asked = {loop.create_task(_greet(settings, host)): host for host in settings.hosts}
    for task in asked:
        task.add_done_callback(retrieve_exception)
    waiting = set(asked)
    findings: list[Finding] = []
    try:
        while waiting:
            done, waiting = await asyncio.wait(
                waiting, timeout=max(0.0, until - loop.time()), return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                silent = ", ".join(str(asked[task]) for task in waiting)
                text = f"{silent} does not answer: is it Kafka, does it run, and can it be reached?"
                findings.append(Finding(UnreachableError(text)))
                break
            for task in done:
                error = asyncio.CancelledError() if task.cancelled() else task.exception()
                if error is None:
                    return task.result()
                findings.append(judge_greeting(error, asked[task], settings))
    finally:
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting, timeout=0.3)
    return min(findings, key=_importance)


_SAYS_MOST = (AuthenticationError, AuthorizationError, TLSError, ProtocolError, UnreachableError)


def _importance(finding: Finding) -> int:
    return _SAYS_MOST.index(type(finding.error)) + (10 if finding.inferred else 0)


def judge_greeting(error: BaseException, host: Host, settings: KafkaSettings) -> Finding:
    """Returns the meaning of one host's failure."""
    finding = _judge(error, host, settings)
    finding.error.__cause__ = error
    return finding._replace(host=host)


def _judge(error: BaseException, host: Host, settings: KafkaSettings) -> Finding:
    options = settings.options
    found = tls_error(error, str(host), options)
    if found is not None:
        return Finding(found)
    if isinstance(error, TokenError):
        return Finding(UnreachableError(f"there is no token to log in with at {host}: {error}"))
    if isinstance(error, errors.SaslAuthenticationFailed) and options.mechanism == "OAUTHBEARER":
        remedy = "see whether it has expired, or is for another audience"
        return Finding(AuthenticationError(f"{host} refuses the token", remedy=remedy))
    if isinstance(error, errors.SaslAuthenticationFailed):
        text = f"{host} refuses the user or the password ({options.mechanism})"
        return Finding(AuthenticationError(text, remedy="check both, and whether the user exists for that mechanism"))
    if isinstance(error, errors.UnsupportedSaslMechanismError):
        text = f"{host} does not offer the SASL mechanism {options.mechanism}"
        return Finding(AuthenticationError(text, remedy="set sasl_mechanism to one that it offers"))
    if isinstance(error, errors.IllegalSaslStateError):
        text = f"the listener at {host} does not use SASL"
        return Finding(ProtocolError(text, remedy="set security_protocol to PLAINTEXT or SSL"))
    if isinstance(error, errors.ClusterAuthorizationFailedError):
        text = f"the user may not use the cluster at {host}"
        return Finding(AuthorizationError(text, remedy="grant the user rights on the cluster"))
    if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
        text = f"the name of {host} was not resolved: the name server does not answer"
        return Finding(UnreachableError(text, remedy="check DNS and the network"))
    if isinstance(error, socket.gaierror):
        text = f"the name of {host} cannot be resolved ({error.strerror})"
        return Finding(UnreachableError(text, remedy="check the host name and DNS"))
    if isinstance(error, ConnectionRefusedError):
        return Finding(UnreachableError(f"{host} refuses the connection: is the broker running at this port?"))
    if isinstance(error, _HungUpError):
        text = f"{host} closes the connection at the first request: the listener wants SASL"
        return Finding(ProtocolError(text, remedy="check security_protocol"), inferred=True)
    if isinstance(error, TimeoutError | errors.RequestTimedOutError):
        return Finding(UnreachableError(f"{host} does not answer", remedy="check address and network"))
    if options.tls and isinstance(error, ConnectionError | ssl.SSLError | errors.KafkaConnectionError):
        text = f"{host} closes the connection in the TLS handshake: is this its TLS port? Check security_protocol"
        return Finding(TLSError(text), inferred=True)
    if isinstance(error, errors.KafkaConnectionError):
        text = f"{host} closes the connection at the first request: a TLS listener? Check security_protocol"
        return Finding(ProtocolError(text), inferred=True)
    if isinstance(error, OSError):
        text = f"{host} cannot be reached ({error.strerror or type(error).__name__})"
        return Finding(UnreachableError(text, remedy="check the address and the network"))
    text = f"{host} does not speak Kafka's protocol ({type(error).__name__})"
    return Finding(ProtocolError(text, remedy="check the port"), inferred=True)
