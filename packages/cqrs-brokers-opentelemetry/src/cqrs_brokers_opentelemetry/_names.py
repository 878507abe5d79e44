"""Every name that this package gives to OpenTelemetry, in one table.

The names in OpenTelemetry's messaging conventions are not stable yet. They are written here, not imported: the package
that has them, `opentelemetry-semantic-conventions`, is pinned to one version by each SDK, and pinning it here too would
pin the application's SDK. The tests compare them with that package in the version `CONVENTIONS`.
"""

from __future__ import annotations

from typing import Final

CONVENTIONS: Final = "0.66b2"
"""The version of `opentelemetry-semantic-conventions` that these names are from."""
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"
"""The schema of that version."""

# Attributes.
SYSTEM: Final = "messaging.system"
OPERATION_NAME: Final = "messaging.operation.name"
OPERATION_TYPE: Final = "messaging.operation.type"
DESTINATION: Final = "messaging.destination.name"
PARTITION: Final = "messaging.destination.partition.id"
MESSAGE_ID: Final = "messaging.message.id"
BATCH_COUNT: Final = "messaging.batch.message_count"
BODY_SIZE: Final = "messaging.message.body.size"
KAFKA_OFFSET: Final = "messaging.kafka.offset"
ROUTING_KEY: Final = "messaging.rabbitmq.destination.routing_key"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
ERROR_TYPE: Final = "error.type"

# Metrics.
SENT_MESSAGES: Final = "messaging.client.sent.messages"
DURATION: Final = "messaging.client.operation.duration"

# Ours, which no convention has.
MESSAGE_NAME: Final = "cqrs_brokers.message.name"
STATE: Final = "cqrs_brokers.connection.state"
IN_FLIGHT: Final = "cqrs_brokers.messages.in_flight"
WAITING: Final = "cqrs_brokers.messages.waiting"
OLDEST: Final = "cqrs_brokers.messages.oldest"
FAILING: Final = "cqrs_brokers.messages.failing"
CHANGES: Final = "cqrs_brokers.connection.changes"
OUTBOX_UNSENT: Final = "cqrs_brokers.outbox.unsent"
OUTBOX_LAG: Final = "cqrs_brokers.outbox.lag"
OUTBOX_PARKED: Final = "cqrs_brokers.outbox.parked"
OUTBOX_REFUSED: Final = "cqrs_brokers.outbox.refused"
OUTBOX_PARKED_ROWS: Final = "cqrs_brokers.outbox.parked.rows"
OUTBOX_REFUSED_ROWS: Final = "cqrs_brokers.outbox.refused.rows"
OUTBOX_SENT: Final = "cqrs_brokers.outbox.sent"
OUTBOX_FENCED: Final = "cqrs_brokers.outbox.fenced"
OUTBOX_PARTITIONS: Final = "cqrs_brokers.outbox.partitions"
OUTBOX_TROUBLE: Final = "cqrs_brokers.outbox.trouble"

SEND: Final = "send"
CREATE: Final = "create"
OTHER: Final = "_OTHER"
"""The destination that stands for topics beyond `MOST_TOPICS`, and the error type of a batch with several error
types."""
MOST_TOPICS: Final = 1_000
"""How many destinations have metrics of their own, of brokers and again of outboxes. There is a limit because routing
keys may contain ids, and a series is never removed."""
SYSTEMS: Final = {"amqp": "rabbitmq"}
"""The conventions' name for the broker of a scheme, if it is not the scheme's own name."""
STATES: Final = (
    "idle",
    "connecting",
    "connected",
    "reconnecting",
    "blocked",
    "throttled",
    "failed",
)
"""The states of a broker that is open."""
