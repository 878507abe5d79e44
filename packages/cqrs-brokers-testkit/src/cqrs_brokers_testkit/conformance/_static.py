"""Cases without a server: packaging, import, options, config strings, secrets, opening."""

from __future__ import annotations

import contextlib
import copy
import pickle
import traceback
from collections.abc import Iterator

from cqrs_brokers import (
    Broker,
    BrokerError,
    BrokerInfo,
    Capabilities,
    ConfigError,
    MessageBroker,
    available_brokers,
    open_broker,
)
from cqrs_brokers.hooks import load_plugin
from cqrs_brokers.options import BrokerOptions, describe_options, resolve_options
from cqrs_brokers.url import BrokerURL
from cqrs_brokers_testkit.conformance._case import Context, case, check, takes_credentials
from cqrs_brokers_testkit.conformance._harness import Harness
from cqrs_brokers_testkit.conformance._probes import CORE_IMPORT, PLUGIN_IMPORT, probe
from cqrs_brokers_testkit.conformance._watching import io_watched, logger_levels, logs_at_debug

CANARY = "canary-7Xq9-secret"


def _scheme(ctx: Context) -> str:
    return ctx.url.partition("://")[0]


def openable_url(harness: Harness) -> str:
    """Returns the harness' config string. If that is only a scheme, returns the shortest string that the plugin takes,
    because some plugins need a host."""
    if "://" in harness.url:
        return harness.url
    candidates = [f"{harness.url}://", f"{harness.url}://localhost", f"{harness.url}://user:password@localhost/name"]
    for url in candidates:
        try:
            open_broker(url, distribution=harness.distribution, **harness.options)
        except ConfigError:
            continue
        except BrokerError:
            break
        return url
    return candidates[0]


def _url(ctx: Context) -> str:
    return openable_url(ctx.harness)


def _options_type(ctx: Context) -> type[BrokerOptions]:
    return load_plugin(_scheme(ctx), ctx.harness.distribution).options_type()


def _entry_point(ctx: Context) -> BrokerInfo:
    found = [info for info in available_brokers() if info.name == _scheme(ctx)]
    if ctx.harness.distribution is not None:
        found = [info for info in found if info.distribution == ctx.harness.distribution]
    check(found, f"no installed distribution has an entry point {_scheme(ctx)!r} in the group 'cqrs_brokers'")
    return found[0]


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
    """Demands a `ConfigError` and no I/O."""
    with io_watched() as io:
        try:
            yield
        except ConfigError as error:
            check(str(error).strip(), f"{what}: the ConfigError says nothing")
        except BaseException as error:
            check(False, f"{what}: expected ConfigError, and {type(error).__name__} was raised")
        else:
            check(False, f"{what}: expected ConfigError, and the broker was opened")
    check(not io, f"{what}: {', '.join(io)} before the refusal")


def _open(ctx: Context, url: str) -> Broker:
    # A keyword would win over the option of the string, which is what the case is about.
    options = {name: value for name, value in ctx.harness.options.items() if f"{name}=" not in url}
    return open_broker(url, distribution=ctx.harness.distribution, **options)


def _with_query(ctx: Context, query: str) -> str:
    return _url(ctx) + ("&" if "?" in _url(ctx) else "?") + query


@case("static.entry-point-is-ready", "static")
def entry_point_is_ready(ctx: Context) -> None:
    """The scheme is an entry point in the metadata of exactly one installed distribution, and ready to be loaded."""
    info = _entry_point(ctx)
    check(info.status == "ready", f"{info.distribution} {info.version} is {info.status}: {info.reason}")
    check(info.version, f"{info.distribution} has no version")


@case("static.scheme-is-the-distributions-name", "static")
def scheme_is_the_distributions_name(ctx: Context) -> None:
    """The scheme is the distribution's suffix, that plus `s`, or that plus `+variant`."""
    info = _entry_point(ctx)
    check(info.distribution.startswith("cqrs-broker-"), f"{info.distribution} is not called cqrs-broker-<name>")
    name = info.distribution.removeprefix("cqrs-broker-")
    legal = info.name in (name, f"{name}s") or info.name.startswith((f"{name}+", f"{name}s+"))
    check(legal, f"{info.distribution} may have the schemes {name}, {name}s and {name}+variant, not {info.name}")


@case("static.core-does-not-import-the-plugin", "static")
def core_does_not_import_the_plugin(ctx: Context) -> None:
    """Importing core and listing the brokers imports no module of the plugin."""
    module = _entry_point(ctx).entry_point.partition(":")[0].strip()
    probed = probe(CORE_IMPORT)
    check(probed.answer is not None, f"importing core failed: {probed.stderr[-300:]}")
    imported = [name for name in probed.answer if name == module or name.startswith(f"{module}.")]
    check(not imported, f"importing core imported {', '.join(imported)}")


@case("static.import-is-quiet", "static")
def import_is_quiet(ctx: Context) -> None:
    """Importing the plugin does no I/O, starts no thread and no process, and configures no logging."""
    probed = probe(PLUGIN_IMPORT, _scheme(ctx), ctx.harness.distribution or "", flags=("-W", "error::ResourceWarning"))
    check(probed.answer is not None, f"the import failed: {probed.stderr[-300:]}")
    check(not probed.answer, f"importing the plugin did or changed: {', '.join(probed.answer)}")


@case("static.options-are-described", "static")
def options_are_described(ctx: Context) -> None:
    """The options are a `BrokerOptions` model, and each has a description."""
    bare = [option.name for option in describe_options(_options_type(ctx)) if not option.description.strip()]
    check(not bare, f"without a description: {', '.join(bare)}")


@case("static.defaults-are-valid", "static")
def defaults_are_valid(ctx: Context) -> None:
    """Every option is required or has a default that its own validation accepts."""
    options_type = _options_type(ctx)
    given = dict(BrokerURL.parse(_url(ctx)).query)
    for name, field in options_type.model_fields.items():
        if field.is_required() or field.default is None or name in given:
            continue
        try:
            resolved = resolve_options(options_type, keywords={**given, **ctx.harness.options, name: field.default})
        except ConfigError as error:
            check(False, f"the default of {name} is refused: {error}")
        else:
            check(getattr(resolved.options, name) == field.default, f"the default of {name} becomes something else")


@case("static.unknown-option-is-refused", "static")
def unknown_option_is_refused(ctx: Context) -> None:
    """An unknown or misspelt option is a `ConfigError` before any I/O, in the string and as a keyword."""
    with _refused("an unknown option"):
        _open(ctx, _with_query(ctx, "no_such_option_here=1"))
    with _refused("a misspelt option"):
        _open(ctx, _with_query(ctx, "delivery_timeuot=1s"))
    with _refused("an unknown keyword"):
        open_broker(_url(ctx), no_such_option_here=1)


@case("static.bad-value-is-refused", "static")
def bad_value_is_refused(ctx: Context) -> None:
    """A value of the wrong type or out of range is a `ConfigError` before any I/O, for every option with a number."""
    for query in ("delivery_timeout=soon", "max_in_flight=0", "max_in_flight=1.5", "connect_timeout=-1s"):
        with _refused(query):
            _open(ctx, _with_query(ctx, query))
    for name, field in _options_type(ctx).model_fields.items():
        if field.annotation in (int, float, bool) and not (field.json_schema_extra or {}).get("keyword_only"):  # type: ignore[union-attr]
            with _refused(f"{name}=not-a-value"):
                _open(ctx, _with_query(ctx, f"{name}=not-a-value"))


@case("static.duplicate-option-is-refused", "static")
def duplicate_option_is_refused(ctx: Context) -> None:
    """An option that is given twice in the string is a `ConfigError` before any I/O."""
    with _refused("an option twice"):
        _open(ctx, _with_query(ctx, "max_in_flight=10&max_in_flight=20"))


@case("static.malformed-string-is-refused", "static")
def malformed_string_is_refused(ctx: Context) -> None:
    """Empty hosts, bad ports, bad escapes and spaces are `ConfigError`s before any I/O."""
    scheme = _scheme(ctx)
    for bad in (
        "a,,b",
        ",",
        "h:99999",
        "h:port",
        "h%zz",
        "h/%zz",
        "h h",
        "h?x",
        "h#part",
        "u:p@",
        "h?max_in_flight=%g1",
    ):
        with _refused(f"{scheme}://{bad}"):
            _open(ctx, f"{scheme}://{bad}")


@case("static.config-string-is-stable", "static")
def config_string_is_stable(ctx: Context) -> None:
    """Parsing a config string, rendering the result and parsing the rendered string gives the same result."""
    first = BrokerURL.parse(_url(ctx))
    text = first.render(reveal=True)
    again = BrokerURL.parse(text)
    check(again == first, "parse(render(parse(url))) is not parse(url)")
    check(again.render(reveal=True) == text, "render(parse(render(url))) is not render(url)")
    broker = _open(ctx, text)
    check(broker.url == first.render(), "the broker shows another URL than the one it was opened with")


@case("static.no-secret-is-shown", "static")
def no_secret_is_shown(ctx: Context) -> None:
    """A password is in no str, repr, format, log record, description, error, traceback, pickle or attribute dict."""
    shown: list[tuple[str, str]] = []
    url = _url(ctx)
    if takes_credentials(ctx):
        harness = ctx.harness if "://" in ctx.harness.url else Harness(url)
        url = harness.url_with_credentials("somebody", CANARY)
    with logs_at_debug() as logs:
        for attempt in (
            url,
            url + ("&" if "?" in url else "?") + "no_such_option=1",
            f"{_scheme(ctx)}://u:{CANARY}@h,,",
        ):
            try:
                broker = open_broker(attempt, distribution=ctx.harness.distribution, **ctx.harness.options)
            except BrokerError as error:
                shown += [("an error", f"{error} {error!r} {pickle.dumps(error)!r}")]
                shown += [("a traceback", "".join(traceback.format_exception(error)))]
                continue
            for name, thing in (("the broker", broker), ("the driver", broker.driver)):
                shown += [(f"{form} of {name}", text) for form, text in _forms(thing)]
            shown += [("describe()", f"{broker.describe()!r} {broker.url}")]
    shown += [("a log record or warning", text) for text in logs]
    leaks = sorted({where for where, text in shown if CANARY in text})
    check(not leaks, f"the password is in {', '.join(leaks)}")


def _forms(thing: object) -> Iterator[tuple[str, str]]:
    yield "str", str(thing)
    yield "repr", repr(thing)
    yield "format", f"{thing}"
    yield "vars", repr(getattr(thing, "__dict__", {}))
    for name in dir(type(thing)) if isinstance(thing, MessageBroker) and not isinstance(thing, Broker) else ():
        if not name.startswith("_") and isinstance(getattr(type(thing), name, None), property):
            yield f"property {name}", repr(getattr(thing, name))
    with contextlib.suppress(Exception):
        yield "pickle", repr(pickle.dumps(thing))
    with contextlib.suppress(Exception):
        yield "copy", repr(vars(copy.copy(thing)))


@case("static.opening-does-no-io", "static")
def opening_does_no_io(ctx: Context) -> None:
    """`open_broker` works without an event loop, does no I/O, starts no thread and changes no logger level."""
    import threading

    threads, levels = threading.active_count(), logger_levels()
    with io_watched() as io:
        broker = _open(ctx, _url(ctx))
        broker.describe()
    check(not io, f"opening did {', '.join(io)}")
    check(threading.active_count() <= threads, "opening started a thread")
    changed = [name for name, level in logger_levels().items() if levels.get(name, 0) != level]
    check(not changed, f"opening changed the level of {', '.join(changed)}")


@case("static.broker-is-true", "static")
def broker_is_true(ctx: Context) -> None:
    """An opened broker is true in a condition, and its driver is a `MessageBroker` but not a `Broker`."""
    broker = _open(ctx, _url(ctx))
    check(bool(broker), "bool(broker) is False")
    check(isinstance(broker.driver, MessageBroker) and not isinstance(broker.driver, Broker), "the driver is none")
    check(bool(broker.driver), "bool(driver) is False")


@case("static.capabilities-are-constant", "static")
def capabilities_are_constant(ctx: Context) -> None:
    """A driver declares its capabilities before it is connected, and they never change."""
    driver, other = _open(ctx, _url(ctx)).driver, _open(ctx, _url(ctx)).driver
    said = [getattr(d, "capabilities", Capabilities()) for d in (driver, driver, other)]
    check(all(isinstance(value, Capabilities) for value in said), "capabilities is no Capabilities")
    check(said[0] == said[1] == said[2], f"capabilities changes: {said}")


@case("static.description-is-complete", "static")
def description_is_complete(ctx: Context) -> None:
    """`describe()` names every option with its origin."""
    described = _open(ctx, _url(ctx)).describe()["options"]
    missing = [name for name in _options_type(ctx).model_fields if name not in described]
    check(not missing, f"describe() does not name {', '.join(missing)}")
