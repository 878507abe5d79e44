"""What a failed batch proves: the table, with and without an earlier attempt in doubt."""

import pytest
from aiokafka import errors as kafka

from cqrs_broker_kafka.errors import judge
from cqrs_brokers.exceptions import (
    ConnectionLostError,
    DeliveryUnknownError,
    DestinationNotFoundError,
    InvalidMessageError,
    MessageTooLargeError,
    NotConnectedError,
    NotDeliveredError,
    PublishForbiddenError,
    RejectedError,
)

PROVEN = {
    2: RejectedError,
    3: DestinationNotFoundError,
    5: NotConnectedError,
    6: NotConnectedError,
    10: MessageTooLargeError,
    17: InvalidMessageError,
    18: MessageTooLargeError,
    19: RejectedError,
    21: RejectedError,
    29: PublishForbiddenError,
    31: PublishForbiddenError,
    32: RejectedError,
    35: RejectedError,
    43: RejectedError,
    44: RejectedError,
    53: PublishForbiddenError,
}
NEVER_PROVEN = (7, 13, 20, 45, 47, 56, 59, 74, 87, 89, -1)


@pytest.mark.parametrize(("code", "expected"), PROVEN.items())
def test_a_refusal_proves_not_written(code: int, expected: type[NotDeliveredError]) -> None:
    """A refusal without doubtful attempts before it is a definite class, with the client's error as its cause."""
    error = kafka.for_code(code)()
    verdict = judge(error, maybe_written=False)
    assert type(verdict.error) is expected
    assert verdict.error.__cause__ is error


@pytest.mark.parametrize("code", [*PROVEN, *NEVER_PROVEN])
def test_after_a_doubtful_attempt_nothing_is_proven(code: int) -> None:
    """The same codes after an attempt that may have been written are unknown. Nothing is sent again."""
    verdict = judge(kafka.for_code(code)(), maybe_written=True)
    assert isinstance(verdict.error, DeliveryUnknownError)
    assert (verdict.blame_one, verdict.passes, verdict.too_large) == (False, False, False)


@pytest.mark.parametrize("code", NEVER_PROVEN)
def test_codes_that_prove_nothing(code: int) -> None:
    """Timeouts, lost sequence state and codes that aiokafka does not know are unknown in any case."""
    assert isinstance(judge(kafka.for_code(code)(), maybe_written=False).error, DeliveryUnknownError)


def test_lost_connection() -> None:
    """A connection that broke is ConnectionLostError."""
    assert type(judge(kafka.KafkaConnectionError(), maybe_written=False).error) is ConnectionLostError


@pytest.mark.parametrize("error", [RuntimeError("x"), kafka.ProducerClosed(), kafka.KafkaError("x"), ValueError()])
def test_anything_else_is_unknown(error: Exception) -> None:
    """What is not in the table is unknown, without the client's text."""
    verdict = judge(error, maybe_written=False)
    assert type(verdict.error) is DeliveryUnknownError
    assert not verdict.passes


@pytest.mark.parametrize(("code", "blame_one"), [(10, True), (18, True), (32, True), (44, True), (29, False)])
def test_whose_fault(code: int, blame_one: bool) -> None:
    """Where one record can spoil a batch its neighbours get another try; where all share the fault they do not."""
    assert judge(kafka.for_code(code)(), maybe_written=False).blame_one is blame_one
