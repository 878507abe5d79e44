"""Says what a payload may contain, and how each value is written in JSON. This rule is the same at every depth and in
every kind of container.

| accepted | in JSON |
|---|---|
| `None`, bool, int of at most 4 300 digits, finite float, str | as they are |
| mapping with keys of text; list, tuple, named tuple | object; array |
| pydantic model or pydantic's dataclass | object, or what its own serializer returns; see `models` |
| dataclass of the standard library | object |
| Enum | its value, by the same rule |
| UUID, Decimal (finite, with all its digits), pydantic's URL, IP address, path | text |
| date, time, datetime | ISO 8601, with `Z` for the offset zero |

Everything else is refused, for example NaN and infinities, bytes inside a payload, sets, generators, secrets, keys that
are no text, and values that are nested deeper than `MAX_DEPTH`. If an object is an instance of a subclass of a model or
a dataclass, the fields that the subclass adds are written, too. The function that writes the instances of a class is
called the *writer* of that class.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from math import isfinite
from typing import Any
from uuid import UUID

from cqrs_brokers.exceptions import safe_cause

from .ids import text_of

__all__ = [
    "LARGEST",
    "LEAST",
    "MAX_DEPTH",
    "NUMBERS",
    "PLAIN",
    "Refused",
    "TOO_DEEP",
    "UnencodableError",
    "WRITERS",
    "Writer",
    "asked",
    "jsonable",
    "where_text_fails",
    "write",
    "writer_of",
]

Writer = Callable[[Any, int], Any]
"""A function that turns a value into what JSON can hold. Its second argument is the nesting depth of the value."""

MAX_DEPTH = 200
PLAIN = frozenset({str, bool, type(None)})
"""The classes whose instances are written as they are."""
NUMBERS = frozenset({int, float})
LARGEST: int = 10**4_300 - 1
LEAST: int = -LARGEST
"""Numbers from `LEAST` to `LARGEST` are written as they are. These numbers are finite, and integers among them have at
most 4 300 digits, which is Python's default limit (see `sys.set_int_max_str_digits`). `LEAST` has a name, because
`-LARGEST` would be computed anew for each number."""
TOO_DEEP = "is nested too deeply, or refers to itself"
_MOST_CLASSES = 10_000
_SURROGATE = "[\ud800-\udfff]"
WRITERS: dict[type, Writer] = {}
"""The writers of the classes that have occurred, so that each writer is looked up once. After `_MOST_CLASSES` classes
the dict is emptied."""


class UnencodableError(TypeError, ValueError):
    """A payload has no JSON form. The text quotes no value of the payload. The text gives the path of the part that is
    wrong. But if code of the payload raised an error, the text may name only the whole payload."""


class Refused(Exception):  # noqa: N818 - a signal inside this package, not an error that leaves it
    """Something in a payload has no JSON form.

    Args:
        text: What is wrong. The text is the end of a sentence that begins with the path.
        cause: The error that the payload's own code raised.
    """

    def __init__(self, text: str, cause: BaseException | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.cause = cause
        self.path: list[str | int] = []
        """The keys, fields and indexes that lead from the payload to the part without a JSON form, the innermost
        first."""


def jsonable(value: object, root: str) -> Any:
    """The value as dicts, lists, text, finite numbers, bools and None.

    Args:
        value: A payload, or an event.
        root: How the paths in errors begin. "": a path begins with the name of a field.

    Raises:
        UnencodableError: Something in the value has no JSON form, or code of the value raised an error.
    """
    try:
        return write(value, 0)
    except Refused as refused:
        problem = UnencodableError(f"{_path(root, refused.path)} {refused.text}")
        cause = safe_cause(refused.cause, value)
    except Exception as error:  # the payload's own code: a mapping that raises, a property
        name = type(error).__name__
        problem = UnencodableError(f"{root or 'the event'} cannot be written: its own code raised {name}")
        cause = safe_cause(error, value)
    # Outside the handlers: the error that was caught may quote the payload, and would be the context.
    try:
        raise problem from cause
    finally:  # the traceback of the error holds this frame; the frame must not hold the error (a cycle)
        del problem, cause


def write(value: Any, depth: int) -> Any:
    """The value in a form that JSON can hold.

    Raises:
        Refused: Something in the value has no JSON form.
        Exception: Code of the value raised this error, for example a property.
    """
    kind = type(value)
    if kind in PLAIN:
        return value
    return (WRITERS.get(kind) or writer_of(kind))(value, depth)


def asked(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function that belongs to the payload.

    Raises:
        Refused: The function raised an error.
    """
    try:
        return function(*arguments)
    except Refused:  # for a value inside
        raise
    except Exception as error:
        cause = error
    raise Refused(f"cannot be written: its own code raised {type(cause).__name__}", cause)


def where_text_fails(ready: Any, path: str) -> str:
    """Says which text is not valid Unicode, with its path; "" if every text is valid. `ready` is a result of
    `jsonable`."""
    if isinstance(ready, str):
        return f"{path} is not valid Unicode (a lone surrogate)" if re.search(_SURROGATE, ready) else ""
    parts: Any = enumerate(ready) if isinstance(ready, list) else ()
    if isinstance(ready, dict):
        if any(re.search(_SURROGATE, key) for key in ready):
            return f"{path} has a key that is not valid Unicode (a lone surrogate)"
        parts = ready.items()
    found = (where_text_fails(item, _path(path, [key])) for key, item in parts)
    return next(filter(None, found), "")


# -- containers --------------------------------------------------------------------------------------------------------


def _mapping(value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    if depth >= MAX_DEPTH:
        raise Refused(TOO_DEEP)
    depth += 1
    out: dict[str, Any] = {}
    key = name = None
    try:
        for key, item in value.items():
            name = key if type(key) is str else _key(key)
            kind = type(item)
            if kind in PLAIN or (kind in NUMBERS and LEAST <= item <= LARGEST):
                out[name] = item
            else:
                out[name] = (WRITERS.get(kind) or writer_of(kind))(item, depth)
    except Refused as refused:
        if name is not None:
            refused.path.append(name)
        raise
    if len(out) != len(value):
        raise Refused("has two keys that are the same text")
    return out


def _key(key: Any) -> str:
    if isinstance(key, str):
        return str.__str__(key)
    raise Refused(f"has a key of type {type(key).__name__}: JSON has only text there")


def _sequence(value: list[Any] | tuple[Any, ...], depth: int) -> list[Any]:
    if depth >= MAX_DEPTH:
        raise Refused(TOO_DEEP)
    depth += 1
    out: list[Any] = []
    append = out.append
    try:
        for item in value:
            kind = type(item)
            if kind in PLAIN or (kind in NUMBERS and LEAST <= item <= LARGEST):
                append(item)
            else:
                append((WRITERS.get(kind) or writer_of(kind))(item, depth))
    except Refused as refused:
        refused.path.append(len(out))
        raise
    return out


def _dataclass(kind: Any) -> Writer:
    names = [field.name for field in dataclasses.fields(kind)]
    return lambda value, depth: _mapping({name: getattr(value, name) for name in names}, depth)


# -- leaves ------------------------------------------------------------------------------------------------------------


def _int(value: int, depth: int) -> int:
    if LEAST <= value <= LARGEST:
        return int.__pos__(value)
    raise Refused("is an integer of more digits than Python writes (sys.set_int_max_str_digits)")


def _float(value: float, depth: int) -> float:
    if isfinite(value):
        return float.__pos__(value)
    raise Refused("is not finite (NaN or an infinity): JSON has no such number")


def _decimal(value: Decimal, depth: int) -> str:
    if value.is_finite():
        return str(value)
    raise Refused("is not finite (NaN or an infinity): JSON has no such number")


def _time(value: datetime | time, depth: int) -> str:
    text = value.isoformat()
    return text[:-6] + "Z" if text[-6:] == "+00:00" else text


_LEAVES: dict[type, Writer] = {
    float: _float,
    UUID: lambda value, depth: text_of(value.int).decode(),
    datetime: _time,
    date: lambda value, depth: value.isoformat(),
    time: _time,
    Decimal: _decimal,
    str: lambda value, depth: str.__str__(value),
    int: _int,
}
"""Writers by class. For an instance of a subclass, the first base class in this order is used. The order matters: a
datetime is a date, too."""


def writer_of(kind: type) -> Writer:
    """Finds the writer of a class, and adds the writer to `WRITERS`."""
    writer = _find_writer(kind)
    if len(WRITERS) >= _MOST_CLASSES:
        WRITERS.clear()
    WRITERS[kind] = writer
    return writer


def _find_writer(kind: Any) -> Writer:
    if issubclass(kind, Enum):
        return lambda value, depth: write(value.value, depth)
    if issubclass(kind, Mapping):
        return _mapping
    if issubclass(kind, list | tuple):
        return _sequence
    if hasattr(kind, "__pydantic_core_schema__") and hasattr(kind, "__pydantic_serializer__"):
        from .models import model_writer

        return model_writer(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind)
    for base, writer in _LEAVES.items():
        if issubclass(kind, base):
            return writer
    names = {base.__name__ for base in kind.__mro__}
    if kind.__module__.partition(".")[0] in ("ipaddress", "pathlib", "pydantic", "pydantic_core") and names & _TEXTS:
        return lambda value, depth: str(value)
    reason = _HIDDEN if names & _SECRETS else f"is of type {kind.__name__}, which has no JSON form: {_REMEDY}"

    def refuse(value: Any, depth: int) -> Any:
        raise Refused(reason)

    return refuse


_TEXTS = {
    *("IPv4Address", "IPv4Network", "IPv6Address", "IPv6Network", "PurePath"),
    *("MultiHostUrl", "Url", "_BaseMultiHostUrl", "_BaseUrl"),
}
"""The names of the classes that are written as their text: addresses, paths and URLs."""
_SECRETS = {"Secret", "SecretBytes", "SecretStr", "_SecretBase"}
_REMEDY = "convert it, give its model a serializer for it, or give the broker an encoder"
_HIDDEN = "is a secret: give its model a serializer that says how it is written, or leave it out"
_SHOWN_DEPTH = 8


def _path(root: str, inside_out: list[str | int]) -> str:
    """The path as text, such as `payload.lines[3].price`. A key that is no identifier, or has more than 64 characters,
    might be content, so the text has "[…]" in its place. At most 8 keys and indexes are shown."""
    parts = inside_out[::-1]
    text = root
    for part in parts[:_SHOWN_DEPTH]:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier() and len(part) <= 64:
            text += f".{part}" if text else part
        else:
            text += "[…]"
    if len(parts) > _SHOWN_DEPTH:
        text += "…"
    return text or "the payload"
