"""Keeps passwords, tokens and the content of messages out of the log records of aiokafka's connections, at every log
level. aiokafka logs the user name at INFO.

At DEBUG aiokafka logs whole requests, also the SASL bytes. With the mechanism PLAIN these bytes contain the password.
If an argument of a log record is a protocol object or bytes, a filter replaces the argument with the name of its class.
Each logger of `LOGGERS` has one such filter. Levels, handlers and propagation stay as they are.
"""

import logging

__all__ = ["redact_client_logs"]

# A filter of a logger does not see the records of the logger's children.
LOGGERS = ("aiokafka", "aiokafka.conn")


class _Redaction(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(_shown(argument) for argument in record.args)
        return True


def _shown(argument: object) -> object:
    kind = type(argument)
    if kind.__module__.startswith("aiokafka.protocol") or isinstance(argument, bytes | bytearray | memoryview):
        return f"<{kind.__name__}>"
    return argument


def redact_client_logs() -> None:
    """Puts the filter on each logger of `LOGGERS`, unless the logger has the filter already."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(existing, _Redaction) for existing in logger.filters):
            logger.addFilter(_Redaction())
