"""Record batches as bytes (Kafka protocol, record format v2).

They are written here, not by aiokafka's compiled builder. That builder takes the headers of each record as a list of
pairs. Measured alone, it is as fast: making and writing a record of 500 bytes with two headers of its own takes 1.8 or
1.9 µs, 0.4 µs of it for the checksum. But these lists are three more objects per message for the garbage collector, and
the collector takes a fifth of the time when 1 000 messages are sent at a time.
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


_NOW = b"\0" + varints[0]
"""The attributes of a record, and the difference 0: its timestamp is that of the first record."""


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
        first = newest = last = records[0][1]
        since = _NOW
        parts = [b""]
        for place, (_, timestamp, _, content) in enumerate(records):
            if timestamp != last:
                last, since = timestamp, b"\0" + varints[timestamp - first]
                newest = max(newest, timestamp)
            at = varints[place]
            parts += (varints[len(since) + len(at) + len(content)], since, at, content)
        count = len(records)
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
