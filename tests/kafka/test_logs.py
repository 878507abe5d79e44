"""aiokafka's own log records hold no secret, key or body, at any level."""

import logging

import pytest

from cqrs_broker_kafka._logs import LOGGERS, redact_client_logs


def test_one_filter_per_logger_and_no_level_change() -> None:
    """Doing it twice adds nothing and changes no level."""
    levels = [logging.getLogger(name).level for name in LOGGERS]
    redact_client_logs()
    filters = [len(logging.getLogger(name).filters) for name in LOGGERS]
    redact_client_logs()
    assert [len(logging.getLogger(name).filters) for name in LOGGERS] == filters
    assert [logging.getLogger(name).level for name in LOGGERS] == levels


def test_sasl_bytes_are_replaced(caplog: pytest.LogCaptureFixture) -> None:
    """aiokafka prints whole requests at DEBUG; ours show the type only."""
    from aiokafka.protocol.admin import SaslAuthenticateRequest

    redact_client_logs()
    request = SaslAuthenticateRequest(b"\x00user\x00S3CRETpw").prepare({36: (0, 1)})
    with caplog.at_level(logging.DEBUG, "aiokafka.conn"):
        logging.getLogger("aiokafka.conn").debug("Request to %s:%d %d: %s", "h", 9092, 1, request)
        logging.getLogger("aiokafka.conn").debug("raw %s", b"S3CRETpw")
    assert "S3CRET" not in caplog.text
    assert "SaslAuthenticateRequest" in caplog.text
