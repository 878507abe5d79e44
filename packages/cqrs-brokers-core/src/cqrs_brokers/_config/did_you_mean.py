"""Suggests the name that was probably meant."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from .common_mistakes import FOREIGN_OPTIONS, NO_OPTIONS

__all__ = ["did_you_mean", "what_instead"]


def what_instead(option: str, known: Collection[str]) -> str:
    """Returns a text for the end of an error about an unknown option. If another client has an option of this name, the
    text may say what to do instead. Otherwise the text is the result of `did_you_mean`."""
    plain = _plain(option)
    if FOREIGN_OPTIONS.get(plain) in known:
        return f"; did you mean {FOREIGN_OPTIONS[plain]!r}?"
    return f": {NO_OPTIONS[plain]}" if plain in NO_OPTIONS else did_you_mean(option, known)


def did_you_mean(name: str, known: Iterable[object]) -> str:
    """Returns a text for the end of an error about an unknown name: `; did you mean 'x'?` with the known name that was
    probably meant. The text is "" if there is nothing to suggest."""
    from difflib import get_close_matches

    by_plain = {_plain(choice): choice for choice in sorted(map(str, known))}
    close = get_close_matches(_plain(name), by_plain, 1)
    return f"; did you mean {by_plain[close[0]]!r}?" if close else ""


def _plain(name: str) -> str:
    return re.sub(r"[-.]", "_", name.lower())[:64]
