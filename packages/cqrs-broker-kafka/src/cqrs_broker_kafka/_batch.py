"""Record batches as bytes (Kafka protocol, record format v2).

This module writes them, not aiokafka's compiled builder, which is slower. The builder takes the headers of each record
as a list of pairs. These are three more objects per message for the garbage collector. The builder also computes the
checksum without the processor's instruction for it.
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
"""The attributes of a record, and the difference between its timestamp and that of the first record. Both are 0."""


def batch_encoder(compression: str) -> Encode:
    """Encodes batches.

    Args:
        compression: The option `compression_type`.

    Returns:
        A function of the records, the producer id, its epoch and the first record's sequence number (-1, -1, -1 without
        idempotence).
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
