"""For plugin authors: checks of a config string that only the plugin can make. `cqrs-brokers check` runs these checks.

The command itself checks the parts that are the same for every broker: the string, the plugin and the options. For each
endpoint (host and port) that the plugin names, the command also checks the look-up of the host's name, the TCP
connection and (for an endpoint with TLS) the TLS handshake. The plugin checks the rest: the log-in, the product and
version of the server, and whether the server would accept a message for a topic. Its optional hook `inspect_broker`
returns an `Inspection`:

    # cqrs_broker_acme/__init__.py
    @hookimpl
    def inspect_broker(url, options):
        return AcmeInspection(url.hosts, options)

    # cqrs_broker_acme/_inspection.py
    class AcmeInspection(Inspection):
        def endpoints(self):
            return [Endpoint(Host(host.host, host.port or 7070)) for host in self._hosts]

        async def server(self, endpoints):
            try:
                self._client = await connect(endpoints)
            except ConnectError as error:
                yield Finding.of(error, str(endpoints[0]))
                return
            yield Finding("login", "ok", str(endpoints[0]), "logged in as shop")

        async def topic(self, topic):
            if not await self._client.exists(topic):
                yield Finding("topic", "fail", topic, "there is no such topic", "create it")

An inspection changes nothing in the broker and publishes nothing. Some facts cannot be found out in this way. The
inspection lists each such fact as a finding with the level "unseen". If a plugin does not have the hook, the command
connects, calls `health()`, and lists what it did not check.
"""

from __future__ import annotations

import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Literal, NamedTuple, Self

from .exceptions import (
    AuthenticationError,
    AuthorizationError,
    BrokerError,
    ConnectError,
    TLSError,
    TopologyError,
    UnreachableError,
)
from .url import Host

__all__ = ["Endpoint", "Finding", "Inspection", "Level", "Step"]

Level = Literal["ok", "warn", "fail", "unseen"]
"""The result of checking one part. "ok": the part is good. "warn": the part works, but a person should look at it.
"fail": the part does not work. "unseen": the part was not checked, and the text says why."""

Step = Literal["string", "plugin", "options", "dns", "tcp", "tls", "login", "access", "server", "topic", "send"]
"""The parts that are checked, in this order. "access" is the permission to use the virtual host or the cluster."""


class Finding(NamedTuple):
    """The result of one check.

    Attributes:
        step: Which part was checked; see `Step`.
        level: Whether this part works; see `Level`.
        subject: The object that was checked: a host with its port, a virtual host, or a topic. "" for the whole config
            string.
        text: What was found, without a secret.
        remedy: What to do about a problem. "" when there is nothing to do, or when the text already says what to do.
    """

    step: Step
    level: Level
    subject: str
    text: str
    remedy: str = ""

    @classmethod
    def of(cls, error: BrokerError, subject: str) -> Self:
        """Makes a finding of the level "fail" from an error. The class of the error decides the step. If the error is a
        `ConnectError`, the finding has the error's remedy. If not, the finding has no remedy.

        Args:
            error: The error, for example a `ConnectError` of the driver.
            subject: What was checked; see `Finding`.
        """
        remedy = error.remedy if isinstance(error, ConnectError) else ""
        step: Step = next((step for kind, step in _STEPS.items() if isinstance(error, kind)), "server")
        return cls(step, "fail", subject, error.text.removesuffix(f": {remedy}"), remedy)


_STEPS: dict[type[BrokerError], Step] = {
    AuthenticationError: "login",
    AuthorizationError: "access",
    TLSError: "tls",
    UnreachableError: "tcp",
    TopologyError: "topic",
}


class Endpoint(NamedTuple):
    """A host to which the driver connects.

    Attributes:
        host: The host with its port.
        tls: The TLS context of the driver's connections. None: the connections use no TLS.
    """

    host: Host
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return str(self.host)


class Inspection(ABC):
    """The plugin's checks of one config string.

    The command iterates over `server()` first, then over `topic()` for each topic, then calls `close()`. The command
    skips `server()` if every endpoint failed the command's own checks, and `topic()` after a failure. The command
    limits the time that an iterator may take for each finding, and cancels an iterator that takes longer. If an
    iterator raises a `BrokerError`, the command makes a finding of the level "fail" from this error. If an iterator
    raises any other exception, the command shows only the class of the exception.
    """

    @abstractmethod
    def endpoints(self) -> Sequence[Endpoint]:
        """The endpoints to which the driver connects, in the order of the config string. Each endpoint has a port: the
        default port if the config string gives no port. The method does no I/O."""

    @abstractmethod
    def server(self, endpoints: Sequence[Endpoint], /) -> AsyncIterator[Finding]:
        """Checks the log-in at each endpoint and the access to the virtual host or cluster. This method also reports
        the product and version of the server.

        If one endpoint fails and another endpoint works, the finding about the failed endpoint has the level "warn":
        the driver works without this endpoint.

        Args:
            endpoints: The endpoints for which the command's own checks (name, TCP, TLS) found no failure. The sequence
                is empty only if `endpoints()` returned no endpoint.
        """

    @abstractmethod
    def topic(self, topic: str, /) -> AsyncIterator[Finding]:
        """Checks whether the topic exists, and whether this user may publish to the topic. This method also reports
        settings of the topic that make the broker refuse a message or store it less durably.

        The command calls this method only if no earlier finding has the level "fail", and if neither core nor the
        driver refuses the topic's name.
        """

    async def close(self) -> None:
        """Closes every connection of the inspection, within about a second."""
        return
