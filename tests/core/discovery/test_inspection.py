"""The optional hook `inspect_broker`, and what a plugin gives back."""

from collections.abc import AsyncIterator, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from cqrs_brokers import (
    AuthenticationError,
    AuthorizationError,
    ConfigError,
    PluginContractError,
    ProtocolError,
    TLSError,
    TopologyError,
    UnreachableError,
)
from cqrs_brokers.driver import Driver, Message
from cqrs_brokers.hooks import hookimpl, load_plugin, register_plugin, unregister_plugin
from cqrs_brokers.inspection import Endpoint, Finding, Inspection
from cqrs_brokers.options import BrokerOptions, resolve_options
from cqrs_brokers.url import BrokerURL, Host

URL = BrokerURL.parse("acme://user:canary-secret@localhost:7000")


class Options(BrokerOptions):
    url_parts = frozenset({"userinfo", "hosts"})


class AcmeDriver(Driver):
    async def send_message(self, message: Message) -> None: ...


class AcmeInspection(Inspection):
    def endpoints(self) -> Sequence[Endpoint]:
        return [Endpoint(Host("localhost", 7000))]

    async def server(self, endpoints: Sequence[Endpoint], /) -> AsyncIterator[Finding]:
        yield Finding("server", "ok", "", "Acme 3")

    async def topic(self, topic: str, /) -> AsyncIterator[Finding]:
        yield Finding("topic", "ok", topic, "is there")


@pytest.fixture
def registered() -> Iterator[Any]:
    """Registers a plugin with this `inspect_broker`, or with none, and gives what its inspection is."""
    plugins = []

    def register(inspect: Any = None) -> Inspection | None:
        hooks = {
            "broker_options": hookimpl(lambda: Options),
            "open_message_broker": hookimpl(lambda url, options: AcmeDriver()),
        }
        if inspect is not None:
            hooks["inspect_broker"] = hookimpl(inspect)
        plugin = type("Plugin", (SimpleNamespace,), {"__hash__": object.__hash__})(**hooks)
        plugins.append(plugin)
        register_plugin("acme", plugin, name="acme-plugin")
        loaded = load_plugin("acme")
        resolved = resolve_options(loaded.options_type(), url=URL)
        return loaded.inspection(resolved.url or URL, resolved.options)

    yield register
    for plugin in plugins:
        unregister_plugin(plugin)


async def test_what_the_hook_returns_is_the_inspection(registered: Any) -> None:
    """It gets the URL with the password, and the options."""
    seen = []

    def inspect(url: BrokerURL, options: BrokerOptions) -> Inspection:
        seen.append((url.password.reveal() if url.password else None, type(options)))
        return AcmeInspection()

    inspection = registered(inspect)
    assert seen == [("canary-secret", Options)]
    assert [str(endpoint) for endpoint in inspection.endpoints()] == ["localhost:7000"]
    assert [finding.text async for finding in inspection.server([])] == ["Acme 3"]
    assert [finding.subject async for finding in inspection.topic("orders")] == ["orders"]
    await inspection.close()


def test_a_plugin_without_the_hook_has_no_inspection(registered: Any) -> None:
    """None, also when another plugin has one."""
    assert registered() is None


@pytest.mark.parametrize(
    ("inspect", "error", "says"),
    [
        (lambda url, options: None, PluginContractError, "inspect_broker of acme-plugin must return an Inspection"),
        (lambda url, options: 1 / 0, PluginContractError, "inspect_broker of acme-plugin raised ZeroDivisionError"),
    ],
)
def test_a_hook_that_breaks_its_contract(registered: Any, inspect: Any, error: type[Exception], says: str) -> None:
    """The error names the hook and the plugin."""
    with pytest.raises(error, match=says):
        registered(inspect)


def test_a_secret_in_the_hooks_error_is_masked(registered: Any) -> None:
    """As with the hook that opens."""

    def inspect(url: BrokerURL) -> Inspection:
        raise ConfigError(f"bad {url.password.reveal() if url.password else ''}")

    with pytest.raises(ConfigError) as caught:
        registered(inspect)
    assert "canary" not in repr(caught.value)


@pytest.mark.parametrize(
    ("error", "step"),
    [
        (AuthenticationError("x"), "login"),
        (AuthorizationError("x"), "access"),
        (TLSError("x"), "tls"),
        (UnreachableError("x"), "tcp"),
        (TopologyError("x"), "topic"),
        (ProtocolError("x"), "server"),
    ],
)
def test_an_error_is_a_failure_of_its_step(error: Any, step: str) -> None:
    """With its text, and without the broker's name."""
    assert Finding.of(error, "h:1") == Finding(step, "fail", "h:1", "x")  # type: ignore[arg-type]
