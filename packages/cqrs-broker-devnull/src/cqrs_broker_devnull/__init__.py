"""`devnull://` for cqrs-brokers: discards every message, warns and counts. For development and tests.

    import cqrs_broker_devnull as devnull

    broker = devnull.DevnullMessageBroker()   # or open_broker("devnull://")

It is also the smallest complete plugin: options (`_options`), a driver (`_driver`) and the hooks below.
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
    """The options of `devnull://`."""
    return DevnullOptions


@hookimpl
def open_message_broker(url: BrokerURL, options: DevnullOptions) -> DevnullDriver:
    """The driver of `devnull://`."""
    return DevnullDriver(options)


@hookimpl
def inspect_broker() -> DevnullInspection:
    """What `cqrs-brokers check` says about it."""
    from ._inspection import DevnullInspection  # no application needs it

    return DevnullInspection()


class DevnullMessageBroker(Broker):
    """A `Broker` that discards every message, for code that does not use a config string.

    Args:
        observers: Told of outcomes.
        **options: The options of `devnull://`, as keywords.

    Raises:
        ConfigError: An option is wrong, or this is production (see `DevnullDriver`).
    """

    def __init__(self, *, observers: Sequence[Observer] = (), **options: object) -> None:
        resolved = resolve_options(DevnullOptions, keywords=options)
        super().__init__(DevnullDriver(resolved.options), name="devnull", observers=observers, **resolved.for_broker())
