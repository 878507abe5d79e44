"""The outbox takes messages from a database transaction to the broker, in order, and writes the outcome into each row.

    outbox = Outbox()
    async with session.begin():                    # the application's own transaction
        session.add(order)
        outbox.add(session, OrderPlaced(...))

    async with Relay(engine, broker, outbox):      # anywhere, any number of them
        ...
"""

from .admin import OutboxAdmin
from .exceptions import OutboxError, OutboxSchemaError, OutboxSessionError
from .inbox import Inbox
from .observers import RelayObserver
from .outbox import Outbox
from .relay import Relay
from .rows import key_hash
from .schema import SCHEMA_VERSION, State
from .status import Lag, LeaseStatus, OutboxStatus, ParkedRow, RelayHealth

__all__ = [
    "Inbox",
    "Lag",
    "LeaseStatus",
    "Outbox",
    "OutboxAdmin",
    "OutboxError",
    "OutboxSchemaError",
    "OutboxSessionError",
    "OutboxStatus",
    "ParkedRow",
    "Relay",
    "RelayHealth",
    "RelayObserver",
    "SCHEMA_VERSION",
    "State",
    "key_hash",
]
