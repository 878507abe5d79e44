"""`KafkaMessageBroker`: the `Broker` that python-cqrs' documentation names."""

from collections.abc import Sequence

from cqrs_brokers import Broker, Observer
from cqrs_brokers.adapters import set_log_level

from ._settings import KafkaProducerAdapter

__all__ = ["KafkaMessageBroker"]


class KafkaMessageBroker(Broker):
    """Publishes to Apache Kafka, as the broker of `open_broker("kafka://…")` does. The settings come from an adapter.

    Args:
        producer: The adapter with the connection settings. An adapter can be used for one broker only.
        aiokafka_log_level: The level for the logger "aiokafka". Default: the logger keeps its level.
        observers: Objects that `Broker` tells each message's outcome and each change of the connection's state.

    Raises:
        ConfigError: Another broker uses the adapter already, `producer` is not a `KafkaProducerAdapter`, a certificate
            file cannot be used, or the log level does not exist.
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
