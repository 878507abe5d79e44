"""Encodes produce requests and decodes their responses (Kafka protocol, Produce, version 8).

From version 8 on, a response can name the records that made the broker refuse a batch (KIP-467). Brokers know version 8
since Kafka 2.4. aiokafka's `ProduceRequest` is sent with version 7 at most. aiokafka's classes also copy all records
once for each level of the schema.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import NamedTuple

__all__ = [
    "API_KEY",
    "API_VERSION",
    "Answer",
    "correlation_id_of",
    "read_answers",
    "request_head",
    "request_of",
    "split_frames",
]

API_KEY, API_VERSION = 0, 8

_int16, _int32 = Struct(">h").pack, Struct(">i").pack
_head = Struct(">hhi").pack  # api key, version, correlation id
_start = Struct(">hhii").pack  # no transactional id (-1), acks, timeout in milliseconds, number of topics
_partition = Struct(">ii").pack  # number, size of its records
_read_int16, _read_int32 = Struct(">h").unpack_from, Struct(">i").unpack_from
_read_partition = Struct(">ihqqqi").unpack_from
_PARTITION_SIZE = 34
_LARGEST = 2**26


class Answer(NamedTuple):
    """A broker's answer for one batch.

    Attributes:
        topic: The topic's name in UTF-8.
        partition: The partition's number.
        code: 0, or an error code.
        offset: The offset of the first record. -1: the answer gives no offset.
        culprits: The positions of the records that the broker refuses, within the batch. Empty: the broker names none.
    """

    topic: bytes
    partition: int
    code: int
    offset: int
    culprits: tuple[int, ...] = ()


def request_head(client_id: bytes, acks: int, timeout: int) -> tuple[bytes, bytes]:
    """The bytes that all requests have in common: the client's name in the header, and acks and timeout in the body."""
    return _int16(len(client_id)) + client_id, _start(-1, acks, timeout, 0)[:-4]


def request_of(
    correlation_id: int, head: tuple[bytes, bytes], batches: Sequence[tuple[bytes, int, bytes | bytearray]]
) -> bytes:
    """The bytes of a whole request. Each batch is copied only once.

    Args:
        correlation_id: The number of the request on the connection.
        head: See `request_head`.
        batches: For each partition the topic in UTF-8, the partition's number and one record batch.
    """
    client, start = head
    parts: list[bytes | bytearray] = [b"", _head(API_KEY, API_VERSION, correlation_id), client, start, b""]
    by_topic: dict[bytes, list[bytes | bytearray]] = {}
    for topic, partition, records in batches:
        by_topic.setdefault(topic, []).extend((_partition(partition, len(records)), records))
    parts[4] = _int32(len(by_topic))
    for topic, partitions in by_topic.items():
        parts += (_int16(len(topic)), topic, _int32(len(partitions) // 2), *partitions)
    parts[0] = _int32(sum(map(len, parts)))
    return b"".join(parts)


def split_frames(data: bytes) -> tuple[list[bytes], bytes]:
    """Splits bytes from a connection into responses.

    If a response with its size field would have fewer than 8 or more than `_LARGEST` bytes, the rest of the data is
    dropped, and the last response is empty.

    Returns:
        The complete responses, each without its size field, and the bytes of a response that is not complete yet.
    """
    frames: list[bytes] = []
    at = 0
    while len(data) - at >= 4:
        end = at + 4 + _read_int32(data, at)[0]
        if not at + 8 <= end <= at + _LARGEST:
            return [*frames, b""], b""
        if end > len(data):
            break
        frames.append(data[at + 4 : end])
        at = end
    return frames, data[at:]


def correlation_id_of(frame: bytes) -> int:
    """The correlation id in a response, which says which request is answered. -1: the response is too short."""
    return int(_read_int32(frame)[0]) if len(frame) >= 4 else -1


def read_answers(frame: bytes) -> tuple[list[Answer], int]:
    """Reads the answers in a response. The response begins with its correlation id.

    Returns:
        The answers, and for how many milliseconds the broker throttles this connection.

    Raises:
        struct.error: The response is cut off.
    """
    answers: list[Answer] = []
    (topics,) = _read_int32(frame, 4)
    at = 8
    for _ in range(topics):
        (length,) = _read_int16(frame, at)
        topic = frame[at + 2 : at + 2 + length]
        at += 2 + length
        (partitions,) = _read_int32(frame, at)
        at += 4
        for _ in range(partitions):
            partition, code, offset, _, _, culprits = _read_partition(frame, at)
            at += _PARTITION_SIZE
            places: tuple[int, ...] = ()
            if culprits > 0:
                places_read = []
                for _ in range(culprits):
                    places_read.append(_read_int32(frame, at)[0])
                    at = _after_text(frame, at + 4)
                places = tuple(places_read)
            at = _after_text(frame, at)
            answers.append(Answer(topic, partition, code, offset, places))
    return answers, _read_int32(frame, at)[0]


def _after_text(frame: bytes, at: int) -> int:
    """The position behind a nullable string. The length of a null string is -1."""
    return at + 2 + max(0, int(_read_int16(frame, at)[0]))
