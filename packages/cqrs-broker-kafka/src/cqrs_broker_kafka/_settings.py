"""The settings: where and how to connect. They are made from a config string or from a `KafkaProducerAdapter`."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from typing import Any

from cqrs_brokers.adapters import ConnectionAdapter
from cqrs_brokers.exceptions import ConfigError
from cqrs_brokers.tls import TLSContext
from cqrs_brokers.url import BrokerURL, Host

from ._options import KafkaOptions

__all__ = ["KafkaProducerAdapter", "KafkaSettings"]

DEFAULT_PORT = 9092


class KafkaSettings:
    """The settings that the driver needs.

    Args:
        url: Its hosts are the bootstrap servers.
        options: The validated options.

    Raises:
        ConfigError: There is no host, a host is listed twice, or a certificate file cannot be used.

    Warns:
        InsecureTransportWarning: The server's certificate is not verified, or `security_protocol` is SASL_PLAINTEXT and
            a host is not loopback.
    """

    def __init__(self, url: BrokerURL, options: KafkaOptions) -> None:
        problems = url.repeated_hosts(DEFAULT_PORT)
        if not url.hosts:
            problems.append("there is no host: write kafka://host[:port][,host[:port]…]")
        self.hosts = [Host(host, DEFAULT_PORT if port is None else port) for host, port in url.hosts]
        self.options = options
        self._tls = TLSContext.for_url(
            url,
            options,
            problems,
            secure=options.tls,
            secret=options.security_protocol == "SASL_PLAINTEXT",
            instead="use security_protocol=SASL_SSL",
        )

    @property
    def ssl_context(self) -> ssl.SSLContext | None:
        """The TLS context for a new connection. None: the connections use no TLS."""
        return None if self._tls is None else self._tls.current()

    def __repr__(self) -> str:
        return f"<KafkaSettings {','.join(map(str, self.hosts))} {self.options.security_protocol}>"

    def client_arguments(self) -> dict[str, Any]:
        """The keyword arguments that all of aiokafka's connections get."""
        options = self.options
        arguments: dict[str, Any] = {
            "request_timeout_ms": options.request_timeout_ms,
            "security_protocol": options.security_protocol,
            "ssl_context": self.ssl_context,
        }
        if options.client_id is not None:
            arguments["client_id"] = options.client_id
        if options.security_protocol.startswith("SASL_"):
            password = options.sasl_plain_password
            arguments |= {
                "sasl_mechanism": options.mechanism,
                "sasl_plain_username": options.sasl_plain_username,
                "sasl_plain_password": None if password is None else password.reveal(),
                "sasl_oauth_token_provider": options.sasl_oauth_token_provider,
            }
        return arguments


class KafkaProducerAdapter(ConnectionAdapter[KafkaOptions, KafkaSettings]):
    """Connection settings for one `KafkaMessageBroker`, under the names that python-cqrs documents. The adapter reads
    only the files and environment variables that options name.

    Args:
        bootstrap_servers: The hosts, as one text with commas (`host[:port],host[:port]`) or as a list of texts.
        dsn: The hosts as one text with commas, or a whole config string (`kafka://…?acks=all`).
        value_serializer: Encodes the payloads of messages that have neither `payload_bytes` nor a content type.
            `TOMBSTONE` is not encoded. None: payloads of bytes are sent as they are, and other payloads as JSON.
        **options: The options of `kafka://` by name (see `KafkaOptions`). An option that is given here overrides the
            same option in `dsn`.

    Raises:
        ConfigError: An option or host is wrong, not exactly one of `bootstrap_servers` and `dsn` is given, or
            `value_serializer` is not callable.
    """

    def __init__(
        self,
        bootstrap_servers: str | Iterable[str] | None = None,
        *,
        dsn: str | None = None,
        value_serializer: Callable[[Any], bytes] | None = None,
        **options: object,
    ) -> None:
        if (bootstrap_servers is None) == (dsn is None):
            raise ConfigError("give exactly one of bootstrap_servers and dsn (the same hosts as one text)")
        if isinstance(dsn, str) and "://" in dsn:
            url = BrokerURL.parse(dsn, source="dsn")
            if url.scheme != "kafka":
                raise ConfigError(f"dsn: it must start with kafka://, not {url.scheme}://")
        else:
            hosts = _hosts("bootstrap_servers", bootstrap_servers) if dsn is None else _hosts("dsn", dsn)
            url = BrokerURL.build("kafka", hosts=hosts)
        super().__init__(KafkaOptions, KafkaSettings, url, options, value_serializer, "" if dsn is None else "dsn")


def _hosts(name: str, servers: object) -> list[str]:
    if isinstance(servers, str):
        servers = servers.split(",")
    if not isinstance(servers, Iterable):
        raise ConfigError(f"{name} must be text or a list of texts")
    hosts = list(servers)
    if not hosts or not all(isinstance(host, str) and host for host in hosts):
        raise ConfigError(f"{name} must name at least one host:port, each as text")
    protocols = {host.partition("://")[0].strip().upper() for host in hosts if "://" in host}
    if protocols:
        named = sorted(protocols & {"SASL_PLAINTEXT", "SASL_SSL", "SSL"})
        instead = f", and give security_protocol={named[0]}" if named else ""
        raise ConfigError(f"{name} has a scheme in front of a host: leave it out{instead}")
    if any("@" in host for host in hosts):
        raise ConfigError(f"{name} has a user: give sasl_plain_username= and sasl_plain_password= instead")
    return [host.strip() for host in hosts]
