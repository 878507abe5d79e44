"""What RabbitMQ's refusals mean: what passes is retried, what does not is not, whatever names are in the text."""

import asyncio
from typing import Any

import pytest
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import (
    AMQPConnectionError,
    ConnectionClosed,
    ConnectionNotAllowed,
    ConnectionNotImplemented,
    PublishError,
)
from pamqp import commands
from pamqp.header import ContentHeader

from cqrs_broker_amqp import AMQPOptions
from cqrs_broker_amqp._errors import (
    HandshakeRefused,
    channel_limit,
    connect_error,
    lost_error,
    publish_failure,
    too_large,
)
from cqrs_broker_amqp._rendering import SMALL_BODY, Renderer
from cqrs_brokers import (
    AuthenticationError,
    AuthorizationError,
    ConnectError,
    Message,
    MessageTooLargeError,
    ProtocolError,
    RejectedError,
    UnreachableError,
    UnroutableError,
)

REFUSED = "NOT_ALLOWED - access to vhost '{}' refused for user '{}'"
LOGIN = "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker logfile."


# The texts are those of RabbitMQ 3.10: rabbit_reader, rabbit_access_control, rabbit_networking.
@pytest.mark.parametrize(
    ("code", "text", "expected", "says"),
    [
        (320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'", UnreachableError, "320"),
        (320, "CONNECTION_FORCED - closed by the test", UnreachableError, "closed by the test"),
        (506, "RESOURCE_ERROR - cannot allocate", UnreachableError, "506"),
        (541, "INTERNAL_ERROR - access to vhost '/' refused for user 'u': vhost '/' is down", UnreachableError, "541"),
        (541, "INTERNAL_ERROR", UnreachableError, "541"),
        (530, f"{REFUSED.format('v', 'u')}: connection limit (0) is reached", UnreachableError, "raise the limit"),
        (530, f"{REFUSED.format('not found', 'u')}: connection limit (7) is reached", UnreachableError, "the limit"),
        (
            530,
            "NOT_ALLOWED - connection refused for user 'u': user connection limit (1) is reached",
            UnreachableError,
            "raise the limit",
        ),
        (
            530,
            "NOT_ALLOWED - connection refused: node connection limit (9) is reached",
            UnreachableError,
            "raise the limit",
        ),
        (530, "NOT_ALLOWED - vhost v not found", AuthorizationError, "no such virtual host"),
        (530, "NOT_ALLOWED - vhost limits not found", AuthorizationError, "no such virtual host"),
        (530, "NOT_ALLOWED - vhost limit (1) is reached not found", AuthorizationError, "no such virtual host"),
        (530, REFUSED.format("v", "u"), AuthorizationError, "may not use"),
        (530, REFUSED.format("limited", "u"), AuthorizationError, "may not use"),
        (530, REFUSED.format("v", "unlimited"), AuthorizationError, "may not use"),
        (530, REFUSED.format("not found", "u"), AuthorizationError, "may not use"),
        (530, REFUSED.format("limit (1) is reached", "u"), AuthorizationError, "may not use"),
        (403, LOGIN, AuthenticationError, "check user and password"),
        (403, "ACCESS_REFUSED - limit", AuthenticationError, "check user and password"),
        (505, "UNEXPECTED_FRAME - expected content header for class 60", ProtocolError, "505"),
        (0, "", ProtocolError, "0"),
    ],
)
def test_a_refused_handshake(code: int, text: str, expected: type[ConnectError], says: str) -> None:
    """Limits, stops and starts are passing (UnreachableError); users, rights and virtual hosts are permanent."""
    error = connect_error(HandshakeRefused(code, text), "host:5672")
    assert type(error) is expected
    assert says in error.text
    assert error.permanent is (expected is not UnreachableError)
    assert error.retryable is (expected is UnreachableError)
    assert isinstance(error.__cause__, HandshakeRefused)


LIMIT_REACHED = "NOT_ALLOWED - number of channels opened for user 'u' has reached the maximum allowed user limit of {}"


@pytest.mark.parametrize(
    ("error", "expected", "says"),
    [
        (ConnectionNotAllowed(LIMIT_REACHED.format("(1)")), UnreachableError, "raise the limit of channels"),
        (ConnectionNotAllowed(LIMIT_REACHED.format("1")), UnreachableError, "limit of 1"),
        (ConnectionClosed(320, "CONNECTION_FORCED - node is going down"), UnreachableError, "going down"),
        (ConnectionNotImplemented("NOT_IMPLEMENTED - confirm.select"), ProtocolError, "NOT_IMPLEMENTED"),
    ],
)
def test_refused_after_the_log_in(error: Exception, expected: type[ConnectError], says: str) -> None:
    """A connection that is closed while it is being set up says what the server said."""
    found = connect_error(error, "host:5672")
    assert type(found) is expected
    assert says in found.text


@pytest.mark.parametrize("code", [404, 530])
def test_before_the_log_in_every_refusal_is_one_of_credentials(code: int) -> None:
    """Apache Qpid refuses a wrong password with 530; only the step tells it from a forbidden virtual host."""
    assert type(connect_error(HandshakeRefused(code, "no", logged_in=False), "host:5672")) is AuthenticationError
    assert type(connect_error(HandshakeRefused(code, "no", logged_in=True), "host:5672")) is AuthorizationError


@pytest.mark.parametrize(("text", "limit"), [("(3)", 3), ("12", 12)])
def test_the_limit_of_channels_in_rabbitmqs_text(text: str, limit: int) -> None:
    """RabbitMQ writes the user's limit with and without brackets."""
    assert channel_limit(ConnectionNotAllowed(LIMIT_REACHED.format(text))) == limit
    assert channel_limit(ConnectionNotAllowed("NOT_ALLOWED - something else")) is None


def test_a_connection_that_the_heartbeat_gave_up() -> None:
    """aiormq cancels its reader after a silence, and also when it could not queue its own heartbeat for so long."""
    text = lost_error(asyncio.CancelledError()).text
    assert "sent nothing" in text
    assert "took nothing" in text


def returned(code: int) -> PublishError:
    frame = commands.Basic.Return(reply_code=code, reply_text="No route", exchange="events", routing_key="t")
    return PublishError(DeliveredMessage(delivery=frame, header=ContentHeader(), body=b"", channel=None), frame)  # type: ignore[arg-type]


def test_a_full_queue_of_qpid_is_no_missing_one() -> None:
    """Code 506 in a return says that a queue is full, whatever the text begins with: not delivered, retryable."""
    options = AMQPOptions()
    found = publish_failure(returned(506), options, "t")
    assert type(found) is RejectedError
    assert found.retryable
    assert type(publish_failure(returned(312), options, "t")) is UnroutableError


@pytest.mark.parametrize("size", [2_001, SMALL_BODY, SMALL_BODY + 1])
def test_a_body_over_the_servers_limit_is_refused(size: int) -> None:
    """Also a small body, which is a part of the rendered frames."""

    def checked(size: int) -> MessageTooLargeError | None:
        message = Message("n", "t", b"x" * size, key="k")
        delivery: Any = None
        entry = (delivery, *Renderer("events").render(message), "k", False)
        return too_large(entry, 131_072, 2_000)

    assert f"the body has {size} bytes" in str(checked(size))
    assert checked(2_000) is None


def test_causes_come_to_an_end() -> None:
    """A reset that aiormq meets again while it closes leads to the error that it caused; ours leads to each once."""
    reset, lost = ConnectionResetError("reset by peer"), AMQPConnectionError("the connection was reset")
    lost.__cause__, reset.__context__ = reset, lost
    met: list[BaseException | None] = [connect_error(lost, "localhost:5672")]
    while met[-1] is not None and len(met) < 10:
        met.append(met[-1].__cause__ or met[-1].__context__)
    assert met[1:] == [lost, reset, None]
