"""The documented way to make a broker from a class: connection settings in an adapter, and a `Broker` that takes it.

    class AcmeAdapter(ConnectionAdapter[AcmeOptions, AcmeSettings]):
        def __init__(self, dsn: str, **options: object) -> None:
            super().__init__(AcmeOptions, AcmeSettings, BrokerURL.parse(dsn), options)

    class AcmeMessageBroker(Broker):
        def __init__(self, adapter: AcmeAdapter, *, acme_log_level: str | int | None = None) -> None:
            taken = AcmeAdapter.check(adapter, "adapter").take()
            set_log_level(["acme"], acme_log_level, "acme_log_level")
            super().__init__(AcmeDriver(taken.settings), **taken.for_broker())

This way is for applications that name a broker's class instead of a config string. Options and errors are the same as
with a config string.
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
    """What an adapter hands to its broker.

    Attributes:
        settings: The settings for the driver.
        resolved: The options with their origin.
        value_serializer: The application's encoder, or None.
    """

    settings: S
    resolved: ResolvedOptions[O]
    value_serializer: Callable[[Any], bytes] | None

    def for_broker(self) -> dict[str, Any]:
        """`Broker`'s keyword arguments."""
        return {"encoder": self.value_serializer, **self.resolved.for_broker()}


class ConnectionAdapter(Generic[O, S]):
    """Connection settings for one broker. They need no event loop, and no I/O except to read the files that options
    name.

    Args:
        options_type: The plugin's options.
        settings: Makes the driver's settings from the URL and the options.
        url: Where to connect to.
        options: The options by name. Each overrides the same option of the URL.
        value_serializer: Encodes payloads that come without `payload_bytes` and without a content type. None: JSON.
        source: Where the URL came from, for example "dsn". Problems with its options begin with it.

    Raises:
        ConfigError: An option is wrong; the error lists all problems.
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
        self._taken = False
        self._resolved = resolve_options(options_type, url=url, keywords=options, source=source)

    def take(self, **overrides: object) -> Taken[O, S]:
        """The settings, for the one broker that this adapter serves.

        Args:
            **overrides: Options that the broker's own arguments set. They override those of the adapter.

        Raises:
            ConfigError: The adapter has a broker already, an option is wrong, or a file cannot be used.
        """
        if self._taken:
            raise ConfigError(f"{_article(type(self))} serves one broker, and this one is in use already: make another")
        resolved = self._resolved
        if overrides:
            resolved = resolve_options(self._options_type, url=self._url, keywords=self._keywords | overrides)
        settings = self._settings_type(resolved.url or self._url, resolved.options)
        self._taken = True
        return Taken(settings, resolved, self._value_serializer)

    @classmethod
    def check(cls, adapter: object, name: str) -> Self:
        """The adapter itself.

        Raises:
            ConfigError: It is an object of another class.
        """
        if not isinstance(adapter, cls):
            raise ConfigError(f"{name} must be {_article(cls)}, not {_article(type(adapter))}")
        return adapter

    def given(self, option: str) -> object:
        """The value of an option that the string or a keyword gives, or None."""
        return None if self._resolved.effective[option].origin == "default" else getattr(self._resolved.options, option)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._url}>"


def set_log_level(loggers: Iterable[str], level: str | int | None, option: str) -> None:
    """Sets the level of a client's loggers, for the whole process.

    Args:
        loggers: Their names.
        level: A number, or a name of the logging module in upper or lower case. None: the loggers stay as they are.
        option: The application's name for the argument, for the error.

    Raises:
        ConfigError: There is no such level.
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
