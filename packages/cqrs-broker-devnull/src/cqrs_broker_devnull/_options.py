"""The options of `devnull://`."""

from __future__ import annotations

from cqrs_brokers.options import BrokerOptions, option

__all__ = ["DevnullOptions"]


class DevnullOptions(BrokerOptions):
    """The options that can be set in `devnull://?…`, besides the options of every broker."""

    allow_in_production: bool = option(
        False, description="Discard messages although CQRS_BROKERS_ENV is `production`; otherwise that is refused."
    )
