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
        return "TOMBSTONE"  # copies and pickles are the same object


_the_one: Tombstone = object.__new__(Tombstone)
TOMBSTONE: Final = _the_one
"""The payload of a message without a body. Such a message says that the object with the message's key was deleted.

Tombstones are for compacted topics, in which the newest message with a key is the state of that key. A tombstone has no
body at all. A missing body is not the same as an empty body, or as a body with JSON's `null`. The message needs a key.
The broker needs the capability `tombstones`.
"""
