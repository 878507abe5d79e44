"""What a plugin implements. The contract of a scheme, as two pluggy hooks.

A plugin is a module (or an object) that its distribution's entry point in the group `cqrs_brokers` names, under the
scheme it owns:

    # pyproject.toml of cqrs-broker-acme
    [project.entry-points.cqrs_brokers]
    acme = "cqrs_broker_acme"

    # cqrs_broker_acme/__init__.py
    from cqrs_brokers.hooks import hookimpl

    @hookimpl
    def broker_options():
        return AcmeOptions

    @hookimpl
    def open_message_broker(url, options):
        return AcmeDriver(url.hosts, options)

An implementation may take fewer arguments than the specification; so a later core can add arguments without breaking
today's plugins. An argument that the specification does not have is an error that names the plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import pluggy

if TYPE_CHECKING:
    from .options import BrokerOptions
    from .protocol import MessageBroker
    from .url import BrokerURL

__all__ = ["BrokerHooks", "hookimpl"]

PROJECT = "cqrs_brokers"
_F = TypeVar("_F")

hookimpl = pluggy.HookimplMarker(PROJECT)
hookspec = pluggy.HookspecMarker(PROJECT)


class BrokerHooks:
    """The specifications."""

    @staticmethod
    @hookspec(firstresult=True)
    def broker_options() -> type[BrokerOptions]:
        """The plugin's options.

        May be left out: then the scheme has only the options that every broker has.
        """
        raise NotImplementedError

    @staticmethod
    @hookspec(firstresult=True)
    def open_message_broker(url: BrokerURL, options: BrokerOptions) -> MessageBroker:
        """Makes the driver (or any other `MessageBroker`; not a `Broker`). Synchronous, no I/O.

        Args:
            url: The config string, with the password in it wherever it was given. `url.hosts` has None for a port that
                the string leaves out.
            options: An instance of what `broker_options` returned, validated.

        Raises:
            ConfigError: The options do not fit together in a way that their model cannot tell.
        """
        raise NotImplementedError
