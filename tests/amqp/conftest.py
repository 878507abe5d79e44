"""What the tests of the AMQP plugin share."""

from collections.abc import Callable

import pytest


@pytest.fixture
def exchange(unique_name: Callable[[str], str]) -> str:
    """The name of an exchange that no other test uses."""
    return unique_name("exchange")
