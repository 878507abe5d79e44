"""An argument parser for commands that take config strings. The errors of the parser quote no value of the command line
that is longer than one character.

A mistyped argument may be a config string with a password, or a part of a config string that the shell has split.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

__all__ = ["ArgumentParser", "without_values"]

_OPTION = re.compile(r"(-[a-zA-Z]|--[a-zA-Z][a-zA-Z-]*)")


def without_values(complaint: str, given: Iterable[str]) -> str:
    """Returns an error text about a command line, with "…" in place of each value that is longer than one character.
    The names of options stay in the text.

    Args:
        complaint: The parser's error text.
        given: The arguments of the command line, without the program's name.
    """
    hidden: dict[str, str] = {}
    for argument in given:
        option = _OPTION.match(argument)
        name = option[0] if option is not None else ""
        value = argument[len(name) :].removeprefix("=")
        if len(value) > 1:  # a letter is no secret
            hidden |= {argument: f"{name}…", value: "…"}
    for value in sorted(hidden, key=len, reverse=True):
        for text in (repr(value), value):
            # Only whole words are replaced, because a short value may occur inside other words by chance.
            complaint = re.sub(rf"(?<![\w-]){re.escape(text)}(?![\w-])", hidden[value], complaint)
    return complaint


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser. Its error texts go through `without_values`."""

    _given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See argparse."""
        self._given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """See argparse."""
        super().error(without_values(message, self._given))
