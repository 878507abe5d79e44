"""`TOMBSTONE`: the payload of a message that reports a deletion and has no body."""

from __future__ import annotations

from typing import Final, final

__all__ = ["TOMBSTONE", "Tombstone"]


@final
class Tombstone:
    """The type of `TOMBSTONE`, which is its only instance."""

    __slots__ = ()

    def __new__(cls) -> Tombstone:
        return _the_one

    def __repr__(self) -> str:
        return "TOMBSTONE"

    def __reduce__(self) -> str:
        return "TOMBSTONE"  # a copy or an unpickled object is the same object


_the_one: Tombstone = object.__new__(Tombstone)
TOMBSTONE: Final = _the_one
"""The payload of a message without a body. Such a message is called a tombstone, too. A tombstone reports that the
object with the message's key was deleted. The message needs a key, and the broker needs the capability `tombstones`.

Tombstones are for compacted topics, in which the newest message with a key is the state of that key. A missing body is
not the same as an empty body, or as a body with JSON's `null`.
"""
