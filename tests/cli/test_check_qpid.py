"""`check` with Apache Qpid Broker-J, which speaks AMQP and is no RabbitMQ."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from cqrs_brokers_testkit.certificates import Certificates
from cqrs_brokers_testkit.pytest_plugin import available
from cqrs_brokers_testkit.readers import bind_queue, drain_queue
from cqrs_brokers_testkit.servers import QpidServer, qpid

from .conftest import check

pytestmark = [pytest.mark.live, pytest.mark.fault, pytest.mark.timeout(180)]

Name = Callable[[str], str]


@pytest.fixture(scope="module")
def server(certificates: Certificates) -> Iterator[QpidServer]:
    with available(qpid(certificates=certificates)) as started:
        bind_queue(started.reader_url, "shop", "orders", "orders-of-the-shop")
        yield started


@pytest.mark.parametrize("declare", ["exchange", "passive"])
def test_a_string_that_works(server: QpidServer, declare: str) -> None:
    """It says which product it is, that the exchange is there, and what AMQP does not show; nothing is of RabbitMQ."""
    said = check(f"{server.url}?exchange=shop&declare={declare}", "-t", "orders", "--send")
    assert said.code == 0
    assert f"Apache Qpid Broker-J Core {server.version}" in said.only("server", "ok")
    assert "is there" in said.only("topic", "ok")
    assert "confirmed" in said.only("send", "ok")
    assert "rabbitmq" not in said.out.lower()
    assert len(drain_queue(server.reader_url, "orders-of-the-shop", 1)) == 1


@pytest.mark.parametrize(
    ("change", "step", "code", "says"),
    [
        (lambda url: url.replace("guest:guest", "guest:wrong"), "login", 7, "check user and password"),
        (lambda url: url.replace("/%2F", "/missing"), "access", 7, "no such virtual host"),
        (lambda url: url.replace("amqp:", "amqps:"), "tls", 6, "does not speak TLS"),
        (lambda url: f"{url}?exchange=missing&declare=passive", "topic", 9, "is not there"),
        (lambda url: f"{url}?exchange=shop&exchange_type=direct", "topic", 9, "set exchange_type to its type"),
        (lambda url: f"{url}?exchange=shop&exchange_type=direct&declare=passive", "topic", 9, "set exchange_type"),
        (lambda url: f"{url}?exchange=&declare=never", "topic", 9, "there is no such queue"),
    ],
)
def test_a_string_that_does_not(
    server: QpidServer, change: Callable[[str], str], step: str, code: int, says: str
) -> None:
    """The step that failed, with the reason."""
    said = check(change(server.url), "-t", "orders")
    assert says in said.only(step, "fail")
    assert said.code == code


def test_tls(server: QpidServer, certificates: Certificates) -> None:
    """With the authority it works; without it, and in plain text to that port, it says why not."""
    url = f"amqps://guest:guest@localhost:{server.tls_port}/%2F?exchange=shop"
    assert check(f"{url}&ssl_cafile={certificates.ca}").code == 0
    assert "ssl_cafile" in check(url).only("tls", "fail")
    assert "is a TLS port" in check(url.replace("amqps:", "amqp:")).only("tls", "fail")


def test_a_message_that_no_queue_takes(server: QpidServer) -> None:
    """Only sending shows it."""
    said = check(f"{server.url}?exchange=shop", "-t", "nobody", "--send")
    assert "UnroutableError" in said.only("send", "fail")
