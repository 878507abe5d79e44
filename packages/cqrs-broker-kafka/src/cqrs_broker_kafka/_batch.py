"""Record batches as bytes (Kafka protocol, record format v2).

They are written here, not by aiokafka's compiled builder. That builder encodes the headers of every record again, and
takes longer: 2.7 µs against 2.0 µs, measured for a record of 500 bytes with two headers. In both, the checksum takes
0.5 µs.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from ._client import CODECS, crc32c
from ._records import Encode, Record, varints

__all__ = ["batch_encoder"]

_head = Struct(">qiibI").pack  # base offset, length of what follows, leader epoch, magic, checksum
_checked = Struct(">hiqqqhii").pack
# attributes, last offset, first and largest timestamp, producer id, its epoch, first sequence number, number of records


def batch_encoder(compression: str) -> Encode:
    """Encodes batches.

    Args:
        compression: The option `compression_type`.

    Returns:
        A function of the records, the producer id, its epoch and the first record's sequence number (-1, -1, -1 without
        idempotence).
    """
    codec, compress = CODECS[compression]

    def encode(records: Sequence[Record], producer_id: int, epoch: int, sequence: int) -> bytes:
        first = newest = records[0][1]
        parts: list[bytes] = []
        offset = 0
        for _, timestamp, _, before, value, behind in records:
            if timestamp > newest:
                newest = timestamp
            since, place = varints[timestamp - first], varints[offset]
            size = 1 + len(since) + len(place) + len(before) + len(value) + len(behind)
            parts += (varints[size], b"\0", since, place, before, value, behind)
            offset += 1
        attributes, body = 0, b"".join(parts)
        if compress is not None:
            smaller = compress(body)
            if len(smaller) < len(body):
                attributes, body = codec, smaller
        checked = _checked(attributes, offset - 1, first, newest, producer_id, epoch, sequence, offset) + body
        return _head(0, len(checked) + 9, -1, 2, crc32c(checked)) + checked

    return encode
