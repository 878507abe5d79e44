"""The command `cqrs-brokers`: what is installed, what is wrong with a config string, and messages from a shell.

    cqrs-brokers check 'amqp://user@broker.example/shop?password_env=SHOP_PASSWORD' --topic orders

Everything but `main` is private. The parts: `_app` (the command line), `_check` (the steps of `check`, with
`_endpoints` and `_certificates`), `_plugins` (`list` and `describe`), `_send` (with `_lines` and `_report`), `_new`,
`_output` (for people, plain, JSON), `_exit_codes`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = ["main"]

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: The command line, without the program's name. Default: that of the process.

    Returns:
        The exit code, from the table in the documentation.
    """
    try:
        with _interrupts_end_at_once(process_is_ours=arguments is None):
            from ._app import run  # takes a while: a person may press Ctrl-C meanwhile
        return run(arguments)
    except KeyboardInterrupt:
        return _INTERRUPTED


@contextmanager
def _interrupts_end_at_once(*, process_is_ours: bool) -> Iterator[None]:
    """Ends the process on Ctrl-C without a word. An import may wrap a KeyboardInterrupt in another error, or swallow
    it."""
    usual = signal.default_int_handler
    in_main = threading.current_thread() is threading.main_thread()
    if not process_is_ours or not in_main or signal.getsignal(signal.SIGINT) is not usual:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
