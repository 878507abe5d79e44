"""`KafkaMessageBroker`: the `Broker` that python-cqrs' documentation names."""

from collections.abc import Sequence

from cqrs_brokers import Broker, Observer
from cqrs_brokers.adapters import set_log_level

from ._settings import KafkaProducerAdapter

__all__ = ["KafkaMessageBroker"]


class KafkaMessageBroker(Broker):
    """Publishes to Apache Kafka. It does the same as the broker of `open_broker("kafka://…")`, but gets its settings
    from an adapter, not from a config string.

    Args:
        producer: The adapter with the connection settings. An adapter can be used for one broker only.
        aiokafka_log_level: The level for the logger "aiokafka". Default: the logger keeps its level.
        observers: Objects that `Broker` calls when a message has its outcome and when the connection changes.

    Raises:
        ConfigError: Another broker uses the adapter already, `producer` is an object of another class, a certificate
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
