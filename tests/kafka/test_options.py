"""The config string's options and the adapter's: the same names, the same checks, the same settings."""

import json
import logging
import ssl
from pathlib import Path
from typing import Any

import pytest

from cqrs_broker_kafka import KafkaMessageBroker, KafkaOptions, KafkaProducerAdapter
from cqrs_broker_kafka._settings import KafkaSettings
from cqrs_brokers import ConfigError, open_broker
from cqrs_brokers.exceptions import InsecureTransportWarning
from cqrs_brokers.options import resolve_options
from cqrs_brokers.url import BrokerURL

SASL = "security_protocol=SASL_SSL&sasl_plain_username=u&sasl_plain_password=s3cret-pass"


def settings(text: str, **keywords: object) -> KafkaSettings:
    url = BrokerURL.parse(text)
    return KafkaSettings(url, resolve_options(KafkaOptions, url=url, keywords=keywords).options)


def test_defaults_are_safe() -> None:
    """acks=all, idempotence and a request timeout of 15 s, on port 9092."""
    made = settings("kafka://h1,h2:9093")
    options = made.options
    assert (options.acks, options.enable_idempotence, options.request_timeout_ms) == ("all", True, 15_000)
    assert [str(host) for host in made.hosts] == ["h1:9092", "h2:9093"]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("acks=1", "enable_idempotence=false"),
        ("acks=2", "acks"),
        ("enable_idempotence=false", "allow_unsafe=true"),
        ("acks=0&enable_idempotence=false", "allow_unsafe=true"),
        ("akcs=all", "acks"),
        ("max_batch_size=0", "max_batch_size"),
        ("request_timeout_ms=ten", "request_timeout_ms"),
        ("sasl_plain_username=u", "security_protocol"),
        ("security_protocol=SASL_SSL", "sasl_plain_username and sasl_plain_password"),
        ("security_protocol=SASL_SSL&sasl_mechanism=OAUTHBEARER", "sasl_oauth_token_provider"),
        ("security_protocol=SASL_SSL&sasl_mechanism=GSSAPI", "sasl_mechanism"),
        ("ssl_cafile=/x", "security_protocol=SSL"),
        ("ssl_verify=false", "security_protocol=SSL"),
        ("require_tls=true", "security_protocol=SSL"),
        ("security_protocol=SSL&ssl_keyfile=/x", "ssl_certfile"),
        ("security_protocol=SSL&ssl_cafile=/no/such/file", "ssl_cafile"),
        ("ssl_context=x", "keyword"),
    ],
)
def test_wrong_options_are_refused(query: str, says: str) -> None:
    """Each mistake is a ConfigError that names what to change."""
    with pytest.raises(ConfigError, match=says):
        settings(f"kafka://h?{query}")


def test_a_token_provider_must_be_one() -> None:
    """Anything else is refused when the broker is made, not at the first connection."""
    with pytest.raises(ConfigError, match="AbstractTokenProvider"):
        open_broker("kafka://h?security_protocol=SASL_PLAINTEXT", sasl_oauth_token_provider=lambda: "token")


def test_a_user_in_the_url_is_refused() -> None:
    """Kafka's credentials are sasl_ options; a user part would be silently ignored."""
    with pytest.raises(ConfigError, match="takes no user"):
        open_broker("kafka://user:password@h")


def test_no_host() -> None:
    """A string without hosts is refused, not taken for localhost."""
    with pytest.raises(ConfigError, match="no host"):
        open_broker("kafka://")


def test_missing_codec_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compression without its library is refused when the broker is made, with the pip command."""
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'cqrs-broker-kafka\[zstd\]'"):
        settings("kafka://h?compression_type=zstd")


def test_gzip_needs_nothing() -> None:
    """gzip is Python's own."""
    assert settings("kafka://h?compression_type=gzip").options.compression_type == "gzip"


def test_credentials_over_plain_text_warn() -> None:
    """A user and password without TLS to a host that is not loopback: a warning."""
    text = f"kafka://broker.example?{SASL}".replace("SASL_SSL", "SASL_PLAINTEXT")
    with pytest.warns(InsecureTransportWarning, match="SASL_SSL"):
        settings(text)


def test_no_warning_on_loopback() -> None:
    """The same to loopback is nobody's business (warnings are errors here)."""
    settings(f"kafka://127.0.0.1,localhost,[::1]?{SASL}".replace("SASL_SSL", "SASL_PLAINTEXT"))


def test_no_verification_warns() -> None:
    """ssl_verify=false warns, and switches host name and certificate checks off."""
    with pytest.warns(InsecureTransportWarning, match="ssl_verify"):
        made = settings("kafka://h?security_protocol=SSL&ssl_verify=false")
    assert made.ssl_context is not None
    assert made.ssl_context.verify_mode is ssl.CERT_NONE


def test_verification_is_on_by_default() -> None:
    """TLS checks certificate and host name."""
    context = settings("kafka://h?security_protocol=SSL").ssl_context
    assert context is not None
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_encrypted_key_does_not_ask_on_the_terminal(tmp_path: Path) -> None:
    """An encrypted key file is a ConfigError; OpenSSL would wait for a passphrase."""
    import subprocess

    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-passout", "pass:secret", "-subj", "/CN=x"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    with pytest.raises(ConfigError, match="encrypted"):
        settings(f"kafka://h?security_protocol=SSL&ssl_certfile={certificate}&ssl_keyfile={key}")


def test_adapter_and_string_build_the_same() -> None:
    """Every option of the string can be given to the adapter by name, with the same result."""
    unsafe = "acks=1&enable_idempotence=false&allow_unsafe=true"
    query = f"client_id=my-app&{unsafe}&max_batch_size=64KiB&delivery_timeout=5s"
    string = settings(f"kafka://h1:9092,h2:9092?{query}")
    adapter = KafkaProducerAdapter(
        bootstrap_servers=["h1:9092", "h2:9092"],
        client_id="my-app",
        acks=1,
        enable_idempotence=False,
        allow_unsafe=True,
        max_batch_size=65536,
        delivery_timeout=5,
    )
    made = adapter.take().settings
    assert made.options == string.options
    assert made.hosts == string.hosts


@pytest.mark.parametrize("arguments", [{"dsn": "h1:9092,h2:9092"}, {"dsn": "kafka://h1:9092,h2:9092"}])
def test_dsn_is_bootstrap_servers_as_text(arguments: dict[str, Any]) -> None:
    """`dsn=` names the same servers."""
    made = KafkaProducerAdapter(**arguments).take().settings
    assert [str(host) for host in made.hosts] == ["h1:9092", "h2:9092"]


@pytest.mark.parametrize(
    ("dsn", "says"),
    [
        ("", "dsn must name at least one host:port"),
        ("h1:9092,,h2:9092", "dsn must name at least one host:port"),
        ("app:c4nary@h1:9092", "dsn has a user"),
        (b"h1:9092", "dsn must name at least one host:port, each as text"),
        (9092, "dsn must be text"),
    ],
)
def test_a_wrong_dsn_is_named(dsn: object, says: str) -> None:
    """The text names the argument that was given, and not the other one for the same hosts."""
    with pytest.raises(ConfigError, match=says) as caught:
        KafkaProducerAdapter(dsn=dsn)  # type: ignore[arg-type]
    assert "bootstrap_servers" not in str(caught.value)


@pytest.mark.parametrize(
    ("servers", "says"),
    [
        (["SASL_SSL://h1:9092", "SASL_SSL://h2:9092"], "leave it out, and give security_protocol=SASL_SSL"),
        ("PLAINTEXT://h1:9092,PLAINTEXT://h2:9092", "a scheme in front of a host: leave it out"),
        ("kafka://h1:9092", "a scheme in front of a host: leave it out"),
        ("app:c4nary@h1:9092", "give sasl_plain_username= and sasl_plain_password= instead"),
        ("h1:9092;h2:9092", "write commas"),
    ],
)
def test_bootstrap_servers_as_other_clients_write_them(servers: object, says: str) -> None:
    """The text says what to write, and quotes nothing."""
    with pytest.raises(ConfigError, match=says) as caught:
        KafkaProducerAdapter(bootstrap_servers=servers)  # type: ignore[arg-type]
    assert "c4nary" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"bootstrap_servers": "h", "dsn": "h"},
        {"bootstrap_servers": []},
        {"bootstrap_servers": [1]},
        {"bootstrap_servers": "http://h:9092"},
        {"bootstrap_servers": "h:notaport"},
        {"dsn": "amqp://h"},
        {"bootstrap_servers": "h", "retry_count": 0},
        {"bootstrap_servers": "h", "value_serializer": "json"},
        {"bootstrap_servers": "h", "nonsense": 1},
    ],
)
def test_adapter_refuses(arguments: dict[str, Any]) -> None:
    """What cannot mean anything is a ConfigError, not ignored."""
    with pytest.raises(ConfigError):
        KafkaProducerAdapter(**arguments)


def test_documented_block_builds_before_any_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The documented adapter and broker are made without an event loop and without I/O."""
    import cqrs_broker_kafka as kafka

    monkeypatch.setattr("socket.socket", None)
    monkeypatch.setattr(logging.getLogger("aiokafka"), "level", logging.getLogger("aiokafka").level)
    kafka_producer = KafkaProducerAdapter(
        bootstrap_servers=["localhost:9092"],
        client_id="my-app",
        acks="all",
        enable_idempotence=True,
    )
    kafka_broker = kafka.KafkaMessageBroker(
        producer=kafka_producer,
        aiokafka_log_level="ERROR",
    )
    assert kafka_broker.url == "kafka://localhost:9092"
    assert logging.getLogger("aiokafka").level == logging.ERROR
    assert kafka_broker.capabilities.confirms


def test_an_adapter_serves_one_broker() -> None:
    """A second broker from one adapter is refused."""
    adapter = KafkaProducerAdapter("localhost:9092")
    KafkaMessageBroker(adapter)
    with pytest.raises(ConfigError, match="serves one"):
        KafkaMessageBroker(adapter)


def test_level_is_left_alone_unless_given() -> None:
    """Making a broker changes no logger's level; a wrong level is a ConfigError."""
    before = logging.getLogger("aiokafka").level
    KafkaMessageBroker(KafkaProducerAdapter("localhost"))
    assert logging.getLogger("aiokafka").level == before
    with pytest.raises(ConfigError, match="aiokafka_log_level"):
        KafkaMessageBroker(KafkaProducerAdapter("localhost"), aiokafka_log_level="LOUD")


def test_no_secret_is_shown() -> None:
    """Neither the settings nor the adapter nor the broker shows the password."""
    broker = open_broker(f"kafka://h?{SASL}")
    adapter = KafkaProducerAdapter(dsn=f"kafka://h?{SASL}")
    shown = [repr(broker), str(broker.url), json.dumps(broker.describe(), default=str), repr(adapter)]
    shown += [repr(settings(f"kafka://h?{SASL}")), repr(vars(adapter)), repr(vars(broker.driver))]
    assert not [text for text in shown if "s3cret" in text]


def test_import_does_not_load_aiokafka() -> None:
    """The plugin module is light: aiokafka is imported when a broker is made."""
    import subprocess
    import sys

    code = "import sys, cqrs_broker_kafka; assert 'aiokafka' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
