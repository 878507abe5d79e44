"""The plugin for `kafka://`. The plugin publishes to Apache Kafka over aiokafka's connections. By default the producer
is idempotent. Messages with the same topic and key keep their order while the topic's number of partitions stays the
same.

    broker = open_broker("kafka://localhost:9092?client_id=my-app")

This module is the plugin that the package's entry point names. Opening a broker imports aiokafka only to check a token
provider. The driver imports aiokafka when the driver connects, and `inspect_broker` imports aiokafka when it is called.
"""

from cqrs_brokers.driver import PipelinedDriver
from cqrs_brokers.hooks import hookimpl
from cqrs_brokers.inspection import Inspection
from cqrs_brokers.url import BrokerURL

from ._broker import KafkaMessageBroker
from ._options import KafkaOptions
from ._settings import KafkaProducerAdapter, KafkaSettings

__all__ = [
    "KafkaMessageBroker",
    "KafkaOptions",
    "KafkaProducerAdapter",
    "broker_options",
    "inspect_broker",
    "open_message_broker",
]


@hookimpl
def broker_options() -> type[KafkaOptions]:
    """Returns the class with the options of `kafka://`."""
    return KafkaOptions


@hookimpl
def open_message_broker(url: BrokerURL, options: KafkaOptions) -> PipelinedDriver:
    """Makes the driver for a config string. The driver connects later.

    Raises:
        ConfigError: See `KafkaSettings`.
    """
    from ._driver import KafkaDriver

    return KafkaDriver(KafkaSettings(url, options))


@hookimpl
def inspect_broker(url: BrokerURL, options: KafkaOptions) -> Inspection:
    """Makes the object with which `cqrs-brokers check` inspects a Kafka cluster.

    Raises:
        ConfigError: See `KafkaSettings`.
    """
    from ._inspection import KafkaInspection

    return KafkaInspection(KafkaSettings(url, options))
