"""The outbox's own errors. Errors of messages and brokers are in `cqrs_brokers.exceptions`."""

from cqrs_brokers import BrokerError

__all__ = ["OutboxError", "OutboxSchemaError", "OutboxSessionError"]


class OutboxError(BrokerError):
    """Base of the outbox's errors."""


class OutboxSessionError(OutboxError):
    """The session or the connection cannot hold outbox rows: no transaction, several databases, another event loop."""


class OutboxSchemaError(OutboxError):
    """The outbox's tables are missing, of another version, or not accessible. The text says what to run."""
