"""Forged answers of AMQP 0-9-1: the acks and nacks that a broker sends are changed."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from cqrs_brokers_testkit.conformance import Forgery
from cqrs_brokers_testkit.frames import forgeries

_ACK, _NACK = struct.pack(">HH", 60, 80), struct.pack(">HH", 60, 120)
_METHOD = 1
_HEAD = 7
"""The number of bytes of a frame's type, channel and size. The payload after them begins with class and method."""


def _length(data: bytes) -> int | None:
    return _HEAD + int.from_bytes(data[3:_HEAD]) + 1 if len(data) >= _HEAD else None


def _is_answer(frame: bytes) -> bool:
    return frame[0] == _METHOD and frame[_HEAD : _HEAD + 4] in (_ACK, _NACK)


def _with_method(frame: bytes, method: bytes) -> bytes:
    return frame[:_HEAD] + method + frame[_HEAD + 4 :]


def _with_tag(frame: bytes) -> bytes:
    return frame[: _HEAD + 4] + (2**40).to_bytes(8) + b"\0" + frame[-1:]


# No answer is kept back: those of others, with their flag `multiple`, would answer its message, too.
FORGED: Mapping[str, Forgery] = forgeries(
    _length,
    _is_answer,
    refused={"nacks": lambda frame: _with_method(frame, _NACK)},
    unknown={
        "acks of a delivery tag that no message has": _with_tag,
        "a method that AMQP does not have": lambda frame: _with_method(frame, b"\0\x3c\0\xfa"),
    },
)
