"""The plugin of `unordered://`; `CQRS_MUTANT` chooses the variation of its driver."""

from __future__ import annotations

import os
from collections.abc import Iterator

from cqrs_brokers.driver import PipelinedDriver
from cqrs_brokers.exceptions import ConfigError
from cqrs_brokers.hooks import hookimpl
from cqrs_brokers.options import BrokerOptions
from cqrs_brokers.url import BrokerURL
from tests.conformance import (  # noqa: F401 - their classes are found as subclasses
    aftermath_mutants,
    alike_mutants,
    answer_mutants,
    connection_mutants,
    content_mutants,
    crowd_mutants,
    footprint_mutants,
    further_mutants,
    later_mutants,
    limit_mutants,
    moment_mutants,
    queue_mutants,
    reader_mutants,
    trouble_mutants,
    unordered_mutants,
    value_mutants,
)
from tests.conformance.unordered_driver import UnorderedOptions, UnorderedSound


def _variations(of: type[UnorderedSound]) -> Iterator[type[UnorderedSound]]:
    for driver in of.__subclasses__():
        if "caught_by" in vars(driver):  # else it is what some have in common
            yield driver
        yield from _variations(driver)


UNORDERED_MUTANTS: dict[str, type[UnorderedSound]] = {
    "".join(
        f"-{letter.lower()}" if letter.isupper() else letter
        for letter in driver.__name__.replace("TLS", "Tls").replace("JSON", "Json")
    ).lstrip("-"): driver
    for driver in _variations(UnorderedSound)
}


@hookimpl
def broker_options() -> type[BrokerOptions]:
    """The options of `unordered://`."""
    return UnorderedOptions


@hookimpl
def open_message_broker(url: BrokerURL, options: UnorderedOptions) -> PipelinedDriver:
    """The driver of `unordered://`."""
    name = os.environ.get("CQRS_MUTANT", "")
    driver = UNORDERED_MUTANTS[name] if name else UnorderedSound
    if options.require_tls and not options.tls and driver.keeps_require_tls:
        raise ConfigError("require_tls=true, and this is not TLS: set tls=true")
    return driver(url, options)
