"""`nats://[user:password@]host[:4222]`, with TLS `natss://`, for cqrs-brokers: subjects of JetStream streams."""

from cqrs_brokers.exceptions import ConfigError
from cqrs_brokers.hooks import hookimpl
from cqrs_brokers.options import BrokerOptions
from cqrs_brokers.tls import TLSContext, warn_insecure_transport
from cqrs_brokers.url import BrokerURL

from .driver import NatsDriver
from .options import NatsOptions

__all__ = ["NatsDriver", "NatsOptions"]


@hookimpl
def broker_options() -> type[BrokerOptions]:
    """The options of both schemes."""
    return NatsOptions


@hookimpl
def open_message_broker(url: BrokerURL, options: NatsOptions) -> NatsDriver:
    """The driver of both schemes."""
    problems = options.tls_problems(secure=url.scheme == "natss", instead="write natss://")
    tls = TLSContext(options, problems) if url.scheme == "natss" else None
    if not url.hosts:
        problems.append(f"{url.scheme}:// needs a host, for example {url.scheme}://localhost:4222")
    if (url.username is not None) + (options.token is not None) + (options.creds_file is not None) > 1:
        problems.append("user and password, token and creds_file exclude one another: keep one")
    if options.declare == "stream" and not (options.stream and options.subjects):
        problems.append("declare=stream needs stream= and subjects=")
    if problems:
        raise ConfigError(problems)
    secret = url.password is not None or options.token is not None or options.creds_file is not None
    if tls is not None:
        tls.warn_unverified()
    elif secret and not all(host.is_loopback for host in url.hosts):
        warn_insecure_transport("the credentials go to NATS without TLS: write natss://")
    return NatsDriver(url, options, tls)
