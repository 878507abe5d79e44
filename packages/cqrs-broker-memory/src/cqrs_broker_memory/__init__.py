"""The plugin for `memory://name`: a broker inside the process that keeps a limited number of messages, for an
application's own tests.

    from cqrs_broker_memory import published
    from cqrs_brokers import Message, open_broker

    async with open_broker("memory://orders") as broker:
        await broker.send_message(Message("OrderPlaced", "orders", {"id": 1}, key="1"))
    published("orders").assert_once(topic="orders", name="OrderPlaced", key="1")

Faults come from the config string, for example `memory://orders?fail=2&unknown=1&latency=50ms` (see `MemoryOptions`),
or from `published("orders").play(…)`. Do not use this plugin in production: every message is lost when the process
ends, and no consumer gets a message.
"""

from cqrs_brokers.exceptions import ConfigError
from cqrs_brokers.hooks import hookimpl
from cqrs_brokers.options import BrokerOptions
from cqrs_brokers.url import BrokerURL

from ._driver import MemoryDriver
from ._inspection import MemoryInspection
from ._options import MemoryOptions
from ._records import DEFAULT_NAME, Published, Record, published
from ._script import Faults

__all__ = ["Faults", "MemoryDriver", "MemoryOptions", "Published", "Record", "published"]


@hookimpl
def broker_options() -> type[BrokerOptions]:
    """Returns the class with the options of `memory://`."""
    return MemoryOptions


@hookimpl
def open_message_broker(url: BrokerURL, options: MemoryOptions) -> MemoryDriver:
    """Makes the driver of `memory://name`."""
    return MemoryDriver(_name(url), options)


@hookimpl
def inspect_broker(url: BrokerURL, options: MemoryOptions) -> MemoryInspection:
    """Makes the object with which `cqrs-brokers check` inspects a config string of `memory://`."""
    return MemoryInspection(_name(url), options)


def _name(url: BrokerURL) -> str:
    if len(url.hosts) > 1 or any(host.port is not None for host in url.hosts):
        raise ConfigError("memory:// takes one name and no port, for example memory://orders")
    return url.hosts[0].host if url.hosts else DEFAULT_NAME
