"""What a produce request's error code proves about the records of its batch.

A code proves "not appended" only by a row of this table. Every number that has no row, also one that a later Kafka
defines, leaves the batch in doubt. The sources are classes of Apache Kafka's broker (3.9 to 4.4), seen from a produce
request: `ReplicaManager.appendRecords` asks for the partition and its leader, `Partition.appendRecordsToLeader` counts
the in-sync replicas, `UnifiedLog.append` validates, and only then a byte is written.

A row with `NOT_APPENDED` holds for an answer without a base offset. With one the batch was appended and the leader
stepped down, or the topic was deleted, while the broker waited for its followers (`DelayedProduce.tryComplete`).
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from cqrs_brokers.exceptions import (
    DeliveryError,
    DeliveryUnknownError,
    DestinationNotFoundError,
    InvalidMessageError,
    MessageTooLargeError,
    NotConnectedError,
    PublishForbiddenError,
    RejectedError,
)

__all__ = ["DUPLICATE_SEQUENCE_NUMBER", "ROWS", "Row", "Then", "error_of", "row_of"]

DUPLICATE_SEQUENCE_NUMBER = 46
"""The batch is in the log, at an offset that the broker does not know any more."""


class Then(Enum):
    """What follows from a code."""

    WAIT = "not appended; the condition can pass: the records wait and go again"
    SPLIT = "not appended, perhaps because of one record: its neighbours go again"
    FAIL = "not appended, and every record would be refused for the same reason"
    REPEAT = "in doubt; an idempotent producer repeats the batch byte for byte"
    GIVE_UP = "in doubt; repeating the batch would prove nothing"


class Row(NamedTuple):
    """One code.

    Attributes:
        name: Kafka's name for it (`org.apache.kafka.common.protocol.Errors`).
        then: What follows.
        error: The class of a record's error.
        text: What happened and what to do.
        retryable: Whether the same call may succeed later without anybody changing anything; None: as its class says.
        source: Where the broker answers so, which shows whether something was appended before.
    """

    name: str
    then: Then
    error: type[DeliveryError]
    text: str
    retryable: bool | None = None
    source: str = ""


_LARGE = "the topic does not accept a record of this size: send less, or raise the topic's max.message.bytes"
_REPEATED = "Errors: retriable, and the request may have been appended"

ROWS: dict[int, Row] = {
    2: Row(
        "CORRUPT_MESSAGE",
        Then.SPLIT,
        RejectedError,
        "the broker refuses the record as corrupt",
        False,
        "UnifiedLog.analyzeAndValidateRecords, before the append",
    ),
    3: Row(
        "UNKNOWN_TOPIC_OR_PARTITION",
        Then.WAIT,
        DestinationNotFoundError,
        "the topic does not exist: create it",
        source="ReplicaManager.getPartitionOrException, before the append",
    ),
    5: Row(
        "LEADER_NOT_AVAILABLE",
        Then.WAIT,
        NotConnectedError,
        "the partition has no leader",
        source="the partition has no leader, so nobody can append",
    ),
    6: Row(
        "NOT_LEADER_OR_FOLLOWER",
        Then.WAIT,
        NotConnectedError,
        "the partition's leader has moved and the new one is not known yet",
        source="Partition.appendRecordsToLeader, before the append",
    ),
    7: Row(
        "REQUEST_TIMED_OUT",
        Then.REPEAT,
        DeliveryUnknownError,
        "the in-sync replicas did not have the record within request_timeout_ms",
        source="DelayedProduce.onExpiration, after the append",
    ),
    10: Row(
        "MESSAGE_TOO_LARGE",
        Then.SPLIT,
        MessageTooLargeError,
        _LARGE,
        source="UnifiedLog.analyzeAndValidateRecords, before the append",
    ),
    13: Row("NETWORK_EXCEPTION", Then.REPEAT, DeliveryUnknownError, "the broker lost a connection", source=_REPEATED),
    17: Row(
        "INVALID_TOPIC_EXCEPTION",
        Then.FAIL,
        InvalidMessageError,
        "the broker refuses the topic's name",
        source="ReplicaManager.appendToLocalLog, before the append",
    ),
    18: Row(
        "RECORD_LIST_TOO_LARGE",
        Then.SPLIT,
        MessageTooLargeError,
        _LARGE,
        source="UnifiedLog.append (larger than segment.bytes), before the append",
    ),
    19: Row(
        "NOT_ENOUGH_REPLICAS",
        Then.WAIT,
        RejectedError,
        "fewer replicas are in sync than min.insync.replicas: bring the other nodes back, then send again",
        source="Partition.appendRecordsToLeader, before the append",
    ),
    20: Row(
        "NOT_ENOUGH_REPLICAS_AFTER_APPEND",
        Then.REPEAT,
        DeliveryUnknownError,
        "it was written, but to fewer replicas than min.insync.replicas",
        source="Partition.checkEnoughReplicasReachOffset, after the append",
    ),
    21: Row(
        "INVALID_REQUIRED_ACKS",
        Then.FAIL,
        RejectedError,
        "the broker refuses the acks setting",
        False,
        "ReplicaManager.appendRecords, before the append",
    ),
    29: Row(
        "TOPIC_AUTHORIZATION_FAILED",
        Then.FAIL,
        PublishForbiddenError,
        "the user may not write to the topic: grant it WRITE on the topic",
        source="KafkaApis.handleProduceRequest, before the append",
    ),
    31: Row(
        "CLUSTER_AUTHORIZATION_FAILED",
        Then.FAIL,
        PublishForbiddenError,
        "the user may not use this cluster: grant it IDEMPOTENT_WRITE on the cluster",
        source="KafkaApis.handleProduceRequest, before the append",
    ),
    32: Row(
        "INVALID_TIMESTAMP",
        Then.SPLIT,
        RejectedError,
        "the message's timestamp is outside the range that the topic allows "
        "(message.timestamp.before.max.ms, message.timestamp.after.max.ms)",
        False,
        "LogValidator.validateTimestamp, before the append",
    ),
    35: Row(
        "UNSUPPORTED_VERSION",
        Then.FAIL,
        RejectedError,
        "the broker does not support this version of the protocol",
        False,
        "KafkaApis, before the append",
    ),
    43: Row(
        "UNSUPPORTED_FOR_MESSAGE_FORMAT",
        Then.FAIL,
        RejectedError,
        "the topic's message format is too old for headers",
        False,
        "LogValidator, before the append",
    ),
    44: Row(
        "POLICY_VIOLATION",
        Then.SPLIT,
        RejectedError,
        "the message violates a policy of the topic or the cluster",
        False,
        "a policy of the cluster's owner, before the append",
    ),
    45: Row(
        "OUT_OF_ORDER_SEQUENCE_NUMBER",
        Then.GIVE_UP,
        DeliveryUnknownError,
        "the broker lost track of the producer's sequence numbers",
        source="ProducerAppendInfo.checkSequence; records with a receipt may be lost too, so nothing is concluded",
    ),
    47: Row(
        "INVALID_PRODUCER_EPOCH",
        Then.GIVE_UP,
        DeliveryUnknownError,
        "the broker does not accept the producer's epoch any more",
        source="ProducerAppendInfo.checkProducerEpoch",
    ),
    53: Row(
        "TRANSACTIONAL_ID_AUTHORIZATION_FAILED",
        Then.FAIL,
        PublishForbiddenError,
        "the user may not use this producer id",
        source="KafkaApis.handleProduceRequest, before the append",
    ),
    56: Row(
        "KAFKA_STORAGE_ERROR",
        Then.REPEAT,
        DeliveryUnknownError,
        "the leader has an error on its disk",
        source="UnifiedLog.append, before, in or after the append",
    ),
    59: Row(
        "UNKNOWN_PRODUCER_ID",
        Then.GIVE_UP,
        DeliveryUnknownError,
        "the broker has forgotten the producer",
        source="ProducerAppendInfo of brokers before 2.5",
    ),
    87: Row(
        "INVALID_RECORD",
        Then.SPLIT,
        RejectedError,
        "the topic refuses the record: a compacted topic needs a key, and with compression the record must be "
        "below max.decompressed.message.bytes",
        False,
        "LogValidator.validateRecord, before the append",
    ),
}


def row_of(code: int) -> Row:
    """The row of a code; for a number without one, what holds for every such number."""
    row = ROWS.get(code)
    if row is None:
        text = f"the broker reported an error that the client does not know (code {code})"
        row = Row(f"code {code}", Then.GIVE_UP, DeliveryUnknownError, text)
    return row


def error_of(row: Row, *, in_doubt: bool) -> DeliveryError:
    """The error of the records whose batch got that answer last.

    Args:
        row: The last answer.
        in_doubt: An attempt may have been appended.
    """
    if not in_doubt:
        error = row.error(row.text)
        if row.retryable is not None:
            error.retryable = row.retryable
        return error
    if row.error is DeliveryUnknownError:
        return DeliveryUnknownError(f"{row.text}: the message may have been written")
    return DeliveryUnknownError(
        f"the last answer was {row.name}, and the outcome of an earlier attempt is not known: "
        "the message may have been written"
    )
