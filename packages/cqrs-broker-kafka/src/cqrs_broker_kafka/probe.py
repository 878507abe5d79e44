"""Why Kafka cannot be reached. aiokafka's `start()` says the same for every reason, so each host is asked directly."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import NamedTuple

from aiokafka import errors as kafka

from cqrs_brokers.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ConnectError,
    ProtocolError,
    TLSError,
    UnreachableError,
)
from cqrs_brokers.url import Host

from .connections import Greeting, HungUpError, greet, looked_at
from .settings import KafkaSettings

__all__ = ["Finding", "first_that_answers", "judge_greeting"]

AGAIN_AFTER = 0.3


class Finding(NamedTuple):
    """What one host's failure means.

    Attributes:
        error: The error.
        inferred: It also looks like this when a node restarts or something between us resets the connection.
    """

    error: ConnectError
    inferred: bool = False


async def first_that_answers(settings: KafkaSettings, *, timeout: float, trusted: bool) -> Greeting:
    """The greeting of the bootstrap host that answers first.

    All are asked at once, so that a silent one delays nobody.

    Args:
        settings: Where and how.
        timeout: Seconds, at most.
        trusted: These settings have worked before: then what can be inferred from a hang-up is not believed.

    Raises:
        ConnectError: None answers; the error of the host that says most.
    """
    until = asyncio.get_running_loop().time() + timeout
    outcome = await _ask_all(settings, until)
    if isinstance(outcome, Finding) and outcome.inferred and not trusted:
        await asyncio.sleep(AGAIN_AFTER)
        again = await _ask_all(settings, until)
        if not isinstance(again, Finding) or type(again.error) is type(outcome.error):
            outcome = Finding(again.error) if isinstance(again, Finding) else again
    if isinstance(outcome, Greeting):
        return outcome
    if outcome.inferred:
        error = UnreachableError(outcome.error.text)
        error.__cause__ = outcome.error.__cause__
        raise error
    raise outcome.error


async def _ask_all(settings: KafkaSettings, until: float) -> Greeting | Finding:
    loop = asyncio.get_running_loop()
    asked = {loop.create_task(greet(settings, host)): host for host in settings.hosts}
    for task in asked:
        task.add_done_callback(looked_at)
    waiting = set(asked)
    findings: list[Finding] = []
    try:
        while waiting:
            done, waiting = await asyncio.wait(
                waiting, timeout=max(0.0, until - loop.time()), return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                text = f"{', '.join(str(asked[task]) for task in waiting)} took the connection but does not answer"
                findings.append(Finding(UnreachableError(f"{text}: is it Kafka, and is it alive?")))
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
    """What it means that a host could not be greeted."""
    finding = _judge(error, host, settings)
    finding.error.__cause__ = error
    return finding


def _judge(error: BaseException, host: Host, settings: KafkaSettings) -> Finding:
    options = settings.options
    cause: BaseException | None = error
    while cause is not None:  # what ended a connection is behind what aiokafka says about it
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = cause.verify_message
            text = f"the certificate of {host} is not accepted ({reason}): check ssl_cafile and the host name"
            return Finding(TLSError(text))
        if isinstance(cause, ssl.SSLError):
            reason = cause.reason or type(cause).__name__
            advice = "is it a TLS listener, and does it ask for a client certificate (ssl_certfile)?"
            return Finding(TLSError(f"the TLS handshake with {host} failed ({reason}): {advice}"))
        cause = cause.__cause__
    if isinstance(error, kafka.SaslAuthenticationFailed):
        return Finding(AuthenticationError(f"{host} refuses the user or the password ({options.mechanism})"))
    if isinstance(error, kafka.UnsupportedSaslMechanismError):
        return Finding(AuthenticationError(f"{host} does not offer the SASL mechanism {options.mechanism}"))
    if isinstance(error, kafka.IllegalSaslStateError):
        text = f"the listener at {host} does not use SASL: set security_protocol to PLAINTEXT or SSL"
        return Finding(ProtocolError(text))
    if isinstance(error, kafka.ClusterAuthorizationFailedError):
        return Finding(AuthorizationError(f"the user may not use the cluster at {host}"))
    if isinstance(error, socket.gaierror):
        return Finding(UnreachableError(f"the host name of {host} cannot be resolved"))
    if isinstance(error, ConnectionRefusedError):
        return Finding(UnreachableError(f"{host} refuses the connection: is the broker running at this port?"))
    if isinstance(error, HungUpError):
        text = f"{host} closes the connection at the first request: the listener wants SASL; check security_protocol"
        return Finding(ProtocolError(text), inferred=True)
    if isinstance(error, TimeoutError | kafka.RequestTimedOutError):
        return Finding(UnreachableError(f"{host} does not answer"))
    if options.tls and isinstance(error, OSError | kafka.KafkaConnectionError):
        text = f"{host} closes the connection in the TLS handshake: is it a TLS listener? Check security_protocol"
        return Finding(TLSError(text), inferred=True)
    if isinstance(error, kafka.KafkaConnectionError):
        text = f"{host} closes the connection at the first request: a TLS listener? Check security_protocol"
        return Finding(ProtocolError(text), inferred=True)
    if isinstance(error, OSError):
        return Finding(UnreachableError(f"{host} cannot be reached: {error.strerror or type(error).__name__}"))
    return Finding(ProtocolError(f"{host} does not speak Kafka's protocol ({type(error).__name__})"), inferred=True)
