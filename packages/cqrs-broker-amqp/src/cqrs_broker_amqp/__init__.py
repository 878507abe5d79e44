"""`amqp://` and `amqps://` for cqrs-brokers: RabbitMQ, with publisher confirms, on aio-pika.

    from cqrs_brokers import open_broker

    broker = open_broker("amqp://user:password@localhost/?exchange=events")

or, without a config string, `AMQPMessageBroker(publisher=AMQPPublisherAdapter(dsn=…))`.

The parts: `options` and `settings` (what is configured), `connecting` (one pass over the hosts), `topology` (what is
declared), `rendering` (a message as bytes), `driver` (what is in flight), `errors` (which error means what),
`internals` (the only module that knows aiormq from the inside), `logs` (nothing secret in aiormq's log).
"""

from cqrs_brokers.hooks import hookimpl
from cqrs_brokers.options import BrokerOptions
from cqrs_brokers.url import BrokerURL

from .broker import AMQPMessageBroker
from .driver import AMQPDriver
from .options import AMQPOptions
from .settings import AMQPPublisherAdapter, AMQPSettings

__all__ = ["AMQPDriver", "AMQPMessageBroker", "AMQPOptions", "AMQPPublisherAdapter", "AMQPSettings"]


@hookimpl
def broker_options() -> type[BrokerOptions]:
    """The options of `amqp://` and `amqps://`."""
    return AMQPOptions


@hookimpl
def open_message_broker(url: BrokerURL, options: AMQPOptions) -> AMQPDriver:
    """The driver of `amqp://` and `amqps://`."""
    return AMQPDriver(AMQPSettings.of(url, options))
