"""The output of a command: ticks and colours on a terminal, plain lines elsewhere, or one JSON document.

rich obeys `NO_COLOR`. Texts of servers and plugins are shown as they are: rich's markup in them has no effect, and
control characters are left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cqrs_brokers.inspection import Finding, Level

__all__ = ["Output", "printable"]

_MARKS: dict[Level, tuple[str, str]] = {
    "ok": ("✓", "green"),
    "warn": ("!", "yellow"),
    "fail": ("✗", "bold red"),
    "unseen": ("?", "dim"),
}
_STEP_WIDTH = 7


def printable(text: str) -> str:
    """The text in one line, without characters that could control a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


class Output:
    """Where results go.

    Args:
        as_json: Print nothing but one JSON document at the end.
        file: Where to print. Default: the process's stdout.
    """

    def __init__(self, *, as_json: bool = False, file: TextIO | None = None) -> None:
        self._as_json = as_json
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
        if self._for_people:
            self._console.print(Text(printable(text), style=style))
        else:
            self._write(printable(text))

    def finding(self, finding: Finding) -> None:
        """Prints a finding as soon as it is known."""
        if self._as_json:
            return
        about = "" if _names_its_subject(finding) else f"{finding.subject}: "
        if not self._for_people:
            remedy = f" -> {finding.remedy}" if finding.remedy else ""
            self._write(f"{finding.level:6} {finding.step:{_STEP_WIDTH}} {printable(about + finding.text + remedy)}")
            return
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
        self._console.print(row)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], styles: Sequence[str] = ()) -> None:
        """Prints a table for people. If the output is not a terminal, columns have two spaces between them. With JSON
        it prints nothing."""
        if self._as_json:
            return
        listed = [[printable(cell) for cell in row] for row in rows]
        if self._for_people:
            table = Table(box=None, pad_edge=False, header_style="bold")
            for number, column in enumerate(columns):
                table.add_column(column, style=styles[number] if number < len(styles) else "", overflow="fold")
            for row in listed:
                table.add_row(*(Text(cell) for cell in row))
            self._console.print(table)
            return
        widths = [max(map(len, cells)) for cells in zip(columns, *listed, strict=True)]
        for row in [list(columns), *listed]:
            self._write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def document(self, content: Any) -> None:
        """Prints the JSON document, if JSON is wanted."""
        if self._as_json:
            self._write(json.dumps(content, indent=2, ensure_ascii=True))

    def _write(self, text: str) -> None:
        print(text, file=self._file, flush=True)


def _names_its_subject(finding: Finding) -> bool:
    """Whether the text names the subject already, so that it is not named twice. For a topic only the beginning of the
    text counts, because a short name is a part of many words."""
    text, subject = finding.text, finding.subject
    return text.startswith(subject) if finding.step in ("topic", "send") else subject in text
