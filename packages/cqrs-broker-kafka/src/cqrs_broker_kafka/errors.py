"""What a failed batch proves about its messages: by its last error, and by whether an earlier attempt may be written.

A broker's error code proves "not written" only when every attempt was refused for certain, before anything was appended
(by a node that did not lead the partition, for example). One whose answer was lost, or whose refusal has an offset, may
have been written; `internals` watches for both. Everything that is not in the table is unknown.
"""

from typing import NamedTuple

from aiokafka import errors as kafka

from cqrs_brokers.exceptions import (
    ConnectionLostError,
    DeliveryError,
    DeliveryUnknownError,
    DestinationNotFoundError,
    InvalidMessageError,
    MessageTooLargeError,
    NotConnectedError,
    PublishForbiddenError,
    RejectedError,
)

__all__ = ["Verdict", "judge"]


class Verdict(NamedTuple):
    """What is known.

    Attributes:
        error: What each message of the batch fails with, unless it is sent again.
        blame_one: Proven not written, and perhaps because of one record only: its neighbours deserve another try.
        too_large: Proven not written, because batch or record is larger than the topic allows.
        passes: Proven not written, and the condition can pass: wait it out.
    """

    error: DeliveryError
    blame_one: bool = False
    too_large: bool = False
    passes: bool = False


_TOO_LARGE = (kafka.MessageSizeTooLargeError, kafka.RecordListTooLargeError)

# Proven not written, and every record of the batch would be refused for the same reason.
_REFUSED: dict[type[BaseException], tuple[type[DeliveryError], str]] = {
    kafka.UnknownTopicOrPartitionError: (DestinationNotFoundError, "the topic does not exist: create it"),
    kafka.InvalidTopicError: (InvalidMessageError, "the broker refuses the topic's name"),
    kafka.TopicAuthorizationFailedError: (
        PublishForbiddenError,
        "the user may not write to the topic: grant it WRITE on the topic",
    ),
    kafka.ClusterAuthorizationFailedError: (
        PublishForbiddenError,
        "the user may not use this cluster: grant it IDEMPOTENT_WRITE on the cluster",
    ),
    kafka.TransactionalIdAuthorizationFailed: (PublishForbiddenError, "the user may not use this producer id"),
    kafka.NotEnoughReplicasError: (
        RejectedError,
        "fewer replicas are in sync than min.insync.replicas: bring the other nodes back, then send again",
    ),
    kafka.InvalidRequiredAcksError: (RejectedError, "the broker refuses the acks setting"),
    kafka.UnsupportedVersionError: (RejectedError, "the broker does not support this version of the protocol"),
    kafka.UnsupportedCodecError: (RejectedError, "the client has no library for the compression type"),
}

# The same, but the fault may be one record's.
_BAD_RECORD: dict[type[BaseException], str] = {
    kafka.InvalidTimestampError: "the message's timestamp is outside the range that the topic allows",
    kafka.PolicyViolationError: "the message violates a policy of the topic or the cluster",
    kafka.CorruptRecordException: "the broker refuses the record as corrupt (a compacted topic needs a key)",
    kafka.UnsupportedForMessageFormatError: "the topic's message format is too old for headers",
}

# Never sent, or refused by a node that does not lead the partition (any more).
_PASSES = (kafka.LeaderNotAvailableError, kafka.NotLeaderForPartitionError, kafka.NodeNotReadyError)

_UNKNOWN: dict[type[BaseException], str] = {
    kafka.RequestTimedOutError: "the broker did not answer within request_timeout_ms",
    kafka.NotEnoughReplicasAfterAppendError: "it was written, but to fewer replicas than min.insync.replicas",
    kafka.OutOfOrderSequenceNumber: "the broker lost track of the producer's sequence numbers",
    kafka.UnknownProducerId: "the broker has forgotten the producer",
    kafka.ProducerFenced: "the broker does not accept the producer's epoch any more",
    kafka.UnknownError: "the broker reported an error that the client does not know",
}


def judge(error: BaseException, *, maybe_written: bool) -> Verdict:
    """What a failed batch proves.

    Args:
        error: What the client failed the batch with; becomes the error's cause.
        maybe_written: An attempt to send it ended without a definite answer.
    """
    verdict = _judge(error, maybe_written)
    verdict.error.__cause__ = error
    return verdict


def _judge(error: BaseException, maybe_written: bool) -> Verdict:
    kind = type(error)
    if maybe_written:
        reason = _UNKNOWN.get(kind, f"the last answer was {kind.__name__}, and an earlier answer was lost")
        return Verdict(_unknown(error, reason))
    if isinstance(error, _TOO_LARGE):
        text = "the topic does not accept a record of this size: send less, or raise the topic's max.message.bytes"
        return Verdict(MessageTooLargeError(text), blame_one=True, too_large=True)
    if kind in _REFUSED:
        refusal, text = _REFUSED[kind]
        return Verdict(refusal(text))
    if kind in _BAD_RECORD:
        return Verdict(RejectedError(_BAD_RECORD[kind]), blame_one=True)
    if isinstance(error, _PASSES):
        return Verdict(NotConnectedError("the partition has no leader that can be reached"), passes=True)
    return Verdict(_unknown(error, _UNKNOWN.get(kind, f"the client failed with {kind.__name__}")))


def _unknown(error: BaseException, reason: str) -> DeliveryUnknownError:
    if isinstance(error, kafka.KafkaConnectionError):
        return ConnectionLostError("the connection was lost before the broker confirmed the message")
    return DeliveryUnknownError(f"{reason}: the message may have been written")
