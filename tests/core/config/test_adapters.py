"""The documented adapters of Kafka and RabbitMQ behave alike: one exception for one mistake."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cqrs_broker_amqp import AMQPMessageBroker, AMQPPublisherAdapter
from cqrs_broker_kafka import KafkaMessageBroker, KafkaProducerAdapter
from cqrs_brokers import Broker, ConfigError, InsecureTransportWarning
from cqrs_brokers.adapters import ConnectionAdapter
from cqrs_brokers.options import BrokerOptions
from cqrs_brokers.url import BrokerURL

Make = Callable[..., Any]


class UserOptions(BrokerOptions):
    url_parts = frozenset({"userinfo", "hosts"})


ADAPTERS: dict[str, tuple[Make, Make, str, str]] = {
    "amqp": (
        lambda **options: AMQPPublisherAdapter("amqp://localhost", **options),
        AMQPMessageBroker,
        "pika_log_level",
        "aiormq",
    ),
    "kafka": (
        lambda **options: KafkaProducerAdapter("localhost", **options),
        KafkaMessageBroker,
        "aiokafka_log_level",
        "aiokafka",
    ),
}


@pytest.fixture(params=sorted(ADAPTERS))
def plugin(request: pytest.FixtureRequest) -> tuple[Make, Make, str, str]:
    return ADAPTERS[request.param]


def test_something_else_than_an_adapter(plugin: tuple[Make, Make, str, str]) -> None:
    """A config string, or nothing, in the place of the adapter."""
    _, broker, _, _ = plugin
    for wrong in ("amqp://localhost", None, 5):
        with pytest.raises(ConfigError, match=r"must be an? \w+Adapter, not an? \w+"):
            broker(wrong)


def test_a_second_broker(plugin: tuple[Make, Make, str, str]) -> None:
    """An adapter serves one broker; the text is the same but for the class."""
    adapter, broker, _, _ = plugin
    shared = adapter()
    broker(shared)
    with pytest.raises(ConfigError, match="serves one broker, and this one is in use already: make another"):
        broker(shared)


def test_a_problem_of_the_url_names_its_source_when_the_adapter_is_taken(tmp_path: Path) -> None:
    """A file that the URL names may be gone by then."""
    password = tmp_path / "password"
    password.write_text("x")
    url = BrokerURL.parse(f"amqp://u@h?password_file={password}")
    adapter = ConnectionAdapter(UserOptions, lambda url, options: None, url, {}, source="dsn")
    password.unlink()
    with pytest.raises(ConfigError, match=r"^dsn: password_file: the file cannot be read"):
        adapter.take(connect_timeout=5)


@pytest.mark.parametrize("serializer", ["json", 5])
def test_a_serializer_that_is_none(plugin: tuple[Make, Make, str, str], serializer: object) -> None:
    """It must be callable."""
    with pytest.raises(ConfigError, match="value_serializer must be callable"):
        plugin[0](value_serializer=serializer)


def test_options_by_name(plugin: tuple[Make, Make, str, str]) -> None:
    """Unknown and wrong ones are reported together when the adapter is made."""
    with pytest.raises(ConfigError) as caught:
        plugin[0](delivery_timeot=3, max_in_flight=0)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("level", ["error", "ERROR", logging.ERROR])
def test_a_log_level_in_any_spelling(plugin: tuple[Make, Make, str, str], level: object) -> None:
    """A name in upper or lower case, or a number."""
    adapter, broker, option, name = plugin
    client = logging.getLogger(name)
    before = client.level
    try:
        broker(adapter(), **{option: level})
        assert client.level == logging.ERROR
    finally:
        for logger in (name, "aio_pika"):
            logging.getLogger(logger).setLevel(before)


@pytest.mark.parametrize("level", ["LOUD", "", 1.5, True, b"ERROR"])
def test_a_log_level_that_is_none(plugin: tuple[Make, Make, str, str], level: object) -> None:
    """The same error for both, nothing is changed, and the adapter serves a second try."""
    adapter, broker, option, name = plugin
    before = logging.getLogger(name).level
    shared = adapter()
    with pytest.raises(ConfigError, match=f"{option} must be a level of the logging module, for example ERROR"):
        broker(shared, **{option: level})
    assert logging.getLogger(name).level == before
    broker(shared)


def test_the_serializer_reaches_the_broker(plugin: tuple[Make, Make, str, str]) -> None:
    """Name, URL and options do, too."""
    adapter, broker, _, _ = plugin
    made: Broker = broker(adapter(value_serializer=lambda payload: b"x", delivery_timeout=3))
    assert str(made.url) == f"{made.name}://localhost"
    assert made.describe()["options"]["delivery_timeout"].value == "3s"


@pytest.mark.parametrize(
    ("make", "broker"),
    [
        (lambda: AMQPPublisherAdapter("amqp://u:p@broker.example"), AMQPMessageBroker),
        (lambda: AMQPPublisherAdapter("amqp://u:p@broker.example"), lambda adapter: AMQPMessageBroker(adapter, "x")),
        (
            lambda: KafkaProducerAdapter("h", security_protocol="SSL", ssl_verify=False),
            KafkaMessageBroker,
        ),
    ],
)
def test_a_warning_comes_once_and_points_at_the_application(make: Make, broker: Make) -> None:
    """At the line that makes the broker."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        broker(make())
    assert [(warning.category, warning.filename) for warning in caught] == [(InsecureTransportWarning, __file__)]
