"""python-cqrs on any message broker, by config string.

    from cqrs.bootstrap.requests import bootstrap
    from cqrs_brokers_python_cqrs import message_broker

    broker = message_broker("kafka://localhost:9092")
    mediator = bootstrap(di_container=container, commands_mapper=commands_mapper, message_broker=broker)

The parts: `_adapter` (a `MessageBroker` of python-cqrs that sends through a `Broker`) and `_events` (event classes that
are core's and python-cqrs' at once). There is no bootstrap here: use python-cqrs' own.
"""

from ._adapter import BrokerAdapter, OrderingKey, lifespan, message_broker
from ._events import ECSTEvent, NotificationEvent

__all__ = ["BrokerAdapter", "ECSTEvent", "NotificationEvent", "OrderingKey", "lifespan", "message_broker"]
