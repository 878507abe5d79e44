"""Encodes record batches (Kafka protocol, record format v2).

aiokafka's compiled builder could do the same, but is slower. The builder takes the headers of each record as a list of
pairs. The list and its pairs are at least three more objects per message for the garbage collector. The builder also
computes the checksum without the processor's instruction for CRC-32C.
"""

from __future__ import annotations

from struct import Struct

from ._client import CODECS, crc32c
from ._records import Encode, Records, varints

__all__ = ["batch_encoder"]

_head = Struct(">qiibI").pack  # base offset, length of what follows, leader epoch, magic, checksum
_checked = Struct(">hiqqqhii").pack
# attributes, last offset, first and largest timestamp, producer id, its epoch, first sequence number, number of records


_NOW = b"\0" + varints[0]
"""The bytes of a record's attributes (0), and of the difference between the record's timestamp and the batch's first
timestamp (0)."""


def batch_encoder(compression: str) -> Encode:
    """Makes the function that encodes batches.

    Args:
        compression: The option `compression_type`.

    Returns:
        The function. Its arguments are the records, the producer id, the epoch and the first record's sequence number.
        Without idempotence the last three are -1. If compression does not make a batch smaller, the function leaves
        the batch uncompressed.
    """
    codec, compress = CODECS[compression]
    varint = varints.__getitem__

    def encode(records: Records, producer_id: int, epoch: int, sequence: int) -> bytes:
        timestamps = records.timestamps
        count = len(timestamps)
        first = last = timestamps[0]
        newest = max(timestamps)
        since = _NOW
        parts = [b""]
        for place, timestamp, content in zip(map(varint, range(count)), timestamps, records.contents, strict=True):
            if timestamp != last:
                last, since = timestamp, b"\0" + varints[timestamp - first]
            parts += (varints[len(since) + len(place) + len(content)], since, place, content)
        attributes = 0
        if compress is not None:
            body = b"".join(parts)
            smaller = compress(body)
            if len(smaller) < len(body):
                attributes, parts = codec, [b"", smaller]
        parts[0] = _checked(attributes, count - 1, first, newest, producer_id, epoch, sequence, count)
        checked = b"".join(parts)
        return _head(0, len(checked) + 9, -1, 2, crc32c(checked)) + checked

    return encode
