"""Says what failed, and where: the error, the method of the harness that caused it, or the line of the suite."""

from __future__ import annotations

import traceback
from pathlib import Path

from cqrs_brokers_testkit.conformance._harness import Harness

__all__ = ["FAULT", "in_harness", "named", "reached"]

FAULT = "a fault in the harness, in "
_HERE = Path(__file__).parent
_RUNNER = _HERE / "_runner.py"


def named(error: BaseException) -> str:
    """Returns the class and the text of an error, also of the errors in a group."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, ExceptionGroup):
        text += f" ({'; '.join(f'{type(e).__name__}: {e}' for e in error.exceptions)})"
    return text


def in_harness(error: BaseException, harness: Harness) -> str | None:
    """Says which method of the harness failed, and where. None: no method of the harness caused the error."""
    if isinstance(error.__cause__, TimeoutError):
        error = error.__cause__
    frames = list(traceback.walk_tb(error.__traceback__))
    for frame, _ in frames:
        if frame.f_locals.get("self") is harness:
            last, line = frames[-1]
            where = f"{Path(last.f_code.co_filename).name}:{line} in {last.f_code.co_name}"
            return f"{FAULT}{frame.f_code.co_name}(): {named(error)} ({where})"
    return None


def reached(error: BaseException) -> str:
    """The line of the suite that the case had reached when its time was over."""
    cause: BaseException | None = error
    while cause is not None:
        ours = [each for each in traceback.extract_tb(cause.__traceback__) if Path(each.filename).parent == _HERE]
        ours = [each for each in ours if each.filename != str(_RUNNER)]
        if ours:
            return f", at {Path(ours[-1].filename).name}:{ours[-1].lineno}: {ours[-1].line}"
        cause = cause.__cause__ or cause.__context__
    return ""
