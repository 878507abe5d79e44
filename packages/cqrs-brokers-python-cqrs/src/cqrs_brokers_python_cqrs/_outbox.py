"""Lets python-cqrs' outbox take the times of core's and the bridge's events.

The outbox's column `created_at` has no time zone, and an event's `event_timestamp` has one. asyncpg refuses the row,
psycopg stores the session's local time, and MariaDB's clients drop the offset. So a time with a zone that is set on the
model becomes the same time in UTC, without a zone. The body keeps the time as it is.
"""

from __future__ import annotations

import importlib
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any

__all__ = ["take_aware_times"]

_MODELS = {"sqlalchemy": "cqrs.outbox.sqlalchemy", "sqlmodel": "cqrs.outbox.sqlmodel"}


def take_aware_times() -> None:
    """Prepares those of python-cqrs' own models whose requirements are installed, and the models derived from them."""
    for needed, module in _MODELS.items():
        if find_spec(needed) is None:
            continue
        from sqlalchemy import event

        model = importlib.import_module(module).OutboxModel
        event.listen(model.created_at, "set", _naive_utc, retval=True, propagate=True)


def _naive_utc(target: Any, value: object, *_: object) -> object:
    if isinstance(value, datetime) and value.tzinfo is not None:
        column = type(target).__table__.c.created_at
        if not getattr(column.type, "timezone", False):
            return value.astimezone(UTC).replace(tzinfo=None)
    return value
