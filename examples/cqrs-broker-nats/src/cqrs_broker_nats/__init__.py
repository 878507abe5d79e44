"""`nats://[user:password@]host[:4222]`, with TLS `natss://`, for cqrs-brokers: subjects of JetStream streams."""

from cqrs_brokers.hooks import hookimpl
from cqrs_brokers.options import BrokerOptions
from cqrs_brokers.tls import TLSContext
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
    problems = [] if url.hosts else [f"{url.scheme}:// needs a host, for example {url.scheme}://localhost:4222"]
    if (url.username is not None) + (options.token is not None) + (options.creds_file is not None) > 1:
        problems.append("user and password, token and creds_file exclude one another: keep one")
    if options.declare == "stream" and not (options.stream and options.subjects):
        problems.append("declare=stream needs stream= and subjects=")
    secret = url.password is not None or options.token is not None or options.creds_file is not None
    secure = url.scheme == "natss"
    tls = TLSContext.for_url(url, options, problems, secure=secure, secret=secret, instead="write natss://")
    return NatsDriver(url, options, tls)
