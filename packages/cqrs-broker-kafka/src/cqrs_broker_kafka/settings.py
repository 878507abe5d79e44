"""Where to connect and how: from a config string or from `KafkaProducerAdapter`, the same for both."""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from cqrs_brokers.exceptions import ConfigError, InsecureTransportWarning
from cqrs_brokers.options import ResolvedOptions, resolve_options
from cqrs_brokers.url import BrokerURL, Host

from .options import KafkaOptions

__all__ = ["KafkaProducerAdapter", "KafkaSettings"]

DEFAULT_PORT = 9092


class KafkaSettings:
    """What the driver needs to know.

    Args:
        url: Its hosts are the bootstrap servers.
        options: Validated.

    Raises:
        ConfigError: No host, or a certificate file that cannot be used.
    """

    def __init__(self, url: BrokerURL, options: KafkaOptions) -> None:
        if not url.hosts:
            raise ConfigError("there is no host: kafka://host[:port][,host[:port]…]")
        self.hosts = [Host(host, DEFAULT_PORT if port is None else port) for host, port in url.hosts]
        self.options = options
        self.ssl_context = _ssl_context(options) if options.tls else None
        self._warn()

    def __repr__(self) -> str:
        return f"<KafkaSettings {','.join(map(str, self.hosts))} {self.options.security_protocol}>"

    def client_arguments(self) -> dict[str, Any]:
        """What aiokafka's producer and its connections both take."""
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

    def _warn(self) -> None:
        options = self.options
        tls = self.ssl_context
        if tls is not None and (tls.verify_mode != ssl.CERT_REQUIRED or not tls.check_hostname):
            which = "the ssl_context does not verify the broker" if options.ssl_verify else "ssl_verify=false"
            text = f"{which}: anybody between here and it can read and change what is sent"
            warnings.warn(text, InsecureTransportWarning, stacklevel=4)
        if options.security_protocol == "SASL_PLAINTEXT" and not all(host.is_loopback for host in self.hosts):
            text = "credentials go over plain text to a host that is not loopback: use security_protocol=SASL_SSL"
            warnings.warn(text, InsecureTransportWarning, stacklevel=4)


def _ssl_context(options: KafkaOptions) -> ssl.SSLContext:
    if options.ssl_context is not None:
        return options.ssl_context
    try:
        context = ssl.create_default_context(cafile=options.ssl_cafile)
    except (OSError, ValueError) as error:
        raise ConfigError(f"ssl_cafile cannot be used: {_reason(error)}") from None
    if options.ssl_certfile:
        try:
            context.load_cert_chain(options.ssl_certfile, options.ssl_keyfile, password=_no_passphrase)
        except (OSError, ValueError) as error:
            raise ConfigError(f"ssl_certfile and ssl_keyfile cannot be used: {_reason(error)}") from None
    if not options.ssl_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _no_passphrase() -> str:
    # Without this OpenSSL would ask on the terminal and wait.
    raise ValueError("the key is encrypted: decrypt it, or give ssl_context=")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


class KafkaProducerAdapter:
    """Connection settings for one `KafkaMessageBroker`, under the names that python-cqrs documents. No I/O.

    Args:
        bootstrap_servers: `host[:port]`, a list of them, or one text with commas.
        dsn: The same as one text, or a whole config string (`kafka://…?acks=all`).
        value_serializer: Encodes payloads that come without bytes and without a content type. Default: JSON.
        **options: Every option of the config string by name (see `KafkaOptions`); overrides the one in `dsn`.

    Raises:
        ConfigError: With every problem found; also when both or neither of `bootstrap_servers` and `dsn` are given.
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
            raise ConfigError("give either bootstrap_servers or dsn, which is the same as one text")
        if dsn is not None and "://" in dsn:
            url = BrokerURL.parse(dsn)
            if url.scheme != "kafka":
                raise ConfigError(f"the dsn must start with kafka://, not {url.scheme}://")
        else:
            servers = dsn if bootstrap_servers is None else bootstrap_servers
            url = BrokerURL.build("kafka", hosts=_hosts(servers))
        if value_serializer is not None and not callable(value_serializer):
            raise ConfigError("value_serializer must be callable")
        self._resolved = resolve_options(KafkaOptions, url=url, keywords=options)
        self._settings = KafkaSettings(url, self._resolved.options)
        self._value_serializer = value_serializer
        self._taken = False

    def take(self) -> tuple[KafkaSettings, ResolvedOptions[KafkaOptions], Callable[[Any], bytes] | None]:
        """The settings, for the one broker that this adapter serves.

        Raises:
            ConfigError: It was taken before.
        """
        if self._taken:
            raise ConfigError("a KafkaProducerAdapter serves one KafkaMessageBroker: make another one")
        self._taken = True
        return self._settings, self._resolved, self._value_serializer

    def __repr__(self) -> str:
        return f"<KafkaProducerAdapter {self._resolved.url}>"


def _hosts(servers: object) -> list[str]:
    if isinstance(servers, str):
        servers = servers.split(",")
    if not isinstance(servers, Iterable):
        raise ConfigError("bootstrap_servers must be text or a list of texts")
    hosts = list(servers)
    if not hosts or not all(isinstance(host, str) and host for host in hosts):
        raise ConfigError("bootstrap_servers must name at least one host:port, each as text")
    return [host.strip() for host in hosts]
