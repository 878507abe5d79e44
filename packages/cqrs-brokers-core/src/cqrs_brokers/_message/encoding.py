"""How a payload becomes bytes: compact JSON in UTF-8, and nothing that JSON cannot say is said silently differently.

Accepted: pydantic models, dataclasses, mappings with string keys, lists, tuples, str, finite numbers, bool, UUID,
datetime, date, time, Decimal, Enum; None inside these. Refused: a top-level None (kept free for Kafka tombstones), NaN,
infinities, sets, generators, bytes inside a payload, keys that are not strings, anything else.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from .tombstone import TOMBSTONE

__all__ = ["content_type_of", "encode"]

JSON = "application/json"
BYTES = "application/octet-stream"


def encode(payload: object) -> bytes:
    """The JSON of a payload.

    Raises:
        TypeError: The payload, or something in it, is of a type that has no JSON form. The text names the type only.
        ValueError: A value in it has no JSON form (NaN, infinite, circular, a lone surrogate).
    """
    if payload is None:
        raise TypeError("a payload of None says nothing: use a mapping, or TOMBSTONE to delete what the key stands for")
    problem: Exception
    try:
        return _encoder.encode(_checked(payload, 0)).encode()
    except _Refused as refused:
        problem = TypeError(refused.args[0])
    except RecursionError:
        problem = ValueError("the payload is nested too deeply or refers to itself")
    except UnicodeEncodeError:
        problem = ValueError("a text in the payload is not valid Unicode (a lone surrogate)")
    except ValueError:
        problem = ValueError("the payload has a number that is not finite, or refers to itself")
    # Raised here, outside the handlers: the library's own errors quote values of the payload, as context too.
    raise problem


def content_type_of(message: Any) -> str:
    """The content type that goes on the wire with a message; none ("") for a tombstone that names none."""
    content_type: str | None = message.content_type
    if content_type:
        return content_type
    payload = message.payload
    return BYTES if type(payload) is bytes else "" if payload is TOMBSTONE else JSON


class _Refused(Exception):  # noqa: N818 - a signal inside this module, not an error that leaves it
    pass


_PLAIN = frozenset({str, int, float, bool, type(None)})
_MAX_DEPTH = 200


def _checked(value: Any, depth: int) -> Any:
    """The value as json.dumps may have it: it would write a key of 1 or None as a string without a word."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if depth > _MAX_DEPTH:
        raise RecursionError
    depth += 1
    if isinstance(value, Enum):
        return _checked(value.value, depth)
    if isinstance(value, Mapping):
        for key in value:
            if type(key) is not str and not (isinstance(key, str) and not isinstance(key, Enum)):
                raise _Refused(f"a mapping in the payload has a {type(key).__name__} as key: JSON has only strings")
        return {str(key): _checked(item, depth) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_checked(item, depth) for item in value]
    if isinstance(value, str | int | float):
        return value
    convert = _CONVERSIONS.get(kind)
    if convert is not None:
        return convert(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _checked(getattr(value, item.name), depth) for item in dataclasses.fields(value)}
    dump = getattr(kind, "model_dump", None)
    if dump is not None and hasattr(kind, "model_fields"):
        return _checked(_dump_model(value), depth)
    for base, convert in _CONVERSIONS.items():
        if isinstance(value, base):
            return convert(value)
    raise _Refused(f"the payload holds a {kind.__name__}, which has no JSON form")


def _dump_model(model: Any) -> Any:
    try:
        return model.model_dump(mode="json")
    except Exception as error:
        name = type(error).__name__
    raise _Refused(f"the pydantic model {type(model).__name__} cannot be written as JSON ({name})")


_CONVERSIONS: dict[type, Callable[[Any], Any]] = {
    UUID: str,
    datetime: datetime.isoformat,
    date: date.isoformat,
    time: time.isoformat,
    Decimal: lambda number: str(number) if number.is_finite() else float(number),
}

_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
