"""What the exit code of a command says. The table is in docs/reference/cli.md, too."""

from __future__ import annotations

from enum import IntEnum

from cqrs_brokers import (
    AuthenticationError,
    AuthorizationError,
    BrokerError,
    ConfigError,
    DeliveryUnknownError,
    NotDeliveredError,
    PluginError,
    TLSError,
    TopologyError,
    UnreachableError,
)
from cqrs_brokers.inspection import Step

__all__ = ["ExitCode", "code_of_error", "code_of_step"]


class ExitCode(IntEnum):
    """The exit codes."""

    OK = 0
    BUG = 1
    USAGE = 2
    CONFIG = 3
    PLUGIN = 4
    UNREACHABLE = 5
    TLS = 6
    LOGIN = 7
    SERVER = 8
    TOPIC = 9
    NOT_DELIVERED = 10
    UNKNOWN = 11
    INTERRUPTED = 130


_STEPS: dict[Step, ExitCode] = {
    "string": ExitCode.CONFIG,
    "options": ExitCode.CONFIG,
    "plugin": ExitCode.PLUGIN,
    "dns": ExitCode.UNREACHABLE,
    "tcp": ExitCode.UNREACHABLE,
    "tls": ExitCode.TLS,
    "login": ExitCode.LOGIN,
    "access": ExitCode.LOGIN,
    "server": ExitCode.SERVER,
    "topic": ExitCode.TOPIC,
    "send": ExitCode.NOT_DELIVERED,
}
_ERRORS: dict[type[BrokerError], ExitCode] = {
    ConfigError: ExitCode.CONFIG,
    PluginError: ExitCode.PLUGIN,
    UnreachableError: ExitCode.UNREACHABLE,
    TLSError: ExitCode.TLS,
    AuthenticationError: ExitCode.LOGIN,
    AuthorizationError: ExitCode.LOGIN,
    TopologyError: ExitCode.TOPIC,
    NotDeliveredError: ExitCode.NOT_DELIVERED,
    DeliveryUnknownError: ExitCode.UNKNOWN,
}


def code_of_step(step: Step) -> ExitCode:
    """The exit code when this step failed."""
    return _STEPS.get(step, ExitCode.SERVER)


def code_of_error(error: BrokerError) -> ExitCode:
    """The exit code when the command ended with this error."""
    return next((code for kind, code in _ERRORS.items() if isinstance(error, kind)), ExitCode.SERVER)
