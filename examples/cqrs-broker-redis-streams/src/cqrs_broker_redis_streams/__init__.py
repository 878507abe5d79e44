"""`redis-streams://[user:password@]host[:6379]`, with TLS `redis-streams+tls://`: each topic is a Redis stream."""

from cqrs_brokers.exceptions import ConfigError
from cqrs_brokers.hooks import hookimpl
from cqrs_brokers.options import BrokerOptions
from cqrs_brokers.tls import TLSContext, warn_insecure_transport
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
    problems = options.tls_problems(secure=url.scheme.endswith("+tls"), instead="write redis-streams+tls://")
    tls = TLSContext(options, problems) if url.scheme.endswith("+tls") else None
    if not url.hosts:
        problems.append(f"{url.scheme}:// needs a host, for example {url.scheme}://localhost:6379")
    if problems:
        raise ConfigError(problems)
    if tls is not None:
        tls.warn_unverified()
    elif url.password is not None and not all(host.is_loopback for host in url.hosts):
        warn_insecure_transport("the password goes to Redis without TLS: write redis-streams+tls://")
    return RedisStreamsDriver(url, options, tls)
