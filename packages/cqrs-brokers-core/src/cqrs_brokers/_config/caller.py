"""Warnings that point at the application's line."""

from __future__ import annotations

import inspect
import warnings

__all__ = ["warn_caller"]


def warn_caller(text: str, category: type[Warning]) -> None:
    """Warns at the nearest frame outside core, the bridge, the plugins (`cqrs_broker_…`) and pluggy."""
    level = 1
    frame = inspect.currentframe()
    while frame is not None and _is_inside(str(frame.f_globals.get("__name__", ""))):
        frame = frame.f_back
        level += 1
    warnings.warn(text, category, stacklevel=level)


def _is_inside(module: str) -> bool:
    package = module.partition(".")[0]
    return package in ("cqrs_brokers", "cqrs_brokers_python_cqrs", "pluggy") or package.startswith("cqrs_broker_")
