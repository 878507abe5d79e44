"""The command `cqrs-brokers`: what is installed, what is wrong with a config string, and messages from a shell.

    cqrs-brokers check 'amqp://user@broker.example/shop?password_env=SHOP_PASSWORD' --topic orders

Everything but `main` is private. The parts: `_app` (the command line), `_check` (the steps of `check`, with
`_endpoints` and `_certificates`), `_plugins` (`list` and `describe`), `_send` (with `_lines` and `_report`), `_new`,
`_output` (for people, plain, JSON), `_exit_codes`.
"""

from ._app import main

__all__ = ["main"]
