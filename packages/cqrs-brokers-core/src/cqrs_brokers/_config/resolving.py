"""Makes a plugin's options from the text of a config string and from keyword arguments."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Generic, Literal, NamedTuple, TypeVar, get_args

from pydantic_core import PydanticUndefined

from cqrs_brokers.exceptions import ConfigError, PluginContractError
from cqrs_brokers.secret import Secret
from cqrs_brokers.url import BrokerURL, names_a_secret

from .did_you_mean import what_instead
from .model import BrokerOptions, UrlPart, without_secrets
from .values import Quantity, converter, quantity, show

__all__ = ["EffectiveOption", "ResolvedOptions", "describe_options", "resolve_options"]

Origin = Literal["default", "string", "keyword", "file", "environment"]


class EffectiveOption(NamedTuple):
    """An option with the value that is in effect.

    Attributes:
        name: The option's name, without `_file` or `_env`.
        value: The value as text. A secret is shown as the mask, and an object as its type.
        default: The default as text; "required" when there is none.
        origin: Where the value came from: "default", "string" (the config string), "keyword", "file" (`<name>_file`) or
            "environment" (`<name>_env`).
        unit: The unit of a plain number, for example "s", "ms" or "messages". None: there is no unit. The text of a
            `Duration` or a `Size` contains a unit, which may be another one.
        description: One sentence about the option.
    """

    name: str
    value: str
    default: str
    origin: Origin
    unit: str | None
    description: str


O = TypeVar("O", bound=BrokerOptions)  # noqa: E741 - the usual one-letter name of a type variable


class ResolvedOptions(NamedTuple, Generic[O]):
    """The result of `resolve_options`.

    Attributes:
        options: The validated model.
        url: The URL with the password of its user, even if the password was given as a keyword, in a file or in an
            environment variable. None: no URL was given.
        effective: Every option by name, for `Broker.describe()`. If the URL's user has a password, "password" is one of
            these names.
    """

    options: O
    url: BrokerURL | None
    effective: Mapping[str, EffectiveOption]

    def for_broker(self) -> dict[str, Any]:
        """`Broker`'s keyword arguments: the URL, the options that `Broker` uses, and every option for `describe()`."""
        own = {name: getattr(self.options, name) for name in BrokerOptions.model_fields}
        return {"url": self.url, "options": self.effective, **own}


class _Spec(NamedTuple):
    """What is known about one option."""

    convert: Callable[[str], Any] | None
    """Converts the option's text to its value. None: the option is keyword-only."""
    description: str
    default: Any = None
    quantity: Quantity | None = None
    unit: str | None = None
    secret: bool = False

    def effective(self, name: str, value: object, origin: Origin) -> EffectiveOption:
        default = "required" if self.default is PydanticUndefined else show(self.default, self.quantity)
        # A keyword-only option is shown by its type, even when it happens to be text: it may be a token.
        text = f"<{type(value).__name__}>" if self.convert is None and value is not None else show(value, self.quantity)
        return EffectiveOption(name, text, default, origin, self.unit, self.description)


class _Given(NamedTuple):
    """The value of an option before it is converted."""

    value: object
    origin: Origin
    suffix: Literal["", "_file", "_env"] = ""
    """The suffix of the name under which the value was given. "_file": the value is the name of a file that holds the
    secret. "_env": the value is the name of an environment variable that holds the secret."""


_PASSWORD = _Spec(Secret, "Of the user in the URL.", secret=True)
"""The password of the URL's user. It is an option, but it is no field of the plugin's model."""
_ORIGINS: dict[str, Origin] = {"_file": "file", "_env": "environment"}


def resolve_options(
    options_type: type[O],
    *,
    url: BrokerURL | None = None,
    keywords: Mapping[str, object] | None = None,
    source: str = "",
) -> ResolvedOptions[O]:
    """Makes a plugin's options from a URL's query and from keyword arguments. A keyword argument overrides the same
    option in the URL.

    `open_broker` and the adapters (`cqrs_brokers.adapters`) use this function, so all of them give the same error for
    the same mistake. The function reads the files and environment variables that options such as `password_file=` name,
    and does no network I/O. If there is a URL and the plugin reads the userinfo (`user:password@`), the user's password
    may also be given as `password=` (keyword only), `password_file=` or `password_env=`.

    Args:
        options_type: The class of the plugin's options.
        url: The parsed config string, or None.
        keywords: The options that were given as keyword arguments, by name.
        source: Where the URL came from, for example the name of an environment variable. If a problem is about a part
            or an option of the URL, its sentence begins with this text.

    Raises:
        ConfigError: An option or a part of the URL is wrong. The error lists all problems. But the rules about several
            options (see `cqrs_brokers.options`) are checked only if there is no other problem.
        PluginContractError: The plugin's model breaks a rule that holds for all plugins' models, or cannot be built, or
            a validator of the model raised an error that is neither a `ValueError` nor an `AssertionError`.
    """
    specs = _specs(options_type)
    if url is None:
        specs = {name: spec for name, spec in specs.items() if spec is not _PASSWORD}
    prefix = f"{source}: " if source else ""
    problems: list[str] = []
    given: dict[str, _Given] = {}
    if url is not None:
        given = _layer(url.query, "string", specs, problems)
        problems += _unread_parts(url, options_type)
        if url.password is not None:
            if "password" in given:
                problems.append("the password is given twice: in the user part and as an option")
            given["password"] = _Given(url.password, "string")
    problems = [prefix + problem for problem in problems]
    given |= _layer(keywords or {}, "keyword", specs, problems)

    values: dict[str, Any] = {}
    for name, item in given.items():
        try:
            values[name] = _read(item, specs.get(name, _PASSWORD))
        except ValueError as error:
            problems.append(f"{prefix if item.origin == 'string' else ''}{name}{item.suffix}: {error}")
    bad = given.keys() - values.keys()

    password = values.pop("password", None) if "userinfo" in options_type.url_parts else None
    if url is not None and "userinfo" in options_type.url_parts and "password" not in bad:
        if url.username is None and password is not None:
            problems.append(f"{prefix}a password without a user: put the user before an '@' in front of the hosts")
        elif url.username is not None and password is None:
            missing = "a user without a password: write user:password@, or use password_file=, password_env="
            problems.append(prefix + missing)
        elif password is not None:
            try:
                url = url.replace(password=password)
            except ConfigError as error:
                problems += error.problems

    options, more = _validate(options_type, values, bad, only_fields=bool(problems))
    for text in more:
        found = given.get(text.partition(":")[0])
        problems.append(prefix + text if found is not None and found.origin == "string" else text)
    if problems or options is None:
        raise ConfigError(without_secrets(problems, [*values.values(), password]))
    effective = {}
    for name, spec in specs.items():
        found = given.get(name)
        origin = "default" if found is None else _ORIGINS.get(found.suffix, found.origin)
        if spec is not _PASSWORD:
            effective[name] = spec.effective(name, getattr(options, name), origin)
        elif password is not None:
            effective[name] = spec.effective(name, password, origin)
    return ResolvedOptions(options, url, MappingProxyType(effective))


def describe_options(options_type: type[BrokerOptions]) -> list[EffectiveOption]:
    """Every option with its default. Documentation and the command line show these options without opening a broker.

    Raises:
        PluginContractError: The model breaks a rule that holds for all plugins' models, or cannot be built.
    """
    listed = []
    for name, spec in _specs(options_type).items():
        default = None if spec.default is PydanticUndefined else spec.default
        listed.append(spec.effective(name, default, "default"))
    return listed


@lru_cache(maxsize=256)
def _specs(options_type: type[BrokerOptions]) -> Mapping[str, _Spec]:
    """What is known about each field of the model, and about the password of the URL's user. This function also checks
    the rules that hold for every plugin's model."""
    specs: dict[str, _Spec] = {}
    where = f"{options_type.__module__}.{options_type.__qualname__}"
    _build(options_type)
    unknown = options_type.url_parts - set(get_args(UrlPart))
    if unknown:
        raise PluginContractError(f"{where}.url_parts contains {', '.join(sorted(unknown))}, which is no part of a URL")
    for name, field in options_type.model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        keyword_only = bool(extra.get("keyword_only"))
        annotation = field.rebuild_annotation()
        marker = quantity(annotation)
        unit = marker.unit if marker else extra.get("unit")
        unit = None if unit is None else str(unit)
        convert = None if keyword_only else converter(annotation, unit)
        secret = field.annotation is Secret or Secret in get_args(field.annotation)
        if convert is None and not keyword_only:
            raise PluginContractError(f"{where}.{name}: text cannot become this type: mark it keyword_only=True")
        if secret != names_a_secret(name) and not keyword_only:
            raise PluginContractError(
                f"{where}.{name}: the type of an option is Secret exactly when its name contains password, passwd, "
                "passphrase, secret, token or credential; so it can be redacted before the plugin is loaded"
            )
        if name == "password" and "userinfo" in options_type.url_parts:
            raise PluginContractError(f"{where}.password: the URL's own password has this name")
        specs[name] = _Spec(
            convert=convert,
            quantity=marker,
            unit=unit,
            default=field.default,
            description=field.description or "",
            secret=secret and not keyword_only,
        )
    if "userinfo" in options_type.url_parts:
        specs["password"] = _PASSWORD
    return MappingProxyType(specs)


def _build(options_type: type[BrokerOptions]) -> None:
    """Builds the model's validator. `defer_build` (see `BrokerOptions`) has delayed this work until now.

    Before pydantic builds its first model, pydantic looks for its own plugins in every installed distribution. If any
    package has a malformed entry_points.txt, this search fails, and so the build fails. pydantic searches only once. So
    the build is tried a second time. If the second build fails, too, the model itself is wrong.
    """
    for second in (False, True):
        try:
            options_type.model_rebuild(force=second)
            return
        except Exception as error:
            problem = error
    where = f"{options_type.__module__}.{options_type.__qualname__}"
    raise PluginContractError(f"the model {where} cannot be built ({type(problem).__name__})") from problem


def _layer(
    layer: Mapping[str, object], origin: Origin, specs: Mapping[str, _Spec], problems: list[str]
) -> dict[str, _Given]:
    """The options that one source (the URL or the keyword arguments) gives, by the option's name without `_file` or
    `_env`. For each option that is unknown, given twice, or not allowed in this source, a sentence is added to
    `problems`."""
    known: dict[str, tuple[str, Literal["", "_file", "_env"]]] = {}
    for name, spec in specs.items():
        if spec.secret:
            known |= {f"{name}_file": (name, "_file"), f"{name}_env": (name, "_env")}
    known |= {name: (name, "") for name in specs}
    given: dict[str, _Given] = {}
    after_secret = None
    for key, value in layer.items():
        name, suffix = known.get(key, ("", ""))
        if not name and after_secret is None:
            problems.append(f"unknown option {key!r}{what_instead(key, known)}")
        elif not name:
            problems.append(
                f"unknown option after {after_secret!r}; its name is not shown, because it may be a part of the "
                "secret: write & in values as %26"
            )
        elif origin == "string" and specs[name].convert is None:
            problems.append(f"option {key!r} is an object: give it as a keyword, not in the config string")
        elif origin == "string" and not suffix and specs[name] is _PASSWORD:
            problems.append("option 'password' is a keyword: write user:password@, or password_file= or password_env=")
        elif name in given:
            problems.append(f"option {name!r} is given twice: use one of {name}, {name}_file, {name}_env")
        else:
            given[name] = _Given(value, origin, suffix)
        if origin == "string" and after_secret is None and (names_a_secret(key) or isinstance(value, Secret)):
            after_secret = key
    return given


def _unread_parts(url: BrokerURL, options_type: type[BrokerOptions]) -> list[str]:
    """A sentence for each part that the URL has and the plugin does not read. An empty path (as in `kafka://h/`) counts
    as no path."""
    problems = []
    parts = {"userinfo": ("user", url.username is not None), "hosts": ("hosts", url.hosts), "path": ("path", url.path)}
    for part, (name, present) in parts.items():
        if present and part not in options_type.url_parts:
            instead = options_type.instead_of_parts.get(part)
            problems.append(f"{url.scheme}:// takes no {name}" + (f": {instead}" if instead else ""))
    return problems


def _read(item: _Given, spec: _Spec) -> Any:
    """The Python value of a given option. This function reads files and environment variables, and converts text. The
    model validates everything else."""
    value = item.value
    if item.suffix:
        reference = value.reveal() if isinstance(value, Secret) else value
        if not isinstance(reference, (str, os.PathLike)):
            raise ValueError(f"must be text, not {type(reference).__name__}")
        read = Secret.from_file if item.suffix == "_file" else Secret.from_environment
        return read(os.fspath(reference))
    if spec.convert is None:
        return value
    if isinstance(value, Secret) and not spec.secret:
        value = value.reveal()
    if isinstance(value, str):
        if spec.secret and not value:
            raise ValueError("is empty")
        value = spec.convert(value)
    elif spec.quantity is not None and spec.quantity.unit == "s" and type(value) is int:
        value = float(value)
    elif spec is _PASSWORD and not isinstance(value, (Secret, type(None))):
        raise ValueError("must be text")
    return value


def _validate(
    options_type: type[O], values: dict[str, Any], bad: set[str], *, only_fields: bool
) -> tuple[O | None, list[str]]:
    """Returns the model, or None and the problems that pydantic and the plugin's own validators found.

    Raises:
        PluginContractError: A validator raised an error that is neither a `ValueError` nor an `AssertionError`.
    """
    problems: list[str] = []
    failed: str | None = None
    try:
        return options_type(**values), []
    except ConfigError as error:
        problems = list(error.problems)
    except Exception as error:  # a bug of the plugin's validator; its text may hold a secret
        failed = type(error).__name__
    if failed is not None:
        raise PluginContractError(
            f"a validator of {options_type.__module__}.{options_type.__qualname__} raised {failed}, not ValueError"
        )
    if only_fields:  # a rule over several options would see defaults in place of the options that could not be read
        fields = options_type.model_fields
        problems = [text for text in problems if text.partition(":")[0] in fields.keys() - bad]
    return None, problems
