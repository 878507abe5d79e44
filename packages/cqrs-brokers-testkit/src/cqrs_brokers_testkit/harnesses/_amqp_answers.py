"""Forged answers of AMQP 0-9-1: its acks and nacks, in what a broker sends."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Literal

from cqrs_brokers_testkit.conformance import Forgery
from cqrs_brokers_testkit.frames import each_frame

_ACK, _NACK = struct.pack(">HH", 60, 80), struct.pack(">HH", 60, 120)
_METHOD = 1
_HEAD = 7
"""Type, channel and size of a frame; its payload begins with the class and method."""


def _length(data: bytes) -> int | None:
    return _HEAD + int.from_bytes(data[3:_HEAD]) + 1 if len(data) >= _HEAD else None


def _forgery(meaning: Literal["lost", "refused", "unknown"], forge: Callable[[bytes], bytes]) -> Forgery:
    def change(frame: bytes) -> bytes:
        is_answer = frame[0] == _METHOD and frame[_HEAD : _HEAD + 4] in (_ACK, _NACK)
        return forge(frame) if is_answer else frame

    return Forgery(meaning, lambda connection: connection.rewrite(each_frame(_length, change)))


def _with_method(frame: bytes, method: bytes) -> bytes:
    return frame[:_HEAD] + method + frame[_HEAD + 4 :]


def _with_tag(frame: bytes) -> bytes:
    return frame[: _HEAD + 4] + (2**40).to_bytes(8) + b"\0" + frame[-1:]


FORGED: Mapping[str, Forgery] = {
    "nothing": _forgery("lost", lambda _: b""),
    "nacks": _forgery("refused", lambda frame: _with_method(frame, _NACK)),
    "acks of a delivery tag that no message has": _forgery("unknown", _with_tag),
    "a method that AMQP does not have": _forgery("unknown", lambda frame: _with_method(frame, b"\0\x3c\0\xfa")),
}
