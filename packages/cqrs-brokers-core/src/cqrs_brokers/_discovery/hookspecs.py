"""The hooks of a plugin, as pluggy specifications."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pluggy

if TYPE_CHECKING:
    from cqrs_brokers.inspection import Inspection
    from cqrs_brokers.options import BrokerOptions
    from cqrs_brokers.protocol import MessageBroker
    from cqrs_brokers.url import BrokerURL

__all__ = ["BrokerHooks", "PROJECT", "hookimpl"]

PROJECT = "cqrs_brokers"

hookimpl = pluggy.HookimplMarker(PROJECT)
hookspec = pluggy.HookspecMarker(PROJECT)


class BrokerHooks(Protocol):
    """The hooks that a plugin can implement."""

    @staticmethod
    @hookspec(firstresult=True)
    def broker_options() -> type[BrokerOptions]:
        """Returns the class of the plugin's options.

        This hook is optional. Without this hook, the scheme has only the options that every broker has, and its URLs
        cannot contain a user, hosts or a path.
        """

    @staticmethod
    @hookspec(firstresult=True)
    def open_message_broker(url: BrokerURL, options: BrokerOptions) -> MessageBroker:
        """Makes the driver. The hook may return any `MessageBroker` except a `Broker`. The hook must not be async, and
        must do no I/O except to read certificate files.

        Args:
            url: The parsed config string. The URL contains the password of its user, even if the password was given as
                a keyword, in a file or in an environment variable. If the string gives no port for a host, the port in
                `url.hosts` is None.
            options: A validated instance of the class that `broker_options` returned. Without that hook: an instance of
                `BrokerOptions`.

        Raises:
            ConfigError: The options contradict each other in a way that their model cannot check, or a certificate file
                cannot be used.
        """

    @staticmethod
    @hookspec(firstresult=True)
    def inspect_broker(url: BrokerURL, options: BrokerOptions) -> Inspection:
        """Makes the `Inspection` with which the command `cqrs-brokers check` checks a config string. The hook must not
        be async, and must do no I/O except to read certificate files.

        This hook is optional.

        Args:
            url: As in `open_message_broker`.
            options: As in `open_message_broker`.

        Raises:
            ConfigError: As in `open_message_broker`.
        """
