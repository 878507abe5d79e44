"""From a host's name to a TLS handshake: the steps that are the same for every broker."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import NamedTuple

from cqrs_brokers.dialing import Address, look_up, open_socket
from cqrs_brokers.inspection import Endpoint, Finding
from cqrs_brokers.options import BrokerOptions

from ._certificates import look_at_tls

__all__ = ["Looked", "look_at"]

_NO_ANSWER = "check the address, and the firewalls and routes between here and there"


class Looked(NamedTuple):
    """What was found at one endpoint.

    Attributes:
        endpoint: The endpoint.
        findings: The findings, in order.
    """

    endpoint: Endpoint
    findings: list[Finding]

    @property
    def usable(self) -> bool:
        """Whether the driver can use the endpoint: no finding is a failure."""
        return all(finding.level != "fail" for finding in self.findings)


class _Tried(NamedTuple):
    """One address of a host, with the seconds that connecting took, or why it failed."""

    address: Address
    seconds: float
    error: OSError | None


async def look_at(endpoint: Endpoint, options: BrokerOptions, timeout: float) -> Looked:
    """Looks up the name, connects to each of its addresses, and makes the TLS handshake with the first address that
    takes connections, if the driver would.

    Args:
        endpoint: The endpoint. Its host has a port.
        options: The options, for the certificates in use.
        timeout: Seconds for each step, at most.
    """
    findings: list[Finding] = []
    addresses = await _resolve(endpoint, timeout, findings)
    if addresses:
        tried = await asyncio.gather(*(_try(address, timeout) for address in addresses))
        findings.append(_tcp(str(endpoint), tried, timeout))
        alive = [one.address for one in tried if one.error is None]
        if alive and endpoint.tls is not None:
            findings += await look_at_tls(endpoint, endpoint.tls, alive[0], options, timeout)
    return Looked(endpoint, findings)


async def _resolve(endpoint: Endpoint, timeout: float, findings: list[Finding]) -> list[Address]:
    name, port = endpoint.host
    assert port is not None
    subject = str(endpoint)
    try:
        addresses = await look_up(name, port, timeout=timeout)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            text, remedy = f"no name server has answered within {timeout:g} s", "check the DNS that this machine uses"
        else:
            text = "the name cannot be resolved: no name server knows it"
            remedy = (
                "check the spelling, and that this machine asks the right DNS (a cluster's own names are inside it)"
            )
        findings.append(Finding("dns", "fail", subject, text, remedy))
        return []
    except OSError as error:
        text = f"the name cannot be resolved ({error.strerror or type(error).__name__})"
        findings.append(Finding("dns", "fail", subject, text, "check the host name"))
        return []
    if not _is_address(name):
        findings.append(Finding("dns", "ok", subject, ", ".join(_shown(address) for address in addresses)))
    return addresses


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


async def _try(address: Address, timeout: float) -> _Tried:
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        raw = await open_socket([address], timeout=timeout)
    except OSError as error:
        return _Tried(address, loop.time() - began, error)
    raw.close()
    return _Tried(address, loop.time() - began, None)


def _tcp(subject: str, tried: Sequence[_Tried], timeout: float) -> Finding:
    alive = [one for one in tried if one.error is None]
    silent = [one for one in tried if isinstance(one.error, TimeoutError)]
    dead = [one for one in tried if one.error is not None]
    reasons = "; ".join(f"{_shown(one.address)} {_why(one, timeout)}" for one in dead)
    if not alive:
        refused = any(isinstance(one.error, ConnectionRefusedError) for one in dead)
        remedy = "check that the server is running there, and that this is its port" if refused else _NO_ANSWER
        return Finding("tcp", "fail", subject, reasons, remedy)
    text = ", ".join(f"{_shown(one.address)} takes connections ({one.seconds * 1000:.1f} ms)" for one in alive)
    if silent:
        remedy = "the driver tries the other address a quarter of a second later: remove the dead one from DNS"
        return Finding("tcp", "warn", subject, f"{text}; {reasons}", remedy)
    return Finding("tcp", "ok", subject, "; ".join(filter(None, (text, reasons))))


def _why(one: _Tried, timeout: float) -> str:
    if isinstance(one.error, ConnectionRefusedError):
        return "refuses connections"
    if isinstance(one.error, TimeoutError):
        return f"does not answer within {timeout:g} s"
    assert one.error is not None
    return f"cannot be reached ({one.error.strerror or type(one.error).__name__})"


def _shown(address: Address) -> str:
    return str(address.sockaddr[0])
