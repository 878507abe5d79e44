"""No secret shows anywhere (I10): in what a broker is made of, and in every way in which making one can fail."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiokafka.abc import AbstractTokenProvider

from cqrs_broker_amqp import AMQPMessageBroker, AMQPOptions, AMQPPublisherAdapter
from cqrs_broker_amqp._settings import AMQPSettings
from cqrs_broker_kafka import KafkaMessageBroker, KafkaOptions, KafkaProducerAdapter, KafkaSettings
from cqrs_brokers import (
    AmbiguousPluginError,
    Broker,
    BrokerError,
    ConfigError,
    PluginContractError,
    PluginLoadError,
    PluginNotFoundError,
    exceptions,
    open_broker,
)
from cqrs_brokers.hooks import hookimpl, register_plugin, unregister_plugin
from cqrs_brokers.options import BrokerOptions, resolve_options
from cqrs_brokers.url import BrokerURL
from cqrs_brokers_testkit.canary import Canary, CanaryScanner

from .planting import Planted

NOWHERE = "127.0.0.1:1"

# -- secret places -----------------------------------------------------------------------------------------------------


class Provider(AbstractTokenProvider):  # type: ignore[misc]
    """A token provider that talks."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def token(self) -> str:
        return self._token

    def __repr__(self) -> str:
        return self._token


def by_adapter(password: str) -> Broker:
    return AMQPMessageBroker(AMQPPublisherAdapter(f"amqp://bob@{NOWHERE}/", password=password))


def by_dsn(password: str) -> Broker:
    return AMQPMessageBroker(AMQPPublisherAdapter(f"amqp://bob:{quote(password, safe='')}@{NOWHERE}/"))


def by_producer(password: str) -> Broker:
    producer = KafkaProducerAdapter(
        NOWHERE, security_protocol="SASL_PLAINTEXT", sasl_plain_username="bob", sasl_plain_password=password
    )
    return KafkaMessageBroker(producer=producer)


def by_producer_dsn(password: str) -> Broker:
    return KafkaMessageBroker(producer=KafkaProducerAdapter(dsn=f"{KAFKA}&sasl_plain_password={quote(password)}"))


KAFKA = f"kafka://{NOWHERE}?security_protocol=SASL_PLAINTEXT&sasl_plain_username=bob"
PLACES: dict[str, Callable[[str], Broker]] = {
    "amqp: user part": lambda pw: open_broker(f"amqp://bob:{quote(pw, safe='')}@{NOWHERE}/"),
    "amqp: keyword": lambda pw: open_broker(f"amqp://bob@{NOWHERE}/", password=pw),
    "amqp: file": lambda pw: open_broker(f"amqp://bob@{NOWHERE}/?password_file=secret.txt"),
    "amqp: environment": lambda pw: open_broker(f"amqp://bob@{NOWHERE}/?password_env=SECRET"),
    "amqp: keyword overrides": lambda pw: open_broker(f"amqp://bob:{quote(pw, safe='')}@{NOWHERE}/", password=pw + "x"),
    "amqp: adapter's keyword": by_adapter,
    "amqp: adapter's dsn": by_dsn,
    "kafka: string": lambda pw: open_broker(f"{KAFKA}&sasl_plain_password={quote(pw, safe='')}"),
    "kafka: keyword": lambda pw: open_broker(KAFKA, sasl_plain_password=pw),
    "kafka: file": lambda pw: open_broker(f"{KAFKA}&sasl_plain_password_file=secret.txt"),
    "kafka: environment": lambda pw: open_broker(f"{KAFKA}&sasl_plain_password_env=SECRET"),
    "kafka: adapter's keyword": by_producer,
    "kafka: adapter's dsn": by_producer_dsn,
    "kafka: token provider": lambda pw: open_broker(
        f"kafka://{NOWHERE}?security_protocol=SASL_PLAINTEXT", sasl_oauth_token_provider=Provider(pw)
    ),
}


@pytest.fixture
def places(planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planted:
    """The nasty password is also in a file and in the environment."""
    (tmp_path / "secret.txt").write_text(planted.nasty.text + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", planted.nasty.text)
    return planted


@pytest.mark.parametrize("place", PLACES)
async def test_secret_places(places: Planted, place: str) -> None:
    """Neither the broker nor any part or error of it shows the secret, before and after it tried to connect."""
    broker = PLACES[place](places.nasty.text)
    await places.look_at_broker(broker)
    await places.outcome(broker.connect())
    await places.look_at_broker(broker)
    await broker.close()
    assert places.seen == {exceptions.UnreachableError}


def test_settings(places: Planted) -> None:
    """Nor do the settings, the options and the URL that a broker is made of."""
    secret = places.nasty.text
    url = BrokerURL.parse(f"amqp://bob:{quote(secret, safe='')}@{NOWHERE}/v?password_token={quote(secret, safe='')}")
    for part in (url, url.password, url.query, [url]):
        places.scanner.value("a URL", part)
    resolved = resolve_options(
        AMQPOptions, url=BrokerURL.parse(f"amqp://bob@{NOWHERE}/"), keywords={"password": secret}
    )
    assert resolved.url is not None
    places.scanner.value("settings", AMQPSettings.of(resolved.url, resolved.options))
    places.scanner.value("resolved options", resolved)
    also = resolve_options(KafkaOptions, url=BrokerURL.parse(KAFKA), keywords={"sasl_plain_password": secret})
    assert also.url is not None
    assert also.options.sasl_plain_password is not None
    assert also.options.sasl_plain_password.reveal() == secret
    places.scanner.value("settings", KafkaSettings(also.url, also.options))
    places.scanner.value("options", also.options)
    places.scanner.value("resolved options", also)


def test_adapters(places: Planted) -> None:
    """Nor do the adapters, with the secret in the string."""
    secret = quote(places.nasty.text, safe="")
    places.scanner.value("an adapter", AMQPPublisherAdapter(f"amqp://bob:{secret}@{NOWHERE}/"))
    places.scanner.value("an adapter", KafkaProducerAdapter(dsn=f"{KAFKA}&sasl_plain_password={secret}"))


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(
            lambda secret: AMQPPublisherAdapter(f"amqp://bob@{NOWHERE}/", password=secret),
            id="amqp",
        ),
        pytest.param(lambda secret: KafkaProducerAdapter(dsn=KAFKA, sasl_plain_password=secret), id="kafka"),
    ],
)
def test_adapters_with_keywords(made: Callable[[str], object], server_password: Canary) -> None:
    """The same with the secret as a keyword."""
    scanner = CanaryScanner(server_password)
    scanner.value("an adapter", made(server_password.text))
    scanner.check()


# -- config errors -----------------------------------------------------------------------------------------------------

WRONG = [
    "amqp://bob:{}@h?heartbeat=x&exchnge=y",
    "amqp://bob:{}@h:port",
    "amqp://bob:{}@@h",
    "amqp://bob:{}",
    "amqp://bob:{}@",
    "amqp://:{}@h",
    "amqp:bob:{}@h",
    "bob:{}@h",
    "://bob:{}@h",
    "amqp://bob:{} @h",
    "amqp://bob:{}%zz@h",
    "amqp://bob:x@h,bob:{}@h2",
    "amqp://bob:{}@h?password={}",
    "amqp://bob:{}@h?password_env={}",
    "amqp://bob@h?password_file={}",
    "amqp://bob@h?password_env={}",
    "amqps://bob:x@h?ssl_keyfile_password={}",
    "amqps://bob:x@h?ssl_cafile=nowhere.pem&ssl_verify=maybe&token={}",
    "kafka://bob:{}@h",
    "kafka://h?sasl_plain_password={}",
    "kafka://h?sasl_plain_pasword={}",
    "kafka://h?security_protocol=SASL_SSL&sasl_plain_password={}",
    "kafka://h?security_protocol=SASL_PLAIN&sasl_plain_username=b&sasl_plain_password={}&acks=2",
    "kafka://h?sasl_plain_password=x&{}",
    "kafka://h?sasl_plain_password=x&{}=y",
    "kafka://h?sasl_plain_password=a&sasl_plain_password={}",
    "kafka://h?sasl_plain_password_file={}",
    "kafka://h?security_protocol=SSL&ssl_keyfile_password={}",
    "kafka://h?my_secret={}",
]
KEYWORDS: list[tuple[str, dict[str, Callable[[str], object]]]] = [
    ("amqp://bob@h", {"password": lambda pw: pw.encode()}),
    ("amqp://h", {"password": lambda pw: pw}),
    ("amqp://bob:x@h", {"password": lambda pw: [pw]}),
    ("amqp://bob@h", {"password_file": lambda pw: pw, "password_env": lambda pw: pw}),
    ("amqp://bob@h", {"password": lambda pw: pw, "heartbeat": lambda pw: -1, "passwort": lambda pw: pw}),
    ("amqps://bob:x@h", {"ssl_context": lambda pw: Provider(pw)}),
    ("kafka://h", {"sasl_plain_password": lambda pw: pw}),
    ("kafka://h", {"sasl_plain_password": lambda pw: {pw: pw}, "acks": lambda pw: 7}),
    ("kafka://h", {"sasl_oauth_token_provider": lambda pw: Provider(pw), "linger": lambda pw: 1}),
    ("kafka://h?security_protocol=SASL_SSL", {"sasl_plain_password": lambda pw: Provider(pw)}),
]


def refused(planted: Planted, make: Callable[[], object], *classes: type[BrokerError]) -> None:
    with pytest.raises(classes) as caught:
        make()
    assert type(caught.value) in classes
    planted.look_at(caught.value)


@pytest.mark.parametrize("text", WRONG)
@pytest.mark.parametrize("encoded", [True, False])
def test_wrong_strings(places: Planted, text: str, encoded: bool) -> None:
    """Every mistake beside, in and because of a secret, which is percent-encoded or not."""
    secret = quote(places.nasty.text, safe="") if encoded else places.nasty.text
    text = text.replace("{}", secret)
    refused(places, lambda: open_broker(text), ConfigError)
    refused(places, lambda: BrokerURL.parse(text) and AMQPPublisherAdapter(text), ConfigError)


@pytest.mark.parametrize(("text", "keywords"), KEYWORDS)
def test_wrong_keywords(places: Planted, text: str, keywords: dict[str, Callable[[str], object]]) -> None:
    """The same for keywords, with the secret in a value of the right and of a wrong type."""
    given = {name: make(places.nasty.text) for name, make in keywords.items()}
    refused(places, lambda: open_broker(text, **given), ConfigError)


def test_files_that_hold_no_secret(places: Planted, tmp_path: Path) -> None:
    """A file with two lines, with binary data and a folder; no error quotes what was read."""
    (tmp_path / "two").write_text(f"{places.nasty}\n{places.password}\n")
    (tmp_path / "binary").write_bytes(b"\xff" + places.nasty.text.encode())
    for name in ("two", "binary", "."):
        refused(places, lambda name=name: open_broker("amqp://bob@h", password_file=name), ConfigError)


# -- plugin errors -----------------------------------------------------------------------------------------------------


class Quotes:
    """A plugin that puts the password it was given into whatever it raises."""

    def __init__(self, kind: type[Exception]) -> None:
        self.kind = kind

    @hookimpl
    def broker_options(self) -> type[BrokerOptions]:
        return AMQPOptions

    @hookimpl
    def open_message_broker(self, url: BrokerURL, options: BrokerOptions) -> Any:
        assert url.password is not None
        try:
            raise KeyError(url.password.reveal())
        except KeyError as error:
            raise self.kind(f"cannot use {url.render(reveal=True)}") from error


@pytest.mark.parametrize("kind", [ValueError, ConfigError, PluginLoadError, AmbiguousPluginError])
def test_plugins_that_quote_the_password(places: Planted, kind: type[Exception]) -> None:
    """Neither the plugin's own error nor its cause shows it."""
    plugin = Quotes(kind)
    register_plugin("quotes", plugin)
    try:
        expected = kind if issubclass(kind, BrokerError) else PluginContractError
        refused(places, lambda: open_broker(f"quotes://bob:{places.password}@h"), expected)
    finally:
        unregister_plugin(plugin)


def test_plugins_that_quote_an_encoded_password() -> None:
    """The same when the password is quoted in the form that it has in a URL."""
    secret = Canary("the password", between="/")
    scanner = CanaryScanner(secret)
    plugin = Quotes(ConfigError)
    register_plugin("quotes", plugin)
    try:
        with pytest.raises(ConfigError) as caught:
            open_broker(f"quotes://bob:{quote(secret.text, safe='')}@h")
    finally:
        unregister_plugin(plugin)
    scanner.error("an error", caught.value)
    scanner.check()


@pytest.mark.parametrize("scheme", ["nowhere", "ampq", "kafka+nothing", "nats"])
def test_schemes_that_are_not_there(places: Planted, scheme: str) -> None:
    """Not installed and misspelt."""
    secret = quote(places.nasty.text, safe="")
    refused(places, lambda: open_broker(f"{scheme}://bob:{secret}@h?x={places.password}"), PluginNotFoundError)
