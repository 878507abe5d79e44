"""The plugin for `devnull://`. It discards and counts every message, and logs warnings. Use it for development and
tests.

    import cqrs_broker_devnull as devnull

    broker = devnull.DevnullMessageBroker()   # or open_broker("devnull://")

This plugin is also the smallest complete plugin: options (`_options`), a driver (`_driver`), checks (`_inspection`) and
the hooks below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cqrs_brokers import Broker, Observer
from cqrs_brokers.hooks import hookimpl
from cqrs_brokers.options import BrokerOptions, resolve_options
from cqrs_brokers.url import BrokerURL

from ._driver import DevnullDriver
from ._options import DevnullOptions

if TYPE_CHECKING:
    from ._inspection import DevnullInspection

__all__ = ["DevnullDriver", "DevnullMessageBroker", "DevnullOptions"]


@hookimpl
def broker_options() -> type[BrokerOptions]:
    """Returns the class with the options of `devnull://`."""
    return DevnullOptions


@hookimpl
def open_message_broker(url: BrokerURL, options: DevnullOptions) -> DevnullDriver:
    """Makes the driver of `devnull://`."""
    return DevnullDriver(options)


@hookimpl
def inspect_broker() -> DevnullInspection:
    """Makes the object with which `cqrs-brokers check` inspects a config string of `devnull://`."""
    from ._inspection import DevnullInspection  # applications do not need this module

    return DevnullInspection()


class DevnullMessageBroker(Broker):
    """A `Broker` that discards every message, for code that does not use a config string.

    Args:
        observers: Objects that `Broker` tells each message's outcome.
        **options: The options of `devnull://`, as keywords.

    Raises:
        ConfigError: An option is wrong, `observers` has a wrong type, or `CQRS_BROKERS_ENV` is `production` (see
            `DevnullDriver`).
    """

    def __init__(self, *, observers: Sequence[Observer] = (), **options: object) -> None:
        resolved = resolve_options(DevnullOptions, keywords=options)
        super().__init__(DevnullDriver(resolved.options), name="devnull", observers=observers, **resolved.for_broker())
