"""`new`: makes the project of a plugin, from the template in `examples/plugin-template`. The wheel contains the
template."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from ._exit_codes import ExitCode
from ._output import Output
from ._template.render import render

__all__ = ["Variant", "new"]


class Variant(StrEnum):
    """The kinds of projects."""

    NETWORKED = "networked"
    IN_PROCESS = "in-process"


def new(name: str, variant: Variant, folder: Path, output: Output) -> ExitCode:
    """Writes the project of a plugin for `name://` into a folder that is empty, or not there.

    Raises:
        ValueError: The name cannot be a scheme.
        OSError: The folder is not empty, or it cannot be written to.
    """
    files = render(variant.value, name, folder)
    output.document({"folder": str(folder), "files": [str(file) for file in files]})
    for file in files:
        output.line(str(file))
    output.line(f"Next: pip install -e '{folder}[test]', then pytest {folder}", "bold")
    return ExitCode.OK
