"""Converts the text of options to Python values, and Python values to text. Ambiguous text is refused.

A converter takes text and returns the value, or raises a `ValueError` that says which text is allowed. The error never
quotes the text.
"""

from __future__ import annotations

import enum
import re
import types
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from cqrs_brokers.secret import MASK, Secret

from .did_you_mean import did_you_mean

__all__ = ["Duration", "Size", "converter", "quantity", "show"]


class Quantity:
    """Marks a number that has a unit when it is written as text. A size may also be written without a unit."""

    __slots__ = ("name", "unit", "_units", "_example")

    def __init__(self, name: str, unit: str, units: dict[str, int | float], example: str) -> None:
        self.name, self.unit, self._units, self._example = name, unit, units, example

    def parse(self, text: str) -> float:
        match = re.fullmatch(_QUANTITY, text, re.ASCII)
        if match is None or match[2] not in self._units:
            units = ", ".join(filter(None, self._units))
            raise ValueError(f"must be a {self.name} with its unit ({units}), for example {self._example}")
        value = float(match[1]) * self._units[match[2]]
        if self.unit != "B":
            return value
        if value != int(value):
            raise ValueError("must be a whole number of bytes")
        return int(value)

    def show(self, value: float) -> str:
        for unit in reversed(self._units):
            count = value / self._units[unit]
            if count >= 1 and count == round(count, 3):
                return f"{count:.3f}".rstrip("0").rstrip(".") + unit
        return f"{value}{self.unit}"


_QUANTITY = r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([A-Za-z]*)"
_DURATION = Quantity("duration", "s", {"ms": 0.001, "s": 1, "m": 60, "h": 3600}, "30s")
_SIZE = Quantity(
    "size",
    "B",
    {"": 1, "B": 1, "kB": 10**3, "KiB": 2**10, "MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30},
    "1MiB",
)

Duration = Annotated[float, _DURATION]
"""A duration in seconds. A config string contains the duration with its unit: `500ms`, `30s`, `1m`, `2h`. A keyword
takes a number of seconds, or text with a unit."""

Size = Annotated[int, _SIZE]
"""A size in bytes. A config string contains the size with a unit (`1MiB`, `64kB`) or as a plain number. A keyword takes
a number of bytes, or such text."""

Converter = Callable[[str], Any]


_WHOLE = {"s": " of seconds, without a unit", "ms": " of milliseconds, without a unit"}
"""The end of the error about text that is not a whole number, by the unit of the option. This end says that the text
must not contain a unit. Users may write a unit by mistake, because the text of a `Duration` needs a unit."""


def converter(annotation: Any, unit: str | None = None) -> Converter | None:
    """The function that converts text to the type. None: text cannot become this type, so the option must be
    keyword-only.

    Args:
        annotation: The type.
        unit: The unit of a whole number, for errors.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        marker = next((each for each in arguments if isinstance(each, Quantity)), None)
        return converter(arguments[0], unit) if marker is None else marker.parse
    if origin is Literal:
        return _choice({str(choice): choice for choice in arguments})
    if origin in (Union, types.UnionType):
        return _first([converter(member, unit) for member in arguments if member is not type(None)])
    if origin in (list, tuple, frozenset):
        return _several(origin, converter(arguments[0], unit) if arguments else None)
    if isinstance(annotation, type):
        if issubclass(annotation, enum.Enum):
            return _choice({str(member.value): member for member in annotation})
        return partial(_integer, of=_WHOLE.get(unit or "", "")) if annotation is int else _SIMPLE.get(annotation)
    return None


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("must be true or false")
    return text == "true"


def _integer(text: str, of: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", text, re.ASCII):
        raise ValueError(f"must be a whole number{of}")
    return int(text)


def _number(text: str) -> float:
    if not re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]{1,18})?", text, re.ASCII):
        raise ValueError("must be a number")
    return float(text)


_SIMPLE: dict[type, Converter] = {bool: _boolean, float: _number, str: str, Secret: Secret}


def _choice(choices: dict[str, Any]) -> Converter:
    """Makes the converter for an option that allows only certain texts. If some texts are less secure than others,
    plugins list the most secure text first. An error suggests only the first text, so that no error leads people to a
    weaker choice."""

    def convert(text: str) -> Any:
        if text in choices:
            return choices[text]
        guess = did_you_mean(text, choices)
        suggestion = guess if guess == did_you_mean(next(iter(choices)), choices) else ""
        raise ValueError(f"must be one of {', '.join(choices)}{suggestion}")

    return convert


def _first(converters: list[Converter | None]) -> Converter | None:
    usable = [convert for convert in converters if convert is not None]
    if len(usable) < 2:
        return usable[0] if usable else None

    def convert(text: str) -> Any:
        reasons = []
        for attempt in usable:
            try:
                return attempt(text)
            except ValueError as error:
                reasons.append(str(error))
        raise ValueError(", or ".join(reasons))

    return convert


def _several(kind: type, item: Converter | None) -> Converter | None:
    if item is None:
        return None

    def convert(text: str) -> Any:
        parts = text.split(",")
        if not all(parts):
            raise ValueError("must be a list with commas between its items, none of them empty")
        return kind(item(part) for part in parts)

    return convert


def quantity(annotation: Any) -> Quantity | None:
    """The `Quantity` in the type, or None. `Duration | None` has the `Quantity` of `Duration`."""
    if isinstance(annotation, Quantity):
        return annotation
    return next(filter(None, map(quantity, get_args(annotation))), None)


def show(value: object, unit: Quantity | None = None) -> str:
    """The value as text for people, written as in a config string. None is shown as "none", a secret as the mask, and
    an object as its type."""
    if isinstance(value, Secret):
        return MASK
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, (int, float)):
        return unit.show(value) if unit else str(value)
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple, frozenset)):
        return ",".join(show(item) for item in value)
    return f"<{type(value).__name__}>"
