"""The options of `redis-streams://` and `redis-streams+tls://`."""

from typing import ClassVar

from cqrs_brokers.options import Duration, option
from cqrs_brokers.tls import TLSOptions

__all__ = ["RedisStreamsOptions"]


class RedisStreamsOptions(TLSOptions):
    """What can be set in `redis-streams://…?…`, besides what every broker has, and what every broker with TLS has."""

    url_parts: ClassVar[frozenset[str]] = frozenset({"userinfo", "hosts"})

    db: int = option(0, ge=0, description="Number of the Redis database.")
    maxlen: int | None = option(None, ge=1, unit="entries", description="About how many a stream keeps; none: all.")
    ping_after: Duration = option(5.0, ge=0.1, description="Silence after which Redis is pinged; it has 5 s to answer.")
