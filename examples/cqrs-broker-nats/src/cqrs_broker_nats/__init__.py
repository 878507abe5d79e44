"""`nats://[user:password@]host[:4222]`, with TLS `natss://`, for cqrs-brokers: subjects of JetStream streams."""

from cqrs_brokers.exceptions import ConfigError
from cqrs_brokers.hooks import hookimpl
from cqrs_brokers.options import BrokerOptions
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
    problems = []
    if not url.hosts:
        problems.append(f"{url.scheme}:// needs a host, for example {url.scheme}://localhost:4222")
    if (url.username is not None) + (options.token is not None) + (options.creds_file is not None) > 1:
        problems.append("user and password, token and creds_file exclude one another: keep one")
    if options.declare == "stream" and not (options.stream and options.subjects):
        problems.append("declare=stream needs stream= and subjects=")
    if problems:
        raise ConfigError(problems)
    return NatsDriver(url, options)
