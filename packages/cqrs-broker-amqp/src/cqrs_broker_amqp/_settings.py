"""The settings: where to connect to, with which login and which options. They are made from a config string or by an
adapter."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

from cqrs_brokers.adapters import ConnectionAdapter
from cqrs_brokers.exceptions import ConfigError
from cqrs_brokers.secret import Secret
from cqrs_brokers.tls import TLSContext
from cqrs_brokers.url import BrokerURL

from ._options import AMQPOptions

__all__ = ["AMQPPublisherAdapter", "AMQPSettings"]

PORTS = {"amqp": 5672, "amqps": 5671}


@dataclass(frozen=True, slots=True)
class AMQPSettings:
    """The settings that the driver needs.

    Attributes:
        hosts: The name and the port of each host, in the given order.
        username: The user's name.
        password: The user's password.
        vhost: The virtual host.
        options: The validated options.
    """

    hosts: tuple[tuple[str, int], ...]
    username: str
    password: Secret
    vhost: str
    options: AMQPOptions
    _tls: TLSContext | None = field(repr=False)

    @property
    def tls(self) -> ssl.SSLContext | None:
        """The TLS context for the next connection, or None without TLS."""
        return None if self._tls is None else self._tls.current()

    @classmethod
    def of(cls, url: BrokerURL, options: AMQPOptions) -> AMQPSettings:
        """Makes the settings from a URL and its options.

        Warns:
            InsecureTransportWarning: Credentials would be sent in plain text to a host that is not loopback, or the
                server's certificate is not verified.

        Raises:
            ConfigError: The URL or an option is wrong, or a certificate file cannot be used. The error lists all
                problems.
        """
        problems = url.repeated_hosts(PORTS[url.scheme])
        hosts = tuple((host.host, host.port or PORTS[url.scheme]) for host in url.hosts)
        local = all(host.is_loopback for host in url.hosts)
        if not hosts:
            problems.append(f"there is no host: write {url.scheme}://user:password@host/vhost")
        if url.username is None and not local:
            problems.append(
                "there is no user: RabbitMQ's guest may log in on loopback only: put user:password@ before the hosts"
            )
        password = url.password if url.password is not None else Secret("guest")
        vhost = url.path or "/"
        if len(vhost.encode()) > 255:
            problems.append("the virtual host is longer than 255 bytes")
        secure = url.scheme == "amqps"
        tls = TLSContext.for_url(url, options, problems, secure=secure, secret=True, instead="write amqps://")
        return cls(hosts, url.username or "guest", password, vhost, options, tls)


class AMQPPublisherAdapter(ConnectionAdapter[AMQPOptions, AMQPSettings]):
    """Connection settings for one `AMQPMessageBroker`. Making an adapter needs no event loop. The only I/O is the
    reading of the files that options name.

    Args:
        dsn: A config string: `amqp://user:password@host/vhost?exchange=events`.
        value_serializer: Encodes payloads that come without `payload_bytes` and without a content type. Default: JSON.
        **options: The options of the config string by name, and `ssl_context`. An option that is given here overrides
            the same option in `dsn`. `retry_count`: when this many passes over all hosts have failed in a row, the
            waiting sends get `NotConnectedError`, and the next send starts to connect again (default: no limit).
            `retry_delay`: the seconds between two passes (default: 0.1 s, growing to 1 s).

    Raises:
        ConfigError: The string or an option is wrong. Some problems are found only when the broker is made, for example
            a missing user.
    """

    def __init__(
        self, dsn: str, *, value_serializer: Callable[[object], bytes] | None = None, **options: object
    ) -> None:
        url = BrokerURL.parse(dsn, source="dsn")
        if url.scheme not in PORTS:
            raise ConfigError(f"dsn: {url.scheme}:// is not RabbitMQ: write amqp:// or amqps://")
        super().__init__(AMQPOptions, AMQPSettings.of, url, options, value_serializer, "dsn")
