"""Where to connect and as whom: what both routes, config string and adapter, come to.

No network here. Options themselves are in `options`.
"""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

from cqrs_brokers.exceptions import ConfigError, InsecureTransportWarning
from cqrs_brokers.options import ResolvedOptions, resolve_options
from cqrs_brokers.secret import Secret
from cqrs_brokers.url import BrokerURL, names_a_secret

from .options import AMQPOptions

__all__ = ["AMQPPublisherAdapter", "AMQPSettings"]

PORTS = {"amqp": 5672, "amqps": 5671}


@dataclass(frozen=True, slots=True)
class AMQPSettings:
    """Everything the driver needs to know.

    Attributes:
        hosts: Name and port of each, in the order given.
        username: Whom to log in as.
        password: With what.
        vhost: The virtual host.
        tls: The TLS context, or None for plain text.
        options: The validated options.
    """

    hosts: tuple[tuple[str, int], ...]
    username: str
    password: Secret
    vhost: str
    tls: ssl.SSLContext | None = field(repr=False)
    options: AMQPOptions

    @classmethod
    def of(cls, url: BrokerURL, options: AMQPOptions) -> AMQPSettings:
        """The settings that a URL and its options mean.

        Warns:
            InsecureTransportWarning: Credentials would travel in plain text, or to a peer that is not verified, to a
                host that is not loopback.

        Raises:
            ConfigError: They do not fit together; all problems at once.
        """
        problems: list[str] = []
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
        if not secure:
            given = sorted(name for name in options.model_fields_set if name.startswith("ssl_"))
            if given:
                problems.append(f"{', '.join(given)} would be ignored without TLS: write amqps://")
            if options.require_tls:
                problems.append("require_tls=true, and this is not TLS: write amqps://")
        tls = _tls_context(options, problems) if secure else None
        if problems:
            raise ConfigError(problems)
        if tls is not None or not local:
            _warn_if_insecure(url, tls)
        return cls(hosts, url.username or "guest", password, vhost, tls, options)


def _tls_context(options: AMQPOptions, problems: list[str]) -> ssl.SSLContext | None:
    if options.ssl_context is not None:
        return options.ssl_context
    try:
        context = ssl.create_default_context(cafile=options.ssl_cafile)
    except OSError as error:  # ssl.SSLError is one
        problems.append(f"ssl_cafile cannot be used: {type(error).__name__}: {error.strerror or 'not a PEM file'}")
        return None
    if options.ssl_certfile is not None:
        try:
            # The password function: without one OpenSSL would ask on the terminal.
            context.load_cert_chain(options.ssl_certfile, options.ssl_keyfile, password=lambda: "")
        except OSError as error:
            reason = error.strerror or "not a PEM file with a certificate and its key, or the key is encrypted"
            problems.append(f"ssl_certfile and ssl_keyfile cannot be used: {type(error).__name__}: {reason}")
    if not options.ssl_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _warn_if_insecure(url: BrokerURL, tls: ssl.SSLContext | None) -> None:
    if tls is None:
        what = "the password and all messages travel in plain text: use amqps://"
    elif tls.verify_mode != ssl.CERT_REQUIRED or not tls.check_hostname:
        what = "the server's certificate is not verified, anyone can pose as it: give ssl_cafile instead"
    else:
        return
    warnings.warn(f"{url}: {what}", InsecureTransportWarning, stacklevel=4)


class AMQPPublisherAdapter:
    """Connection settings for one `AMQPMessageBroker`. No I/O, no event loop.

    Args:
        dsn: A config string: `amqp://user:password@host/vhost?exchange=events`.
        value_serializer: Encodes payloads that come without `payload_bytes` and without a content type. Default: JSON.
        **options: Every option of the config string by its name, and `ssl_context`. They override the string's.
            `retry_count` (default: unbounded) and `retry_delay` (seconds) bound the passes over all hosts: after so
            many failed ones waiting sends get `NotConnectedError`, and the next send starts anew.

    Raises:
        ConfigError: The string or an option is wrong.
    """

    def __init__(
        self, dsn: str, *, value_serializer: Callable[[object], bytes] | None = None, **options: object
    ) -> None:
        url = BrokerURL.parse(dsn)
        if url.scheme not in PORTS:
            raise ConfigError(f"{url.scheme}:// is not RabbitMQ: write amqp:// or amqps://")
        self._url = url
        self._keywords = {
            name: Secret(value) if names_a_secret(name) and isinstance(value, str) else value
            for name, value in options.items()
        }
        self._resolved = resolve_options(AMQPOptions, url=url, keywords=options)
        self._taken = False
        self.value_serializer = value_serializer

    def take(self, exchange_name: str | None) -> ResolvedOptions[AMQPOptions]:
        """Hands the settings to their one broker.

        Raises:
            ConfigError: They have one already, or they name another exchange.
        """
        if self._taken:
            raise ConfigError("this AMQPPublisherAdapter already serves a broker: make one adapter per broker")
        resolved = self._resolved
        if exchange_name is not None:
            own = resolved.effective["exchange"]
            if own.origin != "default" and own.value != exchange_name:
                raise ConfigError(
                    f"exchange_name={exchange_name!r} contradicts the adapter's exchange={own.value!r}: give one"
                )
            keywords = self._keywords | {"exchange": exchange_name}
            resolved = resolve_options(AMQPOptions, url=self._url, keywords=keywords)
        self._taken = True
        return resolved

    def __repr__(self) -> str:
        return f"<AMQPPublisherAdapter {self._url}>"
