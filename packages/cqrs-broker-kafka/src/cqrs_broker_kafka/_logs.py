"""Keeps keys, bodies and credentials out of aiokafka's own log records, whatever its loggers' levels are.

At DEBUG aiokafka writes whole requests: SASL bytes with the password in clear, record batches with bodies. One filter
per logger replaces what can hold such things by its type. Levels, handlers and propagation are left alone.
"""

import logging

__all__ = ["redact_client_logs"]

# Filters work only on the logger that a record is logged with, not on its children.
LOGGERS = (
    "aiokafka",
    "aiokafka.cluster",
    "aiokafka.conn",
    "aiokafka.producer.message_accumulator",
    "aiokafka.producer.producer",
    "aiokafka.producer.sender",
    "aiokafka.producer.transaction_manager",
)


class _Redaction(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        arguments = record.args
        if isinstance(arguments, tuple):
            if isinstance(record.msg, str) and record.msg.startswith("Sending (key=%s value=%s)"):
                arguments = ("<key>", "<value>", *arguments[2:])
            record.args = tuple(_shown(argument) for argument in arguments)
        return True


def _shown(argument: object) -> object:
    kind = type(argument)
    if kind.__module__.startswith("aiokafka.protocol") or isinstance(argument, bytes | bytearray | memoryview):
        return f"<{kind.__name__}>"
    return argument


def redact_client_logs() -> None:
    """Puts the filter on aiokafka's loggers; again makes no difference."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(existing, _Redaction) for existing in logger.filters):
            logger.addFilter(_Redaction())
