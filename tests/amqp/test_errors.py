"""What RabbitMQ's refusals mean: what passes is retried, what does not is not, whatever names are in the text."""

import pytest

from cqrs_broker_amqp._errors import HandshakeRefused, connect_error
from cqrs_brokers import AuthenticationError, AuthorizationError, ConnectError, ProtocolError, UnreachableError

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
