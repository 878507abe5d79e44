"""The plugin of `unordered://`; `CQRS_MUTANT` chooses the variation of its driver."""

from __future__ import annotations

import os

from cqrs_brokers.driver import PipelinedDriver
from cqrs_brokers.hooks import hookimpl
from cqrs_brokers.options import BrokerOptions
from cqrs_brokers.url import BrokerURL
from tests.conformance import reader_mutants  # noqa: F401 - its classes are found as subclasses
from tests.conformance.unordered_mutants import UnorderedOptions, UnorderedSound

UNORDERED_MUTANTS: dict[str, type[UnorderedSound]] = {
    "".join(
        f"-{letter.lower()}" if letter.isupper() else letter for letter in driver.__name__.replace("TLS", "Tls")
    ).lstrip("-"): driver
    for driver in UnorderedSound.__subclasses__()
}


@hookimpl
def broker_options() -> type[BrokerOptions]:
    """The options of `unordered://`."""
    return UnorderedOptions


@hookimpl
def open_message_broker(url: BrokerURL, options: UnorderedOptions) -> PipelinedDriver:
    """The driver of `unordered://`."""
    name = os.environ.get("CQRS_MUTANT", "")
    return (UNORDERED_MUTANTS[name] if name else UnorderedSound)(url, options)
