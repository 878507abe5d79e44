"""What travels without protection to another host is said so when the broker is made, the same for both brokers."""

import ssl
import warnings

import pytest

from cqrs_brokers import ConfigError, InsecureTransportWarning, open_broker

SASL = "sasl_plain_username=bob&sasl_plain_password=s3cret-Pw"
INSECURE = {
    "amqp": "amqp://bob:s3cret-Pw@{}/",
    "kafka": f"kafka://{{}}?security_protocol=SASL_PLAINTEXT&{SASL}",
}
SECURE = {
    "amqp": "amqps://bob:s3cret-Pw@{}/",
    "kafka": f"kafka://{{}}?security_protocol=SASL_SSL&{SASL}",
}
ELSEWHERE = ["broker.example", "10.0.0.1", "[2001:db8::1]:1234", "localhost.example.com", "localhost,broker.example"]
LOOPBACK = ["localhost", "LocalHost.", "127.0.0.1", "127.8.9.1:1234", "[::1]", "localhost,127.0.0.1"]


def option(text: str, url: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{text}"


def warned(url: str, **keywords: object) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_broker(url, **keywords)
    assert all(warning.category is InsecureTransportWarning for warning in caught)
    assert not any("s3cret" in str(warning.message) for warning in caught)
    return caught


@pytest.mark.parametrize("host", ELSEWHERE)
@pytest.mark.parametrize("scheme", INSECURE)
def test_a_password_in_plain_text_to_another_host_warns_once(scheme: str, host: str) -> None:
    """One warning, which says what to write instead and shows no password; one host elsewhere is enough."""
    (warning,) = warned(INSECURE[scheme].format(host))
    assert {"amqp": "amqps://", "kafka": "SASL_SSL"}[scheme] in str(warning.message)


@pytest.mark.parametrize("host", LOOPBACK)
@pytest.mark.parametrize("scheme", INSECURE)
def test_loopback_does_not_warn(scheme: str, host: str) -> None:
    """What does not leave the machine needs no TLS."""
    assert warned(INSECURE[scheme].format(host)) == []


@pytest.mark.parametrize("host", ELSEWHERE)
@pytest.mark.parametrize("scheme", SECURE)
def test_verified_tls_does_not_warn(scheme: str, host: str) -> None:
    """With TLS and verification there is nothing to say, by string or by object."""
    assert warned(SECURE[scheme].format(host)) == []
    assert warned(SECURE[scheme].format(host), ssl_context=ssl.create_default_context()) == []


@pytest.mark.parametrize("host", ELSEWHERE)
@pytest.mark.parametrize("scheme", INSECURE)
def test_require_tls_makes_it_an_error(scheme: str, host: str) -> None:
    """A ConfigError, and no warning besides."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ConfigError, match="require_tls") as caught:
            open_broker(option("require_tls=true", INSECURE[scheme].format(host)))
        open_broker(option("require_tls=true", SECURE[scheme].format(host)))
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "host"),
    [
        ("amqp", "broker.example"),
        ("amqp", "localhost"),
        ("kafka", "broker.example"),
        ("kafka", "localhost"),
    ],
)
def test_unverified_tls_warns(scheme: str, host: str) -> None:
    """ssl_verify=false warns once, to any host."""
    assert len(warned(option("ssl_verify=false", SECURE[scheme].format(host)))) == 1


@pytest.mark.parametrize("scheme", ["amqp", "kafka"])
def test_a_context_that_does_not_verify_warns(scheme: str) -> None:
    """The same, switched off in a context object."""
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    assert len(warned(SECURE[scheme].format("broker.example"), ssl_context=unverified)) == 1


@pytest.mark.parametrize("scheme", ["amqp", "kafka"])
def test_require_tls_is_strict_on_loopback_too(scheme: str) -> None:
    """Who writes require_tls=true gets TLS or an error, whatever the host is called."""
    with pytest.raises(ConfigError, match="require_tls"):
        open_broker(option("require_tls=true", INSECURE[scheme].format("localhost")))
