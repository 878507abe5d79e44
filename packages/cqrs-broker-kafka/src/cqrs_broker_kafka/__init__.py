"""The plugin for `kafka://`. It publishes to Apache Kafka, idempotently and in order, over aiokafka's connections.

    broker = open_broker("kafka://localhost:9092?client_id=my-app")

This module is the plugin that the package's entry point names. aiokafka is imported only when the broker connects.
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
    """The options of `kafka://`."""
    return KafkaOptions


@hookimpl
def open_message_broker(url: BrokerURL, options: KafkaOptions) -> PipelinedDriver:
    """Makes the driver for a config string, without I/O."""
    from ._driver import KafkaDriver

    return KafkaDriver(KafkaSettings(url, options))


@hookimpl
def inspect_broker(url: BrokerURL, options: KafkaOptions) -> Inspection:
    """The inspection that `cqrs-brokers check` makes of a Kafka cluster."""
    from ._inspection import KafkaInspection

    return KafkaInspection(KafkaSettings(url, options))
