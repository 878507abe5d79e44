"""The TLS handshake with the driver's own context, and what the server's certificate says."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from typing import Any

from cqrs_brokers.dialing import Address, look_up, open_socket
from cqrs_brokers.inspection import Endpoint, Finding
from cqrs_brokers.options import BrokerOptions
from cqrs_brokers.tls import TLSOptions, tls_error

__all__ = ["look_at_tls", "speaks_tls"]

FEW_DAYS = 14
"""A certificate that ends within this many days should have been renewed."""
AFTERTHOUGHT = 0.3
"""With TLS 1.3 a server refuses a client's certificate only after the handshake. The refusal is waited for so many
seconds. One that comes later is not seen."""
_IGNORE_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME
_NOT_TLS = {
    "WRONG_VERSION_NUMBER",
    "RECORD_LAYER_FAILURE",
    "HTTP_REQUEST",
    "UNKNOWN_PROTOCOL",
    "PACKET_LENGTH_TOO_LONG",
}

Certificate = dict[str, Any]
"""A certificate, as `ssl.SSLSocket.getpeercert` gives it."""


async def look_at_tls(
    endpoint: Endpoint, context: ssl.SSLContext, address: Address, options: BrokerOptions, timeout: float
) -> list[Finding]:
    """Shakes hands as the driver would.

    Args:
        endpoint: Where to connect to.
        context: The driver's TLS context.
        address: The address that takes connections.
        options: The options, for the certificates in use.
        timeout: Seconds, at most, for each handshake.

    Returns:
        The finding. It is a failure if the driver cannot use the connection.
    """
    subject, name = str(endpoint), endpoint.host.host
    try:
        async with asyncio.timeout(timeout):
            version, certificate = await _shake_hands(address, context, name, linger=True)
    except (OSError, EOFError) as error:
        return [await _failure(error, subject, name, address, context, options, timeout)]
    if not certificate:  # it was not verified
        certificate = await _unverified(address, context, name, timeout)
    facts = _facts(certificate)
    if context.verify_mode != ssl.CERT_REQUIRED or not context.check_hostname:
        text = f"{version}, but the certificate is not verified{facts}"
        remedy = "give the authority's certificates with ssl_cafile= instead of ssl_verify=false"
        return [Finding("tls", "warn", subject, text, remedy)]
    text = f"{version}, chain and host name are verified{facts}"
    days = _days_left(certificate)
    if days is not None and days < FEW_DAYS:
        return [Finding("tls", "warn", subject, text, f"renew the certificate on the server: {_left(days)}")]
    return [Finding("tls", "ok", subject, text)]


async def speaks_tls(endpoint: Endpoint, timeout: float) -> bool:
    """Whether the port certainly speaks TLS: at the host's first address the server completes a handshake, or sends a
    TLS alert that says why it does not.

    Args:
        endpoint: Where to connect to.
        timeout: Seconds, at most.
    """
    name, port = endpoint.host
    assert port is not None
    try:
        async with asyncio.timeout(timeout):
            (address, *_) = await look_up(name, port, timeout=timeout)
            await _shake_hands(address, _context(ssl.CERT_NONE), name)
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except (OSError, EOFError):  # TimeoutError too
        return False
    return True


async def _failure(
    error: Exception,
    subject: str,
    name: str,
    address: Address,
    context: ssl.SSLContext,
    options: BrokerOptions,
    timeout: float,
) -> Finding:
    known = tls_error(error, subject, options if isinstance(options, TLSOptions) else TLSOptions())
    if isinstance(error, ssl.SSLCertVerificationError) and known is not None:
        certificate = await _unverified(address, context, name, timeout)
        finding = Finding.of(known, subject)
        return finding._replace(text=f"{finding.text}{_facts(certificate)}")
    if isinstance(error, ssl.SSLError) and error.reason in _NOT_TLS:
        text = "the server there does not speak TLS"
        return Finding("tls", "fail", subject, text, "use the server's TLS port, or connect without TLS")
    if known is not None:
        return Finding.of(known, subject)
    if isinstance(error, TimeoutError):
        text = f"nobody answers the TLS handshake within {timeout:g} s"
        return Finding("tls", "fail", subject, text, "check that this is the server's TLS port")
    text = "the server closes the connection in the TLS handshake, or right after it"
    remedy = (
        "check that this is its TLS port, and whether it asks for a client certificate (ssl_certfile=, ssl_keyfile=)"
    )
    return Finding("tls", "fail", subject, text, remedy)


async def _shake_hands(
    address: Address, context: ssl.SSLContext, name: str, *, linger: bool = False, binary: bool = False
) -> tuple[str, Any]:
    """One handshake.

    Args:
        address: Where to connect to.
        context: The TLS context, with the certificates.
        name: The host's name, which the certificate must have.
        linger: Wait a little after the handshake, to see whether the server refuses the client's certificate.
        binary: Return the certificate as DER. That also works for a certificate that is not verified.

    Returns:
        The version of TLS, and the certificate.

    Raises:
        OSError, EOFError: The handshake failed.
    """
    raw = await open_socket([address])
    try:
        reader, writer = await asyncio.open_connection(sock=raw, ssl=context, server_hostname=name)
    except BaseException:
        raw.close()
        raise
    try:
        tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        found = tls.version() or "TLS", tls.getpeercert(binary_form=binary)
        if linger:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AFTERTHOUGHT):
                    if not await reader.read(1):
                        raise EOFError
        return found
    finally:
        writer.transport.abort()


async def _unverified(address: Address, context: ssl.SSLContext, name: str, timeout: float) -> Certificate:
    """The content of the certificate, whoever signed it. Empty if it cannot be read.

    The standard library reads only a certificate that was verified. So the certificate itself is trusted, in a context
    that is used for nothing else.
    """
    with contextlib.suppress(OSError, EOFError, ValueError):
        async with asyncio.timeout(timeout):
            open_to_all = _context(ssl.CERT_NONE)
            _, encoded = await _shake_hands(address, open_to_all, name, binary=True)
            trusting = _context(ssl.CERT_REQUIRED)
            trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VerifyFlags(_IGNORE_TIME)
            trusting.load_verify_locations(cadata=ssl.DER_cert_to_PEM_cert(encoded))
            _, certificate = await _shake_hands(address, trusting, name)
            return certificate or {}
    return {}


def _context(mode: ssl.VerifyMode) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = mode
    return context


def _facts(certificate: Certificate) -> str:
    """A text that says whom the certificate is for, who signed it, and for how many days it is valid, as far as the
    certificate says these things. It begins with a colon. Empty if the certificate says nothing of them."""
    facts = []
    names = [name for _, name in certificate.get("subjectAltName", ())]
    if names:
        facts.append(f"for {', '.join(names[:5])}{' and others' if len(names) > 5 else ''}")
    issuer = dict(pair for part in certificate.get("issuer", ()) for pair in part)
    signed = issuer.get("commonName") or issuer.get("organizationName")
    if signed:
        facts.append(f"signed by {signed}")
    days = _days_left(certificate)
    if days is not None:
        facts.append(_left(days))
    return f": a certificate {', '.join(facts)}" if facts else ""


def _days_left(certificate: Certificate) -> int | None:
    end = certificate.get("notAfter")
    return None if end is None else int((ssl.cert_time_to_seconds(end) - time.time()) // 86_400)


def _left(days: int) -> str:
    if days < 0:
        return f"it expired {-days} days ago"
    return f"{days} {'day is' if days == 1 else 'days are'} left"
