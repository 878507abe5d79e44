"""`redis-streams://[user:password@]host[:6379]`, with TLS `redis-streams+tls://`: each topic is a Redis stream."""

from cqrs_brokers.hooks import hookimpl
from cqrs_brokers.options import BrokerOptions
from cqrs_brokers.tls import TLSContext
from cqrs_brokers.url import BrokerURL

from .driver import RedisStreamsDriver
from .options import RedisStreamsOptions

__all__ = ["RedisStreamsDriver", "RedisStreamsOptions"]


@hookimpl
def broker_options() -> type[BrokerOptions]:
    """The options of both schemes."""
    return RedisStreamsOptions


@hookimpl
def open_message_broker(url: BrokerURL, options: RedisStreamsOptions) -> RedisStreamsDriver:
    """The driver of both schemes."""
    problems = [] if url.hosts else [f"{url.scheme}:// needs a host, for example {url.scheme}://localhost:6379"]
    secure, secret, instead = url.scheme.endswith("+tls"), url.password is not None, "write redis-streams+tls://"
    tls = TLSContext.for_url(url, options, problems, secure=secure, secret=secret, instead=instead)
    return RedisStreamsDriver(url, options, tls)
