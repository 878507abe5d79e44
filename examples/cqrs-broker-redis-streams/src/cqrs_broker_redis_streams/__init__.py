"""`redis-streams://[user:password@]host[:6379]` for cqrs-brokers: each topic is a stream."""

from cqrs_brokers.exceptions import ConfigError
from cqrs_brokers.hooks import hookimpl
from cqrs_brokers.options import BrokerOptions
from cqrs_brokers.url import BrokerURL

from .driver import RedisStreamsDriver
from .options import RedisStreamsOptions

__all__ = ["RedisStreamsDriver", "RedisStreamsOptions"]


@hookimpl
def broker_options() -> type[BrokerOptions]:
    """The options of `redis-streams://`."""
    return RedisStreamsOptions


@hookimpl
def open_message_broker(url: BrokerURL, options: RedisStreamsOptions) -> RedisStreamsDriver:
    """The driver of `redis-streams://`."""
    if not url.hosts:
        raise ConfigError("redis-streams:// needs a host, for example redis-streams://localhost:6379")
    return RedisStreamsDriver(url, options)
