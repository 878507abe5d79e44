"""Options and settings: the config string, the adapter, and what is refused before anything is opened."""

import logging
import ssl
import warnings
from pathlib import Path
from typing import Any

import pytest

from cqrs_broker_amqp import AMQPMessageBroker, AMQPOptions, AMQPPublisherAdapter
from cqrs_broker_amqp._driver import AMQPDriver
from cqrs_broker_amqp._settings import AMQPSettings
from cqrs_brokers import Broker, ConfigError, InsecureTransportWarning, open_broker
from cqrs_brokers.options import resolve_options
from cqrs_brokers.url import BrokerURL
from cqrs_brokers_testkit.certificates import Certificates

SECRET = "c4nary-S3CRET"


def settings(url: str, **keywords: object) -> AMQPSettings:
    resolved = resolve_options(AMQPOptions, url=BrokerURL.parse(url), keywords=keywords)
    assert resolved.url is not None
    return AMQPSettings.of(resolved.url, resolved.options)


def test_defaults() -> None:
    """A bare loopback string means guest, virtual host /, the topic exchange "events", heartbeat 10."""
    found = settings("amqp://localhost")
    assert (found.hosts, found.username, found.password.reveal()) == ((("localhost", 5672),), "guest", "guest")
    assert (found.vhost, found.tls) == ("/", None)
    options = found.options
    assert (options.exchange, options.exchange_type, options.declare) == ("events", "topic", "exchange")
    assert options.heartbeat == 10


@pytest.mark.parametrize(
    ("path", "vhost"), [("", "/"), ("/", "/"), ("/%2F", "/"), ("/a", "a"), ("/a%2Fb", "a/b"), ("/a%25b", "a%b")]
)
def test_virtual_hosts(path: str, vhost: str) -> None:
    """The path is the virtual host, decoded once; none is /."""
    assert settings(f"amqp://u:p@localhost{path}").vhost == vhost


def test_several_hosts() -> None:
    """Hosts keep their order; ports have the scheme's default."""
    assert settings("amqps://u:p@h1,h2:1234,[::1]").hosts == (("h1", 5671), ("h2", 1234), ("::1", 5671))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("amqp://", "there is no host"),
        ("amqp://rabbit.example.com", "guest may log in on loopback only"),
        ("amqp://127.0.0.1,rabbit.example.com", "guest may log in on loopback only"),
        ("amqp://bob@localhost", "without a password"),
        ("amqp://localhost?heartbeat=abc", "whole number"),
        ("amqp://localhost?heartbeat=0", "heartbeat"),
        ("amqp://localhost?heartbeat=65535", "heartbeat"),
        ("amqp://localhost?exchage=x", "did you mean 'exchange'"),
        ("amqp://localhost?exchange_type=topics", "topic"),
        ("amqp://localhost?declare=always", "passive"),
        ("amqp://localhost?exchange=" + "x" * 128, "exchange"),
        ("amqp://localhost?exchange=a%22b", "exchange"),
        ("amqp://localhost?max_message_bytes=0", "max_message_bytes"),
        ("amqp://localhost?retry_count=0", "retry_count"),
        ("amqp://localhost?ssl_cafile=/x", "amqps://"),
        ("amqp://localhost?no_verify_ssl=1", "unknown option 'no_verify_ssl'"),
        ("amqps://localhost?ssl_cafile=/does/not/exist", "ssl_cafile cannot be used"),
        ("amqps://localhost?ssl_keyfile=/x", "ssl_keyfile needs ssl_certfile"),
        ("amqp://user:password@h.example.com?require_tls=true", "write amqps://"),
        ("amqp://u:p@localhost/" + "v" * 256, "virtual host"),
    ],
)
def test_refused(url: str, says: str) -> None:
    """What is wrong is a ConfigError that says what would be right."""
    with pytest.raises(ConfigError) as caught:
        open_broker(url)
    assert says in str(caught.value)


def test_no_secret_in_errors() -> None:
    """A wrong string does not give its password away."""
    with pytest.raises(ConfigError) as caught:
        open_broker(f"amqp://bob:{SECRET}@rabbit.example.com?heartbeat=x&declare=nothing&ssl_verify=no")
    assert SECRET not in str(caught.value) + repr(caught.value)


def test_plain_text_to_another_host_warns() -> None:
    """Credentials in plain text to a host that is not loopback warn; loopback does not."""
    with pytest.warns(InsecureTransportWarning, match="amqps://") as caught:
        open_broker(f"amqp://bob:{SECRET}@rabbit.example.com")
    assert SECRET not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_broker(f"amqp://bob:{SECRET}@127.0.0.2")


def test_unverified_tls_warns() -> None:
    """ssl_verify=false warns, and does what it says."""
    with pytest.warns(InsecureTransportWarning, match="not verified"):
        found = settings("amqps://u:p@rabbit.example.com?ssl_verify=false")
    assert found.tls is not None
    assert found.tls.verify_mode is ssl.CERT_NONE


def test_tls_files(certificates: Certificates, tmp_path: Path) -> None:
    """TLS verifies by default; broken files are named."""
    found = settings(f"amqps://u:p@rabbit.example.com?ssl_cafile={certificates.ca}")
    assert found.tls is not None
    assert found.tls.verify_mode is ssl.CERT_REQUIRED
    assert found.tls.check_hostname
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    with pytest.raises(ConfigError, match="ssl_cafile cannot be used"):
        settings(f"amqps://u:p@localhost?ssl_cafile={broken}")
    with pytest.raises(ConfigError, match="ssl_certfile and ssl_keyfile cannot be used"):
        settings(f"amqps://u:p@localhost?ssl_certfile={broken}")


def test_ssl_context_is_a_keyword() -> None:
    """An own context is used as it is, and does not go together with the other ssl options."""
    context = ssl.create_default_context()
    assert settings("amqps://u:p@h.example.com", ssl_context=context).tls is context
    with pytest.raises(ConfigError, match="takes the place of ssl_verify"):
        settings("amqps://u:p@localhost?ssl_verify=false", ssl_context=context)
    with pytest.raises(ConfigError, match="write amqps://"):
        settings("amqp://u:p@localhost", ssl_context=context)


def test_settings_show_no_secret() -> None:
    """The settings, the adapter and the broker show no password."""
    url = f"amqp://bob:{SECRET}@localhost"
    adapter = AMQPPublisherAdapter(url)
    broker = open_broker(url)
    shown = f"{settings(url)!r} {adapter!r} {broker!r} {broker.describe()} {broker.url}"
    assert SECRET not in shown


def test_the_documented_block_builds_without_an_event_loop() -> None:
    """The documented classes take the documented arguments, before any loop runs."""
    publisher = AMQPPublisherAdapter(dsn="amqp://user:password@localhost/")
    broker = AMQPMessageBroker(publisher=publisher, exchange_name="events")
    assert isinstance(broker, Broker)
    assert isinstance(broker.driver, AMQPDriver)
    assert broker.name == "amqp"


def test_both_routes_build_the_same() -> None:
    """The config string and the adapter mean the same settings, and describe them alike."""
    text = "amqp://u:p@localhost/v?exchange=e&declare=queue&heartbeat=5&delivery_timeout=3s&retry_count=2"
    one = open_broker(text)
    keywords: dict[str, Any] = {
        "exchange": "e",
        "declare": "queue",
        "heartbeat": 5,
        "delivery_timeout": 3,
        "retry_count": 2,
    }
    two = AMQPMessageBroker(AMQPPublisherAdapter("amqp://u:p@localhost/v", **keywords))
    for broker in (one, two):
        assert isinstance(broker.driver, AMQPDriver)
    assert one.driver._settings.options == two.driver._settings.options  # type: ignore[attr-defined]
    assert {n: o.value for n, o in one.describe()["options"].items()} == {
        n: o.value for n, o in two.describe()["options"].items()
    }


def test_exchange_name() -> None:
    """exchange_name sets the exchange, and may not contradict the adapter's own."""
    broker = AMQPMessageBroker(AMQPPublisherAdapter("amqp://localhost"), "orders")
    assert broker.describe()["options"]["exchange"].value == "orders"
    AMQPMessageBroker(AMQPPublisherAdapter("amqp://localhost?exchange=orders"), "orders")
    with pytest.raises(ConfigError, match="contradicts"):
        AMQPMessageBroker(AMQPPublisherAdapter("amqp://localhost?exchange=events"), "orders")
    with pytest.raises(ConfigError, match="exchange"):
        AMQPMessageBroker(AMQPPublisherAdapter("amqp://localhost"), "a\nb")


def test_an_adapter_serves_one_broker() -> None:
    """A second broker on one adapter is a mistake."""
    adapter = AMQPPublisherAdapter("amqp://localhost")
    AMQPMessageBroker(adapter)
    with pytest.raises(ConfigError, match="serves one broker, and this one is in use already"):
        AMQPMessageBroker(adapter)
    with pytest.raises(ConfigError, match="AMQPPublisherAdapter"):
        AMQPMessageBroker("amqp://localhost")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="not RabbitMQ"):
        AMQPPublisherAdapter("kafka://localhost")


def test_log_level_only_when_asked() -> None:
    """Levels of the client's loggers change only with pika_log_level."""
    client = logging.getLogger("aiormq")
    before = client.level
    try:
        AMQPMessageBroker(AMQPPublisherAdapter("amqp://localhost"))
        assert client.level == before
        AMQPMessageBroker(AMQPPublisherAdapter("amqp://localhost"), pika_log_level="CRITICAL")
        assert client.level == logging.CRITICAL
        with pytest.raises(ConfigError, match="pika_log_level"):
            AMQPMessageBroker(AMQPPublisherAdapter("amqp://localhost"), pika_log_level="LOUD")
    finally:
        client.setLevel(before)
        logging.getLogger("aio_pika").setLevel(logging.NOTSET)


def test_refused_topics() -> None:
    """With declare=queue a topic must do as a queue's name; otherwise any routing key will."""
    queues = AMQPDriver(settings("amqp://localhost?declare=queue"))
    assert queues.refuse_topic("orders.eu") is None
    assert "amq." in (queues.refuse_topic("amq.orders") or "")
    assert "letters" in (queues.refuse_topic("bestellungen-ö") or "")
    assert AMQPDriver(settings("amqp://localhost")).refuse_topic("bestellungen-ö") is None
