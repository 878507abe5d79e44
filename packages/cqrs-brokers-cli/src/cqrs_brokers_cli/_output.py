"""The output of a command: ticks and colours on a terminal, plain lines elsewhere, or one JSON document.

Stdout may take nothing (a full disk, a pipe that nobody reads any more). A command that has done something does not
fail then: its whole output goes to stderr instead.

rich obeys `NO_COLOR`. Texts of servers and plugins are shown as they are: rich's markup in them has no effect, and
a space is in the place of each control character.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from cqrs_brokers.inspection import Finding, Level

__all__ = ["Output", "UnwritableError", "printable", "say", "why_unwritable"]

_MARKS: dict[Level, tuple[str, str]] = {
    "ok": ("✓", "green"),
    "warn": ("!", "yellow"),
    "fail": ("✗", "bold red"),
    "unseen": ("?", "dim"),
}
_STEP_WIDTH = 7


def printable(text: str) -> str:
    """The text in one line, with a space in the place of each character that is not printable."""
    return "".join(character if character.isprintable() else " " for character in text)


class UnwritableError(Exception):
    """Stdout takes no output. The text says why; it is empty if the reader of a pipe has gone away, which is usual."""


def say(text: str) -> None:
    """Prints to stderr. If stderr takes nothing, the text is lost: no command fails for that."""
    if sys.stderr is None:
        return
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _give_up(sys.stderr)


def why_unwritable(file: TextIO | None) -> str | None:
    """Why the file takes nothing. It is tried with an empty line. None: it has taken that."""
    if file is None:
        return "it is closed"
    try:
        print(file=file, flush=True)
    except (OSError, ValueError) as error:
        _give_up(file)
        return _reason(error)
    return None


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _give_up(file: TextIO) -> None:
    """Redirects the file to nowhere, so that the content of its buffer does not fail again when the process ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)


class Output:
    """Where results go.

    Args:
        as_json: Print nothing but one JSON document at the end.
        repeatable: Whether the command only shows something. If so, it fails when stdout takes no output. If not, its
            whole output then goes to stderr.
        file: Where to print. Default: the process's stdout.
    """

    def __init__(self, *, as_json: bool = False, repeatable: bool = False, file: TextIO | None = None) -> None:
        self._as_json, self._repeatable = as_json, repeatable
        self._printed: list[str] = []
        self._is_redirected = False
        self._file = sys.stdout if file is None else file
        self._console = Console(file=self._file, highlight=False, soft_wrap=False)
        self._for_people = not as_json and self._console.is_terminal

    def waiting(self, text: str) -> AbstractContextManager[Any]:
        """Shows a text on a terminal while something is being done."""
        return self._console.status(text, spinner="line") if self._for_people else nullcontext()

    def line(self, text: str, style: str = "") -> None:
        """Prints a line for people. With JSON it prints nothing."""
        if self._as_json:
            return
        self._put(printable(text), Text(printable(text), style=style))

    def finding(self, finding: Finding) -> None:
        """Prints a finding as soon as it is known. With JSON it prints nothing."""
        if self._as_json:
            return
        about = "" if _names_its_subject(finding) else f"{finding.subject}: "
        remedy = f" -> {finding.remedy}" if finding.remedy else ""
        plain = f"{finding.level:6} {finding.step:{_STEP_WIDTH}} {printable(about + finding.text + remedy)}"
        mark, style = _MARKS[finding.level]
        text = Text(printable(about), style="bold")
        text.append(printable(finding.text), style="not bold" if finding.level != "unseen" else "not bold dim")
        row = Table.grid(padding=(0, 1))
        row.add_column(width=1)
        row.add_column(width=_STEP_WIDTH)
        row.add_column(ratio=1)
        row.add_row(Text(mark, style=style), Text(finding.step, style="cyan"), text)
        if finding.remedy:
            row.add_row("", "", Text(f"→ {printable(finding.remedy)}", style=style if style != "dim" else ""))
        self._put(plain, row)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], styles: Sequence[str] = ()) -> None:
        """Prints a table for people. If the output is not a terminal, columns have two spaces between them. With JSON
        it prints nothing."""
        if self._as_json:
            return
        listed = [[printable(cell) for cell in row] for row in rows]
        table = Table(box=None, pad_edge=False, header_style="bold")
        for number, column in enumerate(columns):
            style = styles[number] if number < len(styles) else ""
            # The first column is a name to copy: it stays in one piece on a narrow terminal.
            table.add_column(column, style=style, overflow="fold", no_wrap=number == 0)
        for row in listed:
            table.add_row(*(Text(cell) for cell in row))
        widths = [max(map(len, cells)) for cells in zip(columns, *listed, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [list(columns), *listed]
        ]
        self._put("\n".join(lines), table)

    def document(self, content: Any) -> None:
        """Prints the JSON document, if JSON is wanted."""
        if self._as_json:
            self._put(json.dumps(content, indent=2, ensure_ascii=True))

    def _put(self, plain: str, drawn: RenderableType | None = None) -> None:
        self._printed.append(plain)
        if self._is_redirected:
            say(plain)
        elif self._file is None:
            self._redirect("it is closed")
        else:
            try:
                if self._for_people and drawn is not None:
                    self._console.print(drawn)
                else:
                    print(plain, file=self._file, flush=True)
            except (OSError, ValueError) as error:
                _give_up(self._file)
                self._redirect("" if self._repeatable and isinstance(error, BrokenPipeError) else _reason(error))

    def _redirect(self, reason: str) -> None:
        if self._repeatable:
            raise UnwritableError(reason)
        self._is_redirected = True
        say(f"cqrs-brokers: stdout cannot be written to ({reason}); this is the output:")
        for text in self._printed:
            say(text)


def _names_its_subject(finding: Finding) -> bool:
    """Whether the text names the subject already, so that it is not named twice. For a topic only the beginning of the
    text counts, because a short name is a part of many words."""
    text, subject = finding.text, finding.subject
    return text.startswith(subject) if finding.step in ("topic", "send") else subject in text
