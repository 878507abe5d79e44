"""Changes single frames of the bytes that pass a `FaultProxy`, for `Harness.forged_answers`. A proxy knows only bytes.

    def forged_answers(self):  # a protocol of lines, whose confirms are "OK <token>"
        return forgeries(
            line_length(),
            lambda line: line.startswith(b"OK "),
            refused={"BUSY": lambda line: line.replace(b"OK", b"BUSY", 1)},
            unknown={"no words": b"?\n", "an unknown word": lambda line: line.replace(b"OK", b"HUM", 1)},
        )
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal

from cqrs_brokers_testkit.conformance import Forgery
from cqrs_brokers_testkit.conformance._harness import LOST_BEFORE_A_REFUSAL
from cqrs_brokers_testkit.proxy import ProxyConnection

__all__ = ["each_frame", "each_line", "forgeries", "line_length", "with_block"]

_CUT_AT = 12
"""The answer with this number is cut. A number of two digits is still a number when its last digit is missing."""

Length = Callable[[bytes], int | None]
Change = Callable[[bytes], bytes]


def line_length(block: str | None = None) -> Length:
    r"""Makes the argument `length` for protocols of lines. A frame is a line with its line break.

    Args:
        block: A regular expression for lines that are followed by a block of bytes and another line break. Its first
            group is the number of bytes. The block belongs to the frame. For Redis it is `\$(\d+)`, for NATS
            `H?MSG .* (\d+)`. None: no line is followed by a block.
    """
    pattern = None if block is None else re.compile(block.encode())

    def length(data: bytes) -> int | None:
        line, end, _ = data.partition(b"\n")
        if not end:
            return None
        found = None if pattern is None else pattern.fullmatch(line.rstrip(b"\r"))
        if found is None:
            return len(line) + 1
        after = 2 if line.endswith(b"\r") else 1
        return len(line) + 1 + int(found[1]) + after

    return length


def with_block(block: bytes) -> Change:
    """Makes a change for frames that are a line and a block. The change puts `block` in the place of the frame's block,
    and the length of `block` in the place of the line's last number."""

    def change(frame: bytes) -> bytes:
        line, end, _ = re.split(rb"(\r?\n)", frame, maxsplit=1)
        return re.sub(rb"\d+$", b"%d" % len(block), line) + end + block + end

    return change


def each_frame(length: Length, change: Change) -> Change:
    """Makes a function for `ProxyConnection.rewrite` that changes each frame. The function is for one direction of one
    connection. The first byte that it gets must be the first byte of a frame.

    Args:
        length: Returns the length of the frame at the start of these bytes. None: there are too few bytes to tell.
        change: Returns the bytes that replace a frame. `b""` drops the frame.
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


def each_line(change: Change) -> Change:
    """Does the same as `each_frame`, for protocols of lines. `change` gets each line with its line break."""
    return each_frame(line_length(), change)


def forgeries(
    length: Length,
    is_answer: Callable[[bytes], bool],
    *,
    refused: Mapping[str, Change | bytes],
    unknown: Mapping[str, Change | bytes],
    any_order: bool = False,
) -> Mapping[str, Forgery]:
    """Makes the forgeries that `Harness.forged_answers` returns. Forgeries with the meanings `lost` and `cut` are
    always among them.

    Args:
        length: See `each_frame`.
        is_answer: Returns whether a frame of the broker answers a message. The answer to a ping answers no message.
        refused: For each name of a refusal, a function that turns an answer into that refusal. If the refusal is the
            same for all answers, its bytes can be given instead.
        unknown: The same for answers that no driver can know: a number that no message has, or a reason code that
            the protocol does not have.
        any_order: Whether the broker may answer a message before an older one. If so, forgeries with the meanings
            `late` and `one refused` are added.
    """

    def forgery(meaning: Literal["lost", "refused", "unknown"], forged: Change | bytes) -> Forgery:
        def change(frame: bytes) -> bytes:
            if not is_answer(frame):
                return frame
            return forged if isinstance(forged, bytes) else forged(frame)

        def apply(connection: ProxyConnection) -> None:
            connection.rewrite(each_frame(length, change))

        return Forgery(meaning, apply)

    def keep_the_first_back(connection: ProxyConnection) -> Callable[[], None]:
        kept: list[bytes] = []

        def change(frame: bytes) -> bytes:
            if kept or not is_answer(frame):
                return frame
            kept.append(frame)
            return b""

        connection.rewrite(each_frame(length, change))
        return lambda: connection.insert(b"".join(kept))

    def cut(size_of: Callable[[int], int]) -> Forgery:
        """Lets through only the beginning of one answer. All other answers are dropped."""

        def apply(connection: ProxyConnection) -> None:
            answers = 0

            def change(frame: bytes) -> bytes:
                nonlocal answers
                if not is_answer(frame):
                    return frame if answers < _CUT_AT else b""
                answers += 1
                return frame[: max(0, size_of(len(frame)))] if answers == _CUT_AT else b""

            connection.rewrite(each_frame(length, change))

        return Forgery("cut", apply)

    def refuse_one(forged: Change | bytes) -> Forgery:
        """Loses some answers, makes the next one a refusal, and lets the others through."""

        def apply(connection: ProxyConnection) -> Callable[[], int]:
            answers = 0

            def change(frame: bytes) -> bytes:
                nonlocal answers
                if not is_answer(frame):
                    return frame
                answers += 1
                if answers != LOST_BEFORE_A_REFUSAL + 1:
                    return b"" if answers <= LOST_BEFORE_A_REFUSAL else frame
                return forged if isinstance(forged, bytes) else forged(frame)

            connection.rewrite(each_frame(length, change))
            return lambda: max(0, answers - LOST_BEFORE_A_REFUSAL - 1)

        return Forgery("one refused", apply)

    made = {"nothing": forgery("lost", b"")}
    made |= {f"an answer without its last {n} bytes": cut(lambda size, n=n: size - n) for n in (1, 2, 3, 4)}  # type: ignore[misc]
    made["half an answer"] = cut(lambda size: size // 2)
    made |= {says: forgery("refused", forged) for says, forged in refused.items()}
    made |= {says: forgery("unknown", forged) for says, forged in unknown.items()}
    if any_order:
        made["nothing, at first"] = Forgery("late", keep_the_first_back)
        made |= {f"{says}, once": refuse_one(forged) for says, forged in refused.items()}
    return made
