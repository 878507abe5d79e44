"""The options of `nats://` and `natss://`."""

from typing import ClassVar, Literal

from cqrs_brokers.options import Duration, option
from cqrs_brokers.secret import Secret
from cqrs_brokers.tls import TLSOptions

__all__ = ["NatsOptions"]


class NatsOptions(TLSOptions):
    """What can be set in `nats://…?…`, besides what every broker has."""

    url_parts: ClassVar[frozenset[str]] = frozenset({"userinfo", "hosts"})

    token: Secret | None = option(None, description="The server's token, instead of user and password.")
    creds_file: str | None = option(
        None, min_length=1, description="A `.creds` file with a user's JWT and seed, instead of user and password."
    )
    declare: Literal["stream", "never"] = option(
        "never", description="Make `stream` with `subjects` when it is not there (`stream`), or nothing (`never`)."
    )
    stream: str | None = option(None, min_length=1, description="The stream that `declare=stream` makes.")
    subjects: list[str] = option([], description="What that stream takes, such as `orders.>`.")
    ping_after: Duration = option(
        5.0, ge=0.1, description="After this silence the server is pinged; it has as long again to answer."
    )
