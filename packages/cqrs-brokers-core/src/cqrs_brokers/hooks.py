"""The pluggy hooks of a plugin. A plugin implements them for its schemes, such as `kafka` in `kafka://localhost`.

A plugin is a module or an object. The plugin's distribution declares an entry point in the group `cqrs_brokers` for
each scheme. The name of the entry point is the scheme, and the value of the entry point is the plugin:

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

A plugin must implement `open_message_broker`. The hook `broker_options` is optional. A third hook, `inspect_broker`, is
optional, too: see `cqrs_brokers.inspection`.

An implementation of a hook may take fewer arguments than the specification of the hook (`BrokerHooks`). So a later
version of core can add arguments without breaking today's plugins. If an implementation takes an argument that the
specification does not have, loading the plugin raises a `PluginContractError` that names the plugin.

`register_plugin` registers a plugin in the running process, without a distribution. This function is for tests, for
frameworks, and for applications that are bundled without the metadata of distributions. `load_plugin` is for tools: it
loads the plugin of a scheme without opening a broker.
"""

from ._discovery.hookspecs import BrokerHooks, hookimpl
from ._discovery.plugins import Plugin, load_plugin, register_plugin, unregister_plugin

__all__ = ["BrokerHooks", "Plugin", "hookimpl", "load_plugin", "register_plugin", "unregister_plugin"]
