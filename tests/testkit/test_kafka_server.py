"""Private Kafka brokers, one and three nodes: they start, break as told, and come back with their data."""

import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient

from cqrs_brokers_testkit.certificates import Certificates
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.pytest_plugin import UniqueName
from cqrs_brokers_testkit.readers import Record, TooFewRecords, drain_topic
from cqrs_brokers_testkit.servers import KafkaCluster, KafkaServer, ServerFailed, kafka, kafka_cluster
from cqrs_brokers_testkit.servers._kafka_node import Listener, live_nodes

pytestmark = [pytest.mark.live, pytest.mark.timeout(240)]

USERS = {"alice": "alice-secret", "bob": "bob-secret"}


@pytest.fixture(scope="module")
def cluster(certificates: Certificates) -> Iterator[KafkaCluster]:
    with kafka(sasl_users=USERS, certificates=certificates) as cluster:
        yield cluster


def produce(bootstrap_servers: str, topic: str, *values: bytes) -> None:
    """Produce with acks=all and fail unless all is confirmed."""
    errors: list[object] = []
    producer = Producer({"bootstrap.servers": bootstrap_servers, "log_level": 0, "message.timeout.ms": 20000})
    for value in values:
        producer.produce(topic, value, on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(20) == 0
    assert errors == [None] * len(values)


def brokers(bootstrap_servers: str, **settings: str) -> dict[int, str]:
    found = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0, **settings}).list_topics(timeout=5)
    return {broker.id: f"{broker.host}:{broker.port}" for broker in found.brokers.values()}


def test_a_topic_that_goes_on_growing_is_read_to_where_it_was(cluster: KafkaCluster, unique_name: UniqueName) -> None:
    """The reader does not run after the end of a topic that others write to all the time."""
    topic = unique_name("growing")
    cluster.create_topic(topic)
    produce(cluster.bootstrap_servers, topic, *[b"before"] * 30)
    stop = threading.Event()

    def write() -> None:
        producer = Producer({"bootstrap.servers": cluster.bootstrap_servers, "log_level": 0, "linger.ms": 0})
        while not stop.wait(0.02):
            producer.produce(topic, b"meanwhile")
            producer.poll(0)
        producer.flush(20)

    with ThreadPoolExecutor() as pool:
        writing = pool.submit(write)
        try:
            read: list[Record] = []
            while len(read) < 100:  # by then the writer is at work
                read = drain_topic(cluster.bootstrap_servers, topic, timeout=20)
        finally:
            stop.set()
        writing.result()
    assert [record.body for record in read].count(b"before") == 30


def test_what_confluent_produced_is_read_back_in_our_terms(cluster: KafkaCluster, unique_name: UniqueName) -> None:
    """A record in the wire format of cqrs-brokers becomes a Record with every part in its place."""
    topic = unique_name("orders")
    cluster.create_topic(topic, partitions=3)
    when = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers})
    headers: list[tuple[str, str | bytes | None]] = [
        ("message-id", b"7"),
        ("message-name", b"N"),
        ("content-type", b"application/json"),
        ("trace", b"t"),
    ]
    producer.produce(topic, b'{"a":1}', "k", partition=2, timestamp=round(when.timestamp() * 1000), headers=headers)
    assert producer.flush(10) == 0
    (record,) = drain_topic(cluster.url, topic, count=1)
    assert (record.topic, record.key, record.name, record.message_id) == (topic, "k", "N", "7")
    assert (record.headers, record.json(), record.content_type) == ({"trace": "t"}, {"a": 1}, "application/json")
    assert (record.timestamp, record.partition, record.offset) == (when, 2, 0)
    assert record.raw_headers == tuple(headers)


def test_a_reader_returns_everything_and_says_when_too_little_came(
    cluster: KafkaCluster, unique_name: UniqueName
) -> None:
    """More than was waited for is returned; less is an error; a missing topic is named."""
    topic = unique_name("orders")
    cluster.create_topic(topic)
    assert drain_topic(cluster.bootstrap_servers, topic) == []
    produce(cluster.bootstrap_servers, topic, b"1", b"2", b"3")
    assert [record.body for record in drain_topic(cluster.bootstrap_servers, topic, count=1)] == [b"1", b"2", b"3"]
    with pytest.raises(TooFewRecords, match="3 of 4 messages"):
        drain_topic(cluster.bootstrap_servers, topic, count=4, timeout=1.5)
    with pytest.raises(LookupError, match="no-such-topic"):
        drain_topic(cluster.bootstrap_servers, "no-such-topic")


def test_only_committed_records_are_read(cluster: KafkaCluster, unique_name: UniqueName) -> None:
    """A record of an aborted transaction is in the log and not in what the reader returns."""
    topic = unique_name("orders")
    cluster.create_topic(topic)
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers, "transactional.id": topic})
    producer.init_transactions(20)
    for value, commit in ((b"aborted", False), (b"committed", True)):
        producer.begin_transaction()
        producer.produce(topic, value)
        assert producer.flush(10) == 0
        (producer.commit_transaction if commit else producer.abort_transaction)(20)
    assert [record.body for record in drain_topic(cluster.bootstrap_servers, topic, count=1)] == [b"committed"]


def test_topics_are_created_with_settings_and_deleted(cluster: KafkaCluster, unique_name: UniqueName) -> None:
    """A topic setting takes effect; creating a topic twice is an error; a deleted one is gone."""
    topic = unique_name("small")
    cluster.create_topic(topic, config={"max.message.bytes": "1000"})
    refused: list[object] = []
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers})
    producer.produce(topic, b"x" * 5000, on_delivery=lambda error, _: refused.append(error and error.name()))
    producer.flush(10)
    assert refused == ["MSG_SIZE_TOO_LARGE"]
    with pytest.raises(ServerFailed, match="could not create topic"):
        cluster.create_topic(topic)
    cluster.delete_topic(topic)
    with pytest.raises(LookupError):
        drain_topic(cluster.bootstrap_servers, topic)


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
@pytest.mark.parametrize("listener", ["SASL_PLAINTEXT", "SASL_SSL"])
def test_sasl_lets_users_in_and_nobody_else(
    cluster: KafkaCluster, certificates: Certificates, listener: Listener, mechanism: str
) -> None:
    """Both users get in with their passwords by every mechanism, and a wrong password does not."""
    settings = {"security.protocol": listener, "sasl.mechanism": mechanism, "ssl.ca.location": str(certificates.ca)}
    address = cluster.bootstrap(listener)
    for user, password in USERS.items():
        assert brokers(address, **settings, **{"sasl.username": user, "sasl.password": password}) == {1: address}
    with pytest.raises(KafkaException):
        AdminClient(
            {"bootstrap.servers": address, "log_level": 0, **settings, "sasl.username": "alice", "sasl.password": "no"}
        ).list_topics(timeout=1.5)


def test_the_ssl_listener_shows_the_servers_certificate(cluster: KafkaCluster, certificates: Certificates) -> None:
    """A client that trusts the authority gets in; one that trusts another does not."""
    address = cluster.bootstrap("SSL")
    assert brokers(address, **{"security.protocol": "SSL", "ssl.ca.location": str(certificates.ca)}) == {1: address}
    with pytest.raises(KafkaException):
        brokers(address, **{"security.protocol": "SSL", "ssl.ca.location": str(certificates.other_ca)})


@pytest.mark.fault
def test_kill_pause_and_restart_keep_port_and_data(cluster: KafkaCluster, unique_name: UniqueName) -> None:
    """A confirmed record survives SIGKILL, an orderly restart and a freeze; while frozen nothing is answered."""
    topic, (node,) = unique_name("orders"), cluster.nodes
    cluster.create_topic(topic)
    produce(cluster.bootstrap_servers, topic, b"kept")
    node.kill()
    assert live_nodes(node.ports["PLAINTEXT"]) == set()
    node.start()
    before = node.pid
    node.restart()
    assert node.pid != before
    node.pause()
    began = time.monotonic()
    assert live_nodes(node.ports["PLAINTEXT"]) == set()
    assert time.monotonic() - began >= 2  # it was connected and waited for an answer
    node.resume()
    assert [record.body for record in drain_topic(cluster.reader_bootstrap_servers, topic, count=1)] == [b"kept"]


@pytest.mark.fault
def test_a_proxy_stands_between_clients_and_the_broker(unique_name: UniqueName) -> None:
    """Clients come through the advertised proxy, readers past it, and what the proxy cuts is cut."""
    topic = unique_name("orders")
    with FaultProxy() as proxy, kafka(advertised=(proxy.host, proxy.port)) as cluster:
        proxy.target = (proxy.host, cluster.nodes[0].ports["PLAINTEXT"])
        cluster.create_topic(topic)
        assert brokers(proxy.address) == {1: proxy.address}
        produce(proxy.address, topic, b"through")
        assert proxy.accepted >= 2
        proxy.stall()
        producer = Producer({"bootstrap.servers": proxy.address, "log_level": 0, "message.timeout.ms": 1000})
        failed: list[object] = []
        producer.produce(topic, b"stalled", on_delivery=lambda error, _: failed.append(error and error.name()))
        producer.flush(5)
        assert failed == ["_MSG_TIMED_OUT"]
        assert [r.body for r in drain_topic(cluster.reader_bootstrap_servers, topic, count=1)] == [b"through"]


@pytest.mark.fault
def test_three_nodes_keep_a_replicated_topic_when_one_dies(unique_name: UniqueName) -> None:
    """With three copies and the leader killed, records are still confirmed; the node gets back in sync."""
    topic = unique_name("orders")
    with kafka_cluster(3) as cluster:
        cluster.create_topic(topic, replication=3, config={"min.insync.replicas": "2"})
        assert sorted(brokers(cluster.bootstrap_servers)) == [1, 2, 3]
        produce(cluster.bootstrap_servers, topic, b"before")
        leader = cluster.leader(topic)
        cluster.nodes[leader - 1].kill()
        produce(cluster.bootstrap_servers, topic, b"during")
        assert cluster.leader(topic) != leader
        cluster.nodes[leader - 1].start()
        cluster.wait_ready()
        give_up = time.monotonic() + 20
        while cluster.in_sync_replicas(topic) != [1, 2, 3] and time.monotonic() < give_up:
            time.sleep(0.1)
        assert cluster.in_sync_replicas(topic) == [1, 2, 3]
        assert [r.body for r in drain_topic(cluster.bootstrap_servers, topic, count=2)] == [b"before", b"during"]
        pids = [node.pid for node in cluster.nodes]
    assert len(set(pids)) == 3
    assert not any(node.running for node in cluster.nodes)


def test_a_node_that_cannot_start_says_why() -> None:
    """The exception names Kafka's own complaint, and progress the folder that was kept."""
    lines: list[str] = []
    with pytest.raises(ServerFailed, match=r"num\.partitions"):
        with kafka(properties={"num.partitions": "many"}, progress=lines.append):
            pass
    assert lines[-1].startswith("data and logs of kafka are kept in ")
    shutil.rmtree(lines[-1].rpartition(" ")[2])


def test_a_shared_server_is_the_one_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """With shared=True the address in the environment is used, and nothing is started."""
    monkeypatch.setenv("CQRS_TEST_KAFKA_URL", "kafka://h1:9092,h2:9093")
    with kafka(shared=True) as server:
        assert type(server) is KafkaServer
        assert (server.bootstrap_servers, server.url) == ("h1:9092,h2:9093", "kafka://h1:9092,h2:9093")
