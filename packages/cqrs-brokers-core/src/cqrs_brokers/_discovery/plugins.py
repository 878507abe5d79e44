"""Loads plugins into pluggy's registry, and checks the results of their hooks.

`discovery` decides which distribution owns a scheme, before any plugin is imported. This module then imports the plugin
of that distribution only.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import pluggy

from cqrs_brokers._broker import Broker
from cqrs_brokers.driver import Driver, PipelinedDriver
from cqrs_brokers.exceptions import BrokerError, ConfigError, PluginContractError, PluginLoadError
from cqrs_brokers.options import BrokerOptions
from cqrs_brokers.protocol import Capabilities, MessageBroker
from cqrs_brokers.secret import masked, secrets_in
from cqrs_brokers.url import SCHEME, BrokerURL

from .discovery import find_owner
from .hookspecs import PROJECT, BrokerHooks
from .installed import GROUP, Claim

if TYPE_CHECKING:
    from cqrs_brokers.inspection import Inspection

__all__ = ["Plugin", "load_plugin", "register_plugin", "unregister_plugin"]

URL_WITH_USER = r"://\S*@"

_manager = pluggy.PluginManager(PROJECT)
_manager.add_hookspecs(BrokerHooks)
_in_process: dict[str, Plugin] = {}


class Plugin(NamedTuple):
    """The plugin of a scheme, after it was loaded or registered.

    Attributes:
        title: The plugin's distribution and version, or the name of a registered plugin, for errors.
        implementation: The module or object with the hooks.
    """

    title: str
    implementation: object

    def options_type(self) -> type[BrokerOptions]:
        """The class that the plugin's `broker_options` hook returns, or `BrokerOptions` if the plugin has no such hook.

        Raises:
            PluginContractError: The hook raised an error, or returned no subclass of `BrokerOptions`.
        """
        if not self._has("broker_options"):
            return BrokerOptions
        options_type, problem = self._ask("broker_options")
        if problem is not None:
            raise PluginContractError(f"broker_options of {self.title} raised {type(problem).__name__}") from problem
        if not (isinstance(options_type, type) and issubclass(options_type, BrokerOptions)):
            raise PluginContractError(
                f"broker_options of {self.title} must return a subclass of BrokerOptions, not {_kind(options_type)}"
            )
        return options_type

    def open(self, url: BrokerURL, options: BrokerOptions) -> MessageBroker:
        """The driver that the plugin's `open_message_broker` hook makes.

        Raises:
            BrokerError: The hook raised this error, for example a `ConfigError`.
            PluginLoadError: The hook raised an `ImportError` that shows no secret.
            PluginContractError: The hook raised another error, or returned no `MessageBroker`, or returned a `Broker`.
                Or the `capabilities` of the driver are wrong.
        """
        driver = self._made("open_message_broker", url, options)
        if inspect.iscoroutine(driver):
            driver.close()
        if isinstance(driver, Broker):
            raise PluginContractError(f"open_message_broker of {self.title} must return a driver, not a Broker")
        if not isinstance(driver, MessageBroker):
            raise PluginContractError(
                f"open_message_broker of {self.title} must return a MessageBroker, not {_kind(driver)}"
            )
        self._check_capabilities(driver, url, options)
        return driver

    def inspection(self, url: BrokerURL, options: BrokerOptions) -> Inspection | None:
        """The `Inspection` that the plugin's `inspect_broker` hook makes, for `cqrs-brokers check`. None: the plugin
        has no such hook.

        Raises:
            BrokerError: The hook raised this error, for example a `ConfigError`.
            PluginLoadError: The hook raised an `ImportError` that shows no secret.
            PluginContractError: The hook raised another error, or returned no `Inspection`.
        """
        from cqrs_brokers.inspection import Inspection  # no application needs it

        if not self._has("inspect_broker"):
            return None
        made = self._made("inspect_broker", url, options)
        if not isinstance(made, Inspection):
            raise PluginContractError(f"inspect_broker of {self.title} must return an Inspection, not {_kind(made)}")
        return made

    def _check_capabilities(self, driver: MessageBroker, url: BrokerURL, options: BrokerOptions) -> None:
        said, problem = _tried(lambda: getattr(driver, "capabilities", None))
        if problem is not None:
            self._failed("capabilities", problem, url, options)
        if said is None and not isinstance(driver, Driver | PipelinedDriver):
            return  # a plain MessageBroker need not say anything
        if not isinstance(said, Capabilities):
            raise PluginContractError(f"capabilities of {self.title} must be Capabilities, not {_kind(said)}")
        for field in fields(said):
            value = getattr(said, field.name)
            if field.name == "max_message_bytes":
                fits = value is None or (type(value) is int and value > 0)
                wanted = "None or a whole number above 0"
            elif field.name == "header_types":
                fits = isinstance(value, frozenset) and all(isinstance(kind, type) for kind in value)
                wanted = "a frozenset of types"
            else:
                fits, wanted = isinstance(value, bool), "True or False"
            if not fits:
                raise PluginContractError(f"capabilities of {self.title} are wrong: {field.name} must be {wanted}")

    def _has(self, hook: str) -> bool:
        return any(caller.name == hook for caller in _manager.get_hookcallers(self.implementation) or ())

    def _made(self, hook: str, url: BrokerURL, options: BrokerOptions) -> Any:
        """The result of a hook that takes the URL and the options."""
        made, problem = self._ask(hook, url=url, options=options)
        if problem is not None:
            self._failed(hook, problem, url, options)
        return made

    def _ask(self, name: str, **arguments: object) -> tuple[Any, BaseException | None]:
        """The result of a hook of this plugin and None, or None and the error that the hook raised."""
        # pluggy would ask the plugin that was registered last.
        others = [plugin for plugin in _manager.get_plugins() if plugin is not self.implementation]
        return _tried(partial(_manager.subset_hook_caller(name, others), **arguments))

    def _failed(self, hook: str, error: BaseException, url: BrokerURL, options: BrokerOptions) -> NoReturn:
        """Raises a `BrokerError` of the plugin without the secrets that the plugin was given. Any other error is
        replaced by a `PluginLoadError` or a `PluginContractError`.

        The text of a client library's error, or of that error's cause, may quote secrets. Then the raised error has no
        cause.
        """
        given = [url.password, *url.query.values(), *(getattr(options, name) for name in type(options).model_fields)]
        secrets = secrets_in(given)
        clean = not _shows(error, secrets)
        if isinstance(error, BrokerError):
            if clean:
                raise error
            error.__cause__ = error.__context__ = None
            if isinstance(error, ConfigError):
                raise ConfigError(masked(problem, secrets) for problem in error.problems)
            # The nearest class of core: a plugin's own class may take other arguments.
            kind: Any = next(base for base in type(error).__mro__ if base.__module__ == BrokerError.__module__)
            raise kind(masked(error.text, secrets))
        if isinstance(error, ImportError) and clean:
            raise PluginLoadError(f"{self.title} cannot be used: {_what_is_missing(error)}") from error
        text = f"{hook} of {self.title} raised {type(error).__name__}; it may raise only a ConfigError"
        raise PluginContractError(text) from (error if clean else None)


def load_plugin(scheme: str, distribution: str | None = None, *, secrets: Iterable[str] = ()) -> Plugin:
    """Returns the plugin that owns the scheme. If necessary, this plugin is imported, but no other plugin.

    Args:
        scheme: The scheme, in lower case.
        distribution: Only this installed distribution may provide the scheme. None: a plugin that was registered with
            `register_plugin`, else the distribution that `CQRS_BROKERS_PIN` names for the scheme, if any.
        secrets: Texts that the error of a failed import must not contain.

    Raises:
        ConfigError: The variable `CQRS_BROKERS_PIN` is malformed.
        PluginError: The scheme is misspelt, not installed or claimed twice, or its plugin is broken or incompatible, or
            breaks the plugin contract.
    """
    if distribution is None and scheme in _in_process:
        return _in_process[scheme]
    claim = find_owner(scheme, distribution)
    implementation = _import(claim, secrets)
    _register(implementation, claim.distribution, claim.title)
    return Plugin(claim.title, implementation)


def register_plugin(schemes: str | Iterable[str], plugin: object, *, name: str | None = None) -> None:
    """Registers a plugin in this process only. The plugin needs no installed distribution. Tests and frameworks use
    this function.

    The registered plugin is used instead of an installed plugin, even for a reserved or pinned scheme, because the
    application itself asked for the registered plugin. Only calls with the argument `distribution` still use the
    installed plugin.

    Args:
        schemes: One scheme or several, in lower case.
        plugin: A module or an object with the hooks of `cqrs_brokers.hooks`.
        name: The plugin's name in errors. Default: the name of its module or class.

    Raises:
        ConfigError: No scheme was given, a scheme is not a valid URL scheme, or another plugin is registered in this
            process for the scheme.
        PluginContractError: The plugin has no hook `open_message_broker`, a hook of the plugin is wrong, or the plugin
            cannot be hashed.
    """
    wanted = [schemes] if isinstance(schemes, str) else list(schemes)
    problems = [f"{scheme!r:.80} is not a URL scheme" for scheme in wanted if not re.fullmatch(SCHEME, str(scheme))]
    problems += [
        f"{scheme}:// is already registered for {_in_process[scheme].title}"
        for scheme in wanted
        if scheme in _in_process and _in_process[scheme].implementation is not plugin
    ]
    if problems or not wanted:
        raise ConfigError(problems or "a plugin needs a scheme")
    title = name or str(getattr(plugin, "__name__", None) or type(plugin).__qualname__)
    _register(plugin, f"{title} (in process, {id(plugin)})", title)
    _in_process.update(dict.fromkeys(wanted, Plugin(title, plugin)))


def unregister_plugin(plugin: object) -> None:
    """Undoes `register_plugin`. Brokers that are open stay open."""
    for scheme in [scheme for scheme, known in _in_process.items() if known.implementation is plugin]:
        del _in_process[scheme]
    if _manager.is_registered(plugin):
        _manager.unregister(plugin)


def _what_is_missing(error: ImportError) -> str:
    """Says which part of a dependency is missing, and what to do. For example, PyInstaller may leave a module, or the
    metadata of a distribution, out of an application."""
    from importlib.metadata import PackageNotFoundError  # importing core must not load it

    if isinstance(error, PackageNotFoundError):
        return (
            f"the metadata of {error.name} (its folder .dist-info) is not here: bundle it too "
            f"(PyInstaller: --copy-metadata {error.name})"
        )
    return f"{error}: reinstall it, or bundle this module, too (PyInstaller: --hidden-import {error.name})"


def _import(claim: Claim, secrets: Iterable[str]) -> object:
    from importlib_metadata import EntryPoint  # the look-up has imported it

    found, problem = _tried(EntryPoint(claim.scheme, claim.value, GROUP).load)
    if problem is None:
        return found
    clean = not _shows(problem, secrets)
    reason = type(problem).__name__ + (f": {problem}" if clean else ", whose text may show a secret")
    raise PluginLoadError(
        f"{claim.scheme}:// is provided by {claim.title}, which is installed but broken: importing {claim.value} "
        f"failed with {reason:.300}: reinstall or upgrade {claim.distribution}"
    ) from (problem if clean else None)


def _register(plugin: object, name: str, title: str) -> None:
    """Registers a plugin with pluggy, unless it is registered already. pluggy checks the signatures of the plugin's
    hooks."""
    if type(plugin).__hash__ is None:  # pluggy keeps sets of plugins
        raise PluginContractError(f"{title} is not a broker plugin: a {type(plugin).__name__} cannot be hashed")
    if _manager.is_registered(plugin):
        return
    while _manager.has_plugin(name):  # a distribution whose entry points name several modules
        name += "'"
    problem: str | None = None
    cause: Exception | None = None
    try:
        _manager.register(plugin, name)
        _manager.check_pending()
        marked = {caller.name for caller in _manager.get_hookcallers(plugin) or ()}
        for hook in ("broker_options", "open_message_broker", "inspect_broker"):
            if hook not in marked and hasattr(plugin, hook):
                problem = f"its {hook} is not marked with @hookimpl"
        if problem is None and "open_message_broker" not in marked:
            problem = "its open_message_broker is missing"
    except pluggy.PluginValidationError as error:
        problem = " ".join(str(error).split())
    except Exception as error:
        problem, cause = f"inspecting it raised {type(error).__name__}", error
    if problem is not None:
        if _manager.has_plugin(name):
            _manager.unregister(name=name)
        raise PluginContractError(f"{title} is not a broker plugin: {problem}") from cause


def _tried(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Returns the result of a plugin's function, or the error that the function raised. The error is returned, not
    raised, so that it does not become the context of our own errors."""
    try:
        return function(), None
    except (Exception, SystemExit) as error:  # KeyboardInterrupt is not caught: the user caused it, not the plugin
        return None, error


def _shows(error: BaseException, secrets: Iterable[str]) -> bool:
    """Whether a printed traceback would show a secret, a URL with a user (which may be a config string) or an error of
    pydantic (which carries the input)."""
    from traceback import TracebackException

    from pydantic import ValidationError

    pending, seen = [error], set[int]()
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        text = "".join(TracebackException.from_exception(current).format_exception_only()) + repr(current)
        if isinstance(current, ValidationError) or re.search(URL_WITH_USER, text):
            return True
        if any(secret in text for secret in secrets):
            return True
        pending += [linked for linked in (current.__cause__, current.__context__) if linked is not None]
    return False


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
