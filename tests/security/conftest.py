"""Canaries, watched from before the first line of a test to after its last."""

from collections.abc import Iterator

import pydantic
import pytest

from cqrs_brokers_testkit.canary import Canary

from .planting import Planted


@pytest.fixture(scope="session")
def server_password() -> Canary:
    """Of the users of servers, which start once for many tests."""
    return Canary("the password")


@pytest.fixture
def planted(server_password: Canary, capfd: pytest.CaptureFixture[str]) -> Iterator[Planted]:
    """At the end: 0 hits in what the test showed, in all logs at DEBUG, in warnings and in what was printed."""
    planted = Planted(server_password)
    with planted.scanner.watching():
        yield planted
    printed = capfd.readouterr()
    planted.scanner.text("stdout", printed.out)
    planted.scanner.text("stderr", printed.err)
    planted.scanner.check()
    assert pydantic.ValidationError not in planted.scanner.classes, "it carries the input"
