"""`AMQPMessageBroker`: a `Broker` that is made from an adapter, without a config string for `open_broker`."""

from __future__ import annotations

from collections.abc import Sequence

from cqrs_brokers import Broker, Observer
from cqrs_brokers.adapters import set_log_level
from cqrs_brokers.exceptions import ConfigError

from ._settings import AMQPPublisherAdapter

__all__ = ["AMQPMessageBroker"]


class AMQPMessageBroker(Broker):
    """A `Broker` for RabbitMQ. The settings come from an adapter.

    Args:
        publisher: The adapter with the connection settings. An adapter can be used for one broker only.
        exchange_name: The name of the exchange. Default: the exchange of the adapter, or "events".
        pika_log_level: The level for the loggers `aiormq` and `aio_pika`, in the whole process. None: the loggers keep
            their levels.
        observers: Objects that `Broker` tells each message's outcome and each change of the connection's state.

    Warns:
        InsecureTransportWarning: Credentials will be sent in plain text to a host that is not loopback, or the server's
            certificate is not verified.

    Raises:
        ConfigError: Another broker uses the adapter already, `publisher` is not an `AMQPPublisherAdapter`,
            `exchange_name` is wrong or contradicts the adapter, the URL or an option of the adapter is wrong (for
            example there is no user, and a host is not loopback), a certificate file cannot be used, the log level does
            not exist, or `observers` has a wrong type.
    """

    def __init__(
        self,
        publisher: AMQPPublisherAdapter,
        exchange_name: str | None = None,
        pika_log_level: str | int | None = None,
        *,
        observers: Sequence[Observer] = (),
    ) -> None:
        from ._driver import AMQPDriver  # imports aiormq

        publisher = AMQPPublisherAdapter.check(publisher, "publisher")
        overrides = {}
        if exchange_name is not None:
            if publisher.given("exchange") not in (None, exchange_name):
                raise ConfigError("exchange_name contradicts the exchange of the adapter: give only one of them")
            overrides["exchange"] = exchange_name
        set_log_level(["aiormq", "aio_pika"], pika_log_level, "pika_log_level")
        taken = publisher.take(**overrides)
        super().__init__(AMQPDriver(taken.settings), observers=observers, **taken.for_broker())
