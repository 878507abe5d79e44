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
        aiokafka_log_level: The level for the logger "aiokafka", in the whole process. None: the logger keeps its level.
        observers: Objects that `Broker` informs about the outcome of every message and about every change of the
            connection.

    Raises:
        ConfigError: The adapter was given to another broker already, `producer` is not a `KafkaProducerAdapter`, the
            adapter names no host or names a host twice, a certificate file cannot be used, the log level does not
            exist, or `observers` is no sequence of observers.

    Warns:
        InsecureTransportWarning: The server's certificate is not verified, or `security_protocol` is SASL_PLAINTEXT and
            a host is not loopback.
    """

    def __init__(
        self,
        producer: KafkaProducerAdapter,
        *,
        aiokafka_log_level: str | int | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        from ._driver import KafkaDriver

        adapter = KafkaProducerAdapter.check(producer, "producer")
        set_log_level(["aiokafka"], aiokafka_log_level, "aiokafka_log_level")
        taken = adapter.take()
        super().__init__(KafkaDriver(taken.settings), observers=observers, **taken.for_broker())
