"""`KafkaMessageBroker`: the `Broker` that python-cqrs' documentation names."""

import logging
from collections.abc import Sequence

from cqrs_brokers import Broker, Observer
from cqrs_brokers.exceptions import ConfigError

from .settings import KafkaProducerAdapter

__all__ = ["KafkaMessageBroker"]


class KafkaMessageBroker(Broker):
    """Publishes to Apache Kafka. The same as `open_broker("kafka://…")`, from an adapter instead of a config string.

    Args:
        producer: The connection settings; they serve this broker only.
        aiokafka_log_level: Sets the level of the logger "aiokafka". Default: it is left as it is.
        observers: Told of outcomes and connection changes.

    Raises:
        ConfigError: The adapter serves another broker, or there is no such level.
    """

    def __init__(
        self,
        producer: KafkaProducerAdapter,
        *,
        aiokafka_log_level: str | int | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        from ._driver import KafkaDriver

        if not isinstance(producer, KafkaProducerAdapter):
            raise TypeError(f"producer must be a KafkaProducerAdapter, not a {type(producer).__name__}")
        if aiokafka_log_level is not None:
            _set_level(aiokafka_log_level)
        settings, resolved, encoder = producer.take()
        super().__init__(
            KafkaDriver(settings), name="kafka", encoder=encoder, observers=observers, **resolved.for_broker()
        )


def _set_level(level: str | int) -> None:
    try:
        logging.getLogger("aiokafka").setLevel(level.upper() if isinstance(level, str) else level)
    except (ValueError, TypeError):
        raise ConfigError("aiokafka_log_level must be a level of the logging module, for example ERROR") from None
