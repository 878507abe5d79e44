"""`KafkaMessageBroker`: the `Broker` that python-cqrs' documentation names."""

from collections.abc import Sequence

from cqrs_brokers import Broker, Observer
from cqrs_brokers.adapters import set_log_level

from ._settings import KafkaProducerAdapter

__all__ = ["KafkaMessageBroker"]


class KafkaMessageBroker(Broker):
    """Publishes to Apache Kafka. It does the same as the broker of `open_broker("kafka://…")`, with an adapter instead
    of a config string.

    Args:
        producer: The connection settings; they serve this broker only.
        aiokafka_log_level: The level for the logger "aiokafka". Default: the logger keeps its level.
        observers: Objects that `Broker` tells about outcomes and connection changes.

    Raises:
        ConfigError: The adapter serves another broker or is an object of another class, a certificate file cannot be
            used, or there is no such log level.
    """

    def __init__(
        self,
        producer: KafkaProducerAdapter,
        *,
        aiokafka_log_level: str | int | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        from ._driver import KafkaDriver

        taken = KafkaProducerAdapter.check(producer, "producer").take()
        set_log_level(["aiokafka"], aiokafka_log_level, "aiokafka_log_level")
        super().__init__(KafkaDriver(taken.settings), observers=observers, **taken.for_broker())
