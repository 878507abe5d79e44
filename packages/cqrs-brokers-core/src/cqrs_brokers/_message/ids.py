"""Message ids: random UUIDs (RFC 9562, version 4), made as the text that goes on the wire.

The bits come from `os.urandom`, as in `uuid.uuid4`. If many ids are needed within a short time, they are made 256 at a
time. Making ids together costs less than making them one by one. The ids that are made but not used yet are called the
*pool*.

The ids of a pool must be used soon. A process may be started several times from one snapshot of its memory (a frozen
virtual machine or serverless function), and each copy would use the ids of the same pool. So a pool is used for 5 ms of
the wall clock only. When a copy starts, this time is over, unless the copy's clock still shows the time of the
snapshot. After a fork, the child process has an empty pool.
"""

from __future__ import annotations

import os
from binascii import hexlify
from struct import Struct
from time import time_ns
from uuid import UUID

__all__ = ["from_text", "new_message_id", "new_text", "text_of"]

_POOLED = 256
_FRESH_NS = 5_000_000
"""How long a pool is used, in nanoseconds. If a further id is needed within this time after the last single id, a pool
is made."""
_TEXT = b"--------------4---------------------"  # 4: the version (RFC 9562, 4.2)
_TEXTS = _TEXT * _POOLED
_SIZE, _VERSION, _VARIANT = len(_TEXT), 14, 19
_DIGITS = [(column, digit) for digit, column in enumerate(c for c in range(_SIZE) if c not in (8, 13, 18, 23))]
"""One pair for each of the 32 hex digits of an id: its column in the text (0 to 35), and its place among the digits (0
to 31)."""
_RANDOM = [(column, digit) for column, digit in _DIGITS if column not in (_VERSION, _VARIANT)]
_VARIANT_DIGIT = dict(_DIGITS)[_VARIANT]
_VARIANTS = bytes.maketrans(b"0123456789abcdef", b"89ab" * 4)  # its two upper bits: 1 and 0 (RFC 9562, 4.1)
_divide = Struct(f"{_SIZE}s" * _POOLED).unpack
_split = Struct("8s4s4s4s12s").unpack
_VERSION_4 = 0x4000_8000_0000_0000_0000
_RANDOM_BITS = 0xFFFFFFFF_FFFF_0FFF_3FFF_FFFFFFFFFFFF
_pool: list[bytes] = []
_made_ns = 0
"""When a pool or a single id was last made (a result of `time.time_ns()`)."""


def new_text(now: int) -> bytes:
    """Returns the text of a new id. This function may be called in several threads: two threads never get the same id.

    Args:
        now: The result of `time.time_ns()`.
    """
    global _made_ns
    if 0 <= now - _made_ns < _FRESH_NS:  # false, too, when the clock was set back
        try:
            return _pool.pop()
        except IndexError:
            mine, *others = _burst()
        _pool.extend(others)
    else:
        _pool.clear()
        mine = text_of(int.from_bytes(os.urandom(16)) & _RANDOM_BITS | _VERSION_4)
    _made_ns = now
    return mine


def _burst() -> tuple[bytes, ...]:
    digits, texts = hexlify(os.urandom(16 * _POOLED)), bytearray(_TEXTS)
    for column, digit in _RANDOM:  # column by column, for all ids at once
        texts[column::_SIZE] = digits[digit::32]
    texts[_VARIANT::_SIZE] = digits[_VARIANT_DIGIT::32].translate(_VARIANTS)
    return _divide(texts)


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_pool.clear)


def from_text(text: bytes) -> UUID:
    """The id that a text of 8-4-4-4-12 hex digits stands for."""
    return UUID(text.decode())


def new_message_id() -> UUID:
    """A new id."""
    return from_text(new_text(time_ns()))


def text_of(message_id: int) -> bytes:
    """The text of the id whose `UUID.int` is given: 8-4-4-4-12 hex digits. This function takes half the time of
    `str(uuid).encode()`.
    """
    return b"-".join(_split(hexlify(message_id.to_bytes(16))))
