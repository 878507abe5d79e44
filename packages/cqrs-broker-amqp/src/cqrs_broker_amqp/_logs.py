"""Keeps bodies, headers and credentials out of aiormq's log records.

At DEBUG aiormq logs the content of the frames that it reads and writes. If an argument of a log record could hold
content, a filter replaces the argument by its type and size. A text is replaced as `safe_reply` says. The filters never
change a log level and never drop a log record.
"""

from __future__ import annotations

import logging
import re

__all__ = ["LOGGERS", "redact_client_logs", "safe_reply"]

LOGGERS = ("aiormq.connection", "aiormq.channel", "aiormq.connection.marshall")
"""The loggers of aiormq. Each one gets a filter, because a filter does not work for the children of its logger."""

_PLAIN = (int, float, bool, type(None))
_SHOWN = frozenset({"Connection", "Channel", "Ack", "Nack", "Heartbeat", "Blocked", "Unblocked"})

_REPLY = re.compile(r"([A-Z]+(?:_[A-Z]+)*) - ")
_QUOTES_NOTHING = frozenset(
    {
        "ACCESS_REFUSED",
        "CONNECTION_FORCED",
        "CONTENT_TOO_LARGE",
        "NOT_ALLOWED",
        "NOT_FOUND",
        "PRECONDITION_FAILED",
        "RESOURCE_ERROR",
        "RESOURCE_LOCKED",
    }
)


def safe_reply(text: str) -> str:
    """A reply text of RabbitMQ, without content of messages.

    A text begins with the name of its kind, for example `NOT_FOUND`. Some kinds, for example `FRAME_ERROR` (501), quote
    received bytes, which may be a part of a body. A text stays whole if its kind quotes only names and limits, or if it
    has no kind. Any other text is replaced by the name of its kind.
    """
    found = _REPLY.match(text)
    if found is None or found[1] in _QUOTES_NOTHING:
        return text
    return f"{found[1]} (RabbitMQ's log says more)"


class _Redacted(logging.Filter):
    """Replaces frames and messages in a log record by their type and size, and exceptions by their class."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(_shown(value) for value in record.args)
        if record.exc_info and record.exc_info[0] is not None:
            # The text of a frame error may quote the frame.
            record.msg = f"{record.getMessage()} ({record.exc_info[0].__name__})"
            record.args, record.exc_info, record.exc_text = (), None, None
        return True


def _shown(value: object) -> object:
    if isinstance(value, str):
        return safe_reply(value)
    if isinstance(value, _PLAIN) or type(value).__name__ in _SHOWN:
        return value
    payload = getattr(value, "payload", None)
    size = f" of {len(payload)} bytes" if isinstance(payload, bytes) else ""
    return f"<{type(value).__name__}{size}>"


def redact_client_logs() -> None:
    """Puts one filter on each of aiormq's loggers. A second call does nothing."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(type(one) is _Redacted for one in logger.filters):
            logger.addFilter(_Redacted())
