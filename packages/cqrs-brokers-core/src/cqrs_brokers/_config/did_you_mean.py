"""Suggests the name that was probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .common_mistakes import FOREIGN_OPTIONS, NO_OPTIONS

__all__ = ["did_you_mean"]


def did_you_mean(name: str, known: Iterable[object]) -> str:
    """Returns a text for the end of an error about an unknown name: `; did you mean 'x'?` with the known name that was
    probably meant. If another client has an option of this name, the text may say what to do instead. The text is ""
    if there is nothing to suggest."""
    from difflib import get_close_matches

    plain = re.sub(r"[-.]", "_", name.lower())[:64]
    by_plain = {re.sub(r"[-.]", "_", str(choice).lower()): str(choice) for choice in sorted(map(str, known))}
    if FOREIGN_OPTIONS.get(plain) in by_plain:
        return f"; did you mean {FOREIGN_OPTIONS[plain]!r}?"
    if plain in NO_OPTIONS:
        return f": {NO_OPTIONS[plain]}"
    close = get_close_matches(plain, by_plain, 1)
    return f"; did you mean {by_plain[close[0]]!r}?" if close else ""
