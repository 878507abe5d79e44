"""Looks at the frames in what passes a `FaultProxy`, which knows only bytes: for `Harness.forged_answers`.

    connection.rewrite(each_frame(length_of, lambda frame: b"" if is_confirm(frame) else frame))
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["each_frame", "each_line"]


def each_frame(
    length: Callable[[bytes], int | None], change: Callable[[bytes], bytes]
) -> Callable[[bytes], bytes]:
    """A function for `rewrite`, of one direction of one connection, that begins between two frames.

    Args:
        length: How long the frame is with which these bytes begin; None: they are too few to say.
        change: What goes on in the place of a frame; `b""`: nothing.
    """
    rest = b""

    def rewrite(data: bytes) -> bytes:
        nonlocal rest
        rest += data
        changed = b""
        while (size := length(rest)) is not None and len(rest) >= size:
            changed += change(rest[:size])
            rest = rest[size:]
        return changed

    return rewrite


def each_line(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """`each_frame` for protocols of lines. `change` gets each with its line break."""
    return each_frame(lambda data: data.find(b"\n") + 1 or None, change)
