"""Makes a `Broker` from a config string."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cqrs_brokers._broker import Broker
from cqrs_brokers.exceptions import ConfigError, PluginNotFoundError
from cqrs_brokers.options import resolve_options
from cqrs_brokers.secret import secrets_in
from cqrs_brokers.url import BrokerURL

from .plugins import load_plugin

if TYPE_CHECKING:
    from cqrs_brokers.observers import Observer
    from cqrs_brokers.protocol import Encoder

__all__ = ["open_broker"]

URL_VARIABLE = "CQRS_BROKER_URL"


def open_broker(
    url: str | BrokerURL | None = None,
    /,
    *,
    distribution: str | None = None,
    observers: Sequence[Observer] = (),
    encoder: Encoder | None = None,
    **options: object,
) -> Broker:
    """Makes the `Broker` that a config string names. This function does no network I/O: the first send, `connect()`,
    `health()` or `async with` connects. The function reads the metadata of installed distributions, imports the
    scheme's plugin, and reads the files and environment variables that options name.

    Args:
        url: `scheme://[user:password@]host[:port][,…][/path][?option=value&…]`. None: the environment variable
            `CQRS_BROKER_URL`.
        distribution: Only this installed distribution may provide the scheme. None: a plugin that was registered with
            `register_plugin`, else the distribution that `CQRS_BROKERS_PIN` names for the scheme, if any.
        observers: Objects that `Broker` tells about outcomes and connection changes. They may add headers.
        encoder: Encodes the payloads of messages that have neither `payload_bytes` nor a content type; see `Broker`.
        **options: The scheme's options by name. An option that is given here overrides the same option in the string.

    Raises:
        ConfigError: The string, an option or another argument is wrong, or there is no string at all, or
            `CQRS_BROKERS_PIN` is malformed. If the string cannot be read, the error lists the problems of the string.
            If the string can be read, the error lists the problems of the options.
        PluginError: The scheme is misspelt, not installed or claimed twice, or its plugin is broken or incompatible, or
            breaks the plugin contract.

    Warns:
        InsecureTransportWarning: A plugin warns if the connection will not be secure.
    """
    source = ""
    if url is None:
        url, source = os.environ.get(URL_VARIABLE) or None, URL_VARIABLE
        if url is None:
            raise ConfigError(f"no config string: pass one to open_broker, or set {URL_VARIABLE}")
    parsed = BrokerURL.parse(url, source=source)
    try:
        secrets = secrets_in([parsed.password, *parsed.query.values()])
        plugin = load_plugin(parsed.scheme, distribution, secrets=secrets)
    except PluginNotFoundError as error:
        if not source:
            raise
        raise PluginNotFoundError(f"{source}: {error.text}") from None
    resolved = resolve_options(plugin.options_type(), url=parsed, keywords=options, source=source)
    driver = plugin.open(resolved.url or parsed, resolved.options)
    return Broker(driver, observers=observers, encoder=encoder, **resolved.for_broker())
