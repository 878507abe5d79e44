"""Makes a broker from classes: an adapter has the connection settings, and a subclass of `Broker` takes the adapter.

    class AcmeAdapter(ConnectionAdapter[AcmeOptions, AcmeSettings]):
        def __init__(self, dsn: str, **options: object) -> None:
            super().__init__(AcmeOptions, AcmeSettings, BrokerURL.parse(dsn), options)

    class AcmeMessageBroker(Broker):
        def __init__(self, adapter: AcmeAdapter, *, acme_log_level: str | int | None = None) -> None:
            set_log_level(["acme"], acme_log_level, "acme_log_level")
            taken = AcmeAdapter.check(adapter, "adapter").take()
            super().__init__(AcmeDriver(taken.settings), **taken.for_broker())

Such classes are for applications that use a broker's class instead of a config string. The options, and the errors of
wrong options, are the same as with a config string.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, Self, TypeVar

from .exceptions import ConfigError
from .options import BrokerOptions, ResolvedOptions, resolve_options
from .secret import Secret
from .url import BrokerURL, names_a_secret

__all__ = ["ConnectionAdapter", "Taken", "set_log_level"]

O = TypeVar("O", bound=BrokerOptions)  # noqa: E741 - the usual one-letter name of a type variable
S = TypeVar("S")


class Taken(NamedTuple, Generic[O, S]):
    """The settings and options that an adapter hands to its broker.

    Attributes:
        settings: The settings for the driver.
        resolved: The options. `resolved.effective` says where each value came from.
        value_serializer: The application's encoder, or None.
    """

    settings: S
    resolved: ResolvedOptions[O]
    value_serializer: Callable[[Any], bytes] | None

    def for_broker(self) -> dict[str, Any]:
        """The keyword arguments for the constructor of `Broker`."""
        return {"encoder": self.value_serializer, **self.resolved.for_broker()}


class ConnectionAdapter(Generic[O, S]):
    """Connection settings for one broker. An adapter can be made without an event loop. Making an adapter reads the
    files that options name, and does no network I/O.

    Args:
        options_type: The class of the plugin's options.
        settings: Makes the driver's settings from the URL and the options. `take` calls this function.
        url: Where to connect to.
        options: The options by name. Each option overrides the same option of the URL.
        value_serializer: Encodes the payload of a message that has neither `payload_bytes` nor a content type.
            `TOMBSTONE` is not encoded. None: a payload of bytes is sent as it is, and any other payload is encoded as
            JSON.
        source: Where the URL came from, for example "dsn". If a problem is about a part or an option of the URL, its
            sentence begins with this text.

    Raises:
        ConfigError: An option or a part of the URL is wrong, or `value_serializer` cannot be called. `resolve_options`
            says which problems are listed together.
        PluginContractError: The class of the options is wrong (see `resolve_options`).
    """

    def __init__(
        self,
        options_type: type[O],
        settings: Callable[[BrokerURL, O], S],
        url: BrokerURL,
        options: Mapping[str, object],
        value_serializer: Callable[[Any], bytes] | None = None,
        source: str = "",
    ) -> None:
        if value_serializer is not None and not callable(value_serializer):
            raise ConfigError("value_serializer must be callable")
        self._options_type = options_type
        self._settings_type = settings
        self._url = url
        self._keywords = {
            name: Secret(value) if names_a_secret(name) and isinstance(value, str) else value
            for name, value in options.items()
        }
        self._value_serializer = value_serializer
        self._source = source
        self._taken = False
        self._resolved = resolve_options(options_type, url=url, keywords=options, source=source)

    def take(self, **overrides: object) -> Taken[O, S]:
        """Gives the settings to a broker. An adapter serves only one broker. After this method returns, the adapter is
        in use, even if the broker is never made. So the caller first checks its own arguments.

        Args:
            **overrides: Options that the broker's own arguments set. These options override the options of the adapter.

        Raises:
            ConfigError: The adapter serves another broker already, an option is wrong, or a file cannot be used. In the
                last two cases, the adapter can still serve a broker.
        """
        if self._taken:
            raise ConfigError(f"{_article(type(self))} serves one broker, and this one is in use already: make another")
        resolved = self._resolved
        if overrides:
            keywords = self._keywords | overrides
            resolved = resolve_options(self._options_type, url=self._url, keywords=keywords, source=self._source)
        settings = self._settings_type(resolved.url or self._url, resolved.options)
        self._taken = True
        return Taken(settings, resolved, self._value_serializer)

    @classmethod
    def check(cls, adapter: object, name: str) -> Self:
        """Returns the adapter if it is an instance of this class.

        Raises:
            ConfigError: The object is not an instance of this class.
        """
        if not isinstance(adapter, cls):
            raise ConfigError(f"{name} must be {_article(cls)}, not {_article(type(adapter))}")
        return adapter

    def given(self, option: str) -> object:
        """The value of an option that the URL, a keyword, a file or an environment variable gives. None: nothing gives
        the option, so the option has its default."""
        return None if self._resolved.effective[option].origin == "default" else getattr(self._resolved.options, option)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._url}>"


def set_log_level(loggers: Iterable[str], level: str | int | None, option: str) -> None:
    """Sets the level of a client library's loggers. The level applies to the whole process.

    Args:
        loggers: The names of the loggers.
        level: A number, or the name of a level of the `logging` module, in upper or lower case. None: the loggers stay
            as they are.
        option: The name of the argument that gives the level. The error shows this name.

    Raises:
        ConfigError: The level is neither a whole number nor the name of a level.
    """
    if level is None:
        return
    known = logging.getLevelNamesMapping()
    number = known.get(level.upper()) if isinstance(level, str) else level
    if isinstance(number, bool) or not isinstance(number, int):
        raise ConfigError(f"{option} must be a level of the logging module, for example ERROR")
    for name in loggers:
        logging.getLogger(name).setLevel(number)


def _article(kind: type) -> str:
    return f"{'an' if kind.__name__[:1] in 'AEIOaeio' else 'a'} {kind.__name__}"
