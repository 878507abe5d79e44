"""From a config string to a `Broker`, with plugins that are good, broken, old, or break the contract."""

import asyncio
import importlib
import importlib.metadata
import pickle
import sys
import traceback
import types

import pytest

from cqrs_brokers import Broker, Capabilities, Message, MessageBroker, open_broker
from cqrs_brokers.driver import Driver
from cqrs_brokers.exceptions import (
    BrokerError,
    ConfigError,
    PluginContractError,
    PluginLoadError,
)
from cqrs_brokers.hooks import hookimpl, load_plugin, register_plugin, unregister_plugin
from cqrs_brokers.options import BrokerOptions, option
from cqrs_brokers.secret import MASK, Secret

from .conftest import GOOD

GROUP = "[cqrs_brokers]\n"
CANARY = "C4N4RY-s3cret"


class Null(MessageBroker):
    async def send_message(self, message: Message) -> None: ...


@pytest.fixture
def plugin():
    """Registers objects as plugins for one test."""
    registered = []

    def register(schemes="acme", name="acme-plugin", **members):
        made = type("Plugin", (), {key: staticmethod(member) for key, member in members.items()})()
        register_plugin(schemes, made, name=name)
        registered.append(made)
        return made

    yield register
    for made in registered:
        unregister_plugin(made)


def installed_plugin(install, source, scheme="acme", **keywords):
    install(
        f"cqrs-broker-{scheme}",
        "1.5",
        GROUP + f"{scheme} = {scheme}_mod",
        modules={f"{scheme}_mod": source},
        **keywords,
    )


async def test_a_config_string_becomes_a_broker(install):
    """The string's options reach `Broker`, keywords override them, and `describe` knows where each came from."""
    installed_plugin(install, GOOD)
    broker = open_broker("acme://?delivery_timeout=5s&max_in_flight=7", max_in_flight=8)
    assert broker.name == "acme"
    options = broker.describe()["options"]
    assert options["delivery_timeout"][:4] == ("delivery_timeout", "5s", "30s", "string")
    assert options["max_in_flight"][:4] == ("max_in_flight", "8", "2500", "keyword")
    assert options["retry_delay"][:4] == ("retry_delay", "none", "none", "default")
    receipt = await broker.send_message(Message("N", "t", {}))
    assert receipt.confirmed is False
    await broker.close()


def test_without_a_string_the_environment_is_read(install, monkeypatch):
    """`CQRS_BROKER_URL`; neither is an error, never devnull."""
    installed_plugin(install, GOOD)
    monkeypatch.setenv("CQRS_BROKER_URL", "acme://")
    assert open_broker().url == "acme://"
    for empty in ("", None):
        monkeypatch.delenv("CQRS_BROKER_URL", raising=False)
        if empty is not None:
            monkeypatch.setenv("CQRS_BROKER_URL", empty)
        with pytest.raises(ConfigError, match="no config string: pass one to open_broker, or set CQRS_BROKER_URL"):
            open_broker()


@pytest.mark.parametrize(
    ("source", "cause", "reason"),
    [
        ("1/0", ZeroDivisionError, "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(3)", SystemExit, "SystemExit: 3"),
        ("import not_there", ModuleNotFoundError, "ModuleNotFoundError: No module named 'not_there'"),
        ("def", SyntaxError, "SyntaxError: invalid syntax"),
        ("raise ImportError('x' * 9999)", ImportError, "ImportError: xxx"),
    ],
)
def test_a_plugin_that_cannot_be_imported_breaks_only_its_scheme(install, source, cause, reason):
    """The error names distribution, version and cause; the next scheme works."""
    installed_plugin(install, source)
    installed_plugin(install, GOOD, scheme="good")
    with pytest.raises(PluginLoadError) as caught:
        open_broker("acme://")
    text = str(caught.value)
    assert text.startswith(
        "acme:// is provided by cqrs-broker-acme 1.5, which is installed but broken: importing acme_mod failed"
    )
    assert reason in text
    assert len(text) < 600
    assert isinstance(caught.value.__cause__, cause)
    assert open_broker("good://").name == "good"


def test_ctrl_c_during_an_import_is_the_users(install):
    """`KeyboardInterrupt` passes."""
    installed_plugin(install, "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        open_broker("acme://")


def test_only_the_owner_is_imported(install):
    """Opening one scheme leaves the other plugins alone."""
    installed_plugin(install, GOOD)
    installed_plugin(install, "1/0", scheme="other")
    open_broker("acme://")
    assert "acme_mod" in sys.modules
    assert "other_mod" not in sys.modules


def test_one_module_behind_two_entry_points_is_registered_once(install):
    """As `amqp` and `amqps`; and a distribution may have another module for a variant."""
    install(
        "cqrs-broker-acme",
        entry_points=GROUP + "acme = acme_mod\nacmes = acme_mod\nacme+x = acme_x",
        modules={"acme_mod": GOOD, "acme_x": GOOD},
    )
    assert load_plugin("acme").implementation is load_plugin("acmes").implementation
    assert load_plugin("acme+x").implementation is not load_plugin("acme").implementation
    assert open_broker("acmes://").name == "acmes"


def test_an_entry_point_may_name_an_object(install):
    """`module:attribute.attribute`."""
    source = (
        GOOD.replace("def open", "class P:\n  class Q: ...\ndef open")
        .replace("@hookimpl\nclass P", "class P")
        .replace("def open_message_broker", "@hookimpl\ndef open_message_broker")
        + "\nP.Q.open_message_broker = staticmethod(open_message_broker)\n"
    )
    install("cqrs-broker-acme", entry_points=GROUP + "acme = acme_mod:P.Q", modules={"acme_mod": source})
    assert open_broker("acme://").name == "acme"
    install("cqrs-broker-none", entry_points=GROUP + "none = acme_mod:P.Z", modules={})
    with pytest.raises(PluginLoadError, match="AttributeError"):
        open_broker("none://")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("", "its open_message_broker is missing"),
        ("def open_message_broker(url, options): ...", "its open_message_broker is not marked with @hookimpl"),
        (GOOD.replace("(url, options)", "(url, options, wizard)"), "'wizard'"),
        (GOOD + "\ndef broker_options(): ...\n", "its broker_options is not marked with @hookimpl"),
        (GOOD + "\n@hookimpl\ndef brew_coffee(): ...\n", "brew_coffee"),
        ("def __dir__(): return ['a']\ndef __getattr__(name): raise RuntimeError", "inspecting it raised RuntimeError"),
    ],
)
def test_hooks_are_validated_when_loaded(install, source, problem):
    """The error names the plugin and what is wrong; a second try says the same, and others are not affected."""
    installed_plugin(install, source)
    installed_plugin(install, GOOD, scheme="good")
    for _ in range(2):
        with pytest.raises(PluginContractError) as caught:
            open_broker("acme://")
        assert str(caught.value).startswith("cqrs-broker-acme 1.5 is not a broker plugin: ")
        assert problem in str(caught.value)
    assert open_broker("good://").name == "good"


@pytest.mark.parametrize("signature", ["()", "(url)", "(options)", "(options, url)"])
def test_an_older_plugin_with_fewer_arguments_works(install, signature):
    """So hooks can gain arguments without breaking plugins that were written before."""
    installed_plugin(install, GOOD.replace("(url, options)", signature))
    assert open_broker("acme://").name == "acme"


@pytest.mark.parametrize(
    ("result", "kind"),
    [(None, "None"), ("x", "a str"), (Null, "a ABCMeta"), (object(), "a object")],
)
def test_a_hook_that_gives_no_message_broker_breaks_the_contract(plugin, result, kind):
    """None included: pluggy would otherwise ask the next plugin."""
    plugin(open_message_broker=hookimpl(lambda: result))
    plugin("other", name="other", open_message_broker=hookimpl(lambda: Null()))
    with pytest.raises(PluginContractError) as caught:
        open_broker("acme://")
    assert str(caught.value) == f"open_message_broker of acme-plugin must return a MessageBroker, not {kind}"


def test_a_coroutine_and_a_broker_break_the_contract(plugin):
    """An async hook is named as one mistake, without a warning of its own; a `Broker` of a `Broker` is another."""

    async def opening():
        return Null()

    plugin(open_message_broker=hookimpl(opening))
    plugin("other", name="other", open_message_broker=hookimpl(lambda: Broker(Null())))
    with pytest.raises(PluginContractError, match="must return a MessageBroker, not a coroutine"):
        open_broker("acme://")
    with pytest.raises(PluginContractError, match="of other must return a driver, not a Broker"):
        open_broker("other://")


@pytest.mark.parametrize("result", [None, dict, BrokerOptions(), "x"])
def test_options_must_be_a_model_class(plugin, result):
    """What `broker_options` gives is checked too."""
    plugin(broker_options=hookimpl(lambda: result), open_message_broker=hookimpl(lambda: Null()))
    with pytest.raises(
        PluginContractError, match="broker_options of acme-plugin must return a subclass of BrokerOptions"
    ):
        open_broker("acme://")


def test_a_hook_is_answered_by_its_owner_only(plugin):
    """Whatever was registered last."""
    first = plugin("one", name="one", open_message_broker=hookimpl(lambda: Null()))
    plugin("two", name="two", open_message_broker=hookimpl(lambda: pytest.fail("not asked")))
    assert load_plugin("one").implementation is first
    assert open_broker("one://").name == "one"


class SecretOptions(BrokerOptions):
    url_parts = frozenset({"userinfo", "hosts"})
    auth_token: Secret | None = option(None, description="A token.")


@pytest.mark.parametrize("where", [f"acme://u:{CANARY}@h", f"acme://h?auth_token={CANARY}"])
@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("error", [ValueError, ConfigError, PluginLoadError, RuntimeError])
def test_what_a_hook_raises_shows_no_secret(plugin, where, chained, error):
    """A client library's error quotes what it was given; that is not passed on, the kind of error is."""

    def opening(url, options):
        secret = (url.password or options.auth_token).reveal()
        if chained:
            try:
                raise ValueError(f"could not parse {secret}")
            except ValueError as inner:
                raise error("no") from inner
        raise error(f"could not parse {secret}")

    plugin(broker_options=hookimpl(lambda: SecretOptions), open_message_broker=hookimpl(opening))
    with pytest.raises(BrokerError) as caught:
        open_broker(where)
    assert isinstance(caught.value, error if issubclass(error, BrokerError) else PluginContractError)
    printed = "".join(traceback.format_exception(caught.value)).replace(where, "")
    assert CANARY not in printed + repr(caught.value.__context__) + repr(caught.value.__cause__)
    assert CANARY.encode() not in pickle.dumps(caught.value)


def test_a_plugins_own_error_class_may_take_other_arguments(plugin):
    """If the error shows a secret, an error of the class's nearest base in core takes its place."""

    class OwnError(PluginLoadError):
        def __init__(self, code: int, detail: str) -> None:
            super().__init__(f"{code}: {detail}")

    def opening(url, options):
        raise OwnError(5, f"could not use {url.password.reveal()}")

    plugin(broker_options=hookimpl(lambda: SecretOptions), open_message_broker=hookimpl(opening))
    with pytest.raises(PluginLoadError) as caught:
        open_broker(f"acme://u:{CANARY}@h")
    assert caught.value.text == f"5: could not use {MASK}"


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        (lambda: importlib.metadata.version("acme-x"), "the metadata of acme-x .*--copy-metadata acme-x"),
        (lambda: importlib.import_module("acme_x"), "No module named 'acme_x'.*--hidden-import acme_x"),
    ],
    ids=["metadata", "module"],
)
def test_what_a_bundle_left_out_is_named(plugin, missing, says):
    """A part of the plugin's client: that is no mistake of the plugin."""
    plugin(open_message_broker=hookimpl(lambda: missing()))
    with pytest.raises(PluginLoadError, match=f"^acme-plugin cannot be used: {says}"):
        open_broker("acme://")


def test_a_harmless_cause_is_kept(plugin):
    """Without a secret in it the plugin's own error stays reachable."""
    plugin(open_message_broker=hookimpl(lambda: 1 / 0))
    with pytest.raises(PluginContractError, match="of acme-plugin raised ZeroDivisionError") as caught:
        open_broker("acme://")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_registration_in_process(plugin, install):
    """For tests and frameworks: before installed ones, also reserved schemes, and it can be taken back."""
    installed_plugin(install, "1/0", scheme="kafka")
    made = plugin(["kafka", "fake+kafka"], open_message_broker=hookimpl(lambda: Null()))
    assert open_broker("kafka://").name == "kafka"
    assert open_broker("fake+kafka://").name == "fake+kafka"
    with pytest.raises(PluginLoadError):
        open_broker("kafka://", distribution="cqrs-broker-kafka")
    with pytest.raises(ConfigError, match="kafka:// is already registered for acme-plugin"):
        plugin("kafka", name="second", open_message_broker=hookimpl(lambda: Null()))
    register_plugin("again", made)
    unregister_plugin(made)
    unregister_plugin(made)
    with pytest.raises(BrokerError):
        open_broker("again://")
    for wrong in ("No Scheme", [], ""):
        with pytest.raises(ConfigError):
            plugin(wrong, open_message_broker=hookimpl(lambda: Null()))
    with pytest.raises(PluginContractError, match="cannot be hashed"):
        register_plugin("acme", types.SimpleNamespace(open_message_broker=hookimpl(lambda: Null())))


def test_options_and_pins_are_checked_before_anything_is_opened(plugin):
    """The hook is not called with options that are wrong."""
    plugin(open_message_broker=hookimpl(lambda: pytest.fail("opened")))
    with pytest.raises(ConfigError, match="unknown option 'acks'"):
        open_broker("acme://?acks=1")
    with pytest.raises(ConfigError, match="acme:// takes no hosts"):
        open_broker("acme://h")


def test_opening_needs_no_event_loop(plugin):
    """Frameworks build brokers before one runs."""
    plugin(open_message_broker=hookimpl(lambda: Null()))
    broker = open_broker("acme://")
    asyncio.run(broker.close())


class Declares(MessageBroker):
    """A plain broker, whose class declares what the test says."""

    async def send_message(self, message: Message) -> None: ...


def _raises(self):
    raise RuntimeError(CANARY)


def _exits(self):
    raise SystemExit(0)


@pytest.mark.parametrize("base", [Declares, Driver])
@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        (property(_raises), "capabilities of acme-plugin raised RuntimeError"),
        (property(_exits), "capabilities of acme-plugin raised SystemExit"),
        ({"confirms": True}, "capabilities of acme-plugin must be Capabilities, not a dict"),
        (Capabilities(confirms="yes"), "capabilities of acme-plugin are wrong: confirms must be True or False"),
        (Capabilities(max_message_bytes=-5), "max_message_bytes must be None or a whole number above 0"),
        (Capabilities(max_message_bytes=True), "max_message_bytes must be None or a whole number above 0"),
        (Capabilities(header_types="str"), "header_types must be a frozenset of types"),
    ],
)
def test_wrong_capabilities_break_the_contract(plugin, base, declared, problem):
    """The error names the plugin and the field, before a broker is made."""
    members = {"capabilities": declared, "send_message": Declares.send_message}
    driver = type("Wrong", (base,), members)
    plugin(broker_options=hookimpl(lambda: SecretOptions), open_message_broker=hookimpl(lambda: driver()))
    with pytest.raises(PluginContractError) as caught:
        open_broker(f"acme://u:{CANARY}@h")
    assert problem in str(caught.value)
    printed = "".join(traceback.format_exception(caught.value)).replace(f"u:{CANARY}@h", "")
    assert CANARY not in printed + repr(caught.value.__context__)


@pytest.mark.parametrize("hook", ["broker_options", "open_message_broker"])
def test_a_hook_that_exits_breaks_the_contract(plugin, hook):
    """`SystemExit` of a hook does not end the program, as at import."""

    def leave():
        raise SystemExit(0)

    members = {"open_message_broker": hookimpl(lambda: Declares()), hook: hookimpl(leave)}
    plugin(**members)
    with pytest.raises(PluginContractError, match=f"{hook} of acme-plugin raised SystemExit"):
        open_broker("acme://")


@pytest.mark.parametrize("chained", [False, True])
def test_what_an_import_raises_shows_no_secret(install, monkeypatch, chained):
    """A plugin that quotes a config string of the environment, or the password of the URL."""
    monkeypatch.setenv("ACME_URL", f"acme://u:{CANARY}@h")
    leak = "import os\n" + (
        "try: 1/0\nexcept ZeroDivisionError: raise ValueError('no') from ValueError(os.environ['ACME_URL'])"
        if chained
        else "raise ValueError('could not read ' + os.environ['ACME_URL'])"
    )
    installed_plugin(install, leak)
    monkeypatch.setenv("OTHER_PASSWORD", CANARY)
    quotes = "import os\nraise ValueError('password ' + os.environ['OTHER_PASSWORD'])"
    installed_plugin(install, quotes, scheme="other")
    for url in ("acme://", f"other://u:{CANARY}@h"):
        with pytest.raises(PluginLoadError, match="ValueError") as caught:
            open_broker(url)
        printed = "".join(traceback.format_exception(caught.value)).replace(url, "")
        assert CANARY not in printed + repr(caught.value.__context__)
