"""For plugin authors: what only the plugin can find out about a config string, for `cqrs-brokers check`. Optional.

The command itself checks the parts that are the same for every broker: the string, the plugin and the options. For each
endpoint of the plugin it checks the name, the TCP connection and the TLS handshake. The plugin checks the rest: the
log-in, what the server is, and whether it would take a message to a topic. Its hook `inspect_broker` returns an
`Inspection`:

    # cqrs_broker_acme/__init__.py
    @hookimpl
    def inspect_broker(url, options):
        return AcmeInspection(url.hosts, options)

    # cqrs_broker_acme/_inspection.py
    class AcmeInspection(Inspection):
        def endpoints(self):
            return [Endpoint(host) for host in self._hosts]

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

An inspection changes nothing in the broker and publishes nothing. It lists what cannot be found out in this way with
the level "unseen". Without the hook the command connects, asks for `health()`, and lists what it did not check.
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
"""What was found. "ok": it is good. "warn": it works, but a person should look at it. "fail": it does not work.
"unseen": it could not be looked at, and the text says why."""

Step = Literal["string", "plugin", "options", "dns", "tcp", "tls", "login", "access", "server", "topic", "send"]
"""What was looked at, in this order. "access" is the permission to use the virtual host or the cluster."""


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        step: Which part was checked; see `Step`.
        level: How good it is; see `Level`.
        subject: What it is about: a host with its port, a virtual host, a topic; "" for the string as a whole.
        text: What was found, without a secret.
        remedy: What to do about it; "" when there is nothing to do, or when the text says it.
    """

    step: Step
    level: Level
    subject: str
    text: str
    remedy: str = ""

    @classmethod
    def of(cls, error: BrokerError, subject: str) -> Self:
        """A finding of the level "fail" for an error. The step follows from the class of the error. The remedy is that
        of a `ConnectError`; other errors have none.

        Args:
            error: For example a `ConnectError` of the driver.
            subject: What it is about.
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
    """Where the driver connects to.

    Attributes:
        host: The host with its port.
        tls: The TLS context of the driver's connections; None: they use no TLS.
    """

    host: Host
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return str(self.host)


class Inspection(ABC):
    """What the plugin can find out about one config string.

    The command iterates over `server()` first, then over `topic()` for each topic, then calls `close()`. It limits the
    time until each next finding, and cancels an iterator that takes longer. If an iterator raises a `BrokerError`, the
    error becomes a failure. For any other exception the command shows only the class.
    """

    @abstractmethod
    def endpoints(self) -> Sequence[Endpoint]:
        """The endpoints to which the driver connects, in the order of the string. Each has its port, even a default
        one. The method does no I/O."""

    @abstractmethod
    def server(self, endpoints: Sequence[Endpoint], /) -> AsyncIterator[Finding]:
        """The log-in at each endpoint, the virtual host or cluster, and which product and version the server is.

        An endpoint that fails while another one works is a "warn": the driver works without it.

        Args:
            endpoints: The endpoints to which a connection was possible; at least one, unless the plugin has none.
        """

    @abstractmethod
    def topic(self, topic: str, /) -> AsyncIterator[Finding]:
        """Whether the topic exists, whether this user may publish there, and which settings of the topic would refuse a
        message or make it less durable.

        Called only when `server()` gave no failure.
        """

    async def close(self) -> None:
        """Closes every connection of the inspection, within about a second."""
        return
