"""The await points of the relay: found in its source, recognised while it runs.

A point is an `await` expression or an `async with` in one of the relay's modules, named by module, function and source.
"""

from __future__ import annotations

import ast
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import cqrs_brokers_outbox

FOLDER = Path(cqrs_brokers_outbox.__file__).parent
MODULES = ["relay.py", "opening.py", *(f"_relay/{path.name}" for path in sorted((FOLDER / "_relay").glob("*.py")))]


def points_of(module: str) -> dict[tuple[str, int], str]:
    """(function, line) → point, for every line of every point of a module."""
    found: dict[tuple[str, int], str] = {}
    names: dict[str, int] = {}

    def visit(node: ast.AST, function: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                visit(child, getattr(child, "name", "<lambda>"))
                continue
            if isinstance(child, ast.Await | ast.AsyncWith | ast.AsyncFor):
                if isinstance(child, ast.Await):
                    source, last = ast.unparse(child), child.end_lineno or child.lineno
                else:
                    source = ast.unparse(child).splitlines()[0]
                    last = child.body[0].lineno - 1
                name = f"{module}:{function}: {' '.join(source.split())[:90]}"
                names[name] = names.get(name, 0) + 1
                if names[name] > 1:
                    name += f" #{names[name]}"
                for line in range(child.lineno, last + 1):
                    found.setdefault((function, line), name)
            visit(child, function)

    visit(ast.parse((FOLDER / module).read_text()), "<module>")
    return found


def all_points() -> dict[str, dict[tuple[str, int], str]]:
    """File → its points."""
    return {str(FOLDER / module): points_of(module) for module in MODULES}


class Watcher:
    """Calls back whenever the running coroutines come to a point, or are resumed there.

    Args:
        reached: Told the point's name.
    """

    def __init__(self, reached: Callable[[str], None]) -> None:
        self._reached = reached
        self._points = all_points()
        self._files: dict[CodeType, dict[tuple[str, int], str] | None] = {}

    def start(self) -> None:
        sys.settrace(self._call)

    def _call(self, frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        points = self._files.get(code, 0)
        if points == 0:
            points = self._files[code] = self._points.get(os.path.realpath(code.co_filename))
        if not points:
            return None
        self._look(frame, points)  # type: ignore[arg-type]
        return self._line

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            points = self._files[frame.f_code]
            assert points
            self._look(frame, points)
        return self._line

    def _look(self, frame: FrameType, points: dict[tuple[str, int], str]) -> None:
        point = points.get((frame.f_code.co_name, frame.f_lineno))
        if point is not None:
            self._reached(point)


def stand_still() -> None:
    """Until SIGKILL comes."""
    time.sleep(60)
