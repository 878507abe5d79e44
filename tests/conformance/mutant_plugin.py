"""The plugin of `mutant://`; `CQRS_MUTANT` chooses the variation of its driver."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from typing import Any

from cqrs_brokers.driver import Driver
from cqrs_brokers.hooks import hookimpl
from cqrs_brokers.options import BrokerOptions
from cqrs_brokers.url import BrokerURL
from tests.conformance import (  # noqa: F401 - they register themselves
    footprint_mutants,
    lifecycle_mutants,
    message_mutants,
    outcome_mutants,
    rare_mutants,
)
from tests.conformance.message_mutants import ConnectsWhenOpened
from tests.conformance.mutant_broker import MUTANTS, Sound, server

__all__ = ["MUTANTS", "broker_options", "open_message_broker", "server"]


def chosen() -> type[Any]:
    """The driver that `CQRS_MUTANT` names; none: the sound one."""
    name = os.environ.get("CQRS_MUTANT", "")
    return MUTANTS[name].driver if name else Sound


if chosen().__name__ == "LoudImport":
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    threading.Thread(target=time.sleep, args=(1,), daemon=True).start()


@hookimpl
def broker_options() -> type[BrokerOptions]:
    """The options of `mutant://`."""
    if chosen() is ConnectsWhenOpened:
        socket.getaddrinfo("localhost", 1)
    options: type[BrokerOptions] = chosen().options
    return options


@hookimpl
def open_message_broker(url: BrokerURL, options: BrokerOptions) -> Driver:
    """The driver of `mutant://`."""
    driver: Driver = chosen()(url, options)
    return driver
