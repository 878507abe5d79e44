"""The error codes of produce responses, and what each code proves about the records of a batch.

A code proves "not appended" only if its row in the table `ROWS` says so. A code without a row, for example a new code
of a later Kafka version, leaves the batch in doubt: the broker may have appended the batch. The rows follow the source
code of Apache Kafka's broker (3.9 to 4.4). In the broker a produce request passes through these methods, in this order:
`KafkaApis.handleProduceRequest` checks permissions, and that the partition exists. `ReplicaManager.appendRecords` looks
up the partition's log on this node. `Partition.appendRecordsToLeader` checks that the node leads the partition, and
counts the in-sync replicas. `UnifiedLog.append` first validates the records, and then writes the first byte.

The proof of a row (`WAIT`, `SPLIT`, `FAIL`) holds only for an answer without a base offset. If the answer has a base
offset, the batch was appended. The error came afterwards, while the leader waited for its followers: the leader stepped
down, or the topic was deleted (`DelayedProduce.tryComplete`).
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
"""The code for a repeated batch that is already in the log, but whose offset the broker does not know any more."""


class Then(Enum):
    """What follows from an error code."""

    WAIT = "not appended; the condition can pass: the records wait and are sent again"
    SPLIT = "not appended, perhaps because of one record: the others are sent again"
    FAIL = "not appended, and every record would be refused for the same reason"
    REPEAT = "in doubt; an idempotent producer repeats the batch byte for byte"
    GIVE_UP = "in doubt; repeating the batch would prove nothing"


class Row(NamedTuple):
    """What one error code means.

    Attributes:
        name: Kafka's name for the code (`org.apache.kafka.common.protocol.Errors`).
        then: What follows from the code.
        error: The class of the error for a record that fails because of this code. If the batch is in doubt, the class
            is `DeliveryUnknownError` instead.
        text: The text of the error: what happened and, for some codes, what to do.
        retryable: Whether the same call may succeed later if nobody changes anything. None: the error's class decides.
        source: Why `then` follows from the code. In most rows this is the part of the broker's source code that gives
            the answer, and whether the batch was appended before the answer.
    """

    name: str
    then: Then
    error: type[DeliveryError]
    text: str
    retryable: bool | None = None
    source: str = ""


_WAIT, _SPLIT, _FAIL, _REPEAT, _GIVE_UP = Then.WAIT, Then.SPLIT, Then.FAIL, Then.REPEAT, Then.GIVE_UP
_Unknown = DeliveryUnknownError

_LARGE = "the topic does not accept a record of this size: send less, or raise the topic's max.message.bytes"
_NO_TOPIC = "the topic does not exist: create it"
_SEGMENT = "the record is larger than a segment of the topic's log: send less, or raise the topic's segment.bytes"
_NAME = "the broker refuses the topic's name: use another name"
_OLD_FORMAT = "the topic's message format is too old for headers: raise the topic's message.format.version"
_MOVED = "the partition's leader has moved and the new one is not known yet"
_FEW = "fewer replicas are in sync than min.insync.replicas: bring the other nodes back, then send again"
_FEW_NOW = "it was written, but to fewer replicas than min.insync.replicas"
_SLOW = "the in-sync replicas did not have the record within request_timeout_ms"
_NO_WRITE = "the user may not write to the topic: grant it WRITE on the topic"
_NO_CLUSTER = "the user may not use this cluster: grant it IDEMPOTENT_WRITE on the cluster"
_NO_ID = "the user may not use this producer id"
_TIME = (
    "the message's timestamp is outside the range that the topic allows "
    "(message.timestamp.before.max.ms, message.timestamp.after.max.ms)"
)
_RECORD = (
    "the topic refuses the record: a compacted topic needs a key, and with compression the record must be below "
    "max.decompressed.message.bytes"
)
_VERSION = "the broker does not support this version of the protocol"
_POLICY = "the message violates a policy of the topic or the cluster: see the broker's log"
_LOST_TRACK = "the broker does not expect the producer's sequence numbers"
_EPOCH = "the broker does not accept the producer's epoch any more"

_VALIDATED = "UnifiedLog.analyzeAndValidateRecords or LogValidator, before the append"
_AUTHORISED = "KafkaApis.handleProduceRequest, before the append"
_LED = "ReplicaManager or Partition.appendRecordsToLeader, before the append"
_AFTER = "DelayedProduce, after the append"
_STATE = "ProducerAppendInfo; records with a receipt may be lost too, so nothing is concluded"

ROWS: dict[int, Row] = {
    2: Row("CORRUPT_MESSAGE", _SPLIT, RejectedError, "the broker refuses the record as corrupt", False, _VALIDATED),
    3: Row("UNKNOWN_TOPIC_OR_PARTITION", _WAIT, DestinationNotFoundError, _NO_TOPIC, None, _LED),
    5: Row("LEADER_NOT_AVAILABLE", _WAIT, NotConnectedError, "the partition has no leader", None, "nobody can append"),
    6: Row("NOT_LEADER_OR_FOLLOWER", _WAIT, NotConnectedError, _MOVED, None, _LED),
    7: Row("REQUEST_TIMED_OUT", _REPEAT, _Unknown, _SLOW, None, _AFTER),
    10: Row("MESSAGE_TOO_LARGE", _SPLIT, MessageTooLargeError, _LARGE, None, _VALIDATED),
    13: Row("NETWORK_EXCEPTION", _REPEAT, _Unknown, "the broker lost a connection", None, "Errors: retriable"),
    17: Row("INVALID_TOPIC_EXCEPTION", _FAIL, InvalidMessageError, _NAME, None, _LED),
    18: Row("RECORD_LIST_TOO_LARGE", _SPLIT, MessageTooLargeError, _SEGMENT, None, _VALIDATED),
    19: Row("NOT_ENOUGH_REPLICAS", _WAIT, RejectedError, _FEW, True, _LED),
    20: Row("NOT_ENOUGH_REPLICAS_AFTER_APPEND", _REPEAT, _Unknown, _FEW_NOW, None, _AFTER),
    21: Row("INVALID_REQUIRED_ACKS", _FAIL, RejectedError, "the broker refuses the acks setting", False, _LED),
    29: Row("TOPIC_AUTHORIZATION_FAILED", _FAIL, PublishForbiddenError, _NO_WRITE, None, _AUTHORISED),
    31: Row("CLUSTER_AUTHORIZATION_FAILED", _FAIL, PublishForbiddenError, _NO_CLUSTER, None, _AUTHORISED),
    32: Row("INVALID_TIMESTAMP", _SPLIT, RejectedError, _TIME, False, _VALIDATED),
    35: Row("UNSUPPORTED_VERSION", _FAIL, RejectedError, _VERSION, False, _AUTHORISED),
    43: Row("UNSUPPORTED_FOR_MESSAGE_FORMAT", _FAIL, RejectedError, _OLD_FORMAT, False, _VALIDATED),
    44: Row("POLICY_VIOLATION", _SPLIT, RejectedError, _POLICY, False, _VALIDATED),
    45: Row("OUT_OF_ORDER_SEQUENCE_NUMBER", _GIVE_UP, _Unknown, _LOST_TRACK, None, _STATE),
    47: Row("INVALID_PRODUCER_EPOCH", _GIVE_UP, _Unknown, _EPOCH, None, _STATE),
    53: Row("TRANSACTIONAL_ID_AUTHORIZATION_FAILED", _FAIL, PublishForbiddenError, _NO_ID, None, _AUTHORISED),
    56: Row(
        "KAFKA_STORAGE_ERROR", _REPEAT, _Unknown, "the leader's disk has an error", None, "UnifiedLog, at any time"
    ),
    59: Row("UNKNOWN_PRODUCER_ID", _GIVE_UP, _Unknown, "the broker has forgotten the producer", None, _STATE),
    87: Row("INVALID_RECORD", _SPLIT, RejectedError, _RECORD, False, _VALIDATED),
}


def row_of(code: int) -> Row:
    """Returns the row of a code. If the code is not in the table, the returned row leaves the outcome unknown."""
    row = ROWS.get(code)
    if row is None:
        text = f"the broker reported an error that the client does not know (code {code})"
        row = Row(f"code {code}", Then.GIVE_UP, DeliveryUnknownError, text)
    return row


def error_of(row: Row, *, in_doubt: bool) -> DeliveryError:
    """Makes the error for the records of a batch.

    Args:
        row: The row of the last answer for the batch.
        in_doubt: Whether the broker may have appended the batch, in the last attempt or an earlier one.
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
