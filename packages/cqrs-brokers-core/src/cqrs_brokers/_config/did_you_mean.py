"""Suggests the name that was probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["did_you_mean"]


def did_you_mean(name: str, known: Iterable[object]) -> str:
    """`; did you mean 'x'?` for the closest known name, or "" when none is close."""
    from difflib import get_close_matches

    plain = re.sub(r"[-.]", "_", name.lower())
    close = get_close_matches(plain[:64], sorted({str(choice) for choice in known}), 1)
    return f"; did you mean {close[0]!r}?" if close else ""
