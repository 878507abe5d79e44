"""The pluggy hooks that a plugin implements for its schemes.

A plugin is a module or an object. Its distribution names it in an entry point of the group `cqrs_brokers`. The name of
the entry point is the scheme:

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

A third hook, `inspect_broker`, is optional: see `cqrs_brokers.inspection`.

An implementation may take fewer arguments than the specification; so a later core can add arguments without breaking
today's plugins. An argument that the specification does not have is an error that names the plugin.

`register_plugin` registers a plugin of this process without packaging, for tests and frameworks. `load_plugin` is for
tools: it loads the plugin of a scheme without opening a broker.
"""

from ._discovery.hookspecs import BrokerHooks, hookimpl
from ._discovery.plugins import Plugin, load_plugin, register_plugin, unregister_plugin

__all__ = ["BrokerHooks", "Plugin", "hookimpl", "load_plugin", "register_plugin", "unregister_plugin"]
