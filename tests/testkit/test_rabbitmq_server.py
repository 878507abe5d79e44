"""Private RabbitMQ nodes: they start, break as told, come back with their data, and leave nothing behind."""

import os
import shutil
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime

import pika
import pika.exceptions
import pytest

from cqrs_brokers_testkit.certificates import Certificates
from cqrs_brokers_testkit.pytest_plugin import UniqueName
from cqrs_brokers_testkit.readers import TooFewRecords, bind_queue, drain_queue
from cqrs_brokers_testkit.servers import RabbitMQNode, RabbitMQServer, ServerFailed, rabbitmq

pytestmark = [pytest.mark.live, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def node(certificates: Certificates) -> Iterator[RabbitMQNode]:
    with rabbitmq(certificates=certificates) as node:
        yield node


def connect(url: str) -> pika.BlockingConnection:
    return pika.BlockingConnection(pika.URLParameters(url))


def publish(url: str, exchange: str, routing_key: str, body: bytes, **properties: object) -> None:
    connection = connect(url)
    channel = connection.channel()
    channel.confirm_delivery()
    channel.basic_publish(exchange, routing_key, body, pika.BasicProperties(**properties), mandatory=True)
    connection.close()


def works(url: str) -> bool:
    try:
        connect(url).close()
    except (pika.exceptions.AMQPError, OSError):
        return False
    return True


def process_ends(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_what_pika_published_is_read_back_in_our_terms(node: RabbitMQNode, unique_name: UniqueName) -> None:
    """A message in the wire format of cqrs-brokers becomes a Record with every part in its place."""
    exchange = unique_name("events")
    queue = bind_queue(node.url, exchange, "orders.*")
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    publish(
        node.url,
        exchange,
        "orders.created",
        b'{"a":1}',
        message_id="7",
        type="OrderCreated",
        content_type="application/json",
        timestamp=int(when.timestamp()),
        delivery_mode=2,
        headers={"ordering-key": "k", "trace": "t"},
    )
    (record,) = drain_queue(node.url, queue, count=1)
    assert (record.topic, record.key, record.name, record.message_id) == ("orders.created", "k", "OrderCreated", "7")
    assert (record.headers, record.json(), record.content_type) == ({"trace": "t"}, {"a": 1}, "application/json")
    assert (record.timestamp, record.exchange) == (when, exchange)
    assert record.properties["delivery_mode"] == 2
    assert ("ordering-key", "k") in record.raw_headers


def test_a_reader_says_when_too_little_came_and_returns_more_than_it_waited_for(
    node: RabbitMQNode, unique_name: UniqueName
) -> None:
    """Waiting for 3 of 2 fails and names both; waiting for 1 of 2 returns both."""
    exchange = unique_name("events")
    queue = bind_queue(node.url, exchange)
    for number in range(2):
        publish(node.url, exchange, "a", b"%d" % number)
    with pytest.raises(TooFewRecords, match="2 of 3 messages") as caught:
        drain_queue(node.url, queue, count=3, timeout=0.3)
    assert [record.body for record in caught.value.records] == [b"0", b"1"]
    for number in range(2):
        publish(node.url, exchange, "a", b"%d" % number)
    assert len(drain_queue(node.url, queue, count=1)) == 2
    assert drain_queue(node.url, queue) == []


@pytest.mark.fault
def test_a_killed_node_refuses_connections_and_comes_back_with_its_data(
    node: RabbitMQNode, unique_name: UniqueName
) -> None:
    """After kill and start the same port serves the persistent message that was there."""
    exchange, url = unique_name("events"), node.url
    queue = bind_queue(url, exchange)
    publish(url, exchange, "a", b"kept", delivery_mode=2)
    node.kill()
    assert not node.running
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((node.host, node.port), timeout=1).close()
    node.start()
    assert node.url == url
    assert [record.body for record in drain_queue(url, queue, count=1)] == [b"kept"]


@pytest.mark.fault
def test_a_paused_node_takes_connections_and_says_nothing(node: RabbitMQNode) -> None:
    """While paused the kernel accepts, and no byte of AMQP comes back; after resume it does."""
    node.pause()
    try:
        with socket.create_connection((node.host, node.port), timeout=1) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            connection.settimeout(0.5)
            with pytest.raises(TimeoutError):
                connection.recv(1)
    finally:
        node.resume()
    assert works(node.url)


@pytest.mark.fault
def test_an_orderly_restart_keeps_port_and_data(node: RabbitMQNode, unique_name: UniqueName) -> None:
    """restart() gives a new process with the same queues."""
    queue, before = bind_queue(node.url, unique_name("events")), node.pid
    node.restart()
    assert node.pid != before
    assert drain_queue(node.url, queue) == []


@pytest.mark.fault
def test_stop_app_closes_the_door_and_start_app_opens_it(node: RabbitMQNode) -> None:
    """The node's process lives on without RabbitMQ in it."""
    node.stop_app()
    try:
        assert node.running
        assert not works(node.url)
    finally:
        node.start_app()
    assert works(node.url)


def test_users_vhosts_and_permissions(node: RabbitMQNode) -> None:
    """A user gets into the virtual host that it was given, and no further than its permissions."""
    node.add_vhost("a/b")
    node.add_user("bob", "p@ss/word", vhost=None)
    url = node.url_for("bob", "p@ss/word", vhost="a/b")
    assert not works(url)
    node.set_permissions("bob", vhost="a/b", write="^allowed$")
    connection = connect(url)
    channel = connection.channel()
    channel.confirm_delivery()
    channel.exchange_declare("allowed")
    channel.basic_publish("allowed", "x", b"")
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="ACCESS_REFUSED"):
        channel.basic_publish("amq.topic", "x", b"")
    connection.close()
    assert not works(node.url_for("bob", "wrong", vhost="a/b"))
    node.delete_user("bob")
    node.delete_vhost("a/b")
    assert not works(url)


@pytest.mark.fault
def test_the_memory_alarm_blocks_publishers_until_it_is_cleared(node: RabbitMQNode) -> None:
    """A publisher's connection is told that it is blocked, then that it is not."""
    told: list[str] = []
    connection = connect(node.url)
    connection.add_on_connection_blocked_callback(lambda *_: told.append("blocked"))
    connection.add_on_connection_unblocked_callback(lambda *_: told.append("unblocked"))
    node.set_memory_alarm(True)
    connection.channel().basic_publish("", "nowhere", b"x")
    connection.process_data_events(time_limit=2)
    node.set_memory_alarm(False)
    connection.process_data_events(time_limit=2)
    connection.close()
    assert told == ["blocked", "unblocked"]


@pytest.mark.fault
def test_close_all_connections_closes_them_with_a_reason(node: RabbitMQNode) -> None:
    """A client sees AMQP code 320 and the text."""
    connection = connect(node.url)
    node.close_all_connections("spring cleaning")
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="spring cleaning") as caught:
        connection.process_data_events(time_limit=5)
    assert caught.value.reply_code == 320


def test_the_tls_listener_shows_the_servers_certificate(node: RabbitMQNode, certificates: Certificates) -> None:
    """A client that trusts the authority gets in by name; one that trusts another does not."""
    url = node.url_for(tls=True, host="localhost")
    queue = bind_queue(url, "tls-events", cafile=certificates.ca)
    assert drain_queue(url, queue, cafile=certificates.ca) == []
    with pytest.raises((pika.exceptions.AMQPConnectionError, ssl.SSLError)):
        drain_queue(url, queue, cafile=certificates.other_ca)


def test_a_node_with_certificates_is_ready_when_its_tls_port_is(certificates: Certificates) -> None:
    """The TLS port takes connections at once, after each start."""
    with rabbitmq(certificates=certificates) as node:
        assert node.tls_port is not None
        socket.create_connection(("127.0.0.1", node.tls_port), timeout=2).close()
        node.restart()
        socket.create_connection(("127.0.0.1", node.tls_port), timeout=2).close()


def test_ctl_says_what_failed_without_its_arguments(node: RabbitMQNode) -> None:
    """A failed rabbitmqctl raises with its output; a password among the arguments is not in the text."""
    with pytest.raises(ServerFailed, match="change_password") as caught:
        node.ctl("change_password", "nobody", "hunter2")
    assert "hunter2" not in str(caught.value)


@pytest.mark.fault
def test_two_nodes_run_at_once_and_leave_nothing_behind(node: RabbitMQNode) -> None:
    """A second node has its own ports and data, and its processes and folder are gone after the block."""
    lines: list[str] = []
    with rabbitmq(progress=lines.append) as other:
        pids = [other.pid, other._epmd.pid]
        connection = connect(other.url)
        connection.channel().queue_declare("only-here", durable=True)
        connection.close()
        assert "only-here" in other.ctl("list_queues", "name")
        assert "only-here" not in node.ctl("list_queues", "name")
        folder = other.folder
    assert [pid for pid in pids if not process_ends(pid)] == []
    assert not folder.exists()
    assert not works(other.url)
    assert works(node.url)
    assert lines[0].startswith("starting RabbitMQ ")
    assert "ready after" in lines[1]


@pytest.mark.fault
def test_a_node_that_cannot_start_says_why_and_keeps_its_folder(tmp_path: os.PathLike[str]) -> None:
    """The exception ends with the log, and progress names the folder that was kept."""
    lines: list[str] = []
    with pytest.raises(ServerFailed, match="no_such_setting"):
        with rabbitmq(settings={"no_such_setting": "1"}, progress=lines.append):
            pass
    folder = lines[-1].rpartition(" ")[2]
    assert lines[-1].startswith("data and logs of rabbitmq are kept in ")
    assert os.path.exists(os.path.join(folder, "rabbitmq.log"))
    shutil.rmtree(folder)


def test_a_shared_server_is_the_one_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """With shared=True the URL in the environment is used as it is, and nothing is started."""
    monkeypatch.setenv("CQRS_TEST_AMQP_URL", "amqp://u:p@example.invalid:5673/v")
    with rabbitmq(shared=True) as server:
        assert type(server) is RabbitMQServer
        assert (server.url, server.host, server.port) == ("amqp://u:p@example.invalid:5673/v", "example.invalid", 5673)
        assert "p@" not in repr(server)
