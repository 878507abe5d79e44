"""The bridge between python-cqrs and cqrs-brokers: python-cqrs on any message broker, by config string. The docstrings
of this package call the distribution cqrs-brokers-core *core*.

    from cqrs.bootstrap.requests import bootstrap
    from cqrs_brokers_python_cqrs import message_broker

    broker = message_broker("kafka://localhost:9092")
    mediator = bootstrap(di_container=container, commands_mapper=commands_mapper, message_broker=broker)

The modules are: `_adapter` (a `MessageBroker` of python-cqrs that sends through a `Broker`), `_events` (event classes
that derive from core's and from python-cqrs' event classes), `_outbox` (the times of these events in python-cqrs'
outbox) and `_reprs` (warns of payloads that no consumer can read). There is no bootstrap function here: use those of
python-cqrs.
"""

from ._adapter import BrokerAdapter, OrderingKey, lifespan, message_broker
from ._events import ECSTEvent, NotificationEvent

__all__ = ["BrokerAdapter", "ECSTEvent", "NotificationEvent", "OrderingKey", "lifespan", "message_broker"]
