"""The page docs/reference/versions.md; everything in it comes from the results."""

from __future__ import annotations

from .run import Result
from .targets import TARGETS

__all__ = ["page"]

_HEAD = """\
# Versions

Which servers, Pythons and dependencies the tests were run with. Written by `nox -s versions`, which takes up an
interrupted run where it ended; `nox -s versions -- kafka-3.9.1 oldest` runs some of it, and `--failed` runs again only
the files with a failed test, which the page then names. Each server is tried with one
Python, each Python with this machine's servers, and the oldest dependencies that our ranges allow once: not all
combinations. "Not applicable" are cases of the [conformance suite](conformance.md) that have no meaning for a broker.

| what | servers | Python | passed | failed | skipped | not applicable | minutes | commit |
|---|---|---|---|---|---|---|---|---|
"""


def page(results: dict[str, Result]) -> str:
    """The page in Markdown."""
    unfinished = [name for name, result in results.items() if not (result.complete or result.not_tried)]
    tried = [(target, results[target.name]) for target in TARGETS if target.name in results.keys() - unfinished]
    lines = []
    for target, result in tried:
        if not result.not_tried:
            counts = [result.counts[name] for name in ("passed", "failed", "skipped", "not applicable")]
            cells = [target.title, ", ".join(result.servers), result.python, *map(str, counts)]
            lines.append(" | ".join(["", *cells, f"{result.seconds / 60:.0f}", f"{result.commit}, {result.date}", ""]))
    text = _HEAD + "\n".join(line.strip() for line in lines) + "\n"
    for target, result in tried:
        if target.oldest and result.dependencies:
            listed = ", ".join(f"{name} {version}" for name, version in result.dependencies.items())
            text += f"\nThe oldest dependencies were {listed}.\n"
    failed = [(target, result) for target, result in tried if result.failed]
    if failed:
        text += "\n## Failed\n\n"
        for target, result in failed:
            text += f"* {target.title}: {', '.join(f'`{test}`' for test in result.failed)}\n"
    again = [(target, part) for target, result in tried for part in result.parts.values() if part.again]
    if again:
        text += "\n## Run again\n\n"
        text += "The table counts the last run of the files in which these tests had failed before:\n\n"
        for target, part in again:
            text += f"* {target.title}, again with {part.again}: {', '.join(f'`{test}`' for test in part.before)}\n"
    missing = [(target, "it was not run") for target in TARGETS if target.name not in results]
    missing += [(target, "its run has not ended") for target in TARGETS if target.name in unfinished]
    missing += [(target, result.not_tried) for target, result in tried if result.not_tried]
    if missing:
        text += "\n## Not tried\n\n"
        text += "\n".join(f"* {target.title}: {reason}." for target, reason in missing) + "\n"
    return text
