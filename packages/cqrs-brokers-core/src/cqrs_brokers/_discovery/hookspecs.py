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
    """The specifications."""

    @staticmethod
    @hookspec(firstresult=True)
    def broker_options() -> type[BrokerOptions]:
        """The plugin's options.

        Optional. Without this hook the scheme has only the options that every broker has.
        """

    @staticmethod
    @hookspec(firstresult=True)
    def open_message_broker(url: BrokerURL, options: BrokerOptions) -> MessageBroker:
        """Makes the driver, or any other `MessageBroker`, but not a `Broker`. It is synchronous, and does no I/O except
        to read certificate files.

        Args:
            url: The parsed config string. It has the password, even one that was given as a keyword, in a file or in a
                variable. `url.hosts` has None for a port that the string leaves out.
            options: An instance of what `broker_options` returned, validated.

        Raises:
            ConfigError: The options contradict each other in a way that their model cannot check.
        """

    @staticmethod
    @hookspec(firstresult=True)
    def inspect_broker(url: BrokerURL, options: BrokerOptions) -> Inspection:
        """Makes the inspection of a config string, for `cqrs-brokers check`. It is synchronous, and does no I/O except
        to read certificate files.

        Optional.

        Args:
            url: As in `open_message_broker`.
            options: As in `open_message_broker`.

        Raises:
            ConfigError: As in `open_message_broker`.
        """
