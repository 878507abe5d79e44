"""`list` and `describe`: what is installed, and the options of a scheme."""

from __future__ import annotations

import re
import types
import warnings
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

from cqrs_brokers import BrokerError, Capabilities, ConfigError, available_brokers, open_broker
from cqrs_brokers.hooks import load_plugin
from cqrs_brokers.options import BrokerOptions, EffectiveOption, describe_options
from cqrs_brokers.secret import Secret
from cqrs_brokers.url import names_a_secret

from ._exit_codes import ExitCode
from ._output import Output

__all__ = ["describe", "list_schemes"]

_PLAIN: dict[Any, str] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    Secret: "secret text",
}


def list_schemes(output: Output) -> ExitCode:
    """Prints every scheme that an installed distribution claims."""
    found = available_brokers()
    output.document([info._asdict() for info in found])
    if found:
        columns = ("scheme", "distribution", "version", "status", "reason")
        rows = [(info.name, info.distribution, info.version, info.status, info.reason) for info in found]
        output.table(columns, rows, styles=("bold", "", "", "cyan", ""))
    else:
        output.line("no broker is installed: pip install cqrs-broker-kafka, or another one")
    return ExitCode.OK


def describe(scheme: str, output: Output) -> ExitCode:
    """Prints a scheme's options and capabilities.

    Args:
        scheme: The scheme.
        output: Where to print.

    Raises:
        ConfigError: The text cannot be a scheme.
        PluginError: No plugin that is installed provides the scheme, or the plugin is broken.
    """
    scheme = scheme.removesuffix("://").lower()
    if not re.fullmatch(r"[a-z0-9+.-]+", scheme):  # it may be a config string, and is not shown
        raise ConfigError("a scheme is a name like kafka: cqrs-brokers list shows those that are installed")
    plugin = load_plugin(scheme)
    options_type = plugin.options_type()
    options = [_described(option, options_type) for option in describe_options(options_type)]
    capabilities = _capabilities(scheme)
    parts = sorted(options_type.url_parts)
    output.document(
        {
            "scheme": scheme,
            "plugin": plugin.title,
            "url_parts": parts,
            "options": options,
            "capabilities": None if capabilities is None else capabilities.to_dict(),
        }
    )
    output.line(f"{scheme}:// is provided by {plugin.title}", "bold")
    output.line(f"It reads these parts of the string: {', '.join(parts) or 'none'}.")
    output.line("")
    columns = ("option", "type", "unit", "default", "secret", "description")
    rows = [
        (it["name"], it["type"], it["unit"] or "", it["default"], "yes" if it["secret"] else "", it["description"])
        for it in options
    ]
    output.table(columns, rows, styles=("bold", "cyan"))
    output.line("")
    if capabilities is None:
        output.line("Its capabilities depend on the string.")
    else:
        shown = [(name, _shown(value)) for name, value in capabilities.to_dict().items()]
        output.table(("capability", "with the defaults"), shown, styles=("bold",))
    return ExitCode.OK


def _described(option: EffectiveOption, options_type: type[BrokerOptions]) -> dict[str, Any]:
    return {
        "name": option.name,
        "type": _kind(option, options_type),
        "unit": option.unit,
        "default": option.default,
        "secret": names_a_secret(option.name) and not _is_object(option.name, options_type),
        "description": option.description,
    }


def _is_object(name: str, options_type: type[BrokerOptions]) -> bool:
    field = options_type.model_fields.get(name)
    extra = field.json_schema_extra if field is not None else None
    return isinstance(extra, Mapping) and bool(extra.get("keyword_only"))


def _kind(option: EffectiveOption, options_type: type[BrokerOptions]) -> str:
    """The type of an option in words."""
    if option.name not in options_type.model_fields:  # the password of the URL's user
        return _PLAIN[Secret]
    if _is_object(option.name, options_type):
        return "object, in code only"
    annotation = options_type.model_fields[option.name].annotation
    words = _words(annotation)
    if option.unit == "s" and "number" in words and float in (annotation, *_members(annotation)):
        return words.replace("number", "duration (30s, 500ms, 5m)")
    if option.unit == "B":
        return words.replace("whole number", "size (100kB, 1MiB)")
    return words


def _words(annotation: Any) -> str:
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(annotation)))}"
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_words(member) for member in get_args(annotation) if member is not type(None))
    if get_origin(annotation) in (list, tuple, frozenset, set):
        return f"list of {_words(get_args(annotation)[0])}"
    if getattr(annotation, "__metadata__", None) is not None:
        return _words(get_args(annotation)[0])
    return str(getattr(annotation, "__name__", annotation))


def _members(annotation: Any) -> list[Any]:
    """The types in a union, without what pydantic knows about them."""
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return [get_args(member)[0] if hasattr(member, "__metadata__") else member for member in members]


def _capabilities(scheme: str) -> Capabilities | None:
    """The capabilities of a broker with default options. Some schemes need a host, a user or a path for that. Nothing
    connects."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for rest in ("", "localhost", "user:password@localhost/name"):
            try:
                return open_broker(f"{scheme}://{rest}").capabilities
            except ConfigError:
                continue
            except BrokerError:
                break
    return None


def _shown(value: object) -> str:
    if value is None:
        return "none of its own"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
