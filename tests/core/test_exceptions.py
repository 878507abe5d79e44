"""The error tree: as drawn, picklable, without surprises."""

import copy
import pickle
import re
from uuid import UUID

import pytest

import cqrs_brokers
from cqrs_brokers import exceptions
from cqrs_brokers.exceptions import (
    BrokerError,
    ConfigError,
    ConnectError,
    DeliveryError,
    DeliveryTimeoutError,
    UnroutableError,
)

CLASSES = [getattr(exceptions, name) for name in exceptions.__all__ if name.endswith("Error")]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_survives_pickle_and_copy(kind: type[BrokerError]) -> None:
    """Class, text, fields and retryable come back."""
    error = kind("text")
    if isinstance(error, DeliveryError):
        error = error.about(UUID(int=1), "orders", "kafka://h")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is kind
        assert str(other) == str(error)
        assert other.__dict__ == error.__dict__
        assert other.retryable is error.retryable


def test_the_tree_is_the_one_drawn_at_the_top() -> None:
    """Each class stands in the drawing at the depth of its base."""
    drawn = re.findall(r"^([│ ├└─]*)(\w+Error)\b", str(exceptions.__doc__), re.MULTILINE)
    depths = {name: len(lead) // 3 for lead, name in drawn}
    assert set(depths) == {kind.__name__ for kind in CLASSES}
    for kind in CLASSES:
        assert depths[kind.__name__] - depths["BrokerError"] == kind.__mro__.index(BrokerError)


def test_retryable_and_permanent_are_as_documented() -> None:
    """Exactly these may succeed later; exactly these connect errors are permanent."""
    assert {kind.__name__ for kind in CLASSES if kind.retryable} == {
        "UnreachableError",
        "RejectedError",
        "BackpressureError",
        "BrokerBlockedError",
        "NotConnectedError",
        "NackedError",
    }
    assert {kind.__name__ for kind in CLASSES if issubclass(kind, ConnectError) and kind.permanent} == {
        "AuthenticationError",
        "AuthorizationError",
        "TLSError",
        "ProtocolError",
        "TopologyError",
    }


def test_standard_bases() -> None:
    """Callers may catch ValueError and TimeoutError."""
    assert issubclass(ConfigError, ValueError)
    assert issubclass(DeliveryTimeoutError, TimeoutError)


def test_config_errors_list_every_problem() -> None:
    """One problem is the text; several are a list."""
    assert str(ConfigError("one")) == "one"
    assert str(ConfigError(["one", "two"])) == "2 problems:\n- one\n- two"


def test_about_names_the_message_once() -> None:
    """The first message gets the object itself, each further one a copy with the same cause."""
    error = UnroutableError("no queue")
    error.__cause__ = ValueError()
    first = error.about(UUID(int=1), "a", "x://")
    second = error.about(UUID(int=2), "b", "x://")
    assert first is error
    assert second is not error
    assert (first.topic, second.topic, second.__cause__) == ("a", "b", error.__cause__)
    assert str(second) == f"no queue [message {UUID(int=2)}, topic 'b', broker x://]"


def test_every_error_is_public() -> None:
    """cqrs_brokers exports the whole tree."""
    assert set(exceptions.__all__) <= set(cqrs_brokers.__all__)
