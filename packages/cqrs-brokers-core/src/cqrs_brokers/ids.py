"""Message ids: random UUIDs (RFC 9562, version 4), made by the pool as the text that goes on the wire.

The same bits from os.urandom as uuid.uuid4. Most ids are never asked for as a `UUID`, and making them as text is seven
times cheaper: the largest single saving of the send path.
"""

from __future__ import annotations

import os
from binascii import hexlify
from struct import Struct
from uuid import UUID

__all__ = ["from_text", "new_message_id", "new_text", "text_of"]

_POOLED = 128
# For all of a pool at once: what RFC 9562, 5.4 leaves to chance, and the version and the variant.
_RANDOM = int.from_bytes((~(0xC000 << 48 | 0xF000 << 64) & (1 << 128) - 1).to_bytes(16) * _POOLED)
_VERSION_4 = int.from_bytes((0x8000 << 48 | 4 << 76).to_bytes(16) * _POOLED)
_SIZE = 36
_DIGITS = [column for column in range(_SIZE) if column not in (8, 13, 18, 23)]
"""Where a text has its hex digits; dashes are elsewhere."""
_DASHES = b"-" * _SIZE * _POOLED
_split = Struct("8s4s4s4s12s").unpack
_pool: list[bytes] = []


def new_text() -> bytes:
    """The text of a new id. Safe in threads: nobody else has what was taken, or what was made here."""
    try:
        return _pool.pop()
    except IndexError:
        fresh = int.from_bytes(os.urandom(16 * _POOLED)) & _RANDOM | _VERSION_4
    digits, texts = hexlify(fresh.to_bytes(16 * _POOLED)), bytearray(_DASHES)
    for number, column in enumerate(_DIGITS):  # column by column, for all ids at once
        texts[column::_SIZE] = digits[number::32]
    made = bytes(texts)
    _pool.extend([made[start : start + _SIZE] for start in range(_SIZE, len(made), _SIZE)])
    return made[:_SIZE]


# A forked child would otherwise repeat its parent's ids.
os.register_at_fork(after_in_child=_pool.clear)


def from_text(text: bytes) -> UUID:
    """The id of a text."""
    return UUID(text.decode())


def new_message_id() -> UUID:
    """A new id."""
    return from_text(new_text())


def text_of(message_id: UUID) -> bytes:
    """The text of an id: 8-4-4-4-12 hex digits. Half of what `str(message_id).encode()` costs."""
    return b"-".join(_split(hexlify(message_id.int.to_bytes(16))))
