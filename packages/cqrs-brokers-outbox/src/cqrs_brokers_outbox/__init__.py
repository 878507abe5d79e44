"""The outbox: from the database transaction to the broker, in order, with the outcome in the row."""

from .exceptions import OutboxError, OutboxSchemaError, OutboxSessionError
from .outbox import Outbox
from .rows import key_hash
from .schema import SCHEMA_VERSION, State

__all__ = ["Outbox", "OutboxError", "OutboxSchemaError", "OutboxSessionError", "SCHEMA_VERSION", "State", "key_hash"]
