"""For all tests of the bridge."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def levels_of_clients() -> Iterator[None]:
    """python-cqrs' own brokers set the levels of their clients' loggers, for the whole process."""
    levels = {name: logging.getLogger(name).level for name in ("aiokafka", "aiormq", "aio_pika")}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
