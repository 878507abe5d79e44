"""The options of `redis-streams://`."""

from typing import ClassVar

from cqrs_brokers.options import BrokerOptions, Duration, option

__all__ = ["RedisStreamsOptions"]


class RedisStreamsOptions(BrokerOptions):
    """What can be set in `redis-streams://…?…`, besides what every broker has."""

    url_parts: ClassVar[frozenset[str]] = frozenset({"userinfo", "hosts"})

    db: int = option(0, ge=0, description="Number of the Redis database.")
    maxlen: int | None = option(
        None, ge=1, unit="entries", description="Each stream is trimmed to about this length; none: never trimmed."
    )
    ping_after: Duration = option(
        5.0, ge=0.1, description="After this silence Redis is pinged; it has as long again to answer."
    )
