"""The author of a plugin declares the plugin's options with `option` and `BrokerOptions`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cqrs_brokers.exceptions import ConfigError
from cqrs_brokers.secret import Secret, masked, secrets_in
from cqrs_brokers.url import names_a_secret

from .did_you_mean import what_instead
from .settings import bounds
from .values import Duration, Size

__all__ = ["BrokerOptions", "UrlPart", "option", "without_secrets"]

UrlPart = Literal["userinfo", "hosts", "path"]


def option(
    default: Any = ..., *, description: str, unit: str | None = None, keyword_only: bool = False, **constraints: Any
) -> Any:
    """Declares one option: a field of a subclass of `BrokerOptions`.

    Args:
        default: The default. Without a default the option is required.
        description: One sentence for the documentation.
        unit: The unit of a plain number, for example "ms". `Duration` and `Size` have units of their own.
        keyword_only: Whether a config string cannot contain the option, usually because its value is an object, as with
            `ssl_context`. Such an option is given only as a keyword.
        **constraints: The constraints of pydantic's `Field`: `ge`, `gt`, `le`, `lt`, `min_length`, `max_length`,
            `pattern` ...
    """
    extra: dict[str, Any] = {"unit": unit, "keyword_only": keyword_only}
    # The value of a keyword-only option is an object, and the object's own repr may show its contents.
    return Field(default, description=description, json_schema_extra=extra, repr=not keyword_only, **constraints)


class BrokerOptions(BaseModel):
    """The base class of every plugin's options. This class has the options that `Broker` itself uses.

    The constructor takes Python values. It does not convert the text of a config string: `resolve_options` converts
    such text. If a value is wrong, the constructor raises `ConfigError`, never pydantic's `ValidationError`.
    """

    # A ValidationError contains the input. `__init__` raises a ConfigError instead, which contains only sentences.
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        validate_default=False,
        hide_input_in_errors=True,
        arbitrary_types_allowed=True,
        defer_build=True,  # base classes are seldom used themselves, and building a class takes time
    )

    url_parts: ClassVar[frozenset[str]] = frozenset()
    """Which parts of the URL the plugin reads: "userinfo", "hosts", "path". If a URL has one of these parts and the
    plugin does not read the part, the URL is refused with a `ConfigError`. So nothing in a config string is silently
    ignored."""

    instead_of_parts: ClassVar[Mapping[str, str]] = {}
    """What to write instead of a part that the plugin does not read, by part. The error about the part ends with this
    text."""

    delivery_timeout: Duration = option(
        **bounds("delivery_timeout"), description="A send has its outcome after this time at the latest."
    )
    connect_timeout: Duration = option(
        **bounds("connect_timeout"), description="Limit for `connect()` and for each attempt to connect."
    )
    close_timeout: Duration = option(
        **bounds("close_timeout"), description="Limit for `close()`: sending the accepted messages, and disconnecting."
    )
    max_in_flight: int = option(
        **bounds("max_in_flight"),
        unit="messages",
        description="The most messages that the driver holds; two fifths of it while all destinations take messages.",
    )
    max_in_flight_bytes: Size = option(
        **bounds("max_in_flight_bytes"),
        description="The most bytes that these messages have; two fifths of it while all destinations take messages.",
    )
    max_message_bytes: Size = option(
        **bounds("max_message_bytes"),
        description="The largest message: body, key and headers together.",
    )
    retry_count: int | None = option(
        **bounds("retry_count"),
        unit="attempts",
        description="After this many failed passes over the hosts, one after the other, the waiting sends fail.",
    )
    retry_delay: Duration | None = option(
        **bounds("retry_delay"), description="Pause between passes over the hosts; none: 0.1s, growing to 1s."
    )

    def __init__(self, **values: Any) -> None:
        problems: list[str] = []
        try:
            super().__init__(**values)
        except ValidationError as error:
            problems = _problems_of(type(self), error)
        if problems:  # raised here, where the ValidationError is no longer its context
            # Without `resolve_options`, a secret may still be a plain text.
            secrets = [Secret(text) for name, text in values.items() if names_a_secret(name) and isinstance(text, str)]
            raise ConfigError(without_secrets(problems, [*values.values(), *secrets]))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("options cannot be changed")  # pydantic would raise its ValidationError


def _problems_of(options_type: type[BaseModel], error: ValidationError) -> list[str]:
    """A sentence for each error. pydantic's own sentences do not quote the input, but the sentence of a plugin's
    validator may quote the input."""
    problems: dict[str, None] = {}  # a union reports each of its members, with sentences that may be equal
    for item in error.errors(include_input=False, include_url=False):
        raised = item.get("ctx", {}).get("error")
        text = str(raised) if item["type"] in ("value_error", "assertion_error") and raised else item["msg"]
        name = str(item["loc"][0]) if item["loc"] else None
        if item["type"] == "missing":
            text = "is required"
        elif item["type"] == "extra_forbidden":
            text = f"is not an option{what_instead(str(name), options_type.model_fields)}"
        elif text.startswith("Input should be "):
            text = f"must be {text.removeprefix('Input should be ')}"
        problems[text if name is None else f"{name}: {text}"] = None
    return list(problems)


def without_secrets(problems: list[str], values: Iterable[object]) -> list[str]:
    """The problems, with a mask in place of each secret among the values (see `secrets_in`). The sentence of a plugin's
    validator may quote the secret."""
    secrets = secrets_in(values)
    return [masked(problem, secrets) for problem in problems]
