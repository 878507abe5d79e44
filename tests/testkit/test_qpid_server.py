"""Private Apache Qpid brokers: they start, take messages, break as told, and leave nothing behind."""

import time
from collections.abc import Iterator

import pika
import pika.exceptions
import pytest

from cqrs_brokers_testkit.readers import bind_queue, drain_queue
from cqrs_brokers_testkit.servers import QpidServer, ServerUnavailable, qpid
from cqrs_brokers_testkit.servers import _brokers as brokers

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def server() -> Iterator[QpidServer]:
    with qpid() as server:
        yield server


def round_trip(url: str, queue: str) -> bytes | None:
    """Publishes to a new queue and takes the message back out."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True)
        channel.basic_publish("", queue, b"hello")
        for _ in range(50):
            body: bytes | None = channel.basic_get(queue, auto_ack=True)[2]
            if body is not None:
                return body
            time.sleep(0.05)
        return None
    finally:
        connection.close()


def test_readers_use_plain_and_clients_cannot(server: QpidServer) -> None:
    """The readers' port has PLAIN; the other one refuses it, as Qpid does by default without TLS."""
    assert round_trip(server.reader_url, "readers") == b"hello"
    with pytest.raises(pika.exceptions.AuthenticationError, match="PLAIN"):
        round_trip(server.url, "clients")


def test_a_killed_broker_refuses_connections_and_comes_back_with_its_queues(server: QpidServer) -> None:
    """It keeps its ports, and what it has confirmed."""
    ports = (server.port, server.plain_port)
    queue = bind_queue(server.reader_url, "events", "kept", "kept")
    with pika.BlockingConnection(pika.URLParameters(server.reader_url)) as connection:
        properties = pika.BasicProperties(delivery_mode=2)
        connection.channel().basic_publish("events", "kept", b"1", properties)
        assert connection.channel().queue_declare(queue, passive=True).method.message_count == 1
    server.kill()
    assert not server.running
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        round_trip(server.reader_url, "after")
    server.start()
    assert (server.port, server.plain_port) == ports
    assert [record.body for record in drain_queue(server.reader_url, queue, 1)] == [b"1"]


def test_the_version_is_that_of_the_jars(server: QpidServer) -> None:
    """What the server says about itself is the version that reports name."""
    connection = pika.BlockingConnection(pika.URLParameters(server.reader_url))
    said = connection._impl.server_properties
    connection.close()
    assert said["version"] == server.version == brokers.QPID_VERSION
    assert "qpid" in said["product"].lower()


def test_without_java_the_error_says_which_package_helps(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """Nothing is fetched when there is nothing to run it with."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(ServerUnavailable, match=r"Apache Qpid is not available: no Java 17"):
        with qpid(progress=lambda _: None):
            pass
