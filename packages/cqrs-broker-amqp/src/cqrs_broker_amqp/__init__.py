"""The plugin for `amqp://` and `amqps://`. It publishes to RabbitMQ with publisher confirms, over aiormq, the client
below aio-pika.

    from cqrs_brokers import open_broker

    broker = open_broker("amqp://user:password@localhost/?exchange=events")

An application can also use the class: `AMQPMessageBroker(publisher=AMQPPublisherAdapter(dsn=…))`.

The modules are: `_options` and `_settings` (what is configured), `_broker` (the documented class), `_driver` (the
driver), `_connecting` (one pass over the hosts), `_session` (one connection), `_publisher` (the messages that wait and
those in flight), `_unanswered` (the messages without an answer on a channel), `_leaving` (replaces a channel without
answers), `_stalled` (destinations that accept no messages), `_declaring` (messages that wait for their queue),
`_topology` (declares the exchange and the queues), `_rendering` (encodes a message), `_errors` (translates errors),
`_foreign` (recognises a Kafka broker), `_scram` (the log-in with SCRAM-SHA-256), `_logs` (keeps secrets out of aiormq's
log), `_watch` (finds dead connections and channels without answers), `_reopening` (replaces a closed channel),
`_inspection` (`cqrs-brokers check`), `_fallback` (publishes in aiormq's documented way), and `_client` and `_channels`
(use undocumented parts of aiormq).
"""

from cqrs_brokers.driver import PipelinedDriver
from cqrs_brokers.hooks import hookimpl
from cqrs_brokers.inspection import Inspection
from cqrs_brokers.options import BrokerOptions
from cqrs_brokers.url import BrokerURL

from ._broker import AMQPMessageBroker
from ._options import AMQPOptions
from ._settings import AMQPPublisherAdapter, AMQPSettings

__all__ = ["AMQPMessageBroker", "AMQPOptions", "AMQPPublisherAdapter"]


@hookimpl
def broker_options() -> type[BrokerOptions]:
    """Returns the class with the options of `amqp://` and `amqps://`."""
    return AMQPOptions


@hookimpl
def open_message_broker(url: BrokerURL, options: AMQPOptions) -> PipelinedDriver:
    """Makes the driver of `amqp://` and `amqps://`."""
    from ._driver import AMQPDriver  # this imports aiormq, which `broker_options` does not need

    return AMQPDriver(AMQPSettings.of(url, options))


@hookimpl
def inspect_broker(url: BrokerURL, options: AMQPOptions) -> Inspection:
    """Makes the object with which `cqrs-brokers check` inspects a RabbitMQ server."""
    from ._inspection import AMQPInspection

    return AMQPInspection(AMQPSettings.of(url, options))
