"""`AMQPMessageBroker`: the documented class. Nothing but wiring."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from cqrs_brokers import Broker, Observer
from cqrs_brokers.exceptions import ConfigError

from .settings import AMQPPublisherAdapter, AMQPSettings

__all__ = ["AMQPMessageBroker"]


class AMQPMessageBroker(Broker):
    """A `Broker` for RabbitMQ, for code that does not use a config string.

    Args:
        publisher: The connection settings. They serve this broker only.
        exchange_name: The exchange; default: that of the settings, "events" where they name none.
        pika_log_level: Sets the level of the loggers `aiormq` and `aio_pika`, for the whole process. None: untouched.
        observers: Told of outcomes and of the connection.

    Raises:
        ConfigError: The settings serve another broker, contradict `exchange_name`, or do not fit together.
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

        if not isinstance(publisher, AMQPPublisherAdapter):
            raise ConfigError(f"publisher must be an AMQPPublisherAdapter, not a {type(publisher).__name__}")
        resolved = publisher.take(exchange_name)
        assert resolved.url is not None
        if pika_log_level is not None:
            for name in ("aiormq", "aio_pika"):
                try:
                    logging.getLogger(name).setLevel(pika_log_level)
                except (TypeError, ValueError) as error:
                    raise ConfigError(f"pika_log_level: {error}") from None
        super().__init__(
            AMQPDriver(AMQPSettings.of(resolved.url, resolved.options)),
            name=resolved.url.scheme,
            encoder=publisher.value_serializer,
            observers=observers,
            **resolved.for_broker(),
        )
