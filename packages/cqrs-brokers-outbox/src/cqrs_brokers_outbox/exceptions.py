"""The outbox's own errors. Errors of messages and brokers are in `cqrs_brokers.exceptions`."""

from cqrs_brokers import BrokerError

__all__ = ["OutboxError", "OutboxSchemaError", "OutboxSessionError"]


class OutboxError(BrokerError):
    """Base of the outbox's errors."""


class OutboxSessionError(OutboxError):
    """A session or a connection cannot hold outbox rows: it is in AUTOCOMMIT, or bound to several engines, or has no
    transaction, or its transaction is over, or its messages could not be written. Or the object is no session."""


class OutboxSchemaError(OutboxError):
    """The outbox's tables are missing, of another version, or not accessible. The text says what to run."""
